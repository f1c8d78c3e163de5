"""Labels as integers of 8 or 4 bits: asymmetric between the least and the largest channel of each token."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def quantize(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Integers, step and zero of each row of ``x``: ``x ~ step * u + zero``.

    Args:
        x: Shape ``(..., r)``; taken as float32 unless it is float64.
        bits: 8 or 4.

    Returns:
        Integers as :func:`pack` stores them, and the steps and zeros, float16, shape ``(...)``.  The integers are found
        with the step and the zero as rounded to float16, so that this rounding adds no error of its own.
    """
    x, levels = x if x.dtype == torch.float64 else x.float(), 2**bits - 1
    zero = x.amin(-1).half()
    step = ((x.amax(-1) - zero.to(x.dtype)) / levels).half()
    divisor = torch.where(step == 0, 1, step).to(x.dtype)
    u = ((x - zero.to(x.dtype)[..., None]) / divisor[..., None] + 0.5).floor().clamp(0, levels)
    return pack(u.to(torch.uint8), bits), step, zero


def dequantize(stored: Tensor, step: Tensor, zero: Tensor, bits: int, channels: int, dtype: torch.dtype) -> Tensor:
    """The numbers that stored integers stand for, shape ``(..., channels)``."""
    u = unpack(stored, bits, channels).to(dtype)
    return step.to(dtype)[..., None] * u + zero.to(dtype)[..., None]


def stored_width(channels: int, bits: int) -> int:
    """Entries that hold a token's labels."""
    return -(-channels // 2) if bits == 4 else channels


def pack(u: Tensor, bits: int) -> Tensor:
    """Two integers of 4 bits per byte, the earlier one in the low half; others as they are."""
    if bits != 4:
        return u
    low, high = pad(u, (0, u.shape[-1] % 2)).unflatten(-1, (-1, 2)).unbind(-1)
    return low | (high << 4)


def unpack(stored: Tensor, bits: int, channels: int) -> Tensor:
    """The inverse of :func:`pack`."""
    if bits != 4:
        return stored
    return torch.stack((stored & 15, stored >> 4), -1).flatten(-2)[..., :channels]
