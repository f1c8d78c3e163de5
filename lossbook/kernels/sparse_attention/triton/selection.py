"""Exact top-k by digits: the largest scores of a row, their indices in ascending order, ties to the lowest index.

A score becomes an unsigned integer of the same order.  Four passes, a byte each from the top, narrow down the key of
the last token that is taken; a fifth writes the indices of all tokens above it, and of as many equal ones as are
left.  Nothing depends on timing, and all shapes are fixed.
"""

import triton
import triton.language as tl

FORCED = tl.constexpr(0xFFFFFFFF)


@triton.jit
def _keys(scores, token, length, sink, recent):
    """Keys of some tokens of one row, and which of them the request has."""
    valid = token < length
    score = tl.load(scores + token, mask=valid, other=0.0) + 0.0  # -0 and 0 are equal
    bits = score.to(tl.uint32, bitcast=True)
    key = tl.where(bits >> 31 > 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    key = tl.where(score == score, key, 0)  # NaN comes last
    forced = (token < sink) | (token >= length - recent)
    return tl.where(forced, FORCED, key), valid


@triton.jit
def _digit(key, valid, prefix, PASS: tl.constexpr):
    """The byte of this pass of every key that has the prefix, and whether it has."""
    shift: tl.constexpr = 24 - 8 * PASS
    counted = valid
    if PASS > 0:
        counted = valid & (key >> (shift + 8) == prefix >> (shift + 8))
    return ((key >> shift) & 255).to(tl.int32), counted


@triton.jit
def _narrow(histogram, prefix, wanted, PASS: tl.constexpr):
    """Take the byte into the prefix in which the ``wanted``-th largest key lies; and how many of it are wanted."""
    shift: tl.constexpr = 24 - 8 * PASS
    digit = tl.arange(0, 256)
    above = tl.sum(histogram, 0) - tl.cumsum(histogram, 0)  # keys with a larger digit
    chosen = (above < wanted) & (above + histogram >= wanted)
    largest = tl.max(tl.where(chosen, digit, 0), 0)
    wanted -= tl.sum(tl.where(digit == largest, above, 0), 0)
    return prefix | (largest.to(tl.uint32) << shift), wanted


@triton.jit
def select_kernel(
    scores,
    lengths,
    index,
    count,
    n_heads,
    n_tokens,
    budget,
    sink,
    recent,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_BUDGET: tl.constexpr,
):
    """One row of scores from begin to end."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + row // n_heads)
    scores += row * n_tokens
    index += row * budget
    taken = tl.minimum(length, budget)

    prefix = tl.full((), 0, tl.uint32)
    wanted = taken
    for step in tl.static_range(4):
        histogram = tl.zeros((256,), tl.int32)
        for start in range(0, length, BLOCK_TOKENS):
            key, valid = _keys(scores, start + tl.arange(0, BLOCK_TOKENS), length, sink, recent)
            digit, counted = _digit(key, valid, prefix, step)
            histogram += tl.histogram(digit, 256, mask=counted)
        prefix, wanted = _narrow(histogram, prefix, wanted, step)

    written = tl.full((), 0, tl.int32)
    equal_before = tl.full((), 0, tl.int32)
    for start in range(0, length, BLOCK_TOKENS):
        token = start + tl.arange(0, BLOCK_TOKENS)
        key, valid = _keys(scores, token, length, sink, recent)
        written, equal_before = _write(index, token, key, valid, prefix, wanted, written, equal_before)
    for start in range(0, budget, BLOCK_BUDGET):
        place = start + tl.arange(0, BLOCK_BUDGET)
        tl.store(index + place, -1, mask=(place >= taken) & (place < budget))
    tl.store(count + row, taken)


@triton.jit
def _write(index, token, key, valid, threshold, wanted, written, equal_before):
    """Write the selected ones of some tokens; returns the counts before the next ones."""
    equal = (valid & (key == threshold)).to(tl.int32)
    rank = equal_before + tl.cumsum(equal, 0)
    selected = (valid & (key > threshold)).to(tl.int32) + equal * (rank <= wanted).to(tl.int32)
    place = written + tl.cumsum(selected, 0) - 1
    tl.store(index + place, token, mask=selected > 0)
    return written + tl.sum(selected, 0), equal_before + tl.sum(equal, 0)


@triton.jit
def histogram_kernel(
    scores, lengths, state, histogram, n_heads, n_tokens, sink, recent, PASS: tl.constexpr, BLOCK_TOKENS: tl.constexpr
):
    """Part of one pass over a long row; a program counts some tokens."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + row // n_heads)
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    key, valid = _keys(scores + row * n_tokens, token, length, sink, recent)
    prefix = tl.load(state + 2 * row).to(tl.uint32, bitcast=True)
    digit, counted = _digit(key, valid, prefix, PASS)
    counts = tl.histogram(digit, 256, mask=counted)
    # Sums of integers do not depend on their order.
    tl.atomic_add(histogram + row * 256 + tl.arange(0, 256), counts, mask=counts > 0, sem="relaxed")


@triton.jit
def narrow_kernel(state, histogram, PASS: tl.constexpr):
    """The end of one pass over a long row: take the digit into its state, and clear the histogram for the next."""
    row = tl.program_id(0).to(tl.int64)
    digits = histogram + row * 256 + tl.arange(0, 256)
    prefix = tl.load(state + 2 * row).to(tl.uint32, bitcast=True)
    prefix, wanted = _narrow(tl.load(digits), prefix, tl.load(state + 2 * row + 1), PASS)
    tl.store(state + 2 * row, prefix.to(tl.int32, bitcast=True))
    tl.store(state + 2 * row + 1, wanted)
    tl.store(digits, tl.zeros((256,), tl.int32))


@triton.jit
def count_kernel(scores, lengths, state, counts, n_heads, n_tokens, n_blocks, sink, recent, BLOCK_TOKENS: tl.constexpr):
    """How many keys of a block of a long row lie above its threshold, and how many are equal to it."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(lengths + row // n_heads)
    token = block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    key, valid = _keys(scores + row * n_tokens, token, length, sink, recent)
    threshold = tl.load(state + 2 * row).to(tl.uint32, bitcast=True)
    above = tl.sum((valid & (key > threshold)).to(tl.int32), 0)
    equal = tl.sum((valid & (key == threshold)).to(tl.int32), 0)
    tl.store(counts + (2 * row) * n_blocks + block, above)
    tl.store(counts + (2 * row + 1) * n_blocks + block, equal)


@triton.jit
def write_kernel(
    scores,
    lengths,
    state,
    before,
    index,
    count,
    n_heads,
    n_tokens,
    n_blocks,
    budget,
    sink,
    recent,
    BLOCK_TOKENS: tl.constexpr,
):
    """Write the selected tokens of a block of a long row; ``before`` counts those above and equal in earlier blocks."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(lengths + row // n_heads)
    token = block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    key, valid = _keys(scores + row * n_tokens, token, length, sink, recent)
    threshold = tl.load(state + 2 * row).to(tl.uint32, bitcast=True)
    wanted = tl.load(state + 2 * row + 1)
    above = tl.load(before + (2 * row) * n_blocks + block)
    equal = tl.load(before + (2 * row + 1) * n_blocks + block)
    written = above + tl.minimum(equal, wanted)
    _write(index + row * budget, token, key, valid, threshold, wanted, written, equal)
    # The rest of the list holds nothing; each block says so for the part of its own number.
    taken = tl.minimum(length, budget)
    tl.store(index + row * budget + token, -1, mask=(token >= taken) & (token < budget))
    if block == 0:
        tl.store(count + row, taken)
