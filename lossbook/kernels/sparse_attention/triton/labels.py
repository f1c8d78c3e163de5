"""Label kernels: write the chosen channels of new keys, and score every token with them."""

import triton
import triton.language as tl


@triton.jit
def append_kernel(
    k,
    channels,
    values,
    token_scale,
    token_zero,
    lengths,
    n_heads,
    group,
    n_channels,
    n_new,
    capacity,
    k_batch_stride,
    k_head_stride,
    k_token_stride,
    value_stride,
    LEVELS: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Labels of new tokens, behind those a request has already.

    A program takes some tokens of one head of one request.  With ``LEVELS`` the channels of a token become integers
    from 0 to ``LEVELS`` between their least and their largest, two to a byte if ``PACKED``.
    """
    head = tl.program_id(0) % n_heads
    batch = (tl.program_id(0) // n_heads).to(tl.int64)
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    inside = (token < n_new)[:, None] & (channel < n_channels)[None, :]
    source = tl.load(channels + head * n_channels + channel, mask=channel < n_channels, other=0)
    keys = k + batch * k_batch_stride + (head // group) * k_head_stride
    label = tl.load(keys + token.to(tl.int64)[:, None] * k_token_stride + source[None, :], mask=inside, other=0.0)

    place = tl.load(lengths + batch) + token
    fits = (token < n_new) & (place < capacity)
    line = (batch * n_heads + head) * capacity + place
    if LEVELS == 0:
        mask = fits[:, None] & (channel < n_channels)[None, :]
        tl.store(values + line[:, None] * value_stride + channel[None, :], label, mask=mask)
    else:
        label = label.to(tl.float32)
        low = tl.min(tl.where(inside, label, float("inf")), 1)
        high = tl.max(tl.where(inside, label, -float("inf")), 1)
        low = low.to(tl.float16)
        step = ((high - low.to(tl.float32)) / LEVELS).to(tl.float16)
        tl.store(token_zero + line, low, mask=fits)
        tl.store(token_scale + line, step, mask=fits)
        divisor = tl.where(step == 0, 1.0, step.to(tl.float32))
        level = tl.floor((label - low.to(tl.float32)[:, None]) / divisor[:, None] + 0.5)
        level = tl.where(inside, tl.clamp(level, 0.0, LEVELS), 0.0).to(tl.uint8)
        if PACKED:
            low_half, high_half = tl.split(tl.reshape(level, (BLOCK_TOKENS, BLOCK_CHANNELS // 2, 2)))
            level = low_half | (high_half << 4)
            column = tl.arange(0, BLOCK_CHANNELS // 2)
        else:
            column = channel
        mask = fits[:, None] & (column < value_stride)[None, :]
        tl.store(values + line[:, None] * value_stride + column[None, :], level, mask=mask)


@triton.jit
def score_kernel(
    q,
    channels,
    values,
    token_scale,
    token_zero,
    lengths,
    scores,
    n_heads,
    group,
    n_channels,
    n_tokens,
    capacity,
    q_batch_stride,
    q_head_stride,
    value_stride,
    MERGE: tl.constexpr,
    LEVELS: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Dot products of labels with the same channels of the queries, float32; ``-inf`` past a request's length.

    A program reads the labels of some tokens of one label head once, for all ``group`` query heads that share them.
    ``MERGE`` is how these become one score: ``"max"``, ``"mean"``, ``"maxnorm"``; or ``"none"``, one score each.
    Integer labels are never expanded: ``sum_c q_c (s u_c + z) = s (q . u) + z sum_c q_c``.
    """
    head = tl.program_id(0) % n_heads
    batch = (tl.program_id(0) // n_heads).to(tl.int64)
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    inside = token < n_tokens
    valid = token < tl.load(lengths + batch)
    line = (batch * n_heads + head) * capacity + token
    if PACKED:
        column = tl.arange(0, BLOCK_CHANNELS // 2)
        mask = valid[:, None] & (column < value_stride)[None, :]
        packed = tl.load(values + line[:, None] * value_stride + column[None, :], mask=mask, other=0)
        label = tl.reshape(tl.join(packed & 15, packed >> 4), (BLOCK_TOKENS, BLOCK_CHANNELS)).to(tl.float32)
    else:
        column = tl.arange(0, BLOCK_CHANNELS)
        mask = valid[:, None] & (column < n_channels)[None, :]
        label = tl.load(values + line[:, None] * value_stride + column[None, :], mask=mask, other=0).to(tl.float32)
    if LEVELS > 0:
        step = tl.load(token_scale + line, mask=valid, other=0.0).to(tl.float32)
        zero = tl.load(token_zero + line, mask=valid, other=0.0).to(tl.float32)

    channel = tl.arange(0, BLOCK_CHANNELS)
    used = channel < n_channels
    source = tl.load(channels + head * n_channels + channel, mask=used, other=0)
    merged = tl.full((BLOCK_TOKENS,), 0.0 if MERGE == "mean" else -float("inf"), tl.float32)
    for member in range(0, group):
        query_head = head * group + member
        queries = q + batch * q_batch_stride + query_head * q_head_stride
        query = tl.load(queries + source, mask=used, other=0.0).to(tl.float32)
        score = tl.sum(label * query[None, :], 1)
        if LEVELS > 0:
            score = step * score + zero * tl.sum(query, 0)
        if MERGE == "none":
            result = scores + (batch * n_heads * group + query_head) * n_tokens + token
            tl.store(result, tl.where(valid, score, -float("inf")), mask=inside)
        elif MERGE == "mean":
            merged += score / group
        elif MERGE == "maxnorm":
            norm = tl.sqrt(tl.sum(query * query, 0))
            merged = tl.maximum(merged, score / tl.where(norm == 0, 1.0, norm))
        else:
            merged = tl.maximum(merged, score)
    if MERGE != "none":
        result = scores + (batch * n_heads + head) * n_tokens + token
        tl.store(result, tl.where(valid, merged, -float("inf")), mask=inside)
