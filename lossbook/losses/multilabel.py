r"""Losses of queries with several right labels each, and the soft top-k operator behind one of them.

All add up the surprise :math:`-\log r_j` at the right labels :math:`j` of a query; they differ in what a right label is
compared with: with every label (softmax), with the wrong ones only (decoupled), or with one threshold per query that
lets k labels through (soft top-k).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lossbook._validation import (
    check_floating,
    check_integer,
    check_number,
    check_positive,
    check_same_device,
    check_shape,
    check_tensor,
    values_are_readable,
)
from lossbook.losses._positives import reduce_anchors
from lossbook.losses._shared import widen

__all__ = ["decoupled_softmax", "log_soft_topk", "multilabel_softmax", "soft_topk", "soft_topk_loss"]


def multilabel_softmax(logits: Tensor, target: Tensor, *, normalize: bool = False, reduction: str = "mean") -> Tensor:
    r"""Cross-entropy of each right label among all labels, the other right ones included.

    For query :math:`i` with logits :math:`s_{ij}` and right labels :math:`P_i = \{ j : y_{ij} = 1 \}`,

    .. math:: \ell_i = -\sum_{j \in P_i} \log \frac{e^{s_{ij}}}{\sum_{l} e^{s_{il}}} .

    With ``normalize=True`` it is divided by :math:`|P_i|`. Since the right labels share one denominator, the best value
    is :math:`|P_i| \log |P_i|`, at equal probabilities: a right label with a probability above :math:`1 / |P_i|` is
    pushed down. With one right label this is :func:`torch.nn.functional.cross_entropy`. The value is in nats.

    Args:
        logits: Scores :math:`s`, shape ``(N, L)``, floating point; divide similarities by a temperature first. float16
            and bfloat16 are accumulated in float32.
        target: Which labels are right, :math:`y`, shape ``(N, L)``, bool or 0 and 1 of any dtype.
        normalize: Whether to divide by the number of right labels. Default False.
        reduction: ``"mean"`` (over N, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``logits``. A query without a right label has loss zero and
        counts in the mean; if no query has one, the result comes with a :class:`~lossbook.losses.NoPositivesWarning`.

    Raises:
        TypeError: If an argument is no tensor or ``logits`` is not floating point.
        ValueError: If a shape, an entry of ``target`` or ``reduction`` is not as above.

    Examples:
        >>> multilabel_softmax(torch.zeros(1, 4), torch.tensor([[1, 1, 0, 0]]))  # 2 log 4
        tensor(2.7726)

    References:
        Gupta et al. (2024), Section 4, whose public code does not divide either; chapter 7
        (:doc:`/notebooks/07_decoupled_softmax`).
    """
    positive = _right_labels(logits, target)
    surprise = -widen(logits).log_softmax(1)
    return _over_positives(surprise, positive, positive, normalize, reduction, logits.dtype)


def decoupled_softmax(logits: Tensor, target: Tensor, *, normalize: bool = True, reduction: str = "mean") -> Tensor:
    r"""Cross-entropy of each right label among itself and the wrong labels: right labels do not compete.

    For query :math:`i` with logits :math:`s_{ij}` and right labels :math:`P_i = \{ j : y_{ij} = 1 \}`,

    .. math::

        \ell_i = -\frac{1}{|P_i|} \sum_{j \in P_i} \log q_{ij} , \qquad
        q_{ij} = \frac{e^{s_{ij}}}{e^{s_{ij}} + \sum_{l \notin P_i} e^{s_{il}}} .

    With ``normalize=False`` it is not divided by :math:`|P_i|`, and the derivative by the logit of a right label is
    :math:`-(1 - q_{ij})`: never positive, so no right label is pushed down. With one right label this is
    :func:`torch.nn.functional.cross_entropy`. The value is in nats.

    Args:
        logits: Scores :math:`s`, shape ``(N, L)``, floating point; divide similarities by a temperature first. float16
            and bfloat16 are accumulated in float32.
        target: Which labels are right, :math:`y`, shape ``(N, L)``, bool or 0 and 1 of any dtype.
        normalize: Whether to divide by the number of right labels. Default True.
        reduction: ``"mean"`` (over N, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``logits``. A query without a wrong label has loss zero. One
        without a right label too, and it counts in the mean; if no query has one, the result comes with a
        :class:`~lossbook.losses.NoPositivesWarning`.

    Raises:
        TypeError: If an argument is no tensor or ``logits`` is not floating point.
        ValueError: If a shape, an entry of ``target`` or ``reduction`` is not as above.

    Examples:
        >>> decoupled_softmax(torch.zeros(1, 4), torch.tensor([[1, 1, 0, 0]]))  # log 3
        tensor(1.0986)

    Note:
        Finite for logits up to 1e4 in magnitude and beyond, and twice differentiable. Right labels are taken out of the
        denominator exactly, not by a large negative number.

    References:
        Gupta et al. (2024), Section 4: the paper displays the sum, its public code divides as here; chapter 7
        (:doc:`/notebooks/07_decoupled_softmax`).
    """
    positive = _right_labels(logits, target)
    scores = widen(logits)
    # The log-sum-exp of nothing is -inf and its gradient NaN: queries without a wrong label are left out before it.
    competing = positive & ~positive.all(1, keepdim=True)
    wrong = scores.masked_fill(competing, -torch.inf).logsumexp(1, keepdim=True)
    surprise = -functional.logsigmoid(scores - wrong)
    return _over_positives(surprise, positive, competing, normalize, reduction, logits.dtype)


def soft_topk(logits: Tensor, k: int | float | Tensor, *, alpha: float = 1.0, num_iter: int = 64) -> Tensor:
    r"""Probabilities that add up to k: sigmoids with one threshold for each row.

    .. math:: p_{ij} = \sigma\bigl( \alpha (x_{ij} + t_i) \bigr) , \qquad \sum_{j} p_{ij} = k .

    The sum rises with :math:`t_i`, so there is exactly one solution. It is found by bisection; the gradient does not go
    through the search but through the equation it solves, which gives, with :math:`v_{ij} = p_{ij} (1 - p_{ij})`,

    .. math::

        \frac{\partial p_{ij}}{\partial x_{il}} =
        \alpha \Bigl( v_{ij} \mathbb{1}[j = l] - \frac{v_{ij} v_{il}}{\sum_{m} v_{im}} \Bigr) .

    Adding a number to a row changes nothing, and the order of a row is kept. As :math:`\alpha` grows the result becomes
    the mask of the k largest entries.

    Args:
        logits: Scores :math:`x`, shape ``(N, L)``, floating point, finite. float16 and bfloat16 are accumulated in
            float32.
        k: What the probabilities of a row add up to, in (0, L): a number, or one per row, shape ``(N,)``. It gets no
            gradient.
        alpha: Sharpness :math:`\alpha > 0`, in units of one over the scores. Default 1.
        num_iter: Halvings of an interval as long as the range of the row's ``alpha * logits``, >= 1. Default 64, which
            reaches the last digit.

    Returns:
        Shape ``(N, L)``, in [0, 1]; dtype of ``logits``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``k``, ``alpha`` or ``num_iter`` is not as above.

    Examples:
        >>> soft_topk(torch.tensor([[3.0, 2.0, 1.0, 0.0]]), 2)
        tensor([[0.8176, 0.6225, 0.3775, 0.1824]])

    Note:
        The interval that is halved is exact for any L: at its ends the largest or the smallest score alone would give
        every label the share k / L. A fixed interval does not hold the solution for large L and flat scores. Twice
        differentiable, with finite gradients at logits of 1e4.

    References:
        Ahle (2022); Gupta et al. (2024), Section 4.3; chapter 7 (:doc:`/notebooks/07_decoupled_softmax`).
    """
    return _shifted(logits, k, alpha, num_iter).sigmoid().to(logits.dtype)


def log_soft_topk(logits: Tensor, k: int | float | Tensor, *, alpha: float = 1.0, num_iter: int = 64) -> Tensor:
    r"""Logarithm of :func:`soft_topk`, without forming the probabilities.

    .. math:: \log p_{ij} = -\log \bigl( 1 + e^{-\alpha (x_{ij} + t_i)} \bigr) , \qquad \sum_{j} p_{ij} = k .

    Args:
        logits: Scores :math:`x`, shape ``(N, L)``, floating point, finite. float16 and bfloat16 are accumulated in
            float32.
        k: What the probabilities of a row add up to, in (0, L): a number, or one per row, shape ``(N,)``.
        alpha: Sharpness :math:`\alpha > 0`, in units of one over the scores. Default 1.
        num_iter: As for :func:`soft_topk`.

    Returns:
        Shape ``(N, L)``, at most 0, in nats; dtype of ``logits``. Finite also where a probability rounds to zero.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``k``, ``alpha`` or ``num_iter`` is not as above.

    Examples:
        >>> log_soft_topk(torch.tensor([[0.0, 500.0, 1000.0]]), 1.5)
        tensor([[-500.0000,   -0.6931,    0.0000]])

    References:
        Ahle (2022); Gupta et al. (2024), Section 4.3; chapter 7 (:doc:`/notebooks/07_decoupled_softmax`).
    """
    return functional.logsigmoid(_shifted(logits, k, alpha, num_iter)).to(logits.dtype)


def soft_topk_loss(
    logits: Tensor,
    target: Tensor,
    *,
    k: int | float | Tensor,
    alpha: float = 1.0,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    r"""Surprise at finding the right labels among a soft choice of k labels.

    For query :math:`i` with right labels :math:`P_i = \{ j : y_{ij} = 1 \}` and the probabilities :math:`p_{ij}` of
    :func:`soft_topk`, which add up to k,

    .. math:: \ell_i = -\frac{1}{|P_i|} \sum_{j \in P_i} \log p_{ij} .

    With ``normalize=False`` it is not divided by :math:`|P_i|`. A small k aims at precision at the top of the list, a
    large one at recall deep in it. The value is in nats.

    Args:
        logits: Scores, shape ``(N, L)``, floating point, finite; divide similarities by a temperature first. float16
            and bfloat16 are accumulated in float32.
        target: Which labels are right, :math:`y`, shape ``(N, L)``, bool or 0 and 1 of any dtype.
        k: Labels that are let through, in (0, L): a number, or one per query, shape ``(N,)``.
        alpha: Sharpness of the choice, > 0, in units of one over the scores. Default 1.
        normalize: Whether to divide by the number of right labels. Default True.
        reduction: ``"mean"`` (over N, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``logits``. A query without a right label has loss zero and
        counts in the mean; if no query has one, the result comes with a :class:`~lossbook.losses.NoPositivesWarning`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, an entry of ``target``, ``k``, ``alpha`` or ``reduction`` is not as above.

    Examples:
        >>> soft_topk_loss(torch.zeros(1, 4), torch.tensor([[1, 1, 0, 0]]), k=2)  # log 2: two of four
        tensor(0.6931)

    References:
        Gupta et al. (2024), Section 4.3; chapter 7 (:doc:`/notebooks/07_decoupled_softmax`).
    """
    positive = _right_labels(logits, target)
    # Half of the halvings reach the last digit of the shorter dtypes.
    surprise = -functional.logsigmoid(_shifted(logits, k, alpha, 64 if logits.dtype == torch.float64 else 32))
    return _over_positives(surprise, positive, positive, normalize, reduction, logits.dtype)


def _check_logits(logits: Tensor) -> None:
    """Require floating-point logits of shape (N, L)."""
    check_tensor("logits", logits)
    check_floating("logits", logits)
    check_shape("logits", logits, "(N, L)", (None, None))


def _right_labels(logits: Tensor, target: Tensor) -> Tensor:
    """Which labels are right, as booleans.

    Raises:
        TypeError: If an argument is no tensor, or the logits are not floating point.
        ValueError: If a shape or device differs, or (where values may be read) an entry of ``target`` is not 0 or 1.
    """
    _check_logits(logits)
    check_tensor("target", target)
    check_shape("target", target, "(N, L)", tuple(logits.shape))
    check_same_device("target", target, "logits", logits)
    positive = target.bool()
    if target.dtype != torch.bool and values_are_readable(target):
        other = positive & (target != 1)
        if other.any():
            raise ValueError(f"target must be 0 or 1, got {target[other][0].item()}")
    return positive


def _over_positives(
    surprise: Tensor, positive: Tensor, counted: Tensor, normalize: bool, reduction: str, dtype: torch.dtype
) -> Tensor:
    """Add up the surprises that are counted, for each query, and reduce."""
    losses = surprise.masked_fill(~counted, 0).sum(1)
    if normalize:
        losses = losses / positive.sum(1).clamp(min=1)
    return reduce_anchors(losses, positive.any(1), reduction, dtype, count_all=True, stacklevel=4)


def _shifted(logits: Tensor, k: int | float | Tensor, alpha: float, num_iter: int) -> Tensor:
    """``alpha * (logits + t)``, in the dtype of the computation.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``k`` (where values may be read), ``alpha`` or ``num_iter`` is out of range.
    """
    _check_logits(logits)
    check_positive("alpha", alpha)
    check_integer("num_iter", num_iter)
    check_positive("num_iter", num_iter)
    rows, labels = logits.shape
    scores = alpha * widen(logits)
    if isinstance(k, Tensor):
        check_shape("k", k, "(N,)", (rows,))
        check_same_device("k", k, "logits", logits)
        if values_are_readable(k):
            outside = ~((k > 0) & (k < labels))
            if outside.any():
                raise ValueError(f"k must lie in (0, L) = (0, {labels}), got {k[outside][0].item()}")
        total = k.detach().to(scores.dtype)[:, None]
    else:
        check_number("k", k)
        if not 0 < k < labels:
            raise ValueError(f"k must lie in (0, L) = (0, {labels}), got {k}")
        total = scores.new_full((rows, 1), k)
    return _ShiftToSum.apply(scores, total, num_iter)


class _ShiftToSum(torch.autograd.Function):
    """Scores plus one number per row such that their sigmoids add up to ``total``, of shape (N, 1)."""

    @staticmethod
    def forward(scores: Tensor, total: Tensor, num_iter: int) -> Tensor:
        share = total.log() - (scores.shape[1] - total).log()  # the logit of total / L
        low, high = share - scores.amax(1, keepdim=True), share - scores.amin(1, keepdim=True)
        for _ in range(num_iter):
            middle = (low + high) / 2
            over = (scores + middle).sigmoid().sum(1, keepdim=True) > total
            low, high = torch.where(over, low, middle), torch.where(over, middle, high)
        shift = (low + high) / 2
        shifted = scores + shift
        # Next to scores of 1e4 the shift itself is coarse, while the scores near the threshold, which cancel it, are
        # not: one step of Newton's method, no longer than what is undecided, adds the digits it cannot hold.
        info = torch.finfo(scores.dtype)
        undecided = high - low + info.eps * shift.abs()
        p = shifted.sigmoid()
        slope = (p * (1 - p)).sum(1, keepdim=True).clamp(min=info.tiny)
        step = (total - p.sum(1, keepdim=True)) / slope
        return shifted + torch.minimum(torch.maximum(step, -undecided), undecided)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (shifted,) = ctx.saved_tensors
        # v / sum(v) with v = p (1 - p), from its logarithm: in a well-separated row all p (1 - p) underflow.
        weight = (functional.logsigmoid(shifted) + functional.logsigmoid(-shifted)).softmax(1)
        return gradient - weight * gradient.sum(1, keepdim=True), None, None
