"""Facts about the machine and the versions that a figure depends on, and the check that a device is there."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
#: Packages whose versions the figures depend on.
PACKAGES = ("torch", "triton", "lossbook", "cut-cross-entropy", "liger-kernel")


def describe() -> dict[str, object]:
    """Return versions and processor, without importing the libraries described.

    Returns:
        Names and values that JSON can hold; no host name, no path.
    """
    versions = {name: _version(name) for name in PACKAGES}
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


def device_facts(device: str) -> dict[str, object]:
    """Return what the process that computes knows of its device; imports PyTorch.

    Args:
        device: ``"cpu"`` or a CUDA device that is present.

    Returns:
        The version of PyTorch; for a GPU also its name, memory, cache, compute capability, driver and CUDA version.
    """
    import torch

    facts: dict[str, object] = {"torch": str(torch.__version__)}
    if device == "cpu":
        return facts
    properties = torch.cuda.get_device_properties(device)
    return facts | {
        "gpu": properties.name,
        "device_name": properties.name,
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cache_bytes": properties.L2_cache_size,
    }


def device_text(environment: Mapping[str, Any]) -> str:
    """Return device and versions, without which no absolute time may be shown.

    Args:
        environment: From :func:`describe`, and for a GPU :func:`device_facts`.

    Returns:
        Their names, separated by commas.
    """
    names = {"cuda": "CUDA"} | {name: name for name in ("driver", *PACKAGES)}
    versions = [f"{label} {environment[name]}" for name, label in names.items() if environment.get(name)]
    return ", ".join([str(environment.get("device_name")), *versions])


def _driver() -> str | None:
    """Version of the NVIDIA driver, or None where its own tool is not installed."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.split("\n")[0].strip() or None


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
