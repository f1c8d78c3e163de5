"""The stages of a decode step on Triton; see :mod:`lossbook.kernels.sparse_attention.engines`."""

from typing import Any

import torch
import triton
from torch import Tensor

from lossbook.kernels.sparse_attention.labels import LabelCache
from lossbook.kernels.sparse_attention.triton.attention import decode_kernel, join_kernel
from lossbook.kernels.sparse_attention.triton.labels import append_kernel, score_kernel
from lossbook.kernels.sparse_attention.triton.selection import (
    count_kernel,
    histogram_kernel,
    narrow_kernel,
    select_kernel,
    write_kernel,
)

_LABEL_TOKENS = 64
# Entries of a tile of labels: 512 tokens of 16 channels.
_SCORE_ENTRIES = 8192
_SELECT_TOKENS = 1024
# Longer rows are selected from by several programs.
_ROW_TOKENS = 32768
# Bytes of a tile of keys: 64 tokens of 128 features in half precision.
_KEY_BYTES = 16384
_LEAST_PART = 256
_MOST_PARTS = 64
_INTERPRETED_PROCESSORS = 4


def key_tile(features: int, item_bytes: int, paged: bool) -> int:
    """Tokens of a tile of keys, for heads of ``features`` numbers of so many bytes."""
    tokens = _KEY_BYTES // (features * item_bytes)
    if paged and item_bytes == 4 and features >= 128:
        tokens //= 2  # beside products of such numbers, addresses of their own for each token leave the registers
    return max(16, min(128, tokens))


def decode_warps(item_bytes: int) -> int:
    """Warps of a program of attention: products of four-byte numbers need more registers than four warps have."""
    return 8 if item_bytes == 4 else 4


def append_labels(cache: LabelCache, k_new: Tensor) -> None:
    """Write the labels of ``k_new`` behind those of each request."""
    batch, key_heads, new, _ = k_new.shape
    heads, channels = cache.channels.shape
    if k_new.stride(3) != 1:
        k_new = k_new.contiguous()
    with torch.cuda.device_of(k_new):
        append_kernel[(batch * heads, triton.cdiv(new, _LABEL_TOKENS))](
            k_new,
            cache.channels,
            cache.values,
            cache.scale,
            cache.zero,
            cache.lengths,
            heads,
            heads // key_heads,
            channels,
            new,
            cache.capacity,
            *k_new.stride()[:3],
            cache.values.shape[3],
            **_label_format(cache),
            BLOCK_TOKENS=_LABEL_TOKENS,
        )


def approx_scores(q: Tensor, cache: LabelCache, group_reduce: str, head_dim: int) -> Tensor:
    """Scores of all tokens by their labels."""
    q = _unit_stride(q)
    batch, query_heads, _ = q.shape
    heads, channels = cache.channels.shape
    tokens = cache.values.shape[2]
    by_sum = group_reduce == "sumsoftmax" and query_heads > heads
    rows = query_heads if by_sum else heads
    scores = q.new_empty((batch, rows, tokens), dtype=torch.float32)
    label_format = _label_format(cache)
    block = max(16, _SCORE_ENTRIES // label_format["BLOCK_CHANNELS"])
    with torch.cuda.device_of(q):
        score_kernel[(batch * heads, triton.cdiv(tokens, block))](
            q,
            cache.channels,
            cache.values,
            cache.scale,
            cache.zero,
            cache.lengths,
            scores,
            heads,
            query_heads // heads,
            channels,
            tokens,
            cache.capacity,
            *q.stride()[:2],
            cache.values.shape[3],
            MERGE="none" if by_sum or query_heads == heads else group_reduce,
            BLOCK_TOKENS=block,
            **label_format,
        )
    if by_sum:
        scores = (scores / head_dim**0.5).softmax(2).unflatten(1, (heads, -1)).sum(2)
        past = torch.arange(tokens, device=q.device) >= cache.lengths[:, None]
        scores.masked_fill_(past[:, None], -torch.inf)
    return scores


def select_tokens(scores: Tensor, budget: int, lengths: Tensor, sink: int, recent: int) -> tuple[Tensor, Tensor]:
    """The ``budget`` largest scores of each row by index, and how many there are."""
    scores = scores.contiguous()
    batch, heads, tokens = scores.shape
    index = scores.new_empty((batch, heads, budget), dtype=torch.int32)
    count = scores.new_empty((batch, heads), dtype=torch.int32)
    select = _select_short if tokens <= _ROW_TOKENS else _select_long
    with torch.cuda.device_of(scores):
        select(scores, lengths, index, count, sink, recent)
    return index, count


def _select_short(scores: Tensor, lengths: Tensor, index: Tensor, count: Tensor, sink: int, recent: int) -> None:
    batch, heads, tokens = scores.shape
    select_kernel[(batch * heads,)](
        scores,
        lengths,
        index,
        count,
        heads,
        tokens,
        index.shape[2],
        sink,
        recent,
        BLOCK_TOKENS=_SELECT_TOKENS,
        BLOCK_BUDGET=_SELECT_TOKENS,
    )


def _select_long(scores: Tensor, lengths: Tensor, index: Tensor, count: Tensor, sink: int, recent: int) -> None:
    batch, heads, tokens = scores.shape
    rows, budget = batch * heads, index.shape[2]
    # Enough blocks for the list too, whose end they mark.
    blocks = triton.cdiv(max(tokens, budget), _SELECT_TOKENS)
    # Prefix of the threshold's key so far, and how many keys with that prefix are wanted.
    state = torch.zeros((rows, 2), dtype=torch.int32, device=scores.device)
    state[:, 1] = lengths.clamp(max=budget).repeat_interleave(heads)
    histogram = torch.zeros((rows, 256), dtype=torch.int32, device=scores.device)
    counts = histogram.new_empty((rows, 2, blocks))
    ends = {"sink": sink, "recent": recent, "BLOCK_TOKENS": _SELECT_TOKENS}
    for step in range(4):
        histogram_kernel[(rows, blocks)](scores, lengths, state, histogram, heads, tokens, PASS=step, **ends)
        narrow_kernel[(rows,)](state, histogram, PASS=step)
    count_kernel[(rows, blocks)](scores, lengths, state, counts, heads, tokens, blocks, **ends)
    before = counts.cumsum(2, dtype=torch.int32) - counts
    write_kernel[(rows, blocks)](scores, lengths, state, before, index, count, heads, tokens, blocks, budget, **ends)


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
    return _decode(q, k, v, None, index.contiguous(), count.contiguous(), scale, block_table, k_scale, v_scale)


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
    return _decode(q, k, v, lengths, None, None, scale, block_table, k_scale, v_scale)


def _decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    index: Tensor | None,
    count: Tensor | None,
    scale: float,
    block_table: Tensor | None,
    k_scale: float,
    v_scale: float,
) -> Tensor:
    dtype = q.dtype
    q, k, v = (_multipliable(_unit_stride(value)) for value in (q, k, v))
    batch, query_heads, features = q.shape
    key_heads, page_size = k.shape[1], k.shape[2]
    if index is None:
        tokens = page_size if block_table is None else page_size * block_table.shape[1]
        heads = key_heads
    else:
        tokens, heads = index.shape[2], index.shape[1]
    block_features = max(16, triton.next_power_of_2(features))
    block_tokens = key_tile(block_features, q.element_size(), block_table is not None)
    parts = _n_parts(q.device, batch * heads, tokens)
    part_tokens = triton.cdiv(triton.cdiv(tokens, parts), block_tokens) * block_tokens
    out = torch.empty((batch, query_heads, features), dtype=dtype, device=q.device)
    partial = top = total = None
    if parts > 1:
        partial = q.new_empty((batch, query_heads, parts, features), dtype=torch.float32)
        top, total = (q.new_empty((batch, query_heads, parts), dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(q):
        decode_kernel[(batch * heads, parts)](
            q,
            k,
            v,
            lengths,
            index,
            count,
            block_table,
            out if partial is None else partial,
            top,
            total,
            heads,
            query_heads // heads,
            heads // key_heads,
            features,
            tokens,
            part_tokens,
            page_size,
            0 if block_table is None else block_table.shape[1],
            scale * k_scale,
            v_scale,
            *q.stride()[:2],
            *k.stride()[:3],
            *v.stride()[:3],
            N_PARTS=parts,
            BLOCK_QUERIES=max(16, triton.next_power_of_2(query_heads // heads)),
            BLOCK_TOKENS=block_tokens,
            BLOCK_FEATURES=block_features,
            PRECISION="ieee",
            num_warps=decode_warps(q.element_size()),
            num_stages=3,
        )
        if parts > 1:
            join_kernel[(batch * query_heads,)](
                partial,
                top,
                total,
                out,
                features,
                N_PARTS=parts,
                BLOCK_PARTS=triton.next_power_of_2(parts),
                BLOCK_FEATURES=block_features,
            )
    return out


def _label_format(cache: LabelCache) -> dict[str, Any]:
    """How labels are stored, as constants of the kernels."""
    return {
        "LEVELS": 0 if cache.bits == 16 else 2**cache.bits - 1,
        "PACKED": cache.bits == 4,
        "BLOCK_CHANNELS": max(2, triton.next_power_of_2(cache.channels.shape[1])),
    }


def _n_parts(device: torch.device, rows: int, tokens: int) -> int:
    """Parts of a list, a power of two: enough for four programs on each processor, of no less than 256 tokens each."""
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    else:
        processors = _INTERPRETED_PROCESSORS
    wanted = min(4 * processors // rows, tokens // _LEAST_PART, _MOST_PARTS)
    return 1 << (max(wanted, 1).bit_length() - 1)


def _unit_stride(value: Tensor) -> Tensor:
    return value if value.stride(-1) == 1 else value.contiguous()


def _multipliable(value: Tensor) -> Tensor:
    # The interpreter multiplies the bit patterns of bfloat16 and float8 numbers as if they were integers.
    narrow = value.dtype not in (torch.float16, torch.float32)
    return value.float() if narrow and value.device.type == "cpu" else value
