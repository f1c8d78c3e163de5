"""From checked arguments to the loss: prepare the rows, choose a schedule, reduce."""

from typing import NamedTuple

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.dense import dense_statistics
from lossbook.kernels.cross_entropy.engines import engine
from lossbook.kernels.cross_entropy.factors import Factors
from lossbook.kernels.cross_entropy.library import (
    asked_for,
    linear_loss_and_gradients,
    linear_statistics,
    no_autocast,
    result_dtype,
)
from lossbook.kernels.cross_entropy.parallel import VocabParallel, parallel_statistics
from lossbook.kernels.cross_entropy.problem import Problem, Statistics


class Outputs(NamedTuple):
    """The loss, and what else of each row was asked for; None where it was not."""

    loss: Tensor
    lse: Tensor | None = None
    entropy: Tensor | None = None
    argmax: Tensor | None = None


def linear_loss(
    problem: Problem,
    weight: Tensor | None,
    shard: VocabParallel | None,
    *,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
    want_lse: bool,
) -> Outputs:
    """Loss of flat rows; their log-sum-exp if wanted, their entropy and argmax if the problem asks for them.

    Args:
        problem: Operands; ``target`` counts over the whole vocabulary, ``valid`` is set, ``class_weight`` is not.
            Here ``impl`` may be ``"dense"`` too.
        weight: Class weights over the whole vocabulary, or None.
        shard: This process's part of the vocabulary, or None for all of it.
        label_smoothing: Smoothing mass.
        z_loss: Factor of the squared log-sum-exp.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        want_lse: Whether the log-sum-exp is asked for.
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
    problem = _without_idle_filters(problem)
    only_loss = not (want_lse or problem.want_mean or problem.want_argmax)
    if shard is None and only_loss and reduction != "none" and _gradients_pay(problem):
        return Outputs(_loss_with_gradients(problem, factors, count if reduction == "mean" else None))
    statistics = _statistics(problem, shard)
    loss = factors.loss(statistics.lse, statistics.target_logit, statistics.logit_sum, total_weight)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        loss = loss / count
    dtype = result_dtype(problem.e.dtype)
    return Outputs(
        loss.to(dtype),
        statistics.lse.to(dtype) if want_lse else None,
        (statistics.lse - statistics.mean_logit).to(dtype) if problem.want_mean else None,
        statistics.argmax.where(problem.valid, -1) if problem.want_argmax else None,
    )


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


def _without_idle_filters(problem: Problem) -> Problem:
    """No threshold where it must not act, or where no gradient is needed and it would only make work."""
    need_e, need_c, need_bias = _needs(problem)
    # With both of these every entry carries smoothing mass, which no threshold may drop.
    exact = problem.class_weight is not None and problem.softcap is not None
    return problem._replace(
        eps_e=None if exact or not need_e else problem.eps_e,
        eps_c=None if exact or not (need_c or need_bias) else problem.eps_c,
    )


def _gradients_pay(problem: Problem) -> bool:
    """Whether to compute gradients in the forward pass, for a loss that allows it."""
    return problem.impl != "dense" and any(_needs(problem)) and engine(problem.impl).gradients_pay(problem)


def _loss_with_gradients(problem: Problem, factors: Factors, count: Tensor | None) -> Tensor:
    """Sum over the rows, or their mean if ``count`` is given, with gradients computed on the way."""
    if count is None:
        return linear_loss_and_gradients(*problem, *factors, *_needs(problem))[0]
    loss = linear_loss_and_gradients(*problem, *factors.over(count), *_needs(problem))[0]
    # The mean over nothing is NaN, as in torch; its gradients are zero.
    return loss.where(count != 0, torch.nan)


def _statistics(problem: Problem, shard: VocabParallel | None) -> Statistics:
    if shard is not None:
        return parallel_statistics(problem, shard)
    if problem.impl == "dense":
        with no_autocast(problem.e):
            return dense_statistics(problem)
    return asked_for(problem, linear_statistics(*problem))
