"""Losses of a matrix of similarities between queries and passages or labels."""

import torch
from torch import Tensor
from torch.nn import functional

from lossbook._validation import (
    check_dtype,
    check_floating,
    check_positive,
    check_same_device,
    check_shape,
    check_tensor,
    values_are_readable,
)
from lossbook.losses._shared import reduce, widen

__all__ = ["info_nce"]


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
    return reduce(functional.cross_entropy(logits, index, reduction="none"), reduction, sim.dtype)


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
