"""Attention kernels of one decode step: listed tokens, or all of them, in parts that are joined afterwards."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def decode_kernel(
    q,
    k,
    v,
    lengths,
    index,
    count,
    block_table,
    out,
    top_parts,
    total_parts,
    n_heads,
    group,
    key_group,
    n_features,
    budget,
    part_tokens,
    page_size,
    n_pages,
    scale,
    v_scale,
    q_batch_stride,
    q_head_stride,
    k_batch_stride,
    k_head_stride,
    k_token_stride,
    v_batch_stride,
    v_head_stride,
    v_token_stride,
    N_PARTS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attention of the ``group`` query heads that share a list over one part of it.

    Without ``index`` the list is all tokens of the request.  With ``block_table`` the first dimension of ``k`` and
    ``v`` is pages.  With one part the result is final; otherwise each part leaves its weighted mean, its largest logit
    and its sum.
    """
    row = tl.program_id(0)
    part = tl.program_id(1)
    head = row % n_heads
    batch = (row // n_heads).to(tl.int64)
    key_head = head // key_group
    member = tl.arange(0, BLOCK_QUERIES)
    query_head = head * group + member
    feature = tl.arange(0, BLOCK_FEATURES)
    known = feature < n_features
    mask = (member < group)[:, None] & known[None, :]
    query = tl.load(
        q + batch * q_batch_stride + query_head[:, None] * q_head_stride + feature[None, :], mask=mask, other=0.0
    )

    if index is None:
        listed = tl.load(lengths + batch)
    else:
        listed = tl.load(count + row)
    start = part * part_tokens
    stop = tl.minimum(start + part_tokens, listed)
    top = tl.full((BLOCK_QUERIES,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_QUERIES,), tl.float32)
    mean = tl.zeros((BLOCK_QUERIES, BLOCK_FEATURES), tl.float32)
    for first in range(start, stop, BLOCK_TOKENS):
        place = first + tl.arange(0, BLOCK_TOKENS)
        inside = place < stop
        if index is None:
            token = place
        else:
            token = tl.load(index + row.to(tl.int64) * budget + place, mask=inside, other=0)
        if block_table is None:
            holder, slot = batch, token
        else:
            holder = tl.load(block_table + batch * n_pages + token // page_size, mask=inside, other=0).to(tl.int64)
            slot = token % page_size
        read = inside[:, None] & known[None, :]
        keys = k + holder * k_batch_stride + key_head * k_head_stride + slot.to(tl.int64) * k_token_stride
        key = tl.load(keys[:, None] + feature[None, :], mask=read, other=0.0).to(query.dtype)
        logit = tl.dot(query, key.T, input_precision=PRECISION) * (scale * LOG2_E)
        logit = tl.where(inside[None, :], logit, -float("inf"))
        new_top = tl.maximum(top, tl.max(logit, 1))
        anchor = tl.where(new_top == -float("inf"), 0.0, new_top)
        decay = tl.exp2(top - anchor)
        p = tl.exp2(logit - anchor[:, None])
        total = total * decay + tl.sum(p, 1)
        values = v + holder * v_batch_stride + key_head * v_head_stride + slot.to(tl.int64) * v_token_stride
        value = tl.load(values[:, None] + feature[None, :], mask=read, other=0.0).to(query.dtype)
        mean = tl.dot(p.to(query.dtype), value, mean * decay[:, None], input_precision=PRECISION)
        top = new_top

    mean = mean * (v_scale / tl.where(total == 0, 1.0, total))[:, None]
    line = (batch * n_heads * group + query_head) * N_PARTS + part
    tl.store(out + line[:, None] * n_features + feature[None, :], mean.to(out.dtype.element_ty), mask=mask)
    if N_PARTS > 1:
        tl.store(top_parts + line, top, mask=member < group)
        tl.store(total_parts + line, total, mask=member < group)


@triton.jit
def join_kernel(
    parts,
    top_parts,
    total_parts,
    out,
    n_features,
    N_PARTS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    """Join the parts of one query head."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, BLOCK_PARTS)
    present = part < N_PARTS
    feature = tl.arange(0, BLOCK_FEATURES)
    known = feature < n_features
    top = tl.load(top_parts + row * N_PARTS + part, mask=present, other=-float("inf"))
    total = tl.load(total_parts + row * N_PARTS + part, mask=present, other=0.0)
    largest = tl.max(top, 0)
    weight = total * tl.exp2(top - tl.where(largest == -float("inf"), 0.0, largest))
    mask = present[:, None] & known[None, :]
    mean = tl.load(parts + (row * N_PARTS + part)[:, None] * n_features + feature[None, :], mask=mask, other=0.0)
    weights = tl.sum(weight, 0)
    joined = tl.sum(mean * weight[:, None], 0) / tl.where(weights == 0, 1.0, weights)
    tl.store(out + row * n_features + feature, joined.to(out.dtype.element_ty), mask=known)
