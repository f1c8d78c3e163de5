"""The least time a device could take: floating-point operations and bytes over its ceilings."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: bfloat16 matrix products of 8192 x 8192 x 8192 by torch on one NVIDIA H200, in 10^12 operations per second.
H200_TFLOPS = 790.0
#: Copies on the same device, in 10^12 bytes per second, reads and writes counted.
H200_TERABYTES = 4.3
#: Bytes of one element of each dtype that the benchmarks accept.
ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

EXACT_PRODUCTS = 3.0
TWO_PASS_PRODUCTS = 4.0


@dataclass(frozen=True)
class Roofline:
    """Floors of the cross-entropy of a linear head, in seconds and bytes.

    Attributes:
        forward: Seconds of one product of ``2 N V D`` operations, the logits: the floor of every forward pass.
        exact: Seconds of three products, the floor of forward and backward with exact gradients.
        two_pass: Seconds of four products: exact gradients, and the logits computed again in the backward pass.
        filtered: Seconds with a gradient filter that keeps the given fractions; None if none was given.
        gradient_bytes: Size of the two gradients, which every method writes.
        gradient_seconds: Seconds that writing them takes; not contained in the figures above.
        logits_bytes: Size of the logit matrix in the same dtype, which a cut loss does not hold.
    """

    forward: float
    exact: float
    two_pass: float
    filtered: float | None
    gradient_bytes: int
    gradient_seconds: float
    logits_bytes: int


def roofline(
    n: int,
    vocab: int,
    dim: int,
    dtype: str = "bfloat16",
    *,
    f: float | tuple[float, float] | None = None,
    tflops: float | None = None,
    terabytes: float = H200_TERABYTES,
) -> Roofline:
    r"""Compute the floors of forward and backward from the sizes alone.

    With :math:`g = 2 N V D / \text{ceiling}`, the floors are :math:`g` for the forward pass, :math:`3g` for both passes
    with exact gradients, :math:`4g` if the logits are computed twice, and for a filter that keeps the fractions
    :math:`f_e` and :math:`f_c` of the columns

    .. math:: \min\{3,\; 1 + \max(f_e, f_c) + f_e + f_c\}\, g ,

    the logits once, the kept ones a second time, and the kept part of the two gradients: :math:`(1 + 3f)\, g` for one
    :math:`f`, and never more than without the filter.

    Args:
        n: Number of tokens :math:`N \ge 1`.
        vocab: Vocabulary size :math:`V \ge 1`.
        dim: Width :math:`D \ge 1`.
        dtype: ``"bfloat16"`` (default), ``"float16"``, ``"float32"`` or ``"float64"``; sets the bytes.
        f: Fraction of columns kept, in ``[0, 1]``, or the pair :math:`(f_e, f_c)`. Default None: no filter.
        tflops: Ceiling of the device for matrix products of this dtype, in :math:`10^{12}` operations per second.
            Default for the two 16-bit dtypes: 790, measured on one H200; the others have no default.
        terabytes: Copy bandwidth in :math:`10^{12}` bytes per second. Default 4.3, an H200.

    Returns:
        The floors.

    Raises:
        ValueError: If an argument is not as above.

    Examples:
        >>> floors = roofline(8192, 256000, 2304, f=0.1)  # the head of Gemma 2 2B
        >>> [round(1e3 * seconds, 1) for seconds in (floors.forward, floors.exact, floors.filtered)]
        [12.2, 36.7, 15.9]

    References:
        Williams, Waterman and Patterson (2009), Roofline: An Insightful Visual Performance Model for Multicore
        Architectures. Chapter 17 (:doc:`/notebooks/17_cut_cross_entropy`).
    """
    for name, size in (("n", n), ("vocab", vocab), ("dim", dim)):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be an int >= 1, got {size!r}")
    if dtype not in ITEM_BYTES:
        raise ValueError(f"dtype must be one of {list(ITEM_BYTES)}, got {dtype!r}")
    if tflops is None:
        if ITEM_BYTES[dtype] != 2:
            raise ValueError(f"tflops must be given for dtype {dtype!r}: only 16-bit dtypes have a default, got None")
        tflops = H200_TFLOPS
    for name, value in (("tflops", tflops), ("terabytes", terabytes)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
    forward = 2 * n * vocab * dim / (tflops * 1e12)
    gradient_bytes = ITEM_BYTES[dtype] * dim * (n + vocab)
    return Roofline(
        forward=forward,
        exact=EXACT_PRODUCTS * forward,
        two_pass=TWO_PASS_PRODUCTS * forward,
        filtered=None if f is None else filtered_products(*_fractions(f)) * forward,
        gradient_bytes=gradient_bytes,
        gradient_seconds=gradient_bytes / (terabytes * 1e12),
        logits_bytes=ITEM_BYTES[dtype] * n * vocab,
    )


def filtered_products(f_e: float, f_c: float) -> float:
    """Return the products of ``2 N V D`` operations that forward and backward need under a gradient filter.

    Args:
        f_e: Fraction of the columns that the gradient of the hidden states keeps.
        f_c: The same for the gradient of the classifier.

    Returns:
        Between 1, when nothing is kept, and 3, the work without a filter.
    """
    return min(EXACT_PRODUCTS, 1 + max(f_e, f_c) + f_e + f_c)


def _fractions(f: float | tuple[float, float]) -> tuple[float, float]:
    pair = tuple(f) if isinstance(f, tuple | list) else (f, f)
    if len(pair) != 2 or not all(0 <= fraction <= 1 for fraction in pair):
        raise ValueError(f"f must be a fraction in [0, 1] or a pair of them, got {f!r}")
    return pair
