"""Precision and recall of the first k labels of queries that have several right ones.

Inputs may be large, a column for every label, so all is computed in torch, on the device of the scores, and the metrics
return tensors.
"""

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lossbook._validation import check_integer, check_same_device, check_shape

__all__ = ["multilabel_precision_at_k", "multilabel_recall_at_k"]


def multilabel_precision_at_k(scores: ArrayLike | Tensor, target: ArrayLike | Tensor, k: int) -> Tensor:
    r"""Share of right labels among the first k of a query, averaged over the queries.

    With the labels :math:`K_i` of the :math:`k` largest scores of query :math:`i`,

    .. math:: \mathrm{P}_k = \frac{1}{N} \sum_{i=1}^{N} \frac{1}{k} \sum_{j \in K_i} y_{ij} .

    Args:
        scores: Scores, higher for "right", shape ``(N, L)`` with ``N >= 1``.
        target: Which labels are right, :math:`y`, shape ``(N, L)``, bool or 0 and 1.
        k: Labels that are looked at, in [1, L].

    Returns:
        A 0-d tensor in [0, 1], in torch's default dtype, on the device of ``scores``. A query with fewer than k right
        labels cannot reach 1; of equal scores, right labels stand last.

    Raises:
        TypeError: If ``k`` is no int.
        ValueError: If a shape, ``k`` or an entry of ``target`` is not as above, or a score is NaN.

    Examples:
        >>> multilabel_precision_at_k([[0.9, 0.5, 0.1], [0.2, 0.3, 0.4]], [[1, 0, 1], [0, 1, 1]], k=2)
        tensor(0.7500)

    Note:
        Equals torchmetrics' ``retrieval_precision``, averaged over the queries, where no scores are equal.

    References:
        Gupta et al. (2024), Section 5; chapter 7 (:doc:`/notebooks/07_decoupled_softmax`).
    """
    hits, _ = _hits(scores, target, k)
    return _mean(hits.double() / k)


def multilabel_recall_at_k(scores: ArrayLike | Tensor, target: ArrayLike | Tensor, k: int) -> Tensor:
    r"""Share of a query's right labels that stand among the first k, averaged over the queries that have any.

    With the labels :math:`K_i` of the :math:`k` largest scores of query :math:`i`, and the queries
    :math:`Q = \{ i : \sum_j y_{ij} > 0 \}`,

    .. math:: \mathrm{R}_k = \frac{1}{|Q|} \sum_{i \in Q} \frac{\sum_{j \in K_i} y_{ij}}{\sum_{j} y_{ij}} .

    Args:
        scores: Scores, higher for "right", shape ``(N, L)`` with ``N >= 1``.
        target: Which labels are right, :math:`y`, shape ``(N, L)``, bool or 0 and 1.
        k: Labels that are looked at, in [1, L].

    Returns:
        A 0-d tensor in [0, 1], in torch's default dtype, on the device of ``scores``. A query with more than k right
        labels cannot reach 1; of equal scores, right labels stand last.

    Raises:
        TypeError: If ``k`` is no int.
        ValueError: As for :func:`multilabel_precision_at_k`, or if no query has a right label.

    Examples:
        >>> multilabel_recall_at_k([[0.9, 0.5, 0.1], [0.2, 0.3, 0.4]], [[1, 0, 1], [0, 1, 1]], k=2)
        tensor(0.7500)

    Note:
        Equals torchmetrics' ``retrieval_recall``, averaged over the queries with a right label, where no scores are
        equal.

    References:
        Gupta et al. (2024), Section 5; chapter 7 (:doc:`/notebooks/07_decoupled_softmax`).
    """
    hits, count = _hits(scores, target, k)
    some = count > 0
    if not some.any():
        raise ValueError(f"target must have a right label for some query, got none in {len(count)}")
    return _mean(hits[some].double() / count[some])


def _mean(values: Tensor) -> Tensor:
    return values.mean().to(torch.get_default_dtype())


def _hits(scores: ArrayLike | Tensor, target: ArrayLike | Tensor, k: int) -> tuple[Tensor, Tensor]:
    """How many right labels stand among the first k, and how many there are, for each query.

    Raises:
        TypeError: If ``k`` is no int.
        ValueError: If a shape, ``k`` or an entry of ``target`` is out of range, or a score is NaN.
    """
    score, right = torch.as_tensor(scores).detach(), torch.as_tensor(target)
    check_shape("scores", score, "(N, L)", (None, None))
    if not len(score):
        raise ValueError(f"scores must have shape (N, L) with N >= 1, got {tuple(score.shape)}")
    check_shape("target", right, "(N, L)", tuple(score.shape))
    check_same_device("target", right, "scores", score)
    check_integer("k", k)
    if not 1 <= k <= score.shape[1]:
        raise ValueError(f"k must lie in [1, L] = [1, {score.shape[1]}], got {k}")
    if score.isnan().any():
        raise ValueError("scores must not be NaN, got NaN")
    other = (right != 0) & (right != 1)
    if other.any():
        raise ValueError(f"target must be 0 or 1, got {right[other][0].item()}")
    right = right.bool()
    # The wrong labels first, then a stable order by score: a constant score earns nothing by the order of the columns.
    columns = right.int().argsort(dim=1, stable=True)
    first = columns.gather(1, score.gather(1, columns).argsort(dim=1, descending=True, stable=True)[:, :k])
    return right.gather(1, first).sum(1), right.sum(1)
