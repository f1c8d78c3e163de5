"""Which implementation of a kernel runs: the choice behind every ``impl`` argument."""

import importlib.util
import os
from collections.abc import Sequence

import torch
from torch import Tensor

# Found without importing it, and once: the compiler cannot trace the search.
_TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None
# What the Triton kernels compute with.
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class ImplementationUnavailableError(ValueError, RuntimeError):
    """The implementation asked for exists by name but cannot run here; the message says which one can.

    A ``ValueError`` because another value of ``impl`` works, and a ``RuntimeError`` because the same value may work
    on another machine.
    """


def triton_obstacle(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype] = TRITON_DTYPES) -> str | None:
    """Why Triton kernels cannot run on ``tensor``, the argument called ``name``; None if they can."""
    if not _TRITON_IS_INSTALLED:
        return "triton is not installed"
    if not (_on_gpu(tensor) or (tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")):
        return (
            f"{name} must be on a GPU, or on the CPU with TRITON_INTERPRET=1 set (Triton's interpreter), "
            f"got {tensor.device}"
        )
    if tensor.dtype not in dtypes:
        *others, last = map(str, dtypes)
        return f"{name} must have dtype {', '.join(others)} or {last}, got {tensor.dtype}"
    return None


def resolve_triton(impl: str, tensor: Tensor, obstacle: str | None, fallback: str) -> str:
    """``"triton"`` or ``"torch"``, for an ``impl`` of ``"auto"`` or ``"triton"`` and operands like ``tensor``.

    Args:
        impl: What the user wrote.
        tensor: An operand; ``"auto"`` takes Triton on a GPU only.
        obstacle: Why Triton cannot run, or None.
        fallback: What ``impl="torch"`` is, for the message.

    Raises:
        ImplementationUnavailableError: If ``impl="triton"`` cannot run here.
    """
    if impl == "auto":
        return "torch" if obstacle or not _on_gpu(tensor) else "triton"
    if obstacle:
        raise ImplementationUnavailableError(
            f"impl='triton' cannot run: {obstacle}; use impl='torch' ({fallback}), or impl='auto' to have it chosen "
            "where Triton cannot run"
        )
    return "triton"


def _on_gpu(tensor: Tensor) -> bool:
    # ROCm devices carry this name too.
    return tensor.device.type == "cuda"
