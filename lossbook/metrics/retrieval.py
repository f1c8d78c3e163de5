"""How well similarities find what belongs together, and how embeddings lie on the unit sphere.

Inputs are tensors or NumPy arrays of any device and dtype; all arithmetic is float64 on the CPU, and the metrics return
floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from lossbook._validation import check_integer, check_positive

# Several right answers of a query are a family of their own, found under retrieval too.
from lossbook.metrics.multilabel import multilabel_precision_at_k as multilabel_precision_at_k
from lossbook.metrics.multilabel import multilabel_recall_at_k as multilabel_recall_at_k
from lossbook.metrics.ranking import mann_whitney_auc

__all__ = [
    "alignment",
    "knn_accuracy",
    "mrr_at_k",
    "ndcg_at_k",
    "pooled_retrieval_auc",
    "retrieval_recall_at_k",
    "uniformity",
    "utilization",
]

# Entries of a block of similarities, so that memory stays at 32 MiB whatever the number of examples.
_BLOCK = 2**22


def retrieval_recall_at_k(
    z: ArrayLike | Tensor, labels: ArrayLike | Tensor, ks: Sequence[int] = (1,)
) -> dict[int, float]:
    r"""Share of examples that have one of their own class among their k nearest neighbors, by cosine.

    With :math:`N` unit embeddings :math:`z_i`, classes :math:`y_i`, and :math:`K_i` the :math:`k` other examples of
    largest cosine with :math:`i`,

    .. math:: R_k = \frac{1}{N} \sum_{i=1}^{N} \max_{j \in K_i} \mathbb{1}[y_j = y_i] .

    Every example is a query against all others (leave one out). Ties are in favor of the other class.

    Args:
        z: Embeddings, shape ``(N, D)`` with ``N >= 2``; scaled to unit length inside.
        labels: Classes, shape ``(N,)``.
        ks: Numbers of neighbors, each in [1, N - 1].

    Returns:
        The recall in [0, 1] for each of ``ks``. An example alone in its class counts as a miss.

    Raises:
        TypeError: If one of ``ks`` is no int.
        ValueError: If a shape or one of ``ks`` is not as above, or an embedding is not finite.

    Examples:
        >>> retrieval_recall_at_k([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.9]], [0, 0, 1, 1], ks=(1, 3))
        {1: 0.75, 3: 1.0}

    References:
        Musgrave, Belongie and Lim (2020), for what the metric-learning literature calls recall at k.
    """
    unit, classes = _embeddings(z, labels)
    n = len(unit)
    for k in ks:
        check_integer("ks", k)
        if not 1 <= k < n:
            raise ValueError(f"ks must lie in [1, N - 1] = [1, {n - 1}], got {k}")
    rank = np.empty(n)
    for rows in _blocks(n, n):
        cosine = unit[rows] @ unit.T
        cosine[np.arange(len(cosine)), rows] = -np.inf
        same = classes[rows, None] == classes
        best = np.where(same, cosine, -np.inf).max(1)
        # How many of another class are at least as near as the nearest of the own one; all if there is none.
        rank[rows] = ((cosine >= best[:, None]) & ~same).sum(1)
    return {k: float((rank < k).mean()) for k in ks}


def knn_accuracy(
    train_z: ArrayLike | Tensor,
    train_y: ArrayLike | Tensor,
    test_z: ArrayLike | Tensor,
    test_y: ArrayLike | Tensor,
    k: int = 10,
    temperature: float = 0.1,
) -> float:
    r"""Accuracy of classifying each test example by its k nearest training examples, weighted by their cosine.

    With the cosine :math:`s_{ij}` of test example :math:`i` and training example :math:`j`, and the set :math:`K_i` of
    the :math:`k` training examples of largest cosine, the answer is

    .. math:: \hat y_i = \arg\max_c \sum_{j \in K_i : y_j = c} e^{s_{ij} / \tau} .

    It asks of embeddings made without labels how far the classes lie apart in them; nothing is trained.

    Args:
        train_z: Embeddings with known classes, shape ``(N, D)`` with ``N >= 1``; scaled to unit length inside.
        train_y: Their classes, shape ``(N,)``.
        test_z: Embeddings to classify, shape ``(M, D)`` with ``M >= 1``; scaled to unit length inside.
        test_y: Their right classes, shape ``(M,)``.
        k: Number of neighbors, in [1, N]. Default 10.
        temperature: Temperature :math:`\tau > 0` of the weights (dimensionless). Default 0.1.

    Returns:
        Share of right answers, in [0, 1]. Between classes with equal votes the smallest is the answer; which of equally
        near neighbors count is left to the sorting.

    Raises:
        TypeError: If ``k`` is no int or ``temperature`` no number.
        ValueError: If a shape, ``k`` or ``temperature`` is not as above, or an embedding is not finite.

    Examples:
        >>> knn_accuracy([[1.0, 0.0], [0.0, 1.0]], [0, 1], [[3.0, 1.0], [1.0, 2.0], [2.0, 1.0]], [0, 1, 1], k=1)
        0.6666666666666666

    References:
        Wu et al. (2018), weighted nearest neighbors; chapter 9 (:doc:`/notebooks/09_multi_head_contrastive`), where
        :math:`\tau` and k are not those of the paper.
    """
    known, answers = _embeddings(train_z, train_y, ("train_z", "train_y"), at_least=1)
    asked, right = _embeddings(test_z, test_y, ("test_z", "test_y"), at_least=1)
    if asked.shape[1] != known.shape[1]:
        raise ValueError(f"test_z must have shape (N, D) = (*, {known.shape[1]}), got {asked.shape}")
    check_integer("k", k)
    if not 1 <= k <= len(known):
        raise ValueError(f"k must lie in [1, N] = [1, {len(known)}], got {k}")
    check_positive("temperature", temperature)
    classes, number = np.unique(answers, return_inverse=True)
    hits = 0
    for rows in _blocks(len(asked), len(known)):
        cosine = asked[rows] @ known.T
        near = np.argpartition(cosine, -k, axis=1)[:, -k:]
        score = np.take_along_axis(cosine, near, axis=1)
        votes = np.zeros((len(rows), len(classes)))
        # Weights relative to the nearest, which neither overflow nor change the answer.
        weight = np.exp((score - score.max(1, keepdims=True)) / temperature)
        np.add.at(votes, (np.arange(len(rows))[:, None], number[near]), weight)
        hits += (classes[votes.argmax(1)] == right[rows]).sum()
    return float(hits / len(asked))


def mrr_at_k(scores: ArrayLike | Tensor, relevance: ArrayLike | Tensor, k: int = 10) -> float:
    r"""Mean reciprocal rank of the first relevant document, zero beyond rank k.

    With :math:`r_q` the rank of the relevant document that stands first for query :math:`q`, from 1,

    .. math:: \mathrm{MRR}_k = \frac{1}{Q} \sum_{q=1}^{Q} \frac{\mathbb{1}[r_q \le k]}{r_q} .

    Args:
        scores: Scores, higher for "relevant", shape ``(Q, D)``: one row per query, one column per document. ``-inf``
            takes a document out.
        relevance: Which documents are relevant, bool or 0 and 1, shape ``(Q, D)``.
        k: Ranks that count, >= 1. Default 10.

    Returns:
        A number in [0, 1]. A query without a relevant document counts as zero; of equal scores, relevant documents
        stand last.

    Raises:
        TypeError: If ``k`` is no int.
        ValueError: If the shapes differ, are not 2-D or have no row, ``k`` < 1, a score is NaN, or a relevance is
            neither 0 nor 1.

    Examples:
        >>> mrr_at_k([[0.9, 0.5, 0.1], [0.2, 0.3, 0.4]], [[0, 1, 0], [1, 0, 0]], k=2)
        0.25

    Note:
        Equals torchmetrics' ``retrieval_reciprocal_rank``, averaged over the queries, where all scores are positive
        (theirs takes a document without a positive score for not retrieved) and none are equal.
    """
    score, relevant = _scores(scores, relevance, "k", k)
    best = np.where(relevant, score, -np.inf).max(1)
    rank = 1.0 + ((score >= best[:, None]) & ~relevant).sum(1)
    return float(np.where(relevant.any(1) & (rank <= k), 1 / rank, 0.0).mean())


def ndcg_at_k(scores: ArrayLike | Tensor, relevance: ArrayLike | Tensor, k: int = 10) -> float:
    r"""Normalized discounted cumulative gain of the first k documents, with gains 0 and 1.

    With :math:`g_{qr}` the relevance, 0 or 1, of the document at rank :math:`r` for query :math:`q` and :math:`n_q`
    the number of relevant ones,

    .. math::
        \mathrm{nDCG}_k = \frac{1}{Q} \sum_{q=1}^{Q}
        \frac{\sum_{r=1}^{k} g_{qr} / \log_2(r + 1)}{\sum_{r=1}^{\min(k, n_q)} 1 / \log_2(r + 1)} .

    Args:
        scores: Scores, higher for "relevant", shape ``(Q, D)`` with ``D >= 2``; finite.
        relevance: Which documents are relevant, bool or 0 and 1, shape ``(Q, D)``.
        k: Ranks that count, >= 1. Default 10.

    Returns:
        A number in [0, 1]. A query without a relevant document counts as zero; equal scores share their gains.

    Raises:
        TypeError: If ``k`` is no int.
        ValueError: As for :func:`mrr_at_k`, or if ``D`` < 2 or a score is infinite.

    Examples:
        >>> round(ndcg_at_k([[0.9, 0.5, 0.1], [0.2, 0.3, 0.4]], [[0, 1, 0], [1, 0, 0]], k=2), 4)
        0.3155

    Note:
        Calls scikit-learn's ``ndcg_score``.
    """
    from sklearn.metrics import ndcg_score

    score, relevant = _scores(scores, relevance, "k", k)
    if score.shape[1] < 2:
        raise ValueError(f"scores must have shape (Q, D) with D >= 2, got {score.shape}")
    if not np.isfinite(score).all():
        raise ValueError(f"scores must be finite, got {score[~np.isfinite(score)][0]}")
    # Averaging over the orders of tied documents takes scikit-learn a loop over queries, so only those that need it.
    tied = (np.diff(np.sort(score, axis=1), axis=1) == 0).any(axis=1)
    total = 0.0
    for rows, ignore_ties in ((~tied, True), (tied, False)):
        if rows.any():
            total += rows.sum() * ndcg_score(relevant[rows], score[rows], k=k, ignore_ties=ignore_ties)
    return float(total / len(score))


def pooled_retrieval_auc(scores: ArrayLike | Tensor, relevance: ArrayLike | Tensor, top_negatives: int = 500) -> float:
    r"""AUC of all queries together: relevant documents against each query's highest other ones, across queries.

    With the scores :math:`s_{qd}` of the relevant documents :math:`P_q` of query :math:`q` and of the ``top_negatives``
    documents :math:`N_q` of largest score among the others, pooled into :math:`S^+ = \{ s_{qd} : d \in P_q \}` and
    :math:`S^- = \{ s_{qd} : d \in N_q \}` over all :math:`q`,

    .. math::
        \mathrm{AUC} = \frac{1}{|S^+| \, |S^-|} \sum_{a \in S^+} \sum_{b \in S^-}
        \left( \mathbb{1}[a > b] + \tfrac{1}{2} \mathbb{1}[a = b] \right) .

    Unlike the mean of one AUC per query it says how well one threshold serves all queries: it changes when a number is
    added to the scores of one query.

    Args:
        scores: Scores, higher for "relevant", shape ``(Q, D)``: one row per query, one column per document. ``-inf``
            takes a document out; a relevant one then counts as below all negatives.
        relevance: Which documents are relevant, bool or 0 and 1, shape ``(Q, D)``.
        top_negatives: Negatives of each query that count, >= 1; all if there are fewer. Default 500.

    Returns:
        A number in [0, 1].

    Raises:
        TypeError: If ``top_negatives`` is no int.
        ValueError: If the shapes differ, are not 2-D or have no row, ``top_negatives`` < 1, a score is NaN, a relevance
            is neither 0 nor 1, or there is no relevant document or no other one.

    Examples:
        >>> scores, relevance = [[0.9, 0.8, 0.1], [0.2, 0.3, 0.1]], [[1, 0, 0], [0, 1, 0]]
        >>> pooled_retrieval_auc(scores, relevance, top_negatives=1)  # 0.3 lies below the other query's 0.8
        0.75

    Note:
        With all negatives it equals scikit-learn's ``roc_auc_score`` of the flattened arrays.

    References:
        Sheikholeslami et al. (2025), Section 4, protocol with 500 negatives; chapter 8
        (:doc:`/notebooks/08_mann_whitney`).
    """
    score, relevant = _scores(scores, relevance, "top_negatives", top_negatives)
    if not relevant.any():
        raise ValueError(f"relevance must have a relevant document for some query, got none in {len(score)}")
    negative = np.where(relevant, -np.inf, score)
    kept = min(top_negatives, negative.shape[1])
    negative = np.partition(negative, -kept, axis=1)[:, -kept:]
    negative = negative[negative > -np.inf]
    if not len(negative):
        raise ValueError(f"relevance must leave a document that is not relevant, got none in {len(score)} queries")
    return mann_whitney_auc(score[relevant], negative)


def alignment(z: ArrayLike | Tensor, labels: ArrayLike | Tensor) -> float:
    r"""Mean squared distance of unit embeddings of the same class; lower is tighter.

    Over all unordered pairs :math:`S` of different examples of the same class,

    .. math:: \frac{1}{|S|} \sum_{(i, j) \in S} \lVert z_i - z_j \rVert^2 .

    Args:
        z: Embeddings, shape ``(N, D)`` with ``N >= 2``; scaled to unit length inside.
        labels: Classes, shape ``(N,)``; with the index of the example as the label of each of its views, the pairs
            are those of contrastive learning.

    Returns:
        A number in [0, 4].

    Raises:
        ValueError: If a shape is not as above, an embedding is not finite, or no two examples share a class.

    Examples:
        >>> alignment([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]], [0, 0, 1])
        2.0

    References:
        Wang and Isola (2020), Section 4.1, with exponent 2.
    """
    unit, classes = _embeddings(z, labels)
    pairs, total = 0, 0.0
    for each in np.unique(classes):
        members = unit[classes == each]
        count = len(members)
        pairs += count * (count - 1) // 2
        # Over all pairs of m unit vectors the squared distances add up to m^2 - |sum|^2.
        total += count**2 - float(np.square(members.sum(0)).sum())
    if not pairs:
        raise ValueError(f"labels must have a class with two examples, got {len(classes)} classes of one")
    return max(0.0, total / pairs)


def uniformity(z: ArrayLike | Tensor, t: float = 2.0) -> float:
    r"""Logarithm of the mean Gaussian potential between unit embeddings; lower is more evenly spread.

    Over all unordered pairs :math:`A` of different examples,

    .. math:: \log \frac{1}{|A|} \sum_{(i, j) \in A} e^{-t \lVert z_i - z_j \rVert^2} .

    Args:
        z: Embeddings, shape ``(N, D)`` with ``N >= 2``; scaled to unit length inside.
        t: Sharpness of the potential, > 0. Default 2.

    Returns:
        A number in [-4 t, 0], in nats; 0 if all embeddings point the same way.

    Raises:
        TypeError: If ``t`` is no number.
        ValueError: If a shape or ``t`` is not as above, or an embedding is not finite.

    Examples:
        >>> round(uniformity([[1.0, 0.0], [0.0, 3.0]]), 9)
        -4.0

    References:
        Wang and Isola (2020), Section 4.1.
    """
    unit = _unit(z)
    check_positive("t", t)
    n = len(unit)
    logs = []
    for rows in _blocks(n, n):
        exponent = -t * (2 - 2 * np.clip(unit[rows] @ unit.T, -1, 1))
        exponent[np.arange(len(exponent)), rows] = -np.inf
        logs.append(np.logaddexp.reduce(exponent, axis=None))
    return float(np.logaddexp.reduce(logs) - np.log(n * (n - 1)))


def utilization(queries: ArrayLike | Tensor, gallery: ArrayLike | Tensor, chunk_size: int | None = None) -> float:
    r"""Mean squared distance from each query to its nearest point of a gallery; lower is better covered.

    With :math:`Q` unit queries :math:`q_i` and the unit embeddings :math:`X` of the gallery,

    .. math:: u(Q, X) = \frac{1}{Q} \sum_{i=1}^{Q} \min_{x \in X} \lVert q_i - x \rVert^2 .

    With embeddings of unseen classes as queries and of the training set as gallery it says how much of the space that
    tests need has been used in training. A larger gallery can only lower it.

    Args:
        queries: Embeddings, shape ``(Q, D)`` with ``Q >= 1``; scaled to unit length inside.
        gallery: Embeddings, shape ``(M, D)`` with ``M >= 1``; scaled to unit length inside.
        chunk_size: Queries compared at a time, >= 1; the result does not depend on it. Default as many as fit in
            32 MiB.

    Returns:
        A number in [0, 4].

    Raises:
        TypeError: If ``chunk_size`` is no int.
        ValueError: If a shape or ``chunk_size`` is not as above, or an embedding is not finite.

    Examples:
        >>> utilization([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [-1.0, 0.0]])
        1.0

    References:
        Venkataramanan et al. (2022), analysis of the embedding space; chapter 10 (:doc:`/notebooks/10_metric_mix`).
    """
    asked, known = _unit(queries, "queries", 1), _unit(gallery, "gallery", 1)
    if known.shape[1] != asked.shape[1]:
        raise ValueError(f"gallery must have shape (M, D) = (*, {asked.shape[1]}), got {known.shape}")
    if chunk_size is None:
        chunk_size = max(1, _BLOCK // len(known))
    check_integer("chunk_size", chunk_size)
    check_positive("chunk_size", chunk_size)
    nearest = [(asked[i : i + chunk_size] @ known.T).max(1) for i in range(0, len(asked), chunk_size)]
    return float((2 - 2 * np.concatenate(nearest).clip(-1, 1)).mean())


def _blocks(rows: int, columns: int) -> Iterator[np.ndarray]:
    """Row indices in blocks of about ``_BLOCK`` entries."""
    yield from np.array_split(np.arange(rows), -(-rows * columns // _BLOCK))


def _array(values: ArrayLike | Tensor) -> np.ndarray:
    if isinstance(values, Tensor):
        # NumPy has no bfloat16.
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _unit(z: ArrayLike | Tensor, name: str = "z", at_least: int = 2) -> np.ndarray:
    """Embeddings as rows of unit length; a zero stays zero."""
    rows = _array(z).astype(np.float64)
    if rows.ndim != 2 or len(rows) < at_least:
        raise ValueError(f"{name} must have shape (N, D) with N >= {at_least}, got {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{name} must be finite, got {rows[~np.isfinite(rows)][0]}")
    # Scaled first by the largest entry, so that squares of tiny and huge numbers stay in range.
    tiny = np.finfo(np.float64).tiny
    rows = rows / np.abs(rows).max(1, keepdims=True, initial=tiny)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), tiny)


def _embeddings(
    z: ArrayLike | Tensor, labels: ArrayLike | Tensor, names: tuple[str, str] = ("z", "labels"), *, at_least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    unit, classes = _unit(z, names[0], at_least), _array(labels)
    if classes.shape != (len(unit),):
        raise ValueError(f"{names[1]} must have shape (N,) = ({len(unit)},), got {classes.shape}")
    return unit, classes


def _scores(
    scores: ArrayLike | Tensor, relevance: ArrayLike | Tensor, name: str, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and relevance as arrays, with the number of documents that count, an argument called ``name``, checked."""
    score, relevant = _array(scores).astype(np.float64), _array(relevance)
    if score.ndim != 2 or len(score) < 1:
        raise ValueError(f"scores must have shape (Q, D) with Q >= 1, got {score.shape}")
    if relevant.shape != score.shape:
        raise ValueError(f"relevance must have shape (Q, D) = {score.shape}, got {relevant.shape}")
    if np.isnan(score).any():
        raise ValueError("scores must not be NaN, got NaN")
    if not np.isin(relevant, (0, 1)).all():
        raise ValueError(f"relevance must be 0 or 1, got {relevant[~np.isin(relevant, (0, 1))][0]}")
    check_integer(name, count)
    if count < 1:
        raise ValueError(f"{name} must be >= 1, got {count}")
    return score, relevant.astype(bool)
