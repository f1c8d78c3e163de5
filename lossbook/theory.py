"""Bounds and closed forms that chapters prove their experiments against."""

import math

import torch
from torch import Tensor

from lossbook._validation import (
    check_floating,
    check_integer,
    check_non_negative,
    check_number,
    check_tensor,
    values_are_readable,
)

__all__ = ["best_conditional_risk", "h_consistency_bound", "h_consistency_transform"]


def h_consistency_transform(beta: float, *, tau: float, num_classes: int) -> float:
    r"""Least surrogate excess that an error excess of ``beta`` costs under :func:`lossbook.losses.comp_sum_loss`.

    With :math:`C` classes and :math:`a = 1 / (2 - \tau)`,

    .. math::

        T_\tau(\beta) = \frac{1}{(\tau - 1) k^{\tau - 1}}
        \Bigl[ \Bigl( \tfrac12 (1 + \beta)^a + \tfrac12 (1 - \beta)^a \Bigr)^{2 - \tau} - 1 \Bigr], \qquad
        k = \begin{cases} 2 & \tau < 1 \\ C & \tau > 1 \end{cases}

    for :math:`\tau < 2`, with the limit
    :math:`\frac12 (1 + \beta) \log(1 + \beta) + \frac12 (1 - \beta) \log(1 - \beta)` at :math:`\tau = 1`, and
    :math:`T_\tau(\beta) = \beta / ((\tau - 1) C^{\tau - 1})` for :math:`\tau \ge 2`. It is convex and increasing. For a
    symmetric and complete model class, :math:`T_\tau` of the excess error (with its minimizability gap) is at most the
    excess surrogate loss (with its gap). No larger function has this property for :math:`\tau \le 1`, nor for
    :math:`\tau < 2` with two classes; otherwise the factor :math:`C^{\tau - 1}` is generous.

    Args:
        beta: Excess of the error rate, in [0, 1].
        tau: Member of the comp-sum family, ``>= 0``.
        num_classes: Number of classes :math:`C`, ``>= 2``.

    Returns:
        The excess of the loss, in the loss's unit (nats at ``tau=1``).

    Raises:
        ValueError: If ``beta`` lies outside [0, 1], ``tau`` is negative or not finite, or ``num_classes < 2``.
        TypeError: If ``beta`` or ``tau`` is not a number or ``num_classes`` not an int.

    Examples:
        >>> round(h_consistency_transform(0.1, tau=1.0, num_classes=10), 6)  # about beta**2 / 2 nats
        0.005008

    References:
        Mao, Mohri and Zhong (2023), H-consistency bounds of comp-sum losses; :doc:`/notebooks/01_comp_sum`.
    """
    check_number("beta", beta)
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta!r}")
    _check_family(tau, num_classes)
    if beta == 0:
        return 0.0
    if tau >= 2:
        return beta / ((tau - 1) * num_classes ** (tau - 1))
    if tau == 1:
        return math.log(2) if beta == 1 else beta * math.atanh(beta) + _log_one_minus_square(beta) / 2
    classes = 2 if tau < 1 else num_classes
    return math.expm1(_log_power_mean(beta, tau)) / ((tau - 1) * classes ** (tau - 1))


def h_consistency_bound(excess: float, *, tau: float, num_classes: int) -> float:
    r"""Largest error excess that a surrogate excess leaves room for: the inverse of :func:`h_consistency_transform`.

    Args:
        excess: Excess of the loss over its best value for the model class, plus the minimizability gap, ``>= 0``, in
            the loss's unit (nats at ``tau=1``). Infinity is allowed.
        tau: Member of the comp-sum family, ``>= 0``.
        num_classes: Number of classes, ``>= 2``.

    Returns:
        The largest :math:`\beta \in [0, 1]` with :math:`T_\tau(\beta)` at most ``excess``, found by bisection; 1 from
        :math:`T_\tau(1)` on, where the bound says nothing.

    Raises:
        ValueError: If ``excess`` is negative or NaN, ``tau`` is negative or not finite, or ``num_classes < 2``.
        TypeError: If ``excess`` or ``tau`` is not a number or ``num_classes`` not an int.

    Examples:
        >>> round(h_consistency_bound(0.005, tau=1.0, num_classes=10), 4)  # about sqrt(2 * excess)
        0.0999

    References:
        Mao, Mohri and Zhong (2023), H-consistency bounds of comp-sum losses; :doc:`/notebooks/01_comp_sum`.
    """
    if excess != math.inf:
        check_non_negative("excess", excess)
    _check_family(tau, num_classes)
    if excess == 0:
        return 0.0
    if excess >= h_consistency_transform(1.0, tau=tau, num_classes=num_classes):
        return 1.0
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:  # until no number lies between: precise for small excesses too
        if h_consistency_transform(middle, tau=tau, num_classes=num_classes) <= excess:
            low = middle
        else:
            high = middle
    return low


def best_conditional_risk(p: Tensor, *, tau: float) -> Tensor:
    r"""Least expected comp-sum loss at one input, over all scores, when its label has probabilities ``p``.

    With :math:`a = 1 / (2 - \tau)`,

    .. math::

        \mathcal{C}^*_\tau(p) = \frac{\bigl( \sum_c p_c^a \bigr)^{2 - \tau} - 1}{1 - \tau}

    for :math:`\tau < 2`, whose limit at :math:`\tau = 1` is the entropy of :math:`p`, and
    :math:`(1 - \max_c p_c) / (\tau - 1)` for :math:`\tau \ge 2`. Below 2 it is attained by the softmax probabilities
    :math:`p_c^a / \sum_{c'} p_{c'}^a`; from 2 on it is approached as the likeliest class takes all, and attained by no
    finite scores. Averaged over the inputs, it is what the minimizability gap of a model class is measured from; at the
    marginal probabilities of the classes, it is the least loss of a constant predictor.

    Args:
        p: Class probabilities along the last dimension, shape ``(..., C)``, floating point, ``C >= 1``.
        tau: Member of the comp-sum family, ``>= 0``.

    Returns:
        Shape ``(...)``, dtype of ``p``, in the loss's unit (nats at ``tau=1``).

    Raises:
        ValueError: If ``tau`` is negative or not finite, ``p`` has no last dimension, or (where values may be read) an
            entry is negative or a sum is not 1.
        TypeError: If ``p`` is not floating point or ``tau`` not a number.

    Examples:
        >>> p = torch.tensor([0.5, 0.25, 0.25])
        >>> [round(best_conditional_risk(p, tau=tau).item(), 4) for tau in (0, 1, 2)]
        [1.9142, 1.0397, 0.5]

    References:
        Mao, Mohri and Zhong (2023), analysis of the minimizability gaps; :doc:`/notebooks/01_comp_sum`.
    """
    check_tensor("p", p)
    check_floating("p", p)
    if p.dim() == 0 or p.shape[-1] == 0:
        raise ValueError(f"p must have shape (..., C) with C >= 1, got {tuple(p.shape)}")
    if values_are_readable(p):
        tolerance = max(1e-6, 100 * torch.finfo(p.dtype).eps)
        if not ((p >= 0).all() and ((p.sum(-1) - 1).abs() <= tolerance).all()):
            low, sums = p.min().item(), p.sum(-1)
            raise ValueError(
                "p must be non-negative and sum to 1 along its last dimension, "
                f"got entries from {low:.4g} and sums from {sums.min().item():.6g} to {sums.max().item():.6g}"
            )
    check_non_negative("tau", tau)
    if tau >= 2:
        return (1 - p.amax(-1)) / (tau - 1)
    # p log p and its relatives are 0 at p = 0; the 1 put there keeps their gradients finite.
    log_p = p.where(p > 0, 1).log()
    if tau == 1:
        return -(p * log_p).sum(-1)
    if tau < 1.5:
        # Near 1 the sum is near 1: collect what differs from 1, without rounding it away.
        log_sum = (p * ((tau - 1) / (2 - tau) * log_p).expm1()).sum(-1).log1p()
    else:
        log_sum = (log_p / (2 - tau)).masked_fill(p <= 0, -math.inf).logsumexp(-1)
    return ((2 - tau) * log_sum).expm1() / (1 - tau)


def _check_family(tau: float, num_classes: int) -> None:
    check_non_negative("tau", tau)
    check_integer("num_classes", num_classes)
    if num_classes < 2:
        raise ValueError(f"num_classes must be >= 2, got {num_classes}")


def _log_one_minus_square(x: float) -> float:
    return math.log1p(-x * x) if x < 0.5 else math.log1p(x) + math.log1p(-x)


def _log_power_mean(beta: float, tau: float) -> float:
    """Logarithm of (((1 + beta)^a + (1 - beta)^a) / 2)^(2 - tau), which is 0 at beta = 0 and at tau = 1."""
    excess = (tau - 1) / (2 - tau)  # a - 1, without losing its digits near tau = 1
    if beta == 1:
        return (2 - tau) * excess * math.log(2)
    if excess * math.log1p(beta) > 1:
        # Powers may overflow: factor the larger one out.
        ratio = ((1 - beta) / (1 + beta)) ** (excess + 1)
        return math.log1p(beta) + (2 - tau) * (math.log1p(ratio) - math.log(2))
    # The mean minus 1, from the mean and half the difference of log(1 + beta) and log(1 - beta): every term below is of
    # the order of beta^2, so no digits are lost where beta is small, nor where tau is near 1.
    center, spread = excess * _log_one_minus_square(beta) / 2, excess * math.atanh(beta)
    mean_minus_one = (
        math.expm1(center) * math.cosh(spread)
        + 2 * math.sinh(spread / 2) ** 2
        + beta * math.exp(center) * math.sinh(spread)
    )
    return (2 - tau) * math.log1p(mean_minus_one)
