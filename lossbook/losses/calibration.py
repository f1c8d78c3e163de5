"""Losses of calibrators, which say how often a trained classifier is right and leave its answers alone."""

import torch
from torch import Tensor

from lossbook.losses._shared import check_classification, reduce, widen

__all__ = ["correctness_aware_loss"]


def correctness_aware_loss(logits: Tensor, target: Tensor, *, balance: bool = False, reduction: str = "mean") -> Tensor:
    r"""Squared distance between the confidence of the top answer and whether it is right.

    For example :math:`i` with logits :math:`z_i`, already divided by a temperature, and right class :math:`y_i`,

    .. math::

        \ell_i = w_i \bigl( \hat p_i - c_i \bigr)^2 , \qquad
        \hat p_i = \mathrm{softmax}(z_i)_{k_i} , \qquad
        k_i = \arg\max_k z_{ik} , \qquad
        c_i = \mathbb{1}[k_i = y_i] .

    The correctness :math:`c_i` is a constant: no gradient reaches it, and no temperature changes it. By default
    :math:`w_i = 1`, and the mean is the Brier score of the top answer. With ``balance=True``, :math:`R` right and
    :math:`W` wrong answers among the :math:`N = R + W`,

    .. math::

        w_i = \frac{N}{2R} \;\text{ if } c_i = 1, \qquad w_i = \frac{N}{2W} \;\text{ if } c_i = 0,

    so that the mean is half the mean over right plus half the mean over wrong answers; if all are right or all wrong,
    :math:`w_i = 1`.

    Args:
        logits: Temperature-scaled scores, shape ``(N, C)``, floating point. float16/bfloat16 are accumulated in
            float32.
        target: Class indices in ``[0, C)``, shape ``(N,)``, int64.
        balance: Whether right and wrong answers get half of the weight each, whatever the accuracy of the batch.
            Default False. Fits confidences as if half of the answers were wrong.
        reduction: ``"mean"`` (over N), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``, weights included; dtype of ``logits``.

    Raises:
        ValueError: If a shape, a class index or ``reduction`` is not as above, or there is no class.
        TypeError: If ``logits`` is not floating point, ``target`` not int64 or ``balance`` not a bool.

    Examples:
        >>> logits = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]).log()
        >>> correctness_aware_loss(logits, torch.tensor([0, 1]), reduction="none")
        tensor([0.2500, 0.2500])

    Note:
        Not differentiable where the two largest logits are equal; the gradient then belongs to the first of them. At a
        temperature so high that logits round to the same number, divide in float64, or the answer may change. Finite
        for logits up to 1e4 in magnitude.

    References:
        Liu et al. (2024), correctness-aware loss, with the squares of its public code, as is ``balance``;
        chapter 5 (:doc:`/notebooks/05_calibration`).
    """
    check_classification(logits, target)
    if logits.shape[1] == 0:
        raise ValueError(f"logits must have shape (N, C) with C >= 1, got {tuple(logits.shape)}")
    if not isinstance(balance, bool):
        raise TypeError(f"balance must be a bool, got {type(balance).__name__} {balance!r}")
    answer = logits.detach().argmax(1)
    confidence = widen(logits).softmax(1).gather(1, answer[:, None])[:, 0]
    correct = answer == target
    losses = (confidence - correct.to(confidence.dtype)).square()
    if balance:
        losses = losses * _half_and_half(correct, confidence.dtype)
    return reduce(losses, reduction, logits.dtype)


def _half_and_half(correct: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights of mean 1 that give right and wrong answers the same total; ones if a kind is missing."""
    right = correct.sum(dtype=dtype)
    wrong = len(correct) - right
    # Chosen by where, not by if: the counts may live on a GPU, or be unknown while compiling.
    of_right, of_wrong = (len(correct) / (2 * count.clamp(min=1)) for count in (right, wrong))
    return torch.where((right == 0) | (wrong == 0), 1.0, torch.where(correct, of_right, of_wrong))
