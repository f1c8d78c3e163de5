"""From checked arguments to the loss: prepare the rows, choose a schedule, reduce."""

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.dense import dense_statistics
from lossbook.kernels.cross_entropy.factors import Factors
from lossbook.kernels.cross_entropy.library import (
    linear_loss_and_gradients,
    linear_statistics,
    no_autocast,
    result_dtype,
)
from lossbook.kernels.cross_entropy.parallel import VocabParallel, parallel_statistics
from lossbook.kernels.cross_entropy.problem import Problem, Statistics
from lossbook.kernels.cross_entropy.tiles import fits_row_chunk


def linear_loss(
    problem: Problem,
    weight: Tensor | None,
    shard: VocabParallel | None,
    *,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
    impl: str,
    want_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Loss of flat rows, and their log-sum-exp if wanted.

    Args:
        problem: Operands; ``target`` counts over the whole vocabulary, ``valid`` is set, ``class_weight`` is not.
        weight: Class weights over the whole vocabulary, or None.
        shard: This process's part of the vocabulary, or None for all of it.
        label_smoothing: Smoothing mass.
        z_loss: Factor of the squared log-sum-exp.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        impl: ``"torch"`` or ``"dense"``.
        want_lse: Whether the second result is asked for.
    """
    size = problem.size if shard is None else shard.vocab_size()
    token_weight = _token_weight(problem, weight, size)
    factors = Factors.of(problem.valid, token_weight, label_smoothing=label_smoothing, z_loss=z_loss, size=size)
    # Without weights this counts the valid rows; in float32 the count is exact up to 2^24 of them.
    count = token_weight.sum() if weight is not None else problem.valid.sum().to(token_weight.dtype)
    total_weight = None
    if label_smoothing > 0:
        class_weight = token_weight.new_ones(size) if weight is None else weight.detach().to(token_weight.dtype)
        total_weight = class_weight.sum()
        problem = problem._replace(class_weight=class_weight)
        if problem.softcap is not None:
            # Every entry then carries smoothing mass, which no threshold may drop.
            problem = problem._replace(eps_e=None, eps_c=None)
    if shard is None and impl == "torch" and not want_lse and reduction != "none" and _gradients_pay(problem):
        return _loss_with_gradients(problem, factors, count if reduction == "mean" else None), None
    statistics = _statistics(problem, shard, impl)
    loss = factors.loss(*statistics, total_weight)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        loss = loss / count
    dtype = result_dtype(problem.e.dtype)
    return loss.to(dtype), statistics.lse.to(dtype)


def _token_weight(problem: Problem, weight: Tensor | None, size: int) -> Tensor:
    """Weight of each row's target; zero at ignored rows."""
    if weight is None:
        return problem.valid.to(problem.work)
    return weight.detach().to(problem.work)[problem.target.clamp(0, size - 1)].where(problem.valid, 0)


def _needs(problem: Problem) -> tuple[bool, bool, bool]:
    """Whether gradients by ``e``, ``c`` and ``bias`` are wanted."""
    if not torch.is_grad_enabled():
        return False, False, False
    return tuple(value is not None and value.requires_grad for value in (problem.e, problem.c, problem.bias))


def _gradients_pay(problem: Problem) -> bool:
    """Whether to compute gradients in the forward pass, for a loss that allows it.

    Not for operands below the working dtype: the gradient of ``c`` would need an accumulator of the classifier's
    size, where two passes need one of a chunk's.
    """
    rows, itemsize = problem.e.shape[0], problem.work.itemsize
    fits = fits_row_chunk(rows, problem.size, itemsize, problem.chunk_bytes)
    return any(_needs(problem)) and problem.e.dtype == problem.work and fits


def _loss_with_gradients(problem: Problem, factors: Factors, count: Tensor | None) -> Tensor:
    """Sum over the rows, or their mean if ``count`` is given, with gradients computed on the way."""
    if count is None:
        return linear_loss_and_gradients(*problem, *factors, *_needs(problem))[0]
    loss = linear_loss_and_gradients(*problem, *factors.over(count), *_needs(problem))[0]
    # The mean over nothing is NaN, as in torch; its gradients are zero.
    return loss.where(count != 0, torch.nan)


def _statistics(problem: Problem, shard: VocabParallel | None, impl: str) -> Statistics:
    if shard is not None:
        return parallel_statistics(problem, shard)
    if impl == "dense":
        with no_autocast(problem.e):
            return dense_statistics(problem)
    lse, target_logit, logit_sum = linear_statistics(*problem)
    return Statistics(lse, target_logit, None if problem.class_weight is None else logit_sum)
