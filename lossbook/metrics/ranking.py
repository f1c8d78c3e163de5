"""How well scores rank positives above negatives: areas under curves, the mistakes behind them, and the best F1.

Inputs are NumPy arrays or tensors of any device and dtype; all arithmetic is float64 on the CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from torch import Tensor

from lossbook._validation import check_choice, check_integer

__all__ = [
    "AtomicMistakes",
    "atomic_mistakes",
    "auprc",
    "auprc_from_fpr",
    "auroc",
    "auroc_from_fpr",
    "best_f1",
    "fix_mistake",
    "mann_whitney_auc",
]


def auroc(y_true: ArrayLike | Tensor, score: ArrayLike | Tensor) -> float:
    r"""Area under the ROC curve: the chance that a random positive is scored above a random negative.

    With :math:`N_+` positives and :math:`N_-` negatives,

    .. math::
        \mathrm{AUROC} = \frac{1}{N_+ N_-} \sum_{i : y_i = 1} \, \sum_{j : y_j = 0}
        \left( \mathbb{1}[s_i > s_j] + \tfrac{1}{2} \mathbb{1}[s_i = s_j] \right) .

    Computed from ranks in :math:`O(N \log N)`, exactly up to the last rounding.

    Args:
        y_true: Labels 0 or 1, bool or number, shape ``(N,)``.
        score: Scores :math:`s`, higher for "positive", shape ``(N,)``. Infinite scores are allowed.

    Returns:
        A number in [0, 1]; 0.5 for a constant score.

    Raises:
        ValueError: If the shapes differ or are not one-dimensional, a label is neither 0 nor 1, a class is missing,
            or a score is NaN.

    Examples:
        >>> auroc([1, 0, 1, 0], [0.9, 0.6, 0.4, 0.1])
        0.75

    Note:
        Equals scikit-learn's ``roc_auc_score``.

    References:
        McDermott et al. (2024), Section 2; chapter 6 (:doc:`/notebooks/06_auroc_auprc`).
    """
    return _probability_of_order(*_by_class(y_true, score))


def auprc(y_true: ArrayLike | Tensor, score: ArrayLike | Tensor) -> float:
    r"""Area under the precision-recall curve as average precision.

    With the thresholds at the distinct scores, taken from high to low, and precision :math:`P_t` and recall
    :math:`R_t` of the examples at or above threshold :math:`t`,

    .. math:: \mathrm{AUPRC} = \sum_{t} \left( R_t - R_{t-1} \right) P_t , \qquad R_0 = 0 .

    The step sum, not the trapezoid: no threshold attains the straight line between two points of the curve.

    Args:
        y_true: Labels 0 or 1, bool or number, shape ``(N,)``.
        score: Scores, higher for "positive", shape ``(N,)``. Infinite scores are allowed.

    Returns:
        A number in (0, 1]; the prevalence of the positives for a constant score.

    Raises:
        ValueError: As for :func:`auroc`.

    Examples:
        >>> round(auprc([1, 0, 1, 0], [0.9, 0.6, 0.4, 0.1]), 4)
        0.8333

    Note:
        Calls scikit-learn's ``average_precision_score``.

    References:
        McDermott et al. (2024), Section 2; chapter 6 (:doc:`/notebooks/06_auroc_auprc`).
    """
    from sklearn.metrics import average_precision_score

    label, values = _labels_and_scores(y_true, score)
    # Only the order counts, and scikit-learn refuses infinite scores: hand it their dense ranks.
    return float(average_precision_score(label, np.unique(values, return_inverse=True)[1]))


def auroc_from_fpr(y_true: ArrayLike | Tensor, score: ArrayLike | Tensor) -> float:
    r"""AUROC as one minus the mean false positive rate at the positives' scores.

    .. math::
        \mathrm{AUROC} = 1 - \frac{1}{N_+} \sum_{i : y_i = 1} \overline{\mathrm{FPR}}(s_i) , \qquad
        \overline{\mathrm{FPR}}(s) = P(f > s \mid y = 0) + \tfrac{1}{2} P(f = s \mid y = 0) .

    Without ties this is the usual false positive rate; a negative that ties with the threshold counts one half.

    Args:
        y_true: Labels 0 or 1, bool or number, shape ``(N,)``.
        score: Scores :math:`f`, higher for "positive", shape ``(N,)``.

    Returns:
        The value of :func:`auroc`.

    Raises:
        ValueError: As for :func:`auroc`.

    Examples:
        >>> auroc_from_fpr([1, 0, 1, 0], [0.9, 0.6, 0.4, 0.1])
        0.75

    References:
        McDermott et al. (2024), Theorem 1; chapter 6 (:doc:`/notebooks/06_auroc_auprc`).
    """
    positive, negative = (np.sort(part) for part in _by_class(y_true, score))
    above, at_or_above = _count_above(negative, positive), _count_at_or_above(negative, positive)
    return float(1 - np.mean(above + at_or_above) / (2 * len(negative)))


def auprc_from_fpr(y_true: ArrayLike | Tensor, score: ArrayLike | Tensor) -> float:
    r"""AUPRC as one minus a weighted mean of the same false positive rate.

    .. math::
        \mathrm{AUPRC} = 1 - P(y = 0) \, \frac{1}{N_+} \sum_{i : y_i = 1}
        \frac{\mathrm{FPR}(s_i)}{P(f \ge s_i)} , \qquad \mathrm{FPR}(s) = P(f \ge s \mid y = 0) .

    The weight is one over the firing rate :math:`P(f \ge s)`, the share of all examples at or above the threshold.

    Args:
        y_true: Labels 0 or 1, bool or number, shape ``(N,)``.
        score: Scores :math:`f`, higher for "positive", shape ``(N,)``.

    Returns:
        The value of :func:`auprc`, with ties too.

    Raises:
        ValueError: As for :func:`auroc`.

    Examples:
        >>> round(auprc_from_fpr([1, 0, 1, 0], [0.9, 0.6, 0.4, 0.1]), 4)
        0.8333

    References:
        McDermott et al. (2024), Theorem 1; chapter 6 (:doc:`/notebooks/06_auroc_auprc`).
    """
    positive, negative = (np.sort(part) for part in _by_class(y_true, score))
    total = len(positive) + len(negative)
    false_positives = _count_at_or_above(negative, positive)
    fpr = false_positives / len(negative)
    firing = (false_positives + _count_at_or_above(positive, positive)) / total
    return float(1 - len(negative) / total * np.mean(fpr / firing))


class AtomicMistakes(NamedTuple):
    """Neighbors in the ranking that stand in the wrong order, best-scored first; all arrays have one shape.

    Args:
        rank: Rank :math:`r` of the negative, 1 for the highest score; the positive has rank :math:`r + 1`. int64.
        upper: Index of the negative in the input, int64.
        lower: Index of the positive in the input, int64.
        auroc_gain: What AUROC gains if the two change places, float64.
        auprc_gain: What AUPRC gains, float64.

    Examples:
        >>> AtomicMistakes(*map(np.array, ([1], [0], [1], [0.5], [0.25]))).rank
        array([1])
    """

    rank: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    auroc_gain: np.ndarray
    auprc_gain: np.ndarray


def atomic_mistakes(y_true: ArrayLike | Tensor, score: ArrayLike | Tensor) -> AtomicMistakes:
    r"""Find every negative ranked directly above a positive, and what swapping the two would gain.

    For a negative at rank :math:`r` (1 is the highest score), a positive at rank :math:`r + 1`, and :math:`k` positives
    above both,

    .. math::
        \Delta \mathrm{AUROC} = \frac{1}{N_+ N_-} , \qquad
        \Delta \mathrm{AUPRC} = \frac{k + 1}{N_+ \, r \, (r + 1)} .

    AUROC gains the same wherever the mistake stands. AUPRC gains the precision at the positive divided by
    :math:`N_+ r`, so it mostly gains more at the top, but not always: precision may rise from one mistake to the next.

    Args:
        y_true: Labels 0 or 1, bool or number, shape ``(N,)``.
        score: Distinct scores, higher for "positive", shape ``(N,)``.

    Returns:
        The mistakes by ascending rank; empty arrays if all positives are above all negatives.

    Raises:
        ValueError: As for :func:`auroc`, or if two scores are equal.

    Examples:
        >>> found = atomic_mistakes([0, 1, 0, 1], [0.9, 0.6, 0.4, 0.1])
        >>> found.rank, found.auprc_gain
        (array([1, 3]), array([0.25      , 0.08333333]))

    References:
        McDermott et al. (2024), Theorem 2 and Definition 2.1; the closed form of the AUPRC gain is ours, chapter 6
        (:doc:`/notebooks/06_auroc_auprc`).
    """
    label, values = _labels_and_scores(y_true, score)
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    tied = np.flatnonzero(ranked[:-1] == ranked[1:])
    if len(tied):
        raise ValueError(f"score must hold distinct values, got {ranked[tied[0]]!s} more than once")
    label = label[order]
    place = np.flatnonzero((label[:-1] == 0) & (label[1:] == 1))
    rank, positives = place + 1, label.sum()
    above = label.cumsum()[place]
    return AtomicMistakes(
        rank=rank,
        upper=order[place],
        lower=order[place + 1],
        auroc_gain=np.full(len(rank), 1 / (positives * (len(label) - positives))),
        auprc_gain=(above + 1) / (positives * rank * (rank + 1)),
    )


def fix_mistake(
    y_true: ArrayLike | Tensor, score: ArrayLike | Tensor, *, metric: str = "auprc", seed: int = 0
) -> np.ndarray:
    """Swap the scores of the one pair of neighbors that a metric gains most from.

    Args:
        y_true: Labels 0 or 1, bool or number, shape ``(N,)``.
        score: Distinct scores, higher for "positive", shape ``(N,)``; not changed.
        metric: ``"auprc"`` (default) takes the mistake with the largest gain, the best-scored one among equals;
            ``"auroc"`` a random mistake, since all gain the same.
        seed: Seed of that choice, ``>= 0``, default 0.

    Returns:
        New scores, float64, shape ``(N,)``; an unchanged copy if there is no mistake.

    Raises:
        TypeError: If ``seed`` is not an int.
        ValueError: As for :func:`atomic_mistakes`, or if ``metric`` is unknown or ``seed`` negative.

    Examples:
        >>> fix_mistake([0, 1, 0, 1], [0.9, 0.6, 0.4, 0.1])
        array([0.6, 0.9, 0.4, 0.1])

    References:
        McDermott et al. (2024), Section 3; chapter 6 (:doc:`/notebooks/06_auroc_auprc`).
    """
    check_choice("metric", metric, ("auprc", "auroc"))
    check_integer("seed", seed)
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    mistakes = atomic_mistakes(y_true, score)
    fixed = _numbers("score", score).copy()
    if len(mistakes.rank):
        best = mistakes.auprc_gain.argmax()
        chosen = best if metric == "auprc" else np.random.default_rng(seed).integers(len(mistakes.rank))
        upper, lower = mistakes.upper[chosen], mistakes.lower[chosen]
        fixed[[upper, lower]] = fixed[[lower, upper]]
    return fixed


def mann_whitney_auc(pos: ArrayLike | Tensor, neg: ArrayLike | Tensor) -> float:
    r"""AUROC from positives and negatives given apart: the Mann-Whitney statistic over its maximum.

    .. math::
        \mathrm{AUC} = \frac{U}{P M} = \frac{1}{P M} \sum_{i=1}^{P} \sum_{j=1}^{M}
        \left( \mathbb{1}[s^+_i > s^-_j] + \tfrac{1}{2} \mathbb{1}[s^+_i = s^-_j] \right) .

    Args:
        pos: Scores :math:`s^+` of the positives, shape ``(P,)``, not empty.
        neg: Scores :math:`s^-` of the negatives, shape ``(M,)``, not empty.

    Returns:
        A number in [0, 1], exact up to the last rounding, in :math:`O((P + M) \log (P + M))`.

    Raises:
        ValueError: If an argument is empty, not one-dimensional or holds NaN.

    Examples:
        >>> mann_whitney_auc([0.9, 0.4], [0.6, 0.1])
        0.75

    References:
        Sheikholeslami et al. (2025), Section 2; chapter 8 (:doc:`/notebooks/08_mann_whitney`). The same ranks as
        :func:`auroc`, chapter 6 (:doc:`/notebooks/06_auroc_auprc`).
    """
    return _probability_of_order(_scores("pos", pos), _scores("neg", neg))


def best_f1(pos: ArrayLike | Tensor, neg: ArrayLike | Tensor) -> float:
    r"""The largest F1 that one threshold on the score can reach.

    .. math::
        F_1^{*} = \max_{t} \frac{2 \, \mathrm{TP}(t)}{P + \mathrm{TP}(t) + \mathrm{FP}(t)} , \qquad
        \mathrm{TP}(t) = \left|\{i : s^+_i \ge t\}\right| , \quad \mathrm{FP}(t) = \left|\{j : s^-_j \ge t\}\right| .

    Args:
        pos: Scores :math:`s^+` of the positives, shape ``(P,)``, not empty.
        neg: Scores :math:`s^-` of the negatives, shape ``(M,)``, not empty.

    Returns:
        A number in (0, 1].

    Raises:
        ValueError: As for :func:`mann_whitney_auc`.

    Examples:
        >>> best_f1([0.9, 0.4], [0.6, 0.1])
        0.8

    References:
        Chapter 8 (:doc:`/notebooks/08_mann_whitney`), where one threshold serves all queries; the ranks behind it,
        chapter 6 (:doc:`/notebooks/06_auroc_auprc`).
    """
    positive, negative = np.sort(_scores("pos", pos)), np.sort(_scores("neg", neg))
    # A threshold between two positives fires on no more positives than the upper one: the maximum is at a positive.
    true = _count_at_or_above(positive, positive)
    return float(np.max(2 * true / (len(positive) + true + _count_at_or_above(negative, positive))))


def _probability_of_order(positive: np.ndarray, negative: np.ndarray) -> float:
    """Share of pairs with the positive above, ties one half: the one rank routine of this file."""
    count = len(positive)
    rank_sum = rankdata(np.concatenate([positive, negative]))[:count].sum()
    return float((rank_sum - count * (count + 1) / 2) / (count * len(negative)))


def _count_above(ascending: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    return len(ascending) - np.searchsorted(ascending, threshold, side="right")


def _count_at_or_above(ascending: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    return len(ascending) - np.searchsorted(ascending, threshold, side="left")


def _by_class(y_true: ArrayLike | Tensor, score: ArrayLike | Tensor) -> tuple[np.ndarray, np.ndarray]:
    label, values = _labels_and_scores(y_true, score)
    return values[label == 1], values[label == 0]


def _labels_and_scores(y_true: ArrayLike | Tensor, score: ArrayLike | Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Labels as int64 and scores as float64, both of one length and checked."""
    label, values = _numbers("y_true", y_true), _scores("score", score)
    if label.shape != values.shape:
        raise ValueError(f"y_true must have the shape of score, {values.shape}, got {label.shape}")
    other = label[(label != 0) & (label != 1)]
    if len(other):
        raise ValueError(f"y_true must hold only 0 and 1, got {other[0]:g}")
    if label.min() == label.max():
        raise ValueError(f"y_true must hold both classes, got only {label[0]:g}")
    return label.astype(np.int64), values


def _scores(name: str, value: ArrayLike | Tensor) -> np.ndarray:
    values = _numbers(name, value)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} must have shape (N,) with N >= 1, got {values.shape}")
    if np.isnan(values).any():
        raise ValueError(f"{name} must not hold NaN, got {int(np.isnan(values).sum())} of {len(values)}")
    return values


def _numbers(name: str, value: ArrayLike | Tensor) -> np.ndarray:
    """The values as float64, which holds every narrower dtype exactly."""
    if isinstance(value, Tensor):
        return value.detach().double().cpu().numpy()
    return np.asarray(value, dtype=np.float64)
