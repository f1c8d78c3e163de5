"""Checks of arguments shared by the whole package, so that every error message has one form.

``target must have shape (N,) = (4,), got (5,)``: the argument, what was expected in symbols and in numbers,
and what came.  Shapes and types are checked always.  Values inside tensors are looked at only where looking is
cheap and allowed, see :func:`values_are_readable`.
"""

import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DEBUG_VARIABLE = "LOSSBOOK_DEBUG"


def values_are_readable(tensor: Tensor) -> bool:
    """Whether a check may read the values of ``tensor``.

    Not while compiling, where a data-dependent branch would break the graph, nor for subclasses, which may have no
    values (fake tensors), nor inside ``torch.func.vmap``, where one tensor stands for many.  On a GPU only with
    ``LOSSBOOK_DEBUG=1``, because reading waits for the device.
    """
    if torch.compiler.is_compiling() or type(tensor) is not Tensor or tensor.device.type == "meta":
        return False
    # torch has no public way to ask whether a tensor is inside one of its function transforms.
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    return tensor.device.type == "cpu" or os.environ.get(DEBUG_VARIABLE) == "1"


def check_tensor(name: str, value: Any) -> None:
    """Require a plain tensor.

    Raises:
        TypeError: If ``value`` is not a tensor.
        ValueError: If it is a ``DTensor``, whose shards the kernels cannot see.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not torch.compiler.is_compiling() and _is_dtensor(value):
        raise ValueError(
            f"{name} must be a plain tensor, got a DTensor; pass {name}.to_local(), and if the vocabulary is sharded "
            "also vocab_parallel=VocabParallel(start, stop, group)"
        )


def _is_dtensor(value: Tensor) -> bool:
    # Whoever made a DTensor has imported its module; importing it here would cost everyone else a second.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def check_floating(name: str, tensor: Tensor) -> None:
    """Require a real floating-point dtype.

    Raises:
        TypeError: If the dtype is not floating point.
    """
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}")


def check_dtype(name: str, tensor: Tensor, expected: torch.dtype) -> None:
    """Require one dtype.

    Raises:
        TypeError: If the dtype differs.
    """
    if tensor.dtype != expected:
        raise TypeError(f"{name} must have dtype {expected}, got {tensor.dtype}")


def check_same_dtype(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Require the dtype of another argument.

    Raises:
        ValueError: If the dtypes differ.
    """
    if tensor.dtype != other.dtype:
        raise ValueError(f"{name} must have the dtype of {other_name}, {other.dtype}, got {tensor.dtype}")


def check_same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Require the device of another argument.

    Raises:
        ValueError: If the devices differ.
    """
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}")


def check_shape(name: str, tensor: Tensor, symbols: str, expected: Sequence[int | None]) -> None:
    """Require a shape; ``None`` in ``expected`` accepts any size there and is shown as ``*``.

    Args:
        name: The argument, for the message.
        tensor: The tensor to look at.
        symbols: The shape in symbols, such as ``"(N, C)"``.
        expected: The shape in numbers.

    Raises:
        ValueError: If the shape differs.
    """
    shape = tuple(tensor.shape)
    if len(shape) == len(expected) and all(
        want is None or want == size for size, want in zip(shape, expected, strict=True)
    ):
        return
    raise ValueError(f"{name} must have shape {symbols} = {_shape_text(expected)}, got {_shape_text(shape)}")


def _shape_text(shape: Sequence[int | None]) -> str:
    sizes = ["*" if size is None else str(size) for size in shape]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Require one of a few values.

    Raises:
        ValueError: If ``value`` is none of ``choices``.
    """
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")


def check_integer(name: str, value: Any) -> None:
    """Require a Python integer.

    Raises:
        TypeError: If ``value`` is a bool or anything but an int.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}")


def check_number(name: str, value: Any) -> None:
    """Require a finite Python number.

    Raises:
        TypeError: If ``value`` is neither int nor float.
        ValueError: If it is infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    # math.isfinite would break the graph of torch.compile, which takes a number that changes for a symbol.
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Require a finite number above zero.

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If it is not finite and ``> 0``.
    """
    check_number(name, value)
    if value <= 0:
        raise ValueError(f"{name} must be > 0, got {value!r}")


def check_non_negative(name: str, value: Any) -> None:
    """Require a finite number that is not below zero.

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If it is not finite and ``>= 0``.
    """
    check_number(name, value)
    if value < 0:
        raise ValueError(f"{name} must be >= 0, got {value!r}")


def check_range(name: str, value: Any, low: float, high: float) -> None:
    """Require a number in the half-open interval ``[low, high)``.

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If it lies outside.
    """
    check_number(name, value)
    if not low <= value < high:
        raise ValueError(f"{name} must lie in [{low}, {high}), got {value!r}")


def check_target_range(
    name: str, target: Tensor, count: int, *, symbol: str = "C", ignore_index: int | None = None
) -> None:
    """Require class indices in ``[0, count)``, or ``ignore_index`` where one is given.

    Skipped where the values may not be read, see :func:`values_are_readable`.

    Raises:
        ValueError: If an entry lies outside; the message shows the first one.
    """
    if not values_are_readable(target):
        return
    outside = (target < 0) | (target >= count)
    if ignore_index is not None:
        outside &= target != ignore_index
    if outside.any():
        or_ignored = "" if ignore_index is None else f" or equal ignore_index = {ignore_index}"
        raise ValueError(
            f"{name} must lie in [0, {symbol}) = [0, {count}){or_ignored}, got {int(target[outside].reshape(-1)[0])}"
        )
