"""The dense reference: every logit at once, plain autograd, differentiable as often as wanted."""

from typing import Any

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.problem import Problem, Statistics
from lossbook.kernels.cross_entropy.tiles import FILTER_ROWS


def dense_statistics(problem: Problem) -> Statistics:
    """Statistics of every row from the whole ``N x V`` matrix of logits."""
    # Ignored rows may hold anything, NaN included; a zero row has harmless logits and no gradient.
    e = problem.e if problem.valid is None else problem.e.masked_fill(~problem.valid[:, None], 0)
    e, c = e.to(problem.work), problem.c.to(problem.work)
    bias = None if problem.bias is None else problem.bias.to(problem.work)
    z = _cap(_linear(e, c, bias), problem)
    class_weight = None if problem.class_weight is None else problem.class_weight.to(problem.work)
    # Label smoothing is taken from the unfiltered logits.
    logit_sum = None if class_weight is None else z @ class_weight
    if problem.eps_e is not None or problem.eps_c is not None:
        kept_e, kept_c = (_kept(problem, z.detach(), eps) for eps in (problem.eps_e, problem.eps_c))
        z = _cap(_FilteredLinear.apply(e, c, bias, kept_e, kept_c), problem)
    lse = z.logsumexp(1)
    target_logit = None if problem.target is None else z.gather(1, _column(problem)[:, None])[:, 0]
    mean_logit = _mean_logit(z, lse) if problem.want_mean else None
    argmax = z.argmax(1) if problem.want_argmax else None
    statistics = (lse, target_logit, logit_sum, mean_logit, argmax)
    return Statistics(*(_mask(value, problem.valid) for value in statistics), None)


def _linear(e: Tensor, c: Tensor, bias: Tensor | None) -> Tensor:
    return e @ c.T if bias is None else torch.addmm(bias, e, c.T)


def _cap(z: Tensor, problem: Problem) -> Tensor:
    """Cap and scale the logits."""
    if problem.softcap is not None:
        return problem.softcap * problem.scale * torch.tanh(z / problem.softcap)
    return z if problem.scale == 1 else z * problem.scale


def _mean_logit(z: Tensor, lse: Tensor) -> Tensor:
    log_p = z - lse[:, None]
    p = log_p.exp()
    # A masked word has p = 0 and log p = -inf.
    return lse + (p * log_p.masked_fill(p == 0, 0)).sum(1)


def _column(problem: Problem) -> Tensor:
    return problem.target.clamp(0, problem.size - 1)


def _mask(values: Tensor | None, valid: Tensor | None) -> Tensor | None:
    return values if values is None or valid is None else values.where(valid, 0)


def _kept(problem: Problem, z: Tensor, eps: float | None) -> Tensor | None:
    """Mask of shape ``(N, V)``: which logits may pass a gradient; None if all."""
    if eps is None:
        return None
    valid = torch.ones_like(z[:, 0], dtype=torch.bool) if problem.valid is None else problem.valid
    # Blocks are counted over the valid rows only, which the stable sort moves to the front.
    block = (valid.cumsum(0) - 1).clamp(min=0) // FILTER_ROWS
    softmax = z.softmax(1).masked_fill(~valid[:, None], 0)[valid.logical_not().argsort(stable=True)]
    padded = torch.nn.functional.pad(softmax, (0, 0, 0, -len(z) % FILTER_ROWS))
    targets = torch.zeros_like(padded[::FILTER_ROWS])
    targets.index_put_((block, _column(problem)), valid.to(z.dtype), accumulate=True)
    kept = ~(padded.unflatten(0, (-1, FILTER_ROWS)).amax(1) < eps) | (targets > 0)
    return kept[block]


class _FilteredLinear(torch.autograd.Function):
    """``e @ c.T + bias`` whose gradients see the logits through two masks."""

    @staticmethod
    def forward(
        ctx: Any, e: Tensor, c: Tensor, bias: Tensor | None, kept_e: Tensor | None, kept_c: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(e, c, kept_e, kept_c)
        return _linear(e, c, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        e, c, kept_e, kept_c = ctx.saved_tensors
        for_e = gradient if kept_e is None else gradient.where(kept_e, 0)
        for_c = gradient if kept_c is None else gradient.where(kept_c, 0)
        need_e, need_c, need_bias, *_ = ctx.needs_input_grad
        return (
            for_e @ c if need_e else None,
            for_c.T @ e if need_c else None,
            for_c.sum(0) if need_bias else None,
            None,
            None,
        )
