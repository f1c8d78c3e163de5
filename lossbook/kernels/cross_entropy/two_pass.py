"""Cut Cross-Entropy in two passes over tiles of logits: a few columns at a time, never ``N x V``.

The first pass folds the tiles into an online log-sum-exp and picks the target logits; the second computes the same
tiles again and turns them into gradients.  Four matrix products, any upstream gradient, and no memory beyond the
gradients and one small tile.

Both passes work on *statistics* of the logits: per row the log-sum-exp, the target logit and, for label smoothing,
the sum of the logits weighted by class.  Every loss of the public function is a function of these three; the mean
logit and the argmax join them where the entropy or the most likely word is asked for.
"""

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.filtering import ColumnMaximum, accumulate_, is_filtered
from lossbook.kernels.cross_entropy.problem import Gradients, Problem, Saved, Statistics, put, take
from lossbook.kernels.cross_entropy.tiles import (
    joined_entropy,
    logits_into,
    pick,
    softcap_,
    softcap_slope,
    softmax_and_lse_,
    softmax_to_gradient_,
    spans,
    strips,
    tile_shape,
)


def forward_statistics(problem: Problem) -> Statistics:
    """First pass: the statistics of every row."""
    rows = problem.rows()
    e, target = take(problem.e, rows).to(problem.work), take(problem.target, rows)
    count, softcap, scale = len(e), problem.softcap, problem.scale
    online = _OnlineSoftmax(e, problem)
    target_logit = None if target is None else e.new_zeros(count)
    logit_sum = None if problem.class_weight is None else e.new_zeros(count)
    height, width = tile_shape(count, problem.size, e.itemsize, problem.chunk_bytes, on_cpu=problem.on_cpu)
    buffer = e.new_empty(height * width)
    for start, stop in spans(problem.size, width):
        c, bias = problem.classifier(start, stop)
        _add_linear_logit_sum_(logit_sum, e, c, bias, problem.linear_weight(start, stop), scale)
        capped_weight = problem.capped_weight(start, stop)
        for top, bottom in spans(count, height):
            z = logits_into(buffer, e[top:bottom], c, bias, problem.linear_scale)
            if target is not None:
                # A row whose target is elsewhere picks 0, and the cap maps 0 to 0.
                target_logit[top:bottom] += softcap_(pick(z, target[top:bottom] - start), softcap, scale)
            for strip in strips(z, within_filter_rows=False):
                part = softcap_(z[strip], softcap, scale)
                if capped_weight is not None:
                    logit_sum[top:bottom][strip].addmv_(part, capped_weight)
                online.include_(slice(top + strip.start, top + strip.stop), start, part)
    statistics = (online.lse, target_logit, logit_sum, online.mean_logit(), online.argmax)
    return Statistics(*(put(value, rows, len(problem.e)) for value in statistics), None)


class _OnlineSoftmax:
    """Log-sum-exp and, where asked for, entropy and argmax of rows whose columns come a few at a time."""

    def __init__(self, e: Tensor, problem: Problem) -> None:
        count = len(e)
        self.lse = e.new_full((count,), -torch.inf)
        self._entropy = e.new_zeros(count) if problem.want_mean else None
        self._largest = torch.full_like(self.lse, -torch.inf) if problem.want_argmax else None
        self.argmax = e.new_zeros(count, dtype=torch.int64) if problem.want_argmax else None

    def include_(self, rows: slice, start: int, z: Tensor) -> None:
        """Take in logits of ``rows`` for the columns from ``start`` on; ``z`` is overwritten."""
        if self.argmax is not None:
            self._include_argmax(rows, start, z)
        lse = self.lse[rows]
        part_lse = softmax_and_lse_(z)
        joined = torch.logaddexp(lse, part_lse)
        if self._entropy is not None:
            seen, new = (lse, self._entropy[rows]), (part_lse, torch.special.entr(z).sum(1))
            self._entropy[rows] = joined_entropy(joined, seen, new)
        lse.copy_(joined)

    def _include_argmax(self, rows: slice, start: int, z: Tensor) -> None:
        largest, column = z.max(1)
        # Columns come in ascending order: of equal ones the first stays.
        better = largest > self._largest[rows]
        self._largest[rows] = largest.where(better, self._largest[rows])
        self.argmax[rows] = (column + start).where(better, self.argmax[rows])

    def mean_logit(self) -> Tensor | None:
        """Mean logit under the softmax, never above ``lse``."""
        return None if self._entropy is None else self.lse - self._entropy


def _add_linear_logit_sum_(
    logit_sum: Tensor | None, e: Tensor, c: Tensor, bias: Tensor | None, weight: Tensor | None, scale: float
) -> None:
    """Without a cap the sum of the logits is linear in ``e``: a product with one row, not with V."""
    if weight is None:
        return
    logit_sum.addmv_(e, weight @ c, alpha=scale)
    if bias is not None:
        logit_sum.add_(weight @ bias, alpha=scale)


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
    """Second pass: gradients of the statistics, each weighted by its ``d_...`` and summed.

    ``saved`` is of the whole vocabulary, also where ``problem.c`` is only a shard of it.  The gradient of ``e`` comes
    in the working dtype, those of ``c`` and ``bias`` in theirs.
    """
    rows = problem.rows()
    e, target = take(problem.e, rows).to(problem.work), take(problem.target, rows)
    lse = take(saved.lse, rows).to(problem.work)
    entropy = None if d_mean is None else lse - take(saved.mean_logit, rows)
    # With the scale in the weights of the statistics, what follows differentiates by the unscaled logits.
    d_lse, d_target, d_logit_sum, d_mean = (
        None if value is None else take(value, rows).to(problem.work) * problem.scale
        for value in (d_lse, d_target, d_logit_sum, d_mean)
    )
    if d_lse is None:
        d_lse = torch.zeros_like(lse)
    count = len(e)
    d_e = torch.zeros_like(e) if need_e else None
    d_c = e.new_empty(problem.c.shape, dtype=problem.c.dtype) if need_c else None
    d_bias = e.new_empty(problem.size, dtype=problem.bias.dtype) if need_bias else None
    filtered = is_filtered(problem, Gradients(d_e, d_c, d_bias))
    height, width = tile_shape(count, problem.size, e.itemsize, problem.chunk_bytes, on_cpu=problem.on_cpu)
    buffer = e.new_empty(height * width)
    for start, stop in spans(problem.size, width):
        c, bias = problem.classifier(start, stop)
        # A span of d_c is complete when the loop leaves it, so full precision is needed for one span only.
        sums = Gradients(d_e, _accumulator(d_c, start, stop, e), _accumulator(d_bias, start, stop, e))
        _add_linear_logit_sum_gradient_(sums, d_logit_sum, e, c, problem.linear_weight(start, stop))
        capped_weight = problem.capped_weight(start, stop)
        for top, bottom in spans(count, height):
            span = slice(top, bottom)
            z = logits_into(buffer, e[span], c, bias, problem.linear_scale)
            column_maximum = ColumnMaximum(z) if filtered else None
            columns = None if target is None else target[span] - start
            for strip in strips(z, within_filter_rows=filtered):
                part = softcap_(z[strip], problem.softcap, problem.scale)
                slope = softcap_slope(part, problem.softcap, problem.scale)
                part.sub_(lse[span][strip][:, None]).exp_()
                if filtered:
                    column_maximum.include(strip, part)
                softmax_to_gradient_(
                    part,
                    slope,
                    d_lse[span][strip],
                    take(columns, strip),
                    take(take(d_target, span), strip),
                    capped_weight,
                    take(take(d_logit_sum, span), strip),
                    take(take(entropy, span), strip),
                    take(take(d_mean, span), strip),
                )
            if filtered and columns is not None:
                column_maximum.keep_targets(columns)
            tile_sums = sums._replace(e=take(d_e, span))
            accumulate_(tile_sums, z, e[span], c, column_maximum, problem.eps_e, problem.eps_c)
        _store(d_c, start, stop, sums.c)
        _store(d_bias, start, stop, sums.bias)
    return Gradients(put(d_e, rows, len(problem.e)), d_c, d_bias)


def _add_linear_logit_sum_gradient_(
    sums: Gradients, d_logit_sum: Tensor | None, e: Tensor, c: Tensor, weight: Tensor | None
) -> None:
    """Gradient of a logit sum that is linear in ``e``: rank one, exact, and never seen by a filter."""
    if weight is None or d_logit_sum is None:
        return
    if sums.e is not None:
        sums.e.addr_(d_logit_sum, weight @ c)
    if sums.c is not None:
        sums.c.addr_(weight, d_logit_sum @ e)
    if sums.bias is not None:
        sums.bias.add_(weight * d_logit_sum.sum())


def _accumulator(result: Tensor | None, start: int, stop: int, like: Tensor) -> Tensor | None:
    """Zeros in the working dtype for ``result[start:stop]``: that very memory if the dtypes agree."""
    if result is None:
        return None
    if result.dtype == like.dtype:
        return result[start:stop].zero_()
    return like.new_zeros(stop - start, *result.shape[1:])


def _store(result: Tensor | None, start: int, stop: int, accumulated: Tensor | None) -> None:
    if result is not None and result.dtype != accumulated.dtype:
        result[start:stop] = accumulated
