"""Cut Cross-Entropy with the gradients computed in the forward pass, for losses that are one weighted sum.

Once the factor of every row in the final scalar is known, a row's gradient can follow its softmax at once, while its
logits are still there: three matrix products instead of four.  The price is whole rows of logits, a chunk of rows at
a time, and gradients that exist from the forward on.
"""

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.factors import Factors
from lossbook.kernels.cross_entropy.filtering import ColumnMaximum, accumulate_, is_filtered
from lossbook.kernels.cross_entropy.linear_sum import LinearSum
from lossbook.kernels.cross_entropy.problem import Gradients, Problem, take
from lossbook.kernels.cross_entropy.tiles import (
    logits_into,
    pick,
    row_chunk,
    softcap_,
    softcap_slope,
    softmax_and_lse_,
    softmax_to_gradient_,
    spans,
    strips,
)


def loss_and_gradients(
    problem: Problem, factors: Factors, *, need_e: bool, need_c: bool, need_bias: bool
) -> tuple[Tensor, Gradients]:
    """The sum of :meth:`Factors.loss` over the valid rows, and its gradients.

    The operands must have the working dtype.
    """
    rows = problem.rows()
    target, factors = take(problem.target, rows), factors.take(rows)
    e, c, bias = problem.e, problem.c, problem.bias
    gradients = Gradients(
        e.new_zeros(e.shape) if need_e else None,
        e.new_zeros(c.shape) if need_c else None,
        e.new_zeros(problem.size) if need_bias else None,
    )
    count = len(target)
    height = row_chunk(count, problem.size, e.itemsize, problem.chunk_bytes, on_cpu=problem.on_cpu)
    buffer = e.new_empty(height * problem.size)
    smoothing = LinearSum.of(problem) if factors.smoothing is not None else None
    loss = e.new_zeros(())
    for top, bottom in spans(count, height):
        span = slice(top, bottom)
        e_chunk = e[span] if rows is None else e.index_select(0, rows[span])
        d_e = None if not need_e else gradients.e[span] if rows is None else torch.zeros_like(e_chunk)
        z = logits_into(buffer, e_chunk, c, bias, problem.linear_scale)
        chunk_factors = factors.take(span)
        logit_sum = None
        if smoothing is not None:
            logit_sum = smoothing.forward(e_chunk)
            smoothing.backward_(-chunk_factors.smoothing, e_chunk, d_e)
        chunk_loss, column_maximum = _losses_and_gradient_(
            problem, z, target[span], chunk_factors, logit_sum, filtered=is_filtered(problem, gradients)
        )
        loss += chunk_loss
        accumulate_(gradients._replace(e=d_e), z, e_chunk, c, column_maximum, problem.eps_e, problem.eps_c)
        if need_e and rows is not None:
            gradients.e.index_copy_(0, rows[span], d_e)
    if smoothing is not None:
        smoothing.finish_(gradients)
    return loss, gradients


def _losses_and_gradient_(
    problem: Problem, z: Tensor, target: Tensor, factors: Factors, logit_sum: Tensor | None, *, filtered: bool
) -> tuple[Tensor, ColumnMaximum | None]:
    """Replace whole rows of logits by the gradient with respect to them; returns the summed loss of the rows.

    ``logit_sum`` is None where it needs the capped logits and is formed here.
    """
    capped_weight = problem.capped_weight(0, problem.size)
    total_weight = None if problem.class_weight is None else problem.class_weight.sum()
    target_logit = softcap_(pick(z, target), problem.softcap, problem.scale)
    column_maximum = ColumnMaximum(z) if filtered else None
    losses = z.new_empty(len(z))
    for strip in strips(z, within_filter_rows=filtered):
        own = factors.take(strip)
        part = softcap_(z[strip], problem.softcap, problem.scale)
        slope = softcap_slope(part, problem.softcap, problem.scale)
        part_sum = take(logit_sum, strip) if capped_weight is None else part @ capped_weight
        lse = softmax_and_lse_(part)
        losses[strip] = own.loss(lse, target_logit[strip], part_sum, total_weight)
        if filtered:
            column_maximum.include(strip, part)
        own = own.times(problem.scale)
        d_sum = None if own.smoothing is None else -own.smoothing
        softmax_to_gradient_(part, slope, own.d_lse(lse, total_weight), target[strip], -own.nll, capped_weight, d_sum)
    if filtered:
        column_maximum.keep_targets(target)
    return losses.sum(), column_maximum
