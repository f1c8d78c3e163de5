"""The backward pass: gradients from recomputed tiles.

If every gradient asked for is filtered, only the columns in the map are computed, a *group* of columns at a time that
fits the scratch memory.  If one of them is exact, all columns are, a span of the vocabulary at a time; a filter on the
other gradient then saves its product.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.problem import Gradients, Problem, Saved, put, take
from lossbook.kernels.cross_entropy.tiles import spans
from lossbook.kernels.cross_entropy.triton import config
from lossbook.kernels.cross_entropy.triton.column_map import (
    count_blocks_kernel,
    count_kept_kernel,
    list_kept_kernel,
)
from lossbook.kernels.cross_entropy.triton.config import BLOCK_ROWS, PORTION
from lossbook.kernels.cross_entropy.triton.gradients import (
    classifier_gradient_kernel,
    hidden_gradient_kernel,
    logit_gradient_kernel,
)
from lossbook.kernels.cross_entropy.triton.operands import Operands
from lossbook.kernels.cross_entropy.triton.products import add_product_


class Slopes(NamedTuple):
    """Per row, what the tiles of the gradient are made of; None where a term is absent."""

    lse: Tensor
    mean: Tensor | None
    d_lse: Tensor
    d_target: Tensor | None
    d_mean: Tensor | None
    d_logit_sum: Tensor | None


class Listing(NamedTuple):
    """Kept pairs of columns and blocks of rows, as :func:`list_kept_kernel` writes them.

    Attributes:
        order: Columns concerned, shape ``(n,)``.
        column_of: Column of each slot or -1, shape ``(slots,)``.
        block_of: Block of each portion of slots or -1, shape ``(slots / PORTION,)``.
        first_portion: First portion of each block, and one past the last, shape ``(blocks + 1,)``.
        slot_of: Slot of each block and column in ``order`` or -1, shape ``(blocks, n rounded up)``; None if unwanted.
    """

    order: Tensor
    column_of: Tensor
    block_of: Tensor
    first_portion: Tensor
    slot_of: Tensor | None


class LogitGradient(NamedTuple):
    """Gradient by the logits, one row per slot or column of the vocabulary, and what goes with each row.

    Attributes:
        values: Shape ``(slots, BLOCK_ROWS)``, or ``(columns, blocks * BLOCK_ROWS)``.
        peak: What the filter is decided by, shape ``(slots,)`` or ``(blocks, columns)``; None without a filter.
        column_sum: Sum over the rows of a block, likewise; None if no bias wants it.
    """

    values: Tensor
    peak: Tensor | None
    column_sum: Tensor | None


def backward_statistics(
    problem: Problem,
    saved: Saved,
    d_lse: Tensor | None,
    d_target: Tensor | None,
    d_logit_sum: Tensor | None,
    d_mean: Tensor | None,
    *,
    need_e: bool,
    need_c: bool,
    need_bias: bool,
) -> Gradients:
    """Gradients by ``e`` in float32, by ``c`` and ``bias`` in their dtypes."""
    operands = Operands.of(problem)
    gradients = Gradients(
        operands.new(*operands.e.shape).zero_() if need_e else None,
        problem.c.new_zeros(problem.c.shape) if need_c else None,
        operands.new(problem.size).zero_() if need_bias else None,
    )
    if operands.count:
        lse, mean, d_lse, d_target, d_logit_sum, d_mean = (
            None if value is None else take(value, operands.rows).contiguous()
            for value in (saved.lse, saved.mean_logit, d_lse, d_target, d_logit_sum, d_mean)
        )
        if operands.linear_sum is not None and d_logit_sum is not None:
            operands.linear_sum.backward_(d_logit_sum, operands.e, gradients.e)
            operands.linear_sum.finish_(gradients)
            d_logit_sum = None
        slopes = Slopes(lse, mean, torch.zeros_like(lse) if d_lse is None else d_lse, d_target, d_mean, d_logit_sum)
        exact = (need_e and problem.eps_e is None) or ((need_c or need_bias) and problem.eps_c is None)
        add_gradients_ = _add_from_spans_ if exact else _add_from_listings_
        add_gradients_(operands, slopes, saved.column_map, gradients)
    d_bias = gradients.bias.to(problem.bias.dtype) if need_bias else None
    return Gradients(put(gradients.e, operands.rows, len(problem.e)), gradients.c, d_bias)


def _add_from_listings_(operands: Operands, slopes: Slopes, column_map: Tensor, gradients: Gradients) -> None:
    """Add gradients that are all filtered, from groups of listed columns."""
    by_column = gradients.c is not None or gradients.bias is not None
    groups, slots = _groups(operands, column_map)
    values = operands.new(slots, BLOCK_ROWS, dtype=operands.e.dtype)
    peak, sums = operands.new(slots), operands.new(slots) if gradients.bias is not None else None
    gradient = LogitGradient(values, peak, sums)
    for order in groups:
        listing = _listed(operands, column_map, order, slots, with_slots=by_column)
        _fill_(gradient, operands, slopes, 0, operands.size, listing)
        if gradients.e is not None:
            _add_to_e_(gradients.e, operands, gradient, listing, start=None)
        if by_column:
            _add_to_c_(gradients, operands, gradient, listing)


def _add_from_spans_(operands: Operands, slopes: Slopes, column_map: Tensor | None, gradients: Gradients) -> None:
    """Add gradients of which one is exact, from spans of all columns."""
    problem, e, blocks = operands.problem, operands.e, operands.blocks
    filter_e = problem.eps_e is not None and gradients.e is not None
    filter_c = problem.eps_c is not None and (gradients.c is not None or gradients.bias is not None)
    height = blocks * BLOCK_ROWS
    width = max(PORTION, problem.chunk_bytes // (height * e.element_size()) // PORTION * PORTION)
    values = operands.new(min(width, problem.size), height, dtype=e.dtype)
    for start, stop in spans(problem.size, width):
        gradient = LogitGradient(
            values[: stop - start],
            operands.new(blocks, stop - start) if filter_e or filter_c else None,
            operands.new(blocks, stop - start) if gradients.bias is not None else None,
        )
        _fill_(gradient, operands, slopes, start, stop, None)
        by_row = gradient.values[:, : operands.count]
        if filter_e:
            order = torch.arange(start, stop, dtype=torch.int32, device=e.device)
            slots = blocks * _rounded_up(stop - start)
            listing = _listed(operands, column_map, order, slots, with_slots=False)
            _add_to_e_(gradients.e, operands, gradient, listing, start=start)
        elif gradients.e is not None:
            add_product_(gradients.e, by_row.T, operands.c[start:stop])
        if filter_c:
            _drop_small_columns_(gradient, problem.eps_c)
        if gradients.c is not None:
            add_product_(gradients.c[start:stop], by_row, e)
        if gradients.bias is not None:
            gradients.bias[start:stop] += gradient.column_sum.sum(0)


def _drop_small_columns_(gradient: LogitGradient, eps: float) -> None:
    """Zero what a filter drops of the gradient of a span."""
    small = gradient.peak < eps
    gradient.values.unflatten(1, (-1, BLOCK_ROWS)).masked_fill_(small.T[:, :, None], 0)
    if gradient.column_sum is not None:
        gradient.column_sum.masked_fill_(small, 0)


def _rounded_up(columns: int) -> int:
    return -(-columns // PORTION) * PORTION


def _groups(operands: Operands, column_map: Tensor) -> tuple[tuple[Tensor, ...], int]:
    """Columns that any block keeps, those of the most blocks first, in groups; and the slots a group needs at most.

    A group's gradient, lists and table of slots fit the scratch memory.  Waits for the device: the sizes of what
    follows depend on it.
    """
    blocks = operands.blocks
    counts = [_count_blocks(operands, one_map) for one_map in column_map]
    kept, _ = counts[0]
    # The last map, if there are two, is that of the classifier's gradient, whose tiles the order is for.  Of columns
    # with equally many blocks those of early blocks come first, so that neighbours share blocks.
    count, position = counts[-1]
    rank = count * 2.0 - position / (count.clamp(min=1) * blocks)
    order = rank.where(kept > 0, -torch.inf).argsort(descending=True, stable=True).to(torch.int32)
    order = order[: int((kept > 0).sum())]
    kept = kept[order].to(torch.int64)

    slot_bytes = BLOCK_ROWS * operands.e.element_size() + 12
    column_bytes = 5 * blocks
    # Every block may leave its last portion of a group partly empty, and a column may straddle a limit.
    reserve = blocks * PORTION * slot_bytes
    room = max(operands.problem.chunk_bytes - reserve, reserve) - blocks * slot_bytes - column_bytes
    group = ((kept * slot_bytes + column_bytes).cumsum(0) - 1) // room
    _, number, sizes = torch.unique_consecutive(group, return_inverse=True, return_counts=True)
    totals = torch.zeros_like(sizes).index_add_(0, number, kept)
    sizes, totals = torch.stack([sizes, totals]).tolist()
    return order.split(sizes), max(totals, default=0) // PORTION * PORTION + (blocks + 1) * PORTION


def _count_blocks(operands: Operands, column_map: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks keep each column, and the sum of their numbers."""
    count, position = (operands.new(operands.size, dtype=torch.int32) for _ in range(2))
    words = column_map.shape[1]
    count_blocks_kernel[(-(-words // config.LIST_WORDS),)](
        column_map, count, position, operands.blocks, operands.size, words, WORDS=config.LIST_WORDS
    )
    return count, position


def _listed(operands: Operands, column_map: Tensor, order: Tensor, slots: int, *, with_slots: bool) -> Listing:
    """List the kept pairs of the columns in ``order``."""
    blocks, words = operands.blocks, column_map.shape[2]
    kept = operands.new(blocks, dtype=torch.int32)
    count_kept_kernel[(blocks,)](column_map, order, kept, len(order), words, BLOCK_COLUMNS=config.LIST_COLUMNS)
    first_portion = kept.new_zeros(blocks + 1)
    torch.cumsum((kept + PORTION - 1) // PORTION, 0, dtype=torch.int32, out=first_portion[1:])
    padded = _rounded_up(len(order))
    listing = Listing(
        order,
        kept.new_full((slots,), -1),
        kept.new_full((slots // PORTION,), -1),
        first_portion,
        kept.new_full((blocks, padded), -1) if with_slots else None,
    )
    list_kept_kernel[(blocks,)](
        column_map,
        column_map[-1],
        order,
        first_portion,
        listing.column_of,
        listing.block_of,
        listing.slot_of,
        len(order),
        words,
        padded,
        PORTION=PORTION,
        BLOCK_COLUMNS=config.LIST_COLUMNS,
    )
    return listing


_NAMES = ("BLOCK_COLUMNS", "BLOCK_FEATURES")


def _constants(operands: Operands) -> dict[str, Any]:
    """What all three kernels of the backward pass take."""
    return {
        "n_rows": operands.count,
        "n_features": operands.features,
        "PORTION": PORTION,
        "BLOCK_ROWS": BLOCK_ROWS,
        "PRECISION": operands.precision,
    }


def _table(operands: Operands) -> config.Architecture:
    return config.table(config.architecture(operands.e.device), operands.e.dtype)


def _fill_(
    gradient: LogitGradient, operands: Operands, slopes: Slopes, start: int, stop: int, listing: Listing | None
) -> None:
    """Compute the gradient by the logits for a listing, or else for the columns ``[start, stop)``."""
    class_weight = None if slopes.d_logit_sum is None else operands.problem.capped_weight(0, operands.size)
    extras = slopes.d_mean is not None or class_weight is not None
    table, e, c = _table(operands), operands.e, operands.c
    if listing is None:
        columns, blocks, described = stop - start, operands.blocks, config.use_descriptors(table, e, c)
    else:
        columns, blocks, described = len(listing.column_of), 1, config.use_descriptors(table, e)
    if described:
        e, c = config.descriptor(e), config.descriptor(c) if listing is None else c
    config.launch(
        logit_gradient_kernel,
        table.logit_gradient_with_extras if extras else table.logit_gradient,
        _NAMES,
        lambda meta: (-(-columns // meta["BLOCK_COLUMNS"]), blocks),
        operands.arguments()
        | _constants(operands)
        | slopes._asdict()
        | gradient._asdict()
        | {
            "e": e,
            "c": c,
            "DESCRIPTORS": described,
            "mean": None if slopes.d_mean is None else slopes.mean,
            "target": operands.target,
            "class_weight": class_weight,
            "column_of": None if listing is None else listing.column_of,
            "block_of": None if listing is None else listing.block_of,
            "first_column": start,
            "stop_column": stop,
            "values_stride": gradient.values.stride(0),
        },
    )


def _add_to_e_(d_e: Tensor, operands: Operands, gradient: LogitGradient, listing: Listing, start: int | None) -> None:
    """Add the product of listed columns with the classifier; ``start`` is that of a span, None without one."""
    config.launch(
        hidden_gradient_kernel,
        _table(operands).hidden_gradient,
        _NAMES,
        lambda meta: (-(-operands.features // meta["BLOCK_FEATURES"]), operands.blocks),
        _constants(operands)
        | {
            "values": gradient.values,
            "c": operands.c,
            "column_of": listing.column_of,
            "first_portion": listing.first_portion,
            "peak": gradient.peak,
            "d_e": d_e,
            "first_column": start or 0,
            "values_stride": gradient.values.stride(0),
            "peak_stride": gradient.peak.stride(0),
            "c_stride": operands.c.stride(0),
            "d_e_stride": d_e.stride(0),
            "eps": operands.problem.eps_e,
            "LISTED": start is None,
        },
        updates=("d_e",),
    )


def _add_to_c_(gradients: Gradients, operands: Operands, gradient: LogitGradient, listing: Listing) -> None:
    """Add the product of a listed gradient with the hidden states, and its sums."""
    blocks, padded = listing.slot_of.shape
    # In each portion's line of ``active``, the blocks that keep any of its columns come first, in ascending order.
    keeps = (listing.slot_of.unflatten(1, (-1, PORTION)) >= 0).any(2).T
    active = keeps.to(torch.int8).argsort(dim=1, descending=True, stable=True).to(torch.int32).contiguous()

    def grid(meta: dict[str, Any]) -> tuple[int, int]:
        slices = 1 if gradients.c is None else -(-operands.features // meta["BLOCK_FEATURES"])
        return slices, padded // meta["BLOCK_COLUMNS"]

    config.launch(
        classifier_gradient_kernel,
        _table(operands).classifier_gradient,
        _NAMES,
        grid,
        _constants(operands)
        | {
            "values": gradient.values,
            "e": operands.e,
            "order": listing.order,
            "slot_of": listing.slot_of,
            "active": active,
            "n_active": keeps.sum(1, dtype=torch.int32),
            "peak": gradient.peak,
            "column_sum": gradient.column_sum,
            "d_c": gradients.c,
            "d_bias": gradients.bias,
            "n_listed": len(listing.order),
            "n_blocks": blocks,
            "slot_stride": padded,
            "e_stride": operands.e.stride(0),
            "d_c_stride": 0 if gradients.c is None else gradients.c.stride(0),
            "eps": operands.problem.eps_c,
        },
        updates=("d_c", "d_bias"),
    )
