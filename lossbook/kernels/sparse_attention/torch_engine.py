"""The stages of a decode step in plain torch, on any device; see :mod:`lossbook.kernels.sparse_attention.engines`."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.library import no_autocast, result_dtype
from lossbook.kernels.sparse_attention.paging import cache_tokens, gather_pages, is_token, take_tokens
from lossbook.kernels.sparse_attention.quantization import quantize, unpack

if TYPE_CHECKING:
    from lossbook.kernels.sparse_attention.labels import LabelCache


def append_labels(cache: "LabelCache", k_new: Tensor) -> None:
    """Write the labels of ``k_new`` behind those of each request."""
    (batch, key_heads, new, _), (heads, _), device = k_new.shape, cache.channels.shape, k_new.device
    row = torch.arange(batch, device=device)[:, None, None]
    head = torch.arange(heads, device=device)[:, None]
    token = torch.arange(new, device=device)
    key_head = head // (heads // key_heads)
    x = k_new[row[..., None], key_head[..., None], token[:, None], cache.channels[:, None]]
    place = row, head, cache.lengths[:, None, None] + token
    if cache.bits == 16:
        cache.values[place] = x
    else:
        cache.values[place], cache.scale[place], cache.zero[place] = quantize(x, cache.bits)


def approx_scores(q: Tensor, cache: "LabelCache", group_reduce: str, head_dim: int) -> Tensor:
    """Scores of all tokens by their labels."""
    heads, channels = cache.channels.shape
    work = result_dtype(q.dtype)
    grouped = q.unflatten(1, (heads, -1))
    wanted = cache.channels[:, None].expand(*grouped.shape[:3], channels)
    query = grouped.gather(3, wanted).to(work)
    with no_autocast(q):
        scores = query @ unpack(cache.values, cache.bits, channels).to(work).transpose(2, 3)
    if cache.bits != 16:
        zero, scale = (part.to(work)[:, :, None] for part in (cache.zero, cache.scale))
        scores = scale * scores + zero * query.sum(3, keepdim=True)
    past = ~is_token(cache.lengths, scores.shape[3])[:, None]
    if scores.shape[2] == 1:
        scores = scores.squeeze(2)
    elif group_reduce == "max":
        scores = scores.amax(2)
    elif group_reduce == "mean":
        scores = scores.mean(2)
    elif group_reduce == "maxnorm":
        norm = query.norm(dim=3, keepdim=True)
        scores = (scores / torch.where(norm == 0, 1, norm)).amax(2)
    else:
        scores = (scores / head_dim**0.5).masked_fill(past[:, :, None], -torch.inf).softmax(3).sum(2)
    return scores.masked_fill(past, -torch.inf)


def select_tokens(scores: Tensor, budget: int, lengths: Tensor, sink: int, recent: int) -> tuple[Tensor, Tensor]:
    """The ``budget`` largest scores of each row by index, and how many there are."""
    token = torch.arange(scores.shape[2], device=scores.device)
    forced = (token < sink) | (token >= lengths[:, None] - recent)
    allowed = is_token(lengths, scores.shape[2])
    return select_best(scores, budget, allowed[:, None], forced[:, None])


def select_best(scores: Tensor, budget: int, allowed: Tensor, forced: Tensor) -> tuple[Tensor, Tensor]:
    """The ``budget`` best allowed tokens of each row: forced ones first, then by score, then by index.

    The masks are of the shape of ``scores``, ``(B, H, S)``, or broadcast to it.
    """
    batch, heads, tokens = scores.shape
    # Ascending and negated, because a sort takes NaN for the largest number, and it has to come last.
    order = torch.sort(-scores, stable=True).indices
    rank = torch.where(allowed, torch.where(forced, 0, 1), 2).expand_as(scores)
    order = order.gather(2, torch.sort(rank.gather(2, order), stable=True).indices)[:, :, :budget]
    count = allowed.sum(2).clamp(max=budget).expand(batch, heads).to(torch.int32)
    # An index that sorts behind all tokens stands for no token until the sort is done.
    order = order.masked_fill(~is_token(count.flatten(), order.shape[2]).view_as(order), tokens).sort().values
    index = scores.new_full((batch, heads, budget), -1, dtype=torch.int32)
    index[:, :, : order.shape[2]] = order.masked_fill(order == tokens, -1)
    return index, count.contiguous()


def sparse_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    count: Tensor,
    scale: float,
    block_table: Tensor | None,
    k_scale: float,
    v_scale: float,
) -> Tensor:
    """Attention over listed tokens."""
    listed = is_token(count.flatten(), index.shape[2]).view_as(index)
    token = torch.where(listed, index, 0).long()
    k, v = (take_tokens(cache, token, block_table) for cache in (k, v))
    return _attend(q, k, v, listed, scale * k_scale, v_scale)


def dense_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    scale: float,
    block_table: Tensor | None,
    k_scale: float,
    v_scale: float,
) -> Tensor:
    """Attention over all tokens."""
    valid = is_token(lengths, cache_tokens(k, block_table))
    k, v = (gather_pages(cache, block_table, lengths) for cache in (k, v))
    return _attend(q, k, v, valid[:, None], scale * k_scale, v_scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, scale: float, v_scale: float) -> Tensor:
    """Attention of ``q``, ``(B, Hq, D)``, over the valid ones of n tokens, ``(B, H, n, D)``; zero where none is."""
    work = result_dtype(q.dtype)
    with no_autocast(q):
        logits = q.unflatten(1, (k.shape[1], -1)).to(work) @ k.to(work).transpose(2, 3) * scale
        weights = logits.masked_fill(~valid[:, :, None], -torch.inf).softmax(3)
        # Where no token is valid the softmax is NaN; and zero weights do not hide what is not finite in ``v``.
        weights = weights.masked_fill(~valid[:, :, None], 0)
        mean = weights @ v.to(work).masked_fill(~valid[..., None], 0)
    return (mean * v_scale).flatten(1, 2).to(q.dtype)
