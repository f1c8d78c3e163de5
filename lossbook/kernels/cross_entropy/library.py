"""Registration of the chunked schedules as ``torch.library`` operators.

A registered operator is opaque to ``torch.compile``, which keeps it in one graph; its shape function and its
derivative are declared here.  First derivatives only: differentiating a gradient raises.
"""

from typing import Any

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.factors import Factors
from lossbook.kernels.cross_entropy.grad_in_forward import loss_and_gradients
from lossbook.kernels.cross_entropy.problem import Problem
from lossbook.kernels.cross_entropy.registration import Operator, once, raise_second_derivative, wanted
from lossbook.kernels.cross_entropy.two_pass import backward_statistics, forward_statistics


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of losses and log-sum-exps for operands of ``dtype``: never below float32."""
    return torch.promote_types(dtype, torch.float32)


def work_dtype(dtype: torch.dtype, accum_dtype: torch.dtype) -> torch.dtype:
    """Dtype of logit tiles and accumulators."""
    return torch.promote_types(result_dtype(dtype), accum_dtype)


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which autocast leaves the products alone: the operands have their final dtype already."""
    return torch.autocast(tensor.device.type, enabled=False)


def _present(value: Tensor | None, like: Tensor) -> Tensor:
    # An operator cannot return None: an absent result is an empty tensor.
    return like.new_empty(0) if value is None else value


@Operator
def linear_statistics(
    e: Tensor,
    c: Tensor,
    bias: Tensor | None,
    target: Tensor | None,
    valid: Tensor | None,
    class_weight: Tensor | None,
    softcap: float | None,
    eps_e: float | None,
    eps_c: float | None,
    work: torch.dtype,
    chunk_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp, target logit and class-weighted logit sum of every row, in the working dtype.

    The last two are empty if not asked for.
    """
    problem = Problem(e, c, bias, target, valid, class_weight, softcap, eps_e, eps_c, work, chunk_bytes)
    with no_autocast(e):
        statistics = forward_statistics(problem)
    return tuple(_present(value, e).to(work) for value in statistics)


@linear_statistics.register_fake
def _(e, c, bias, target, valid, class_weight, softcap, eps_e, eps_c, work, chunk_bytes):
    rows, none = e.shape[0], 0
    sizes = (rows, none if target is None else rows, none if class_weight is None else rows)
    return tuple(e.new_empty(size, dtype=work) for size in sizes)


@Operator
def linear_statistics_backward(
    e: Tensor,
    c: Tensor,
    bias: Tensor | None,
    target: Tensor | None,
    valid: Tensor | None,
    class_weight: Tensor | None,
    softcap: float | None,
    eps_e: float | None,
    eps_c: float | None,
    work: torch.dtype,
    chunk_bytes: int,
    lse: Tensor,
    d_lse: Tensor | None,
    d_target: Tensor | None,
    d_logit_sum: Tensor | None,
    need_e: bool,
    need_c: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by ``e``, ``c`` and ``bias``; empty where not needed."""
    problem = Problem(e, c, bias, target, valid, class_weight, softcap, eps_e, eps_c, work, chunk_bytes)
    with no_autocast(e):
        gradients = backward_statistics(
            problem, lse, d_lse, d_target, d_logit_sum, need_e=need_e, need_c=need_c, need_bias=need_bias
        )
    return tuple(_present(value, e).to(e.dtype) for value in gradients)


@linear_statistics_backward.register_fake
def _(e, c, bias, target, valid, class_weight, *options):
    return _fake_gradients(e, c, bias, options[-3:])


linear_statistics_backward.register_autograd(raise_second_derivative)


def _save_statistics(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    e, c, bias, target, valid, class_weight, *ctx.options = inputs
    ctx.save_for_backward(e, c, bias, target, valid, class_weight, output[0])
    ctx.set_materialize_grads(False)


def _statistics_backward(ctx: Any, d_lse: Tensor | None, d_target: Tensor | None, d_logit_sum: Tensor | None) -> tuple:
    *operands, lse = ctx.saved_tensors
    target, class_weight = operands[3], operands[5]
    needs = ctx.needs_input_grad[:3]
    gradients = linear_statistics_backward(
        *operands,
        *ctx.options,
        lse,
        d_lse,
        None if target is None else d_target,
        None if class_weight is None else d_logit_sum,
        *needs,
    )
    return (*wanted(gradients, needs), *[None] * (3 + len(ctx.options)))


linear_statistics.register_autograd(_statistics_backward, setup_context=_save_statistics)


@Operator
def linear_loss_and_gradients(
    e: Tensor,
    c: Tensor,
    bias: Tensor | None,
    target: Tensor,
    valid: Tensor | None,
    class_weight: Tensor | None,
    softcap: float | None,
    eps_e: float | None,
    eps_c: float | None,
    work: torch.dtype,
    chunk_bytes: int,
    nll_factor: Tensor,
    smoothing_factor: Tensor | None,
    z_factor: Tensor | None,
    need_e: bool,
    need_c: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The summed loss of ``Factors`` and, computed at once, its gradients by ``e``, ``c`` and ``bias``."""
    problem = Problem(e, c, bias, target, valid, class_weight, softcap, eps_e, eps_c, work, chunk_bytes)
    factors = Factors(nll_factor, smoothing_factor, z_factor)
    with no_autocast(e):
        loss, gradients = loss_and_gradients(problem, factors, need_e=need_e, need_c=need_c, need_bias=need_bias)
    return (loss, *(_present(value, e) for value in gradients))


@linear_loss_and_gradients.register_fake
def _(e, c, bias, *options):
    return (e.new_empty(()), *_fake_gradients(e, c, bias, options[-3:]))


def _save_gradients(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    (e, c, bias), gradients = inputs[:3], output[1:]
    ctx.needs, ctx.inputs = inputs[-3:], len(inputs)
    # Without these two lines the backward pass would allocate zeros as large as the classifier.
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(e, c, bias, *gradients)


def _scale_gradients(ctx: Any, d_loss: Tensor | None, *unused: None) -> tuple:
    absent = [None] * (ctx.inputs - 3)
    if d_loss is None:
        return (None, None, None, *absent)
    # The last use of these tensors may overwrite them, which spares a second copy of every gradient.  Not while a
    # compiler traces this (its tensors are of a subclass): there they could be results of the traced graph.
    scale = torch.mul if _graph_is_kept() or type(d_loss) is not Tensor else Tensor.mul_
    e, c, bias, *gradients = ctx.saved_tensors
    with torch.no_grad():
        gradients = [None if value is None else scale(value, d_loss) for value in wanted(gradients, ctx.needs)]
    return (*once(gradients, d_loss, e, c, bias), *absent)


linear_loss_and_gradients.register_autograd(_scale_gradients, setup_context=_save_gradients)


def _graph_is_kept() -> bool:
    """Whether this backward pass runs with ``retain_graph=True``; True if torch does not tell."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else ask()


def _fake_gradients(e: Tensor, c: Tensor, bias: Tensor | None, needs: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
    return tuple(
        value.new_empty(value.shape if need else 0)
        for value, need in zip((e, c, e if bias is None else bias), needs, strict=True)
    )
