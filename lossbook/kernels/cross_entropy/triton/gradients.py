"""Backward kernels: tiles of the gradient by the logits, and their products with classifier and hidden states.

A tile of the gradient is stored with one row per column of the vocabulary ("transposed"), so that the rows of one
column and one block of hidden states are contiguous.  Either the tile is *dense*, all columns of a span by all rows;
or it is *listed*, and has a row for each kept pair of column and block.
"""

import triton
import triton.language as tl

from lossbook.kernels.cross_entropy.triton.logits import EVEN, LOG2_E, block_of_rows, capped, slope_of_cap


@triton.heuristics(EVEN)
@triton.jit
def logit_gradient_kernel(
    e,
    c,
    bias,
    target,
    class_weight,
    lse,
    mean,
    d_lse,
    d_target,
    d_mean,
    d_logit_sum,
    column_of,
    block_of,
    values,
    peak,
    column_sum,
    n_rows,
    first_column,
    stop_column,
    n_features,
    e_stride,
    c_stride,
    values_stride,
    scale,
    softcap,
    PORTION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
):
    r"""One tile of the gradient by the uncapped logits, ``BLOCK_COLUMNS`` columns by ``BLOCK_ROWS`` rows.

    With ``p`` the softmax, the differentiated scalar is
    ``sum(d_lse * lse + d_target * target_logit + d_mean * mean_logit + d_logit_sum * logit_sum)`` over the rows.
    ``peak`` gets the largest softmax of each column over the block's rows, infinite where it is some row's target or a
    row has none: what the filter is decided by.  ``column_sum`` gets the sum over the rows.

    Listed if ``column_of`` is given: program ``i`` computes the slots of tile ``i``.  Otherwise dense: program
    ``(i, j)`` computes block ``j`` by tile ``i`` of the span ``[first_column, stop_column)``.  With ``DESCRIPTORS``,
    ``e`` is a tensor descriptor, and ``c`` too if dense: listed columns have to be gathered.
    """
    tile = tl.program_id(0)
    slot = tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    if column_of is not None:
        block = tl.load(block_of + tile * BLOCK_COLUMNS // PORTION)
        if block < 0:
            return
        column = tl.load(column_of + slot)
        inside = column >= 0
        some_column = tl.maximum(column, 0)
        first_value = 0
        result = slot
    else:
        block = tl.program_id(1)
        column = first_column + slot
        inside = column < stop_column
        some_column = tl.minimum(column, stop_column - 1)
        first_value = block * BLOCK_ROWS
        # One line of sums and peaks per block.
        result = block.to(tl.int64) * (stop_column - first_column) + slot
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside_rows = row < n_rows
    some_row = tl.minimum(row, n_rows - 1)

    z = tl.zeros((BLOCK_COLUMNS, BLOCK_ROWS), tl.float32)
    for start in range(0, n_features, BLOCK_FEATURES):
        feature = start + tl.arange(0, BLOCK_FEATURES)
        if DESCRIPTORS and column_of is None:
            left = c.load([first_column + tile * BLOCK_COLUMNS, start])
        else:
            left = block_of_rows(c, some_column, feature, c_stride, n_features, EVEN)
        if DESCRIPTORS:
            right = e.load([block * BLOCK_ROWS, start])
        else:
            right = block_of_rows(e, some_row, feature, e_stride, n_features, EVEN)
        z = tl.dot(left, right.T, z, input_precision=PRECISION)
    if bias is not None:
        z += tl.load(bias + some_column).to(tl.float32)[:, None]
    z = capped(z, softcap)
    row_lse = tl.load(lse + some_row)
    p = tl.exp2((z * scale - row_lse[None, :]) * LOG2_E)
    p = tl.where(inside_rows[None, :], p, 0.0)

    slope = tl.load(d_lse + some_row)[None, :]
    if d_mean is not None:
        # A masked word has p = 0 and z = -inf, whose product is no number.
        distance = tl.where(p > 0, z * scale - tl.load(mean + some_row)[None, :], 0.0)
        slope = slope + tl.load(d_mean + some_row)[None, :] * (1 + distance)
    g = p * slope
    if target is not None:
        hit = (column[:, None] == tl.load(target + some_row)[None, :]) & inside_rows[None, :]
        if d_target is not None:
            g += tl.where(hit, tl.load(d_target + some_row)[None, :], 0.0)
    if d_logit_sum is not None:
        weight = tl.load(class_weight + some_column).to(tl.float32)
        g += weight[:, None] * tl.load(d_logit_sum + some_row)[None, :]
    if softcap is not None:
        g *= slope_of_cap(z, softcap)
    g = tl.where(inside_rows[None, :], g * scale, 0.0)

    pointers = values + slot.to(tl.int64)[:, None] * values_stride + first_value + tl.arange(0, BLOCK_ROWS)[None, :]
    tl.store(pointers, g.to(values.dtype.element_ty), mask=inside[:, None])
    if peak is not None:
        # A maximum passes over NaN, which the filter must not hide.
        broken = tl.max((row_lse != row_lse).to(tl.int32), 0)
        largest = tl.where(broken > 0, float("inf"), tl.max(p, 1))
        if target is not None:
            largest = tl.where(tl.max(hit.to(tl.int32), 1) > 0, float("inf"), largest)
        tl.store(peak + result, largest, mask=inside)
    if column_sum is not None:
        tl.store(column_sum + result, tl.sum(g, 1), mask=inside)


@triton.heuristics(EVEN)
@triton.jit
def hidden_gradient_kernel(
    values,
    c,
    column_of,
    first_portion,
    peak,
    d_e,
    n_rows,
    first_column,
    n_features,
    values_stride,
    peak_stride,
    c_stride,
    d_e_stride,
    eps,
    LISTED: tl.constexpr,
    PORTION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Add to ``d_e``, float32, what the listed columns of each block contribute.

    The program of a block and a slice of features walks the block's slots and owns its part of ``d_e``.  Columns whose
    peak is below ``eps`` are left out.  In a listed gradient a slot is a row; in a dense one the row is the column, and
    each block has a line of peaks.
    """
    # Slices of one block run side by side: they read the same part of the gradient.
    block = tl.program_id(1)
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    feature = tl.program_id(0) * BLOCK_FEATURES + tl.arange(0, BLOCK_FEATURES)
    total = tl.zeros((BLOCK_ROWS, BLOCK_FEATURES), tl.float32)
    if not LISTED:
        values += block * BLOCK_ROWS
        peak += block.to(tl.int64) * peak_stride
    for first_slot in range(
        tl.load(first_portion + block) * PORTION, tl.load(first_portion + block + 1) * PORTION, BLOCK_COLUMNS
    ):
        slot = first_slot + tl.arange(0, BLOCK_COLUMNS)
        column = tl.load(column_of + slot)
        inside = column >= 0
        if LISTED:
            place = slot
        else:
            place = tl.where(inside, column - first_column, 0)
        kept = inside & ~(tl.load(peak + place, mask=inside, other=0.0) < eps)
        pointers = values + place.to(tl.int64)[:, None] * values_stride + tl.arange(0, BLOCK_ROWS)[None, :]
        g = tl.load(pointers, mask=kept[:, None], other=0.0)
        right = block_of_rows(c, tl.maximum(column, 0), feature, c_stride, n_features, EVEN)
        total = tl.dot(g.T, right, total, input_precision=PRECISION)
    inside_result = (row < n_rows)[:, None] & (feature < n_features)[None, :]
    pointers = d_e + row.to(tl.int64)[:, None] * d_e_stride + feature[None, :]
    tl.store(pointers, tl.load(pointers, mask=inside_result, other=0.0) + total, mask=inside_result)


@triton.heuristics(EVEN)
@triton.jit
def classifier_gradient_kernel(
    values,
    e,
    order,
    slot_of,
    active,
    n_active,
    peak,
    column_sum,
    d_c,
    d_bias,
    n_rows,
    n_listed,
    n_features,
    n_blocks,
    slot_stride,
    e_stride,
    d_c_stride,
    eps,
    PORTION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Add to ``d_c`` and ``d_bias`` what every block contributes to one tile of ``order``.

    The program of a tile and a slice of features walks the ``n_active`` blocks that keep any of its columns, listed in
    ``active``, sums in float32 and stores once: no atomics, and no accumulator as large as the classifier.
    """
    tile = tl.program_id(1)
    place = tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    portion = tile * BLOCK_COLUMNS // PORTION
    inside = place < n_listed
    feature = tl.program_id(0) * BLOCK_FEATURES + tl.arange(0, BLOCK_FEATURES)
    value = tl.arange(0, BLOCK_ROWS)
    total = tl.zeros((BLOCK_COLUMNS, BLOCK_FEATURES), tl.float32)
    sums = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    for i in range(0, tl.load(n_active + portion)):
        block = tl.load(active + portion * n_blocks + i)
        slot = tl.load(slot_of + block.to(tl.int64) * slot_stride + place)
        listed = slot >= 0
        kept = listed & ~(tl.load(peak + slot, mask=listed, other=0.0) < eps)
        if d_bias is not None:
            sums += tl.load(column_sum + slot, mask=kept, other=0.0)
        if d_c is not None:
            pointers = values + slot.to(tl.int64)[:, None] * BLOCK_ROWS + value[None, :]
            g = tl.load(pointers, mask=kept[:, None], other=0.0)
            row = tl.minimum(block * BLOCK_ROWS + value, n_rows - 1)
            right = block_of_rows(e, row, feature, e_stride, n_features, EVEN)
            total = tl.dot(g, right, total, input_precision=PRECISION)
    column = tl.load(order + place, mask=inside, other=0)
    if d_c is not None:
        mask = inside[:, None] & (feature < n_features)[None, :]
        pointers = d_c + column.to(tl.int64)[:, None] * d_c_stride + feature[None, :]
        total += tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
        tl.store(pointers, total.to(d_c.dtype.element_ty), mask=mask)
    if d_bias is not None:
        if tl.program_id(0) == 0:
            sums += tl.load(d_bias + column, mask=inside, other=0.0)
            tl.store(d_bias + column, sums, mask=inside)
