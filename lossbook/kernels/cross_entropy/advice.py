"""What the schedules of a head cost, which is how one of them is chosen."""

from dataclasses import dataclass
from typing import Any

import torch

from lossbook._validation import check_choice, check_integer, check_positive
from lossbook.kernels.cross_entropy.tiles import FILTER_ROWS

# Operations in half precision that a large GPU does while it moves one byte.  On an H200 a matrix product reaches
# 790e12 a second and a copy 4.3e12 bytes a second; an A100 has about 150, a B200 about 230.
FLOPS_PER_BYTE = 184.0
# Share of the columns in the tiles of the classifier's gradient that a block keeps, when columns are ordered by the
# number of blocks that keep them; 0.26 to 0.64 on the logits of a small language model.
TILE_DENSITY = 0.45

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class ScheduleCost:
    r"""Modelled cost of one schedule.

    Attributes:
        products: Matrix products done, forward and backward, in units of the one that makes the logits.
        traffic: Time to move what the schedule stores and reads again, in the same unit.
        scratch_bytes: Memory beyond operands and gradients.

    Returns:
        The cost as a value, one entry of :attr:`HeadAdvice.costs`.

    Examples:
        >>> ScheduleCost(4.0, 0.5, 0).total
        4.5

    References:
        The model is this package's own; chapter 17 (:doc:`/notebooks/17_cut_cross_entropy`).
    """

    products: float
    traffic: float
    scratch_bytes: int

    @property
    def total(self) -> float:
        """Products and traffic together, as if neither hid behind the other.

        Returns:
            Time in units of one matrix product.

        Examples:
            >>> ScheduleCost(3.0, 1.0, 0).total
            4.0
        """
        return self.products + self.traffic


@dataclass(frozen=True)
class HeadAdvice:
    """What :func:`head_advice` found.

    Attributes:
        schedule: The cheapest schedule: ``"dense"``, ``"row chunks"``, ``"two passes"`` or ``"column map"``.
        reason: One sentence that says why.
        arguments: Keywords that make :func:`cut_cross_entropy` take it.
        costs: The cost of every schedule considered.

    Returns:
        What :func:`head_advice` returns.

    Examples:
        >>> head_advice(8192, 49152, 576, memory_bytes=1 << 28).arguments
        {'chunk_bytes': 67108864}

    References:
        The model is this package's own; chapter 17 (:doc:`/notebooks/17_cut_cross_entropy`).
    """

    schedule: str
    reason: str
    arguments: dict[str, Any]
    costs: dict[str, ScheduleCost]


def row_chunk_height(rows: int, columns: int, features: int, dtype: torch.dtype, chunk_bytes: int) -> int:
    """Rows of a chunk of whole float32 logit rows whose scratch fits ``chunk_bytes``; 0 if none does.

    All rows if they fit at once.  Otherwise a multiple of ``FILTER_ROWS``, after room for the float32 accumulator that
    the gradient of a narrower classifier then needs.
    """
    row_bytes = 4 * columns
    if rows * row_bytes <= chunk_bytes:
        return rows
    room = chunk_bytes - (4 * columns * features if dtype.itemsize < 4 else 0)
    return max(0, room // row_bytes // FILTER_ROWS * FILTER_ROWS)


def row_chunk_cost(rows: int, columns: int, features: int, height: int, itemsize: int, balance: float) -> ScheduleCost:
    """Gradients in the forward pass, ``height`` rows of logits at a time."""
    chunks = -(-rows // max(height, 1))
    # Per logit: float32 written once and read twice, its gradient written once and read by two products.  Per chunk
    # but the first: the gradient of the classifier read and written in float32.
    moved = rows * columns * (12 + 3 * itemsize) + (chunks - 1) * columns * features * 8
    accumulator = 4 * columns * features if chunks > 1 and itemsize < 4 else 0
    return ScheduleCost(3.0, _units(moved, rows, columns, features, balance), 4 * height * columns + accumulator)


def two_pass_cost(
    rows: int, columns: int, features: int, chunk_bytes: int, itemsize: int, balance: float
) -> ScheduleCost:
    """Logits recomputed in the backward pass, a span of the vocabulary at a time."""
    spans = -(-rows * columns * itemsize // chunk_bytes)
    # Per logit: its gradient written once and read by two products.  Per span: the gradient of the hidden states.
    moved = rows * columns * 3 * itemsize + spans * rows * features * 8
    scratch = min(chunk_bytes, rows * columns * itemsize) + 4 * rows * features
    return ScheduleCost(4.0, _units(moved, rows, columns, features, balance), scratch)


def column_map_cost(
    rows: int,
    columns: int,
    features: int,
    kept: tuple[float, float],
    chunk_bytes: int,
    itemsize: int,
    balance: float,
) -> ScheduleCost:
    """Only kept columns in the backward pass; ``kept`` are their shares for the gradients of ``e`` and of ``c``."""
    listed, by_column = max(kept), min(1.0, kept[1] / TILE_DENSITY)
    stored = rows * columns * itemsize * listed
    groups = max(1, -(-int(stored) // chunk_bytes))
    moved = 3 * stored + groups * rows * features * 8
    scratch = int(min(chunk_bytes, stored)) + 4 * rows * features + 2 * rows * columns // (8 * FILTER_ROWS)
    return ScheduleCost(1 + listed + kept[0] + by_column, _units(moved, rows, columns, features, balance), scratch)


def _dense_cost(rows: int, columns: int, features: int, itemsize: int, balance: float) -> ScheduleCost:
    """Logits and their gradient held whole, as a compiled plain loss does."""
    # Logits written once and read twice, the gradient written once and read by two products.
    logits = rows * columns * itemsize
    return ScheduleCost(3.0, _units(6 * logits, rows, columns, features, balance), 2 * logits)


def _units(moved: int, rows: int, columns: int, features: int, balance: float) -> float:
    return moved * balance / (2 * rows * columns * features)


def row_chunks_win(rows: int, columns: int, features: int, dtype: torch.dtype, chunk_bytes: int) -> int:
    """Height of the row chunks if they fit and cost less than two passes, else 0."""
    height = row_chunk_height(rows, columns, features, dtype, chunk_bytes)
    if not height or not features:
        return 0
    itemsize = dtype.itemsize
    by_rows = row_chunk_cost(rows, columns, features, height, itemsize, FLOPS_PER_BYTE)
    by_spans = two_pass_cost(rows, columns, features, chunk_bytes, itemsize, FLOPS_PER_BYTE)
    return height if by_rows.total < by_spans.total else 0


def head_advice(
    N: int,
    V: int,
    D: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    kept: float | tuple[float, float] | None = None,
    chunk_bytes: int = 64 << 20,
    memory_bytes: int | None = None,
    flops_per_byte: float = FLOPS_PER_BYTE,
) -> HeadAdvice:
    r"""Which schedule of a linear head is cheapest on a GPU for a training step, and why.

    The unit of cost is the product that makes the logits, :math:`2 N V D` operations; the ``M`` bytes that a schedule
    stores and reads again cost, with :math:`\beta` operations per byte,

    .. math:: \mathrm{traffic} = \frac{\beta\, M}{2 N V D} .

    A plain loss holds the logits and makes 3 products.  *Row chunks* make 3 too, with a few whole rows of logits at a
    time; *two passes* make 4, with spans of the vocabulary and the least memory.  A filtered backward pass by *column
    map* makes :math:`1 + f + f_e + f_c / 0.45`, where :math:`f = \max(f_e, f_c)` and 0.45 is a typical density of the
    classifier's tiles.  The Triton implementation chooses between row chunks and two passes by this very rule with the
    defaults; with a filter set it always takes the column map.

    Args:
        N: Rows, that is tokens, not counting ignored ones.
        V: Vocabulary size.
        D: Width of the hidden states.
        dtype: ``torch.bfloat16`` (default), ``torch.float16`` or ``torch.float32``.
        kept: Share of columns that blocks of 128 rows keep under the filter, in (0, 1]: ``"columns"`` from
            :func:`softmax_sparsity`. One number, or a pair for the gradients of ``e`` and of ``c``. Default None: no
            filter is considered.
        chunk_bytes: Bound on scratch memory of the chunked schedules, in bytes. Default 64 MiB.
        memory_bytes: Memory there is for scratch, in bytes. Default None: enough even for all logits.
        flops_per_byte: :math:`\beta` of the device. Default 184, an H200.

    Returns:
        The advice with the costs it rests on.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range.

    Examples:
        >>> advice = head_advice(8192, 256000, 2304, kept=(0.1, 0.05), memory_bytes=1 << 30)
        >>> advice.schedule, advice.arguments
        ('column map', {'filter_eps': 'auto'})
        >>> {name: round(cost.total, 1) for name, cost in advice.costs.items()}
        {'dense': 3.5, 'two passes': 4.4, 'column map': 1.4}

    References:
        Wijmans et al. (2025), Cut Your Losses in Large-Vocabulary Language Models, Sec. 4 (two passes, recomputed
        tiles); the column map and this model are this package's own. Chapter 17
        (:doc:`/notebooks/17_cut_cross_entropy`).
    """
    for name, value in (("N", N), ("V", V), ("D", D), ("chunk_bytes", chunk_bytes)):
        check_integer(name, value)
        check_positive(name, value)
    check_choice("dtype", dtype, _DTYPES)
    check_positive("flops_per_byte", flops_per_byte)
    if memory_bytes is not None:
        check_integer("memory_bytes", memory_bytes)
        check_positive("memory_bytes", memory_bytes)
    shape, itemsize = (N, V, D), dtype.itemsize
    costs = {"dense": _dense_cost(*shape, itemsize, flops_per_byte)}
    height = row_chunk_height(*shape, dtype, chunk_bytes)
    if height:
        costs["row chunks"] = row_chunk_cost(*shape, height, itemsize, flops_per_byte)
    costs["two passes"] = two_pass_cost(*shape, chunk_bytes, itemsize, flops_per_byte)
    if kept is not None:
        costs["column map"] = column_map_cost(*shape, _shares(kept), chunk_bytes, itemsize, flops_per_byte)
    fitting = {name: cost for name, cost in costs.items() if memory_bytes is None or cost.scratch_bytes <= memory_bytes}
    # Nothing fits: the least memory is the best there is.
    best = min(fitting or costs, key=lambda name: costs[name].total if fitting else costs[name].scratch_bytes)
    return HeadAdvice(best, _reason(best, costs, fitting), _arguments(best, chunk_bytes), costs)


def _shares(kept: float | tuple[float, float]) -> tuple[float, float]:
    pair = tuple(kept) if isinstance(kept, (tuple, list)) else (kept, kept)
    if len(pair) != 2:
        raise ValueError(f"kept must be one share or a pair (for e, for c), got {kept!r}")
    for share in pair:
        check_positive("kept", share)
        if share > 1:
            raise ValueError(f"kept must lie in (0, 1], got {share!r}")
    return pair


def _arguments(schedule: str, chunk_bytes: int) -> dict[str, Any]:
    if schedule == "dense":
        return {"impl": "dense"}
    if schedule == "column map":
        return {"filter_eps": "auto"}
    return {"chunk_bytes": chunk_bytes}


def _reason(best: str, costs: dict[str, ScheduleCost], fitting: dict[str, ScheduleCost]) -> str:
    chosen = costs[best]
    text = (
        f"{best}: {chosen.products:.2f} products and {chosen.traffic:.2f} of traffic make {chosen.total:.2f} units, "
        f"with {chosen.scratch_bytes / 2**20:,.0f} MiB of scratch memory"
    )
    if not fitting:
        return f"{text}; no schedule fits the memory, this one needs the least"
    cheaper = [name for name in costs if name not in fitting and costs[name].total < chosen.total]
    if cheaper:
        return f"{text}; {' and '.join(cheaper)} would cost less but does not fit the memory"
    others = [name for name in fitting if name != best]
    if not others:
        return text
    second = min(others, key=lambda name: costs[name].total)
    return f"{text}; next is {second} with {costs[second].total:.2f}"
