"""Losses of a matrix of similarities between queries and passages, within each query or across all of them."""

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lossbook._validation import (
    check_choice,
    check_dtype,
    check_floating,
    check_integer,
    check_number,
    check_positive,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
    values_are_readable,
)
from lossbook.losses._positives import reduce_rows
from lossbook.losses._shared import REDUCTIONS, widen

# Several right answers of a query are a family of their own, found under retrieval too.
from lossbook.losses.multilabel import decoupled_softmax as decoupled_softmax
from lossbook.losses.multilabel import log_soft_topk as log_soft_topk
from lossbook.losses.multilabel import multilabel_softmax as multilabel_softmax
from lossbook.losses.multilabel import soft_topk as soft_topk
from lossbook.losses.multilabel import soft_topk_loss as soft_topk_loss

__all__ = ["info_nce", "mann_whitney", "mann_whitney_retrieval", "ranknet_retrieval", "siglip"]

# Pairs compared at a time in mann_whitney_retrieval: 64 MiB of float32.
_PAIRS = 2**24
# Pairs that stay in a processor's second-level cache, which halves the time of a step.
_CACHED_PAIRS = 2**17


def info_nce(sim: Tensor, *, temperature: float = 0.05, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    r"""Cross-entropy of finding each query's own passage among all passages of the batch.

    With the similarities :math:`s_{ij}` of query :math:`i` and passage :math:`j`, temperature :math:`\tau`, and the
    set :math:`M_i` of passages that serve as negatives of query :math:`i`,

    .. math:: \ell_i = -\log \frac{e^{s_{ii} / \tau}}{e^{s_{ii} / \tau} + \sum_{j \in M_i} e^{s_{ij} / \tau}} .

    Without a mask :math:`M_i` is every other column and the loss is :func:`torch.nn.functional.cross_entropy` with
    the diagonal as target. Only passages of the same row are compared: adding a number to a row changes nothing. The
    value is in nats.

    Args:
        sim: Similarities, shape ``(B, K)`` with ``K >= B``, floating point: the positive of row i is column i, the
            columns from B on are further negatives, such as hard ones. float16 and bfloat16 are accumulated in float32.
        temperature: Temperature :math:`\tau > 0`, in units of the similarities. Default 0.05. To learn it, divide
            ``sim`` by it and pass 1.
        mask: Which entries are usable as negatives, bool, shape ``(B, K)``; False drops passages that are right for
            the query too. What it says of the positives is ignored. Default all.
        reduction: ``"mean"`` (over B, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(B,)`` for ``"none"``; dtype of ``sim``. A row whose negatives are all dropped has loss zero.
        A batch without rows gives zero, with a :class:`~lossbook.losses.NoPositivesWarning`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``temperature`` or ``reduction`` is not as above, or (where values may be read) no row
            of a batch has a usable negative.

    Examples:
        >>> info_nce(torch.tensor([[0.9, 0.8], [0.1, 0.5]]), temperature=0.1, reduction="none")
        tensor([0.3133, 0.0181])

    Note:
        Finite for ``sim / temperature`` up to 1e4 in magnitude and beyond. With data parallelism gather the
        embeddings of all processes first, see :func:`lossbook.distributed.gather_with_gradient`.

    References:
        van den Oord, Li and Vinyals (2018), Eq. 4; Karpukhin et al. (2020) for in-batch negatives in retrieval;
        chapter 8 (:doc:`/notebooks/08_mann_whitney`).
    """
    _check_similarities(sim, mask)
    check_positive("temperature", temperature)
    logits = widen(sim) / temperature
    index = torch.arange(sim.shape[0], device=sim.device)
    if mask is not None:
        dropped = ~mask
        dropped.diagonal().fill_(False)
        logits = logits.masked_fill(dropped, -torch.inf)
    return reduce_rows(functional.cross_entropy(logits, index, reduction="none"), reduction, sim.dtype)


def mann_whitney(
    pos: Tensor, neg: Tensor, *, temperature: float = 1.0, reduction: str = "mean", chunk_size: int | None = None
) -> Tensor:
    r"""Logistic loss of every positive score against every negative score: a smooth bound on one minus the AUC.

    With the positive scores :math:`s^+_i`, the negative scores :math:`s^-_j` and temperature :math:`\tau`,

    .. math:: \ell_{ij} = \log \bigl( 1 + e^{-(s^+_i - s^-_j) / \tau} \bigr) .

    A pair in the wrong order costs at least :math:`\log 2`, so :math:`1 - \mathrm{AUC}`, the share of such pairs, is at
    most the mean of :math:`\ell_{ij}` divided by :math:`\log 2`, at every temperature. The value is in nats.

    Args:
        pos: Scores :math:`s^+` of the positives, shape ``(P,)`` with ``P >= 1``, floating point. float16 and bfloat16
            are accumulated in float32.
        neg: Scores :math:`s^-` of the negatives, shape ``(M,)`` with ``M >= 1``, dtype of ``pos``.
        temperature: Temperature :math:`\tau > 0`, in units of the scores. Default 1. Cold, the loss counts by how much
            pairs are in the wrong order; hot, it sees the difference of the two means only.
        reduction: ``"mean"`` (over the P M pairs, default), ``"sum"`` or ``"none"``.
        chunk_size: Positives compared at a time, >= 1; the backward pass recomputes their pairs, so memory is that of
            ``chunk_size * M`` numbers instead of ``P * M``. The value is the same up to rounding. Default all at once.
            Without effect for ``"none"``.

    Returns:
        Scalar, or shape ``(P, M)`` for ``"none"``; dtype of ``pos``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``temperature``, ``reduction`` or ``chunk_size`` is not as above.

    Examples:
        >>> mann_whitney(torch.tensor([2.0, 0.0]), torch.tensor([0.0]), reduction="none")
        tensor([[0.1269],
                [0.6931]])

    References:
        Sheikholeslami et al. (2025), Eq. 3, which displays a sum over the negatives, and Lemma 2 for the bound;
        chapter 8 (:doc:`/notebooks/08_mann_whitney`).
    """
    _check_scores("pos", pos, "P")
    _check_scores("neg", neg, "M")
    check_same_dtype("neg", neg, "pos", pos)
    check_same_device("neg", neg, "pos", pos)
    check_positive("temperature", temperature)
    check_choice("reduction", reduction, REDUCTIONS)
    if chunk_size is not None:
        check_integer("chunk_size", chunk_size)
        check_positive("chunk_size", chunk_size)
    # Divided before they are paired, which takes P + M divisions instead of P M.
    positive, negative = widen(pos) / temperature, widen(neg) / temperature
    if reduction == "none":
        return -_log_share_won(positive, negative).to(pos.dtype)
    total = _sums_over_negatives(positive, negative, chunk_size or len(pos)).sum()
    return (total / (len(pos) * len(neg)) if reduction == "mean" else total).to(pos.dtype)


def mann_whitney_retrieval(
    sim: Tensor, *, temperature: float = 0.05, mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    r"""Every query's own passage against the wrong passages of all queries: one scale for all scores.

    With the similarities :math:`s_{ij}` of query :math:`i` and passage :math:`j`, temperature :math:`\tau`, and the set
    :math:`M` of all pairs of a query and a passage that is a negative of it,

    .. math:: \ell_i = \frac{1}{|M|} \sum_{(k, j) \in M} \log \bigl( 1 + e^{-(s_{ii} - s_{kj}) / \tau} \bigr) .

    Their mean is :func:`mann_whitney` of the diagonal and the rest. Unlike :func:`info_nce` and
    :func:`ranknet_retrieval` it notices when the scores of one query are higher than those of another, and so makes one
    threshold for all queries meaningful. The value is in nats.

    Args:
        sim: Similarities, shape ``(B, K)`` with ``K >= B``, floating point: the positive of row i is column i, the
            columns from B on are further negatives, such as hard ones. float16 and bfloat16 are accumulated in float32.
        temperature: Temperature :math:`\tau > 0`, in units of the similarities. Default 0.05.
        mask: Which entries are usable as negatives, bool, shape ``(B, K)``; False drops passages that are right for
            the query too. What it says of the positives is ignored. Default all.
        reduction: ``"mean"`` (over B, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(B,)`` for ``"none"``; dtype of ``sim``. A batch without rows gives zero, with a
        :class:`~lossbook.losses.NoPositivesWarning`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``temperature`` or ``reduction`` is not as above, or (where values may be read) no row
            of a batch has a usable negative.

    Examples:
        >>> mann_whitney_retrieval(torch.tensor([[0.9, 0.8], [0.1, 0.5]]), temperature=0.1, reduction="none")
        tensor([0.1568, 1.5334])

    Note:
        Makes ``B * B * K`` comparisons of the ``B * K`` similarities; large batches go in parts that the backward pass
        recomputes, so memory stays bounded. With data parallelism gather the embeddings of all processes first, see
        :func:`lossbook.distributed.gather_with_gradient`.

    References:
        Sheikholeslami et al. (2025), Eq. 3, as a mean; chapter 8 (:doc:`/notebooks/08_mann_whitney`).
    """
    _check_similarities(sim, mask)
    check_positive("temperature", temperature)
    scores, dropped = widen(sim) / temperature, _dropped(sim, mask)
    # A negative at -inf is beaten by every positive and adds nothing.
    negative = scores.masked_fill(dropped, -torch.inf).flatten()
    sums = _sums_over_negatives(scores.diagonal(), negative, max(1, _PAIRS // max(1, negative.numel())))
    return reduce_rows(sums / (~dropped).sum().clamp(min=1), reduction, sim.dtype)


def ranknet_retrieval(
    sim: Tensor, *, temperature: float = 0.05, mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    r"""Logistic loss of each query's own passage against its wrong passages, pair by pair.

    With the similarities :math:`s_{ij}` of query :math:`i` and passage :math:`j`, temperature :math:`\tau`, and the set
    :math:`M_i` of passages that serve as negatives of query :math:`i`,

    .. math:: \ell_i = \frac{1}{|M_i|} \sum_{j \in M_i} \log \bigl( 1 + e^{-(s_{ii} - s_{ij}) / \tau} \bigr) .

    This is :func:`mann_whitney_retrieval` without the comparisons across queries: adding a number to a row changes
    nothing. The value is in nats.

    Args:
        sim: Similarities, shape ``(B, K)`` with ``K >= B``, floating point: the positive of row i is column i, the
            columns from B on are further negatives, such as hard ones. float16 and bfloat16 are accumulated in float32.
        temperature: Temperature :math:`\tau > 0`, in units of the similarities. Default 0.05.
        mask: Which entries are usable as negatives, bool, shape ``(B, K)``; False drops passages that are right for
            the query too. What it says of the positives is ignored. Default all.
        reduction: ``"mean"`` (over all pairs, default: with a mask a query weighs as much as it has negatives),
            ``"sum"`` (of the :math:`\ell_i`) or ``"none"``.

    Returns:
        Scalar, or shape ``(B,)`` for ``"none"``; dtype of ``sim``. A row whose negatives are all dropped has loss zero.
        A batch without rows gives zero, with a :class:`~lossbook.losses.NoPositivesWarning`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``temperature`` or ``reduction`` is not as above, or (where values may be read) no row
            of a batch has a usable negative.

    Examples:
        >>> ranknet_retrieval(torch.tensor([[0.9, 0.8], [0.1, 0.5]]), temperature=0.1, reduction="none")
        tensor([0.3133, 0.0181])

    References:
        Burges et al. (2005), for the loss of a pair; chapter 8 (:doc:`/notebooks/08_mann_whitney`), where it tells the
        effect of comparing pairs from that of comparing across queries.
    """
    _check_similarities(sim, mask)
    check_positive("temperature", temperature)
    scores, dropped = widen(sim), _dropped(sim, mask)
    margins = scores.diagonal()[:, None] - scores.masked_fill(dropped, -torch.inf)
    count = (~dropped).sum(1).to(scores.dtype)
    losses = -functional.logsigmoid(margins / temperature).sum(1) / count.clamp(min=1)
    if reduction == "mean":
        losses = losses * (count * (len(count) / count.sum().clamp(min=1)))
    return reduce_rows(losses, reduction, sim.dtype)


def siglip(
    sim: Tensor,
    *,
    temperature: float = 0.05,
    bias: float | Tensor = -10.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Logistic loss of each pair by itself: is this passage the right one for this query?

    With the similarities :math:`s_{ij}` of query :math:`i` and passage :math:`j`, temperature :math:`\tau`, bias
    :math:`b`, and the set :math:`M_i` of passages that serve as negatives of query :math:`i`,

    .. math::

        \ell_i = \log \bigl( 1 + e^{-(s_{ii} / \tau + b)} \bigr)
        + \sum_{j \in M_i} \log \bigl( 1 + e^{s_{ij} / \tau + b} \bigr) .

    No score is compared with another one, all with the same threshold :math:`-b \tau`. The value is in nats.

    Args:
        sim: Similarities, shape ``(B, K)`` with ``K >= B``, floating point: the positive of row i is column i, the
            columns from B on are further negatives, such as hard ones. float16 and bfloat16 are accumulated in float32.
        temperature: Temperature :math:`\tau > 0`, in units of the similarities. Default 0.05. To learn it, divide
            ``sim`` by it and pass 1.
        bias: Bias :math:`b` of the logits, a number or, to learn it, a 0-d tensor. Default -10, at which hardly any
            pair is taken for a match before training.
        mask: Which entries are usable as negatives, bool, shape ``(B, K)``; False drops passages that are right for
            the query too. What it says of the positives is ignored. Default all.
        reduction: ``"mean"`` (over B, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(B,)`` for ``"none"``; dtype of ``sim``. A batch without rows gives zero, with a
        :class:`~lossbook.losses.NoPositivesWarning`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``temperature``, ``bias`` or ``reduction`` is not as above, or (where values may be
            read) no row of a batch has a usable negative.

    Examples:
        >>> sim = torch.tensor([[0.9, 0.8], [0.1, 0.5]])
        >>> siglip(sim, temperature=0.1, bias=-6.0, reduction="none")
        tensor([2.1755, 1.3200])

    References:
        Zhai et al. (2023), Eq. 1, with hard negatives and a mask; chapter 8 (:doc:`/notebooks/08_mann_whitney`).
    """
    _check_similarities(sim, mask)
    check_positive("temperature", temperature)
    if isinstance(bias, Tensor):
        check_floating("bias", bias)
        check_shape("bias", bias, "()", ())
    else:
        check_number("bias", bias)
    logits = widen(sim) / temperature + bias
    wrong = logits.masked_fill(_dropped(sim, mask), -torch.inf)
    losses = -functional.logsigmoid(logits.diagonal()) - functional.logsigmoid(-wrong).sum(1)
    return reduce_rows(losses, reduction, sim.dtype)


def _dropped(sim: Tensor, mask: Tensor | None) -> Tensor:
    """Which entries are not negatives: the positives and what the mask leaves out."""
    own = torch.eye(*sim.shape, dtype=torch.bool, device=sim.device)
    return own if mask is None else own | ~mask


def _log_share_won(positive: Tensor, negative: Tensor) -> Tensor:
    """Minus the loss of each pair, (P, M). The log-sigmoid keeps the digits that softplus rounds off above 20."""
    return functional.logsigmoid(positive[:, None] - negative)


def _sums_over_negatives(positive: Tensor, negative: Tensor, chunk_size: int) -> Tensor:
    """Sum over the negatives for each positive, with ``chunk_size`` rows of pairs in memory at a time."""

    def sums(chunk: Tensor, negative: Tensor) -> Tensor:
        if negative.device.type != "cpu" or torch.compiler.is_compiling():
            return -_log_share_won(chunk, negative).sum(1)
        blocks = negative.split(max(1, _CACHED_PAIRS // max(1, len(chunk))))
        return -torch.stack([_log_share_won(chunk, block).sum(1) for block in blocks]).sum(0)

    if len(positive) <= chunk_size:
        return sums(positive, negative)
    return torch.cat(
        [
            checkpoint(sums, chunk, negative, use_reentrant=False, preserve_rng_state=False)
            for chunk in positive.split(chunk_size)
        ]
    )


def _check_scores(name: str, scores: Tensor, symbol: str) -> None:
    """Require one or more floating-point scores in one dimension."""
    check_tensor(name, scores)
    check_floating(name, scores)
    check_shape(name, scores, f"({symbol},)", (None,))
    if not len(scores):
        raise ValueError(f"{name} must have shape ({symbol},) with {symbol} >= 1, got (0,)")


def _check_similarities(sim: Tensor, mask: Tensor | None) -> None:
    """Require similarities (B, K) with positives on the diagonal, and a mask of negatives that leaves some.

    Raises:
        TypeError: If an argument is no tensor or has another type of number.
        ValueError: If a shape or device differs, or there is no negative.
    """
    check_tensor("sim", sim)
    check_floating("sim", sim)
    check_shape("sim", sim, "(B, K)", (None, None))
    rows, columns = sim.shape
    if columns < rows:
        raise ValueError(f"sim must have shape (B, K) with K >= B, got ({rows}, {columns})")
    negatives = "one besides the positive for some row"
    if rows and columns == 1:
        raise ValueError(f"sim must have a negative, {negatives}, got shape (1, 1)")
    if mask is None:
        return
    check_tensor("mask", mask)
    check_dtype("mask", mask, torch.bool)
    check_shape("mask", mask, "(B, K)", (rows, columns))
    check_same_device("mask", mask, "sim", sim)
    if rows and values_are_readable(mask) and mask.sum() == mask.diagonal().sum():
        raise ValueError(f"mask must leave a negative, {negatives}, got none in {rows} rows")
