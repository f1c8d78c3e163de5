"""Exact gradients in the forward pass: whole rows of logits from the library's matrix product, a chunk at a time.

Two sweeps over each row of a chunk, with the loss in between: the first reads the logits and leaves the row's
statistics, the second overwrites the logits with the gradient by them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lossbook.kernels.cross_entropy.factors import Factors
from lossbook.kernels.cross_entropy.linear_sum import LinearSum
from lossbook.kernels.cross_entropy.problem import Gradients, Problem, put, take
from lossbook.kernels.cross_entropy.tiles import spans
from lossbook.kernels.cross_entropy.triton import config
from lossbook.kernels.cross_entropy.triton.logits import LN_2, LOG2_E, capped, slope_of_cap
from lossbook.kernels.cross_entropy.triton.products import add_product_, product


@triton.jit
def row_statistics_kernel(
    z,
    bias,
    target,
    class_weight,
    lse,
    target_logit,
    logit_sum,
    n_columns,
    z_stride,
    scale,
    softcap,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Log-sum-exp, target logit and, given class weights, the weighted sum of one row of products ``z``."""
    row = tl.program_id(0)
    z += row.to(tl.int64) * z_stride
    top = tl.full((), -float("inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    weighted = tl.zeros((), tl.float32)
    for start in range(0, n_columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        inside = column < n_columns
        logit = _logits(z, bias, column, inside, scale, softcap)
        if class_weight is not None:
            weighted += tl.sum(logit * tl.load(class_weight + column, mask=inside, other=0.0).to(tl.float32), 0)
        logit = tl.where(inside, logit, -float("inf")) * LOG2_E
        new_top = tl.maximum(top, tl.max(logit, 0))
        anchor = tl.where(new_top == -float("inf"), 0.0, new_top)
        total = total * tl.exp2(top - anchor) + tl.sum(tl.exp2(logit - anchor), 0)
        top = new_top
    tl.store(lse + row, (tl.where(top == -float("inf"), 0.0, top) + tl.log2(total)) * LN_2)
    if class_weight is not None:
        tl.store(logit_sum + row, weighted)
    own = tl.load(target + row)
    tl.store(target_logit + row, _logits(z, bias, own, own >= 0, scale, softcap))


@triton.jit
def row_gradient_kernel(
    z,
    gradient,
    bias,
    target,
    class_weight,
    lse,
    d_lse,
    d_target,
    d_logit_sum,
    n_columns,
    z_stride,
    gradient_stride,
    scale,
    softcap,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Gradient by the products ``z`` of one row.

    ``gradient`` may be the same memory in a type at most as wide: its entries then lie before, or among, those of
    ``z`` just read, never among those still to come.
    """
    row = tl.program_id(0)
    z += row.to(tl.int64) * z_stride
    gradient += row.to(tl.int64) * gradient_stride
    own = tl.load(target + row)
    for start in range(0, n_columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        inside = column < n_columns
        logit = _logits(z, bias, column, inside, scale, softcap)
        g = tl.exp2((logit - tl.load(lse + row)) * LOG2_E) * tl.load(d_lse + row)
        g += tl.where(column == own, tl.load(d_target + row), 0.0)
        if d_logit_sum is not None:
            weight = tl.load(class_weight + column, mask=inside, other=0.0).to(tl.float32)
            g += weight * tl.load(d_logit_sum + row)
        if softcap is not None:
            g *= slope_of_cap(logit / scale, softcap)
        # All threads must have read this stretch before any of them overwrites it.
        tl.debug_barrier()
        tl.store(gradient + column, (g * scale).to(gradient.dtype.element_ty), mask=inside)


@triton.jit
def _logits(z, bias, column, inside, scale, softcap):
    """Logits of some columns of a row."""
    value = tl.load(z + column, mask=inside, other=0.0)
    if bias is not None:
        value += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    return capped(value, softcap) * scale


# Rows of the buffer start at multiples of this many entries, as fast products want.
_ALIGNMENT = 16


def loss_and_gradients(
    problem: Problem, factors: Factors, height: int, *, need_e: bool, need_c: bool, need_bias: bool
) -> tuple[Tensor, Gradients]:
    """The sum of :meth:`Factors.loss` over the valid rows and its gradients, ``height`` rows at a time."""
    rows = problem.rows()
    e, c = take(problem.e, rows).contiguous(), problem.c
    target, factors = take(problem.target, rows), factors.take(rows)
    count, size = len(e), problem.size
    linear = LinearSum.of(problem)
    d_e = e.new_empty(e.shape) if need_e else None
    # One chunk writes the gradient of c at once; several add up in full precision.
    d_c = c.new_zeros(c.shape, dtype=c.dtype if count <= height else torch.float32) if need_c else None
    d_bias = e.new_zeros(size, dtype=torch.float32) if need_bias else None
    stride = -(-size // _ALIGNMENT) * _ALIGNMENT
    buffer = e.new_empty(min(height, count), stride, dtype=torch.float32)
    total_weight = None if problem.class_weight is None else problem.class_weight.sum()
    loss = e.new_zeros((), dtype=torch.float32)
    for top, bottom in spans(count, height):
        chunk, own, own_target = e[top:bottom], factors.take(slice(top, bottom)), target[top:bottom]
        z = buffer[: bottom - top, :size]
        product(chunk, c.T, out=z)
        lse, target_logit, logit_sum = _statistics(problem, z, own_target)
        if linear is not None:
            logit_sum = linear.forward(chunk)
        loss += own.loss(lse, target_logit, logit_sum, total_weight).sum()
        d_sum = None if own.smoothing is None else -own.smoothing
        g = buffer[: bottom - top].view(e.dtype)[:, :size]  # the front of every row
        d_lse = own.d_lse(lse, total_weight)
        _gradient_(problem, z, g, own_target, lse, d_lse, -own.nll, None if linear is not None else d_sum)
        if need_e:
            product(g, c, out=d_e[top:bottom])
        if need_c:
            add_product_(d_c, g.T, chunk)
        if need_bias:
            d_bias += g.sum(0, dtype=torch.float32)
        if linear is not None:
            linear.backward_(d_sum, chunk, None if d_e is None else d_e[top:bottom])
    if linear is not None:
        linear.finish_(Gradients(None, d_c, d_bias))
    return loss, Gradients(
        put(d_e, rows, len(problem.e)),
        d_c.to(c.dtype) if need_c else None,
        d_bias.to(problem.bias.dtype) if need_bias else None,
    )


def _statistics(problem: Problem, z: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-sum-exp, target logit and, where it needs every capped logit, the weighted logit sum of each row."""
    class_weight = problem.capped_weight(0, problem.size)
    lse, target_logit = z.new_empty(len(z)), z.new_empty(len(z))
    logit_sum = None if class_weight is None else z.new_empty(len(z))
    row_statistics_kernel[(len(z),)](
        z,
        problem.bias,
        target,
        class_weight,
        lse,
        target_logit,
        logit_sum,
        problem.size,
        z.stride(0),
        problem.scale,
        problem.softcap,
        BLOCK_COLUMNS=config.ROW_COLUMNS,
        num_warps=config.ROW_WARPS,
    )
    return lse, target_logit, logit_sum


def _gradient_(
    problem: Problem,
    z: Tensor,
    gradient: Tensor,
    target: Tensor,
    lse: Tensor,
    d_lse: Tensor,
    d_target: Tensor,
    d_logit_sum: Tensor | None,
) -> None:
    """Fill ``gradient``, which may share the memory of ``z``."""
    row_gradient_kernel[(len(z),)](
        z,
        gradient,
        problem.bias,
        target,
        None if d_logit_sum is None else problem.capped_weight(0, problem.size),
        lse,
        d_lse,
        d_target,
        d_logit_sum,
        problem.size,
        z.stride(0),
        gradient.stride(0),
        problem.scale,
        problem.softcap,
        BLOCK_COLUMNS=config.ROW_COLUMNS,
        num_warps=config.ROW_WARPS,
    )
