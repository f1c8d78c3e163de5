"""Metrics of learning curves: how results depend on model size, data or learning rate, and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lossbook._validation import check_positive

__all__ = ["continual_summary", "peak_height"]


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


def continual_summary(acc: ArrayLike) -> dict[str, float]:
    r"""How accurate a learner of one task after the other is at the end, and how much it has forgotten.

    With the accuracy :math:`a_{tu}` on task :math:`u` after learning task :math:`t`, of :math:`T` tasks,

    .. math::

        \mathrm{accuracy} = \frac{1}{T} \sum_{u=1}^{T} a_{Tu} , \qquad
        \mathrm{forgetting} = \frac{1}{T - 1} \sum_{u=1}^{T-1} \Bigl( \max_{u \le t \le T} a_{tu} - a_{Tu} \Bigr) .

    Args:
        acc: Accuracies, shape ``(T, T)``: row t after task t, column u on task u, as shares or in percent. What stands
            above the diagonal, for tasks not yet learned, is ignored and may be NaN.

    Returns:
        ``accuracy`` and ``forgetting``, in the unit of ``acc``. Forgetting is ``>= 0``, and 0 for a single task.

    Raises:
        ValueError: If ``acc`` is not square with at least one row, or not finite on and below the diagonal.

    Examples:
        >>> summary = continual_summary([[0.9, 0.0], [0.6, 0.8]])
        >>> round(summary["accuracy"], 6), round(summary["forgetting"], 6)
        (0.7, 0.3)

    References:
        Lin et al. (2025), metrics; chapter 11 (:doc:`/notebooks/11_contrastive_replay`). Others take the maximum over
        earlier tasks only, so that forgetting may be negative.
    """
    acc = np.asarray(acc, dtype=float)
    if acc.ndim != 2 or acc.shape[0] != acc.shape[1] or len(acc) < 1:
        raise ValueError(f"acc must have shape (T, T) with T >= 1, got {acc.shape}")
    learned = acc[np.tril_indices(len(acc))]
    if not np.isfinite(learned).all():
        broken = learned[~np.isfinite(learned)][0]
        raise ValueError(f"acc must be finite on and below the diagonal, got {broken}")
    final = acc[-1]
    best = np.array([acc[task:, task].max() for task in range(len(acc))])
    # The last task adds a zero.
    return {"accuracy": float(final.mean()), "forgetting": float((best - final).sum() / max(len(acc) - 1, 1))}
