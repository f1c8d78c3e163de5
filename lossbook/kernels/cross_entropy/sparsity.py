"""How sparse a language model's softmax is, by entry, by tile and by column."""

import torch
from torch import Tensor

from lossbook._validation import (
    check_dtype,
    check_integer,
    check_positive,
    check_same_device,
    check_shape,
    check_target_range,
    check_tensor,
    values_are_readable,
)
from lossbook.kernels.cross_entropy.arguments import check_head, check_target
from lossbook.kernels.cross_entropy.library import no_autocast, result_dtype
from lossbook.kernels.cross_entropy.tiles import logits_into, spans


@torch.no_grad()
def softmax_sparsity(
    e: Tensor,
    c: Tensor,
    target: Tensor,
    *,
    eps: float,
    block: tuple[int, int] = (128, 128),
    order: Tensor | None = None,
) -> dict[str, float]:
    r"""Measure how much of a linear head's softmax reaches a threshold, and what a filter would keep.

    With :math:`p_{iv} = \mathrm{softmax}(e_i C^\top)_v`, :math:`\delta_{iv} = 1` where :math:`v` is the target of row
    :math:`i` and 0 elsewhere, and rows cut into blocks :math:`B`, the column :math:`v` of a block is kept if

    .. math:: \max_{i \in B} |p_{iv} - \delta_{iv}| \ge \varepsilon ,

    and a tile (some columns of a block) is kept if one of its columns is.

    Args:
        e: Hidden states, shape ``(..., D)``, floating point, at least one row.
        c: Classifier, shape ``(V, D)``, dtype of ``e``.
        target: Class indices in ``[0, V)``, shape ``(...)``, int64.
        eps: Threshold :math:`\varepsilon` on a probability, ``> 0``.
        block: Rows per block and columns per tile. Default ``(128, 128)``.
        order: A permutation of the vocabulary, int64, shape ``(V,)``: tiles are cut from columns in this order, as a
            kernel that visits a sorted vocabulary does. Default None: natural order. Only ``tiles`` depends on it.

    Returns:
        Floats under these keys. ``entries``: fraction of all :math:`p_{iv} \ge \varepsilon`. ``tiles`` and
        ``columns``: fractions kept; a tile cut short at the edge counts as one. ``mass``: softmax mass in the columns
        that are dropped, mean over rows. ``row_mean`` and ``row_max``: number of entries that reach the threshold, per
        row. ``never_kept``: fraction of the vocabulary that no block keeps.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape or a value does not fit, or there is no row. The message names the argument.

    Examples:
        >>> e, c = 20 * torch.eye(2, 3), torch.eye(4, 3)  # two rows, each sure of its word
        >>> result = softmax_sparsity(e, c, torch.tensor([0, 0]), eps=0.01, block=(2, 2))
        >>> result["entries"], result["columns"], result["tiles"]
        (0.25, 0.5, 0.5)

    Note:
        Never holds more than one block of logits, ``4 * block[0] * V`` bytes, computed in float32 (float64 for float64
        operands). At most :math:`1 / \varepsilon` entries of a row reach the threshold.

    References:
        Wijmans et al. (2025), Cut Your Losses in Large-Vocabulary Language Models, Sec. 5.2 and Fig. 3 for entries,
        Sec. 4.3 for tiles; columns are this package's own. Chapter 17 (:doc:`/notebooks/17_cut_cross_entropy`).
    """
    check_head(e, c, None)
    check_target("target", target, e)
    check_target_range("target", target, c.shape[0], symbol="V")
    check_positive("eps", eps)
    height, width = _check_block(block)
    if target.numel() == 0:
        raise ValueError(f"e must have at least one row, got shape {tuple(e.shape)}")
    order = _check_order(order, c)

    size, rows, dtype = c.shape[0], target.numel(), result_dtype(e.dtype)
    e, c, target = e.reshape(rows, -1), c.to(dtype), target.reshape(-1)
    buffer = e.new_empty(min(height, rows) * size, dtype=dtype)
    per_row, kept, dropped = [], [], 0.0
    for top, bottom in spans(rows, height):
        with no_autocast(e):
            p = logits_into(buffer, e[top:bottom].to(dtype), c, None)
        torch.softmax(p, 1, out=p)
        per_row.append((p >= eps).sum(1))
        kept.append(_kept_columns(p, target[top:bottom], eps))
        dropped += p.masked_fill_(kept[-1], 0).sum(dtype=torch.float64).item()
    entries, columns = torch.cat(per_row).double(), torch.stack(kept)
    tiles = torch.nn.functional.pad(columns[:, order], (0, -size % width)).unflatten(1, (-1, width)).any(2)
    return {
        "entries": entries.mean().item() / size,
        "tiles": tiles.double().mean().item(),
        "columns": columns.double().mean().item(),
        "mass": dropped / rows,
        "row_mean": entries.mean().item(),
        "row_max": entries.max().item(),
        "never_kept": (~columns.any(0)).double().mean().item(),
    }


def _check_block(block: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(block, (tuple, list)) or len(block) != 2:
        raise ValueError(f"block must be a pair (rows, columns), got {block!r}")
    for size in block:
        check_integer("block", size)
        check_positive("block", size)
    return tuple(block)


def _check_order(order: Tensor | None, c: Tensor) -> Tensor:
    natural = torch.arange(c.shape[0], device=c.device)
    if order is None:
        return natural
    check_tensor("order", order)
    check_dtype("order", order, torch.int64)
    check_same_device("order", order, "c", c)
    check_shape("order", order, "(V,)", (c.shape[0],))
    if values_are_readable(order) and not torch.equal(order.sort().values, natural):
        raise ValueError(f"order must be a permutation of 0 ... V - 1 = {c.shape[0] - 1}, got repeated or other values")
    return order


def _kept_columns(p: Tensor, target: Tensor, eps: float) -> Tensor:
    """Which columns hold an entry with ``|p - onehot| >= eps``; ``p`` is changed and restored."""
    at_target = p.gather(1, target[:, None])
    p.scatter_(1, target[:, None], 1 - at_target)
    kept = p.amax(0) >= eps
    p.scatter_(1, target[:, None], at_target)
    return kept
