"""Facts about the machine and the versions that a figure depends on, and the check that a device is there."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def describe() -> dict[str, object]:
    """Return versions and processor, without importing the libraries described.

    Returns:
        Names and values that JSON can hold; no host name, no path.
    """
    versions = {name: _version(name) for name in ("lossbook", "torch", "triton")}
    return {
        **versions,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device_name": _processor(),
        "logical_cpus": os.cpu_count(),
    }


def require_device(device: str) -> None:
    """Raise unless PyTorch can use ``device`` here.

    Args:
        device: ``"cpu"`` or a CUDA device.

    Raises:
        ValueError: If the device is of another kind, or no such GPU is present.
    """
    if device == "cpu":
        return
    if device.split(":")[0] != "cuda":
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    import torch

    if not torch.cuda.is_available():
        raise ValueError(
            f"device must be present, got {device!r}: PyTorch {torch.__version__} sees no GPU here. "
            "Run this on a machine with an NVIDIA GPU and a CUDA build of PyTorch, or take device 'cpu'"
        )
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device must be one of the {torch.cuda.device_count()} GPUs of this machine, got {device!r}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
