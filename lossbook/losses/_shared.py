"""What losses of logits and class indices share: checks of their arguments, and the reduction over the batch."""

import torch
from torch import Tensor

from lossbook._validation import (
    check_choice,
    check_dtype,
    check_floating,
    check_same_device,
    check_shape,
    check_target_range,
    check_tensor,
)

REDUCTIONS = ("mean", "sum", "none")


def check_logits(name: str, logits: Tensor) -> None:
    """Require floating-point logits of shape (N, C).

    Raises:
        TypeError: If they are no tensor or not floating point.
        ValueError: If they have another number of dimensions.
    """
    check_tensor(name, logits)
    check_floating(name, logits)
    check_shape(name, logits, "(N, C)", (None, None))


def check_classification(logits: Tensor, target: Tensor) -> None:
    """Require logits of shape (N, C) and N class indices on the same device.

    Raises:
        TypeError: If an argument is no tensor or has another type of number.
        ValueError: If a shape or device differs, or (where values may be read) a class index lies outside [0, C).
    """
    check_logits("logits", logits)
    check_tensor("target", target)
    check_shape("target", target, "(N,)", (logits.shape[0],))
    check_dtype("target", target, torch.int64)
    check_same_device("target", target, "logits", logits)
    check_target_range("target", target, logits.shape[1])


def widen(x: Tensor) -> Tensor:
    """Half precision as float32, in which it is accumulated; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def reduce(losses: Tensor, reduction: str, dtype: torch.dtype) -> Tensor:
    """One loss per example to what the caller asked for, rounded last.

    Args:
        losses: Shape (N,), in the dtype of the computation.
        reduction: ``"mean"`` (over N; NaN if N is 0), ``"sum"`` or ``"none"``.
        dtype: Of the result.

    Raises:
        ValueError: If ``reduction`` is anything else.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    if reduction == "mean":
        losses = losses.mean()
    elif reduction == "sum":
        losses = losses.sum()
    return losses.to(dtype)
