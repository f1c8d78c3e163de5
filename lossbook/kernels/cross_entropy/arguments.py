"""Checks and preparation of the arguments that the public functions share."""

import torch
from torch import Tensor

from lossbook._validation import (
    check_choice,
    check_dtype,
    check_floating,
    check_integer,
    check_non_negative,
    check_positive,
    check_range,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
)
from lossbook.kernels._implementations import resolve_triton, triton_obstacle

IMPLEMENTATIONS = ("auto", "torch", "triton", "dense")
REDUCTIONS = ("mean", "sum", "none")
ACCUM_DTYPES = (torch.float32, torch.float64)

# Thresholds of the gradients of (e, c): "auto" errs about as much as one rounding to bfloat16, "fast" about 3x that.
FILTER_PRESETS = {"auto": (2.0**-18, 2.0**-15), "fast": (2.0**-16, 2.0**-14)}


def check_options(
    *,
    ignore_index: int,
    softcap: float | None,
    temperature: float,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    shift: int,
    accum_dtype: torch.dtype,
    impl: str,
    chunk_bytes: int,
) -> None:
    """Check every option that needs no tensor."""
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("impl", impl, IMPLEMENTATIONS)
    check_choice("accum_dtype", accum_dtype, ACCUM_DTYPES)
    check_integer("ignore_index", ignore_index)
    check_softcap(softcap)
    check_positive("temperature", temperature)
    check_range("label_smoothing", label_smoothing, 0, 1)
    check_non_negative("z_loss", z_loss)
    check_integer("shift", shift)
    check_non_negative("shift", shift)
    check_chunk_bytes(chunk_bytes)


def resolve_impl(impl: str, e: Tensor, work: torch.dtype) -> str:
    """The implementation to run for operands like ``e`` and the working dtype: ``impl`` itself unless it is ``"auto"``.

    Raises:
        ImplementationUnavailableError: If ``impl="triton"`` cannot run here.
    """
    if impl not in ("auto", "triton"):
        return impl
    obstacle = triton_obstacle("e", e)
    if obstacle is None and work != torch.float32:
        obstacle = f"accum_dtype must be torch.float32, got {work}"
    return resolve_triton(impl, e, obstacle, "chunks, any device and dtype")


def check_softcap(softcap: float | None) -> None:
    """Require None or a positive cap."""
    if softcap is not None:
        check_positive("softcap", softcap)


def check_chunk_bytes(chunk_bytes: int) -> None:
    """Require a positive number of bytes."""
    check_integer("chunk_bytes", chunk_bytes)
    check_positive("chunk_bytes", chunk_bytes)


def filter_thresholds(
    filter_eps: float | str | tuple[float | None, float | None] | None, filter_e: bool, filter_c: bool
) -> tuple[float | None, float | None]:
    """Thresholds for the gradients of ``e`` and ``c`` from what the user wrote; None where exact."""
    if isinstance(filter_eps, str):
        if filter_eps not in FILTER_PRESETS:
            names = ", ".join(repr(name) for name in FILTER_PRESETS)
            raise ValueError(f"filter_eps must be None, {names}, a number or a pair (eps_e, eps_c), got {filter_eps!r}")
        pair = FILTER_PRESETS[filter_eps]
    elif isinstance(filter_eps, (tuple, list)):
        if len(filter_eps) != 2:
            raise ValueError(f"filter_eps must be a pair (eps_e, eps_c), got {len(filter_eps)} values: {filter_eps!r}")
        pair = tuple(filter_eps)
    else:
        pair = (filter_eps, filter_eps)
    for eps in pair:
        if eps is not None:
            check_positive("filter_eps", eps)
    return (pair[0] if filter_e else None, pair[1] if filter_c else None)


def check_head(e: Tensor, c: Tensor, bias: Tensor | None) -> None:
    """Check hidden states, classifier and bias against each other; dtypes only outside autocast."""
    operands = {"e": e, "c": c} if bias is None else {"e": e, "c": c, "bias": bias}
    for name, value in operands.items():
        check_tensor(name, value)
        check_floating(name, value)
    if e.dim() < 1:
        raise ValueError("e must have shape (..., D), got ()")
    check_shape("c", c, "(V, D)", (None, e.shape[-1]))
    if c.shape[0] < 1:
        raise ValueError(f"c must have at least one row, got shape {tuple(c.shape)}")
    if bias is not None:
        check_shape("bias", bias, "(V,)", (c.shape[0],))
    autocast = torch.is_autocast_enabled(e.device.type)
    for name, value in operands.items():
        check_same_device(name, value, "e", e)
        if not autocast:
            check_same_dtype(name, value, "e", e)


def autocast_operands(e: Tensor, c: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast the operands as ``torch.nn.functional.linear`` would under autocast."""
    device = e.device.type
    if not torch.is_autocast_enabled(device):
        return e, c, bias
    dtype = torch.get_autocast_dtype(device)
    e, c, bias = (value if value is None or value.dtype == torch.float64 else value.to(dtype) for value in (e, c, bias))
    for name, value in (("c", c), ("bias", bias)):
        if value is not None:
            check_same_dtype(name, value, "e", e)
    return e, c, bias


def check_target(name: str, target: Tensor, e: Tensor) -> None:
    """Check class indices against the rows they belong to."""
    check_tensor(name, target)
    check_dtype(name, target, torch.int64)
    check_same_device(name, target, "e", e)
    check_shape(name, target, "e.shape[:-1]", e.shape[:-1])


def check_class_weight(weight: Tensor | None, size: int, e: Tensor) -> None:
    """Check the class weights."""
    if weight is None:
        return
    check_tensor("weight", weight)
    check_floating("weight", weight)
    check_same_device("weight", weight, "e", e)
    check_shape("weight", weight, "(V,)", (size,))


def shift_pairs(e: Tensor, target: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Pair the state at position ``t`` with the target at ``t + shift``."""
    if shift == 0:
        return e, target
    if target.dim() < 1:
        raise ValueError(f"shift must be 0 for a single token, got {shift}")
    length = target.shape[-1]
    if shift >= length:
        raise ValueError(f"shift must lie in [0, sequence length) = [0, {length}), got {shift}")
    return e[..., :-shift, :], target[..., shift:]
