"""The gradient filter: which columns a block of rows keeps, and the two products over the kept ones."""

from collections.abc import Callable

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.problem import Gradients, Problem, take
from lossbook.kernels.cross_entropy.tiles import FILTER_ROWS, spans

# Kept columns are gathered from this many at a time, so that the gathered rows of the classifier stay in cache ...
_GATHER_COLUMNS = 2048
# ... and only where they are fewer than this fraction; else the others are set to zero and the product stays dense.
_GATHER_BELOW = 0.7


def is_filtered(problem: Problem, wanted: Gradients) -> bool:
    """Whether a filter acts on any of the ``wanted`` gradients."""
    classifier = wanted.c is not None or wanted.bias is not None
    return (problem.eps_e is not None and wanted.e is not None) or (problem.eps_c is not None and classifier)


class ColumnMaximum:
    """Largest softmax value of every column in every block of ``FILTER_ROWS`` rows of one tile.

    A column that holds a target of the block counts as infinite, so every filter keeps it.  That also makes the
    test on ``softmax`` equal to the test on ``|softmax - onehot|``: they differ only in columns kept anyway.
    """

    def __init__(self, tile: Tensor) -> None:
        blocks = -(-tile.shape[0] // FILTER_ROWS)
        self.values = tile.new_zeros(blocks, tile.shape[1])

    def include(self, rows: slice, softmax: Tensor) -> None:
        """Take a strip of softmax rows, all of one block, into account."""
        block = self.values[rows.start // FILTER_ROWS]
        # torch.maximum hands NaN on, and a NaN column is kept below: a broken input stays visible.
        torch.maximum(block, softmax.amax(0), out=block)

    def keep_targets(self, target: Tensor) -> None:
        """Mark the columns ``target`` (one per row, out of range where there is none) as kept."""
        inside = (target >= 0) & (target < self.values.shape[1])
        block = torch.arange(len(target), device=target.device) // FILTER_ROWS
        self.values[block[inside], target[inside]] = torch.inf

    def kept(self, block: int, eps: float) -> Tensor:
        """Boolean mask of the columns that block number ``block`` keeps."""
        return ~(self.values[block] < eps)


def accumulate_(
    sums: Gradients,
    gradient: Tensor,
    e: Tensor,
    c: Tensor,
    column_maximum: ColumnMaximum | None,
    eps_e: float | None,
    eps_c: float | None,
) -> None:
    """Add ``gradient @ c``, ``gradient.T @ e`` and the column sums of ``gradient`` to ``sums``.

    ``gradient`` is overwritten.  The looser filter runs second: what the first one zeroed, it drops too.
    """
    sides = []
    if sums.e is not None:
        sides.append((eps_e, _add_to_e))
    if sums.c is not None or sums.bias is not None:
        sides.append((eps_c, _add_to_c))
    for eps, add in sorted(sides, key=lambda side: side[0] or 0.0):
        if eps is None:
            add(sums, gradient, e, c)
        else:
            _add_kept(add, sums, gradient, e, c, column_maximum, eps)


def _add_kept(
    add: Callable[..., None],
    sums: Gradients,
    gradient: Tensor,
    e: Tensor,
    c: Tensor,
    column_maximum: ColumnMaximum,
    eps: float,
) -> None:
    """Add the products over the columns that each block of rows keeps."""
    for block, (top, bottom) in enumerate(spans(gradient.shape[0], FILTER_ROWS)):
        block_sums = sums._replace(e=take(sums.e, slice(top, bottom)))
        kept_in_block = column_maximum.kept(block, eps)
        for left, right in spans(gradient.shape[1], _GATHER_COLUMNS):
            part, kept = gradient[top:bottom, left:right], kept_in_block[left:right]
            part_sums = block_sums._replace(
                c=take(sums.c, slice(left, right)), bias=take(sums.bias, slice(left, right))
            )
            columns = kept.nonzero()[:, 0]
            if len(columns) < _GATHER_BELOW * len(kept):
                add(part_sums, part, e[top:bottom], c[left:right], columns)
                continue
            if len(columns) < len(kept):
                part.masked_fill_(~kept, 0)
            add(part_sums, part, e[top:bottom], c[left:right])


def _add_to_e(sums: Gradients, gradient: Tensor, e: Tensor, c: Tensor, columns: Tensor | None = None) -> None:
    if columns is not None:
        gradient, c = gradient.index_select(1, columns), c.index_select(0, columns)
    sums.e.addmm_(gradient, c)


def _add_to_c(sums: Gradients, gradient: Tensor, e: Tensor, c: Tensor, columns: Tensor | None = None) -> None:
    if columns is not None:
        gradient = gradient.index_select(1, columns)
        if sums.c is not None:
            sums.c.index_add_(0, columns, gradient.T @ e)
        if sums.bias is not None:
            sums.bias.index_add_(0, columns, gradient.sum(0))
        return
    if sums.c is not None:
        sums.c.addmm_(gradient.T, e)
    if sums.bias is not None:
        sums.bias.add_(gradient.sum(0))
