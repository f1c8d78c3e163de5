"""Metrics of learning curves: how test loss depends on model size, data or learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lossbook._validation import check_positive

__all__ = ["peak_height"]


def peak_height(
    sizes: ArrayLike, test_losses: ArrayLike, threshold: float, *, window: Sequence[float] = (0.6, 1.7)
) -> float:
    r"""How far test loss rises near the interpolation threshold above both sides of it.

    With test loss :math:`L(p)` at model size :math:`p`, threshold :math:`n` and window :math:`[a, b]`,

    .. math:: h = \frac{\max_{an \le p \le bn} L(p)}{\max\big(\min_{p < an} L(p),\, \min_{p > bn} L(p)\big)} .

    Above 1 the loss falls, rises and falls again with size: double descent.

    Args:
        sizes: Model sizes :math:`p`, shape ``(P,)``, in any order.
        test_losses: Test loss at each size, shape ``(P,)``, in any unit.
        threshold: Size :math:`n` at which the model just interpolates its training data, ``> 0``.
        window: Bounds :math:`(a, b)` of the region around the threshold, in units of the threshold. Default (0.6, 1.7).

    Returns:
        The height :math:`h`, dimensionless.

    Raises:
        TypeError: If ``threshold`` is not a number.
        ValueError: If the shapes differ, ``threshold`` is not positive, ``window`` is not an interval, or no size lies
            in the window, below it or above it.

    Examples:
        >>> peak_height([10, 50, 100, 200, 400], [2.0, 1.0, 6.0, 3.0, 0.5], 100)
        6.0

    References:
        This package's own number for the curves of Liu and Flanigan (2023), Understanding the Role of Optimization in
        Double Descent. Chapter 4 (:doc:`/notebooks/04_double_descent`).
    """
    sizes, losses = np.asarray(sizes, dtype=float), np.asarray(test_losses, dtype=float)
    if sizes.ndim != 1:
        raise ValueError(f"sizes must have shape (P,), got {sizes.shape}")
    if losses.shape != sizes.shape:
        raise ValueError(f"test_losses must have shape (P,) = {sizes.shape}, got {losses.shape}")
    check_positive("threshold", threshold)
    low, high = window
    if not 0 < low < high:
        raise ValueError(f"window must be an increasing pair of positive numbers, got {tuple(window)}")
    below, above = sizes < low * threshold, sizes > high * threshold
    for name, part in (("below", below), ("in", ~below & ~above), ("above", above)):
        if not part.any():
            bounds = f"[{low * threshold:g}, {high * threshold:g}]"
            raise ValueError(f"sizes must hold one {name} the window {bounds}, got {sizes.tolist()}")
    sides = max(losses[below].min(), losses[above].min())
    return float(losses[~below & ~above].max() / sides)
