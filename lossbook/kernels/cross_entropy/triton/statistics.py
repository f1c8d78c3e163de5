"""Forward kernels: target logits, and everything else that one sweep over the vocabulary can tell about a row.

A program owns a block of rows and walks over vocabulary tiles with a running softmax in registers, so there are no
locks and no atomics, and a result does not depend on timing.  With few rows the vocabulary is dealt out to several
programs per block, whose parts are joined at the end.  They take turns tile by tile rather than a contiguous share
each: token ids are roughly sorted by frequency, and whoever starts among the frequent ones has a useful bound of the
log-sum-exp early.
"""

import triton
import triton.language as tl

from lossbook.kernels.cross_entropy.triton.logits import EVEN, LN_2, LOG2_E, block_of_rows, capped


@triton.jit
def target_logit_kernel(
    e,
    c,
    bias,
    target,
    target_logit,
    n_rows,
    n_columns,
    n_features,
    e_stride,
    c_stride,
    scale,
    softcap,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    """Logit of each row's target in nats; zero where the target is no column here."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside_rows = row < n_rows
    column = tl.load(target + row, mask=inside_rows, other=-1)
    inside = (column >= 0) & (column < n_columns)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, n_features, BLOCK_FEATURES):
        feature = start + tl.arange(0, BLOCK_FEATURES)
        mask = inside[:, None] & (feature < n_features)[None, :]
        left = tl.load(e + row.to(tl.int64)[:, None] * e_stride + feature[None, :], mask=mask, other=0.0)
        right = tl.load(c + column[:, None] * c_stride + feature[None, :], mask=mask, other=0.0)
        total += tl.sum(left.to(tl.float32) * right.to(tl.float32), 1)
    if bias is not None:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    total = capped(total, softcap) * scale
    tl.store(target_logit + row, tl.where(inside, total, 0.0), mask=inside_rows)


@triton.heuristics(EVEN)
@triton.jit
def statistics_kernel(
    e,
    c,
    bias,
    target,
    target_logit,
    class_weight,
    lse_parts,
    entropy_parts,
    sum_parts,
    top_parts,
    argmax_parts,
    column_map,
    n_rows,
    n_columns,
    n_features,
    e_stride,
    c_stride,
    n_words,
    map_stride,
    scale,
    softcap,
    level,
    order_level,
    N_SPLITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Running statistics of one block of rows over one share of the vocabulary.

    Pointers may be None for what is not wanted.  ``column_map`` gets one bit per column and row block, 32 to a word:
    set if any row's softmax may reach ``exp2(level)``.  ``order_level``, if not None, makes a second such map
    ``map_stride`` words on.  Both are supersets of the truth, since the running log-sum-exp they compare with is a
    lower bound of the final one.

    With ``DESCRIPTORS``, ``e`` and ``c`` are tensor descriptors, which the tensor memory accelerator loads.
    """
    n_blocks = tl.cdiv(n_rows, BLOCK_ROWS)
    block = tl.program_id(0) % n_blocks
    split = tl.program_id(0) // n_blocks
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside_rows = row < n_rows
    some_row = tl.minimum(row, n_rows - 1)

    top = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    spread = tl.zeros((BLOCK_ROWS,), tl.float32)
    logit_sum = tl.zeros((BLOCK_ROWS,), tl.float32)
    argmax = tl.zeros((BLOCK_ROWS,), tl.int32)
    known = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
    if column_map is not None:
        if target is not None:
            own = tl.load(target + some_row)
            logit = tl.load(target_logit + some_row) * LOG2_E
            known = tl.where((own >= 0) & (own < n_columns), logit, known)

    for tile in range(split, tl.cdiv(n_columns, BLOCK_COLUMNS), N_SPLITS):
        first = tile * BLOCK_COLUMNS
        column = first + tl.arange(0, BLOCK_COLUMNS)
        inside = column < n_columns
        some_column = tl.minimum(column, n_columns - 1)
        z = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
        for start in tl.range(0, n_features, BLOCK_FEATURES, warp_specialize=WARP_SPECIALIZE):
            if DESCRIPTORS:
                left = e.load([block * BLOCK_ROWS, start])
                right = c.load([first, start])
            else:
                feature = start + tl.arange(0, BLOCK_FEATURES)
                left = block_of_rows(e, some_row, feature, e_stride, n_features, EVEN)
                right = block_of_rows(c, some_column, feature, c_stride, n_features, EVEN)
            z = tl.dot(left, right.T, z, input_precision=PRECISION)
        if bias is not None:
            z += tl.load(bias + some_column).to(tl.float32)[None, :]
        z = capped(z, softcap) * (scale * LOG2_E)
        if class_weight is not None:
            weight = tl.load(class_weight + column, mask=inside, other=0.0).to(tl.float32)
            logit_sum += tl.sum(z * weight[None, :], 1)
        z = tl.where(inside[None, :], z, -float("inf"))

        if argmax_parts is not None:
            tile_top, tile_argmax = tl.max(z, 1, return_indices=True)
            argmax = tl.where(tile_top > top, first + tile_argmax, argmax)
        else:
            tile_top = tl.max(z, 1)
        new_top = tl.maximum(top, tile_top)
        # Rows without any finite logit so far: exp2(-inf - 0) is 0, where exp2(-inf + inf) would be NaN.
        anchor = tl.where(new_top == -float("inf"), 0.0, new_top)
        decay = tl.exp2(top - anchor)
        p = tl.exp2(z - anchor[:, None])
        if entropy_parts is not None:
            # Distances from the largest logit, which do not cancel as logits would.
            moved = tl.where(top == -float("inf"), 0.0, top - anchor) * total
            spread = (spread + moved) * decay + tl.sum(p * tl.where(p > 0, z - anchor[:, None], 0.0), 1)
        total = total * decay + tl.sum(p, 1)
        top = new_top

        if column_map is not None:
            bound = tl.maximum(anchor + tl.log2(total), known)
            bound = tl.where(bound == -float("inf"), 0.0, bound)
            reach = tl.max(tl.where(inside_rows[:, None], z - bound[:, None], -float("inf")), 0)
            word = first // 32 + tl.arange(0, BLOCK_COLUMNS // 32)
            place = column_map + block.to(tl.int64) * n_words + word
            tl.store(place, _packed(reach, level, BLOCK_COLUMNS), mask=word < n_words)
            if order_level is not None:
                place += map_stride
                tl.store(place, _packed(reach, order_level, BLOCK_COLUMNS), mask=word < n_words)

    part = split.to(tl.int64) * n_rows + row
    anchor = tl.where(top == -float("inf"), 0.0, top)
    tl.store(lse_parts + part, (anchor + tl.log2(total)) * LN_2, mask=inside_rows)
    if entropy_parts is not None:
        tl.store(entropy_parts + part, (tl.log2(total) - spread / total) * LN_2, mask=inside_rows)
    if class_weight is not None:
        tl.store(sum_parts + part, logit_sum * LN_2, mask=inside_rows)
    if argmax_parts is not None:
        tl.store(top_parts + part, top, mask=inside_rows)
        tl.store(argmax_parts + part, argmax, mask=inside_rows)


@triton.jit
def _packed(reach, level, BLOCK_COLUMNS: tl.constexpr):
    """Bit ``j`` of word ``w`` says whether column ``32 w + j`` reaches the level."""
    bits = tl.reshape((reach >= level).to(tl.int32), (BLOCK_COLUMNS // 32, 32))
    return tl.sum(bits << tl.arange(0, 32)[None, :], 1)
