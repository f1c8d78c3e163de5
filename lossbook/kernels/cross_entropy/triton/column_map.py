"""From the column map of the forward pass to lists of columns that the gradient kernels can walk.

The map has one bit per column for every block of rows: set if the column may matter to that block.  Two kinds of list
are made from it.  The gradient of the hidden states wants, per block, the columns it keeps.  The gradient of the
classifier wants, per column, the blocks that keep it; columns are dealt to tiles in the order of how many blocks keep
them, so that a tile's columns share most of their blocks and its program meets few gaps.
"""

import triton
import triton.language as tl


@triton.jit
def mark_targets_kernel(
    column_map,
    target,
    n_rows,
    n_columns,
    n_words,
    map_stride,
    N_MAPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Set the bit of every row's target, in each of the maps."""
    block = tl.program_id(0)
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.load(target + row, mask=row < n_rows, other=-1)
    inside = (column >= 0) & (column < n_columns)
    place = column_map + block.to(tl.int64) * n_words + column // 32
    bit = tl.full((BLOCK_ROWS,), 1, tl.int32) << (column % 32).to(tl.int32)
    for _ in tl.static_range(N_MAPS):
        # The order of these does not show in the result: an "or" of bits commutes.
        tl.atomic_or(place, bit, mask=inside, sem="relaxed")
        place += map_stride


@triton.jit
def count_blocks_kernel(column_map, count, position, n_blocks, n_columns, n_words, WORDS: tl.constexpr):
    """How many blocks keep each column, and the sum of those blocks' numbers."""
    word = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    bit = tl.arange(0, 32)
    total = tl.zeros((WORDS, 32), tl.int32)
    positions = tl.zeros((WORDS, 32), tl.int32)
    for block in range(0, n_blocks):
        words = tl.load(column_map + word, mask=word < n_words, other=0)
        column_map += n_words
        kept = (words[:, None] >> bit[None, :]) & 1
        total += kept
        positions += kept * block
    column = word[:, None] * 32 + bit[None, :]
    tl.store(count + column, total, mask=column < n_columns)
    tl.store(position + column, positions, mask=column < n_columns)


@triton.jit
def is_kept(column_map, block, column, inside, n_words):
    """Bits of some columns in the map of one block, as int32."""
    words = tl.load(column_map + block.to(tl.int64) * n_words + column // 32, mask=inside, other=0)
    return (words >> (column % 32)) & 1


@triton.jit
def count_kept_kernel(column_map, order, count, n_columns, n_words, BLOCK_COLUMNS: tl.constexpr):
    """How many of the columns in ``order`` each block keeps."""
    block = tl.program_id(0)
    total = tl.zeros((BLOCK_COLUMNS,), tl.int32)
    for start in range(0, n_columns, BLOCK_COLUMNS):
        place = start + tl.arange(0, BLOCK_COLUMNS)
        inside = place < n_columns
        column = tl.load(order + place, mask=inside, other=0)
        total += is_kept(column_map, block, column, inside, n_words)
    tl.store(count + block, tl.sum(total, 0))


@triton.jit
def list_kept_kernel(
    column_map,
    owner_map,
    order,
    first_portion,
    column_of,
    block_of,
    slot_of,
    n_columns,
    n_words,
    slot_stride,
    PORTION: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Give each kept pair of a block and a column a *slot*, and write the lists that lead from one to the other.

    The slots of a block are consecutive, start at a multiple of ``PORTION`` and follow ``order``.  ``column_of`` maps a
    slot to its column and ``block_of`` a portion of slots to its block; both hold -1 where there is none.  ``slot_of``,
    unless None, maps block and place in ``order`` to the slot, or to -1 where ``owner_map`` lacks the column.
    """
    block = tl.program_id(0)
    slot = tl.load(first_portion + block) * PORTION
    last_portion = tl.load(first_portion + block + 1)
    for portion in range(slot // PORTION, last_portion):
        tl.store(block_of + portion, block)
    for start in range(0, n_columns, BLOCK_COLUMNS):
        place = start + tl.arange(0, BLOCK_COLUMNS)
        inside = place < n_columns
        column = tl.load(order + place, mask=inside, other=0)
        kept = is_kept(column_map, block, column, inside, n_words)
        rank = slot + tl.cumsum(kept, 0) - 1
        tl.store(column_of + rank, column, mask=kept > 0)
        if slot_of is not None:
            owned = kept & is_kept(owner_map, block, column, inside, n_words)
            tl.store(slot_of + block.to(tl.int64) * slot_stride + place, tl.where(owned > 0, rank, -1), mask=inside)
        slot += tl.sum(kept, 0)
