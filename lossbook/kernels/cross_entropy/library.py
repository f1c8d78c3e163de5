"""Registration of the engines' schedules as ``torch.library`` operators.

A registered operator is opaque to ``torch.compile``, which keeps it in one graph; its shape function and its
derivative are declared here.  First derivatives only: differentiating a gradient raises.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.engines import engine
from lossbook.kernels.cross_entropy.factors import Factors
from lossbook.kernels.cross_entropy.problem import Problem, Saved, Statistics
from lossbook.kernels.cross_entropy.registration import Operator, once, raise_second_derivative, wanted


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of losses and log-sum-exps for operands of ``dtype``: never below float32."""
    return torch.promote_types(dtype, torch.float32)


def work_dtype(dtype: torch.dtype, accum_dtype: torch.dtype) -> torch.dtype:
    """Dtype of logit tiles and accumulators."""
    return torch.promote_types(result_dtype(dtype), accum_dtype)


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which autocast leaves the products alone: the operands have their final dtype already."""
    return torch.autocast(tensor.device.type, enabled=False)


# What the operators take: the fields of a ``Problem``, of ``Saved`` and of ``Factors``, the gradients of the
# statistics, and which gradients are wanted.
_PROBLEM = (
    "Tensor e, Tensor c, Tensor? bias, Tensor? target, Tensor? valid, Tensor? class_weight, float? softcap, "
    "float? eps_e, float? eps_c, ScalarType work, int chunk_bytes, float scale, bool want_mean, bool want_argmax, "
    "str impl"
)
_SAVED = "Tensor lse, Tensor? mean_logit, Tensor? column_map"
_SLOPES = "Tensor? d_lse, Tensor? d_target, Tensor? d_logit_sum, Tensor? d_mean"
_FACTORS = "Tensor nll_factor, Tensor? smoothing_factor, Tensor? z_factor"
_NEEDS = "bool need_e, bool need_c, bool need_bias"

# The tensors among the fields of a problem come first.
_TENSORS = Problem._fields.index("softcap")

Fields = TypeVar("Fields", Problem, Saved, Factors)


def _split_off(fields: type[Fields], arguments: Sequence[Any]) -> tuple[Fields, Sequence[Any]]:
    """The leading arguments as a named tuple, and the others."""
    count = len(fields._fields)
    return fields(*arguments[:count]), arguments[count:]


def _present(value: Tensor | None, like: Tensor) -> Tensor:
    # An operator cannot return None: an absent result is an empty tensor.
    return like.new_empty(0) if value is None else value


@partial(Operator, schema=f"({_PROBLEM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
def linear_statistics(*arguments: Any) -> tuple[Tensor, ...]:
    """The six :class:`Statistics`, empty where absent; the first four in the working dtype."""
    problem = Problem(*arguments)
    e, work = problem.e, problem.work
    with no_autocast(e):
        *logits, argmax, column_map = engine(problem.impl).forward_statistics(problem)
    return (
        *(_present(value, e).to(work) for value in logits),
        _present(argmax, e).to(torch.int64),
        _present(column_map, e),
    )


@linear_statistics.register_fake
def _(*arguments):
    problem = Problem(*arguments)
    e, rows = problem.e, problem.e.shape[0]
    asked = (True, problem.target is not None, problem.class_weight is not None, problem.want_mean)
    return (
        *(e.new_empty(rows if wanted else 0, dtype=problem.work) for wanted in asked),
        e.new_empty(rows if problem.want_argmax else 0, dtype=torch.int64),
        _present(engine(problem.impl).empty_column_map(problem), e),
    )


@partial(Operator, schema=f"({_PROBLEM}, {_SAVED}, {_SLOPES}, {_NEEDS}) -> (Tensor, Tensor, Tensor)")
def linear_statistics_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by ``e``, ``c`` and ``bias``; empty where not needed."""
    problem, arguments = _split_off(Problem, arguments)
    saved, (*slopes, need_e, need_c, need_bias) = _split_off(Saved, arguments)
    e = problem.e
    with no_autocast(e):
        gradients = engine(problem.impl).backward_statistics(
            problem, saved, *slopes, need_e=need_e, need_c=need_c, need_bias=need_bias
        )
    return tuple(_present(value, e).to(e.dtype) for value in gradients)


@linear_statistics_backward.register_fake
def _(e, c, bias, target, valid, class_weight, *options):
    return _fake_gradients(e, c, bias, options[-3:])


linear_statistics_backward.register_autograd(raise_second_derivative)


def asked_for(problem: Problem, statistics: Sequence[Tensor]) -> Statistics:
    """The results of :func:`linear_statistics`, None where absent."""
    lse, target_logit, logit_sum, mean_logit, argmax, column_map = statistics
    return Statistics(
        lse,
        None if problem.target is None else target_logit,
        None if problem.class_weight is None else logit_sum,
        mean_logit if problem.want_mean else None,
        argmax if problem.want_argmax else None,
        column_map if column_map.numel() else None,
    )


def _save_statistics(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    problem, (lse, *_, mean_logit, argmax, column_map) = Problem(*inputs), output
    ctx.mark_non_differentiable(argmax, column_map)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*problem[:_TENSORS], lse, mean_logit, column_map)
    ctx.options = problem[_TENSORS:]


def _statistics_backward(
    ctx: Any,
    d_lse: Tensor | None,
    d_target: Tensor | None,
    d_logit_sum: Tensor | None,
    d_mean: Tensor | None,
    *unused: None,
) -> tuple:
    # Saved tensors may be unpacked once only: checkpointing computes them again when they are.
    *operands, lse, mean_logit, column_map = ctx.saved_tensors
    problem = Problem(*operands, *ctx.options)
    needs = ctx.needs_input_grad[:3]
    # Absent results are empty, and so would be their gradients.
    gradients = linear_statistics_backward(
        *problem,
        lse,
        mean_logit if problem.want_mean else None,
        column_map if column_map.numel() else None,
        d_lse,
        None if problem.target is None else d_target,
        None if problem.class_weight is None else d_logit_sum,
        d_mean if problem.want_mean else None,
        *needs,
    )
    return (*wanted(gradients, needs), *[None] * (len(problem) - len(needs)))


linear_statistics.register_autograd(_statistics_backward, setup_context=_save_statistics)


@partial(Operator, schema=f"({_PROBLEM}, {_FACTORS}, {_NEEDS}) -> (Tensor, Tensor, Tensor, Tensor)")
def linear_loss_and_gradients(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The summed loss of ``Factors`` and, computed at once, its gradients by ``e``, ``c`` and ``bias``."""
    problem, arguments = _split_off(Problem, arguments)
    factors, (need_e, need_c, need_bias) = _split_off(Factors, arguments)
    e = problem.e
    with no_autocast(e):
        loss, gradients = engine(problem.impl).loss_and_gradients(
            problem, factors, need_e=need_e, need_c=need_c, need_bias=need_bias
        )
    return (loss, *(_present(value, e) for value in gradients))


@linear_loss_and_gradients.register_fake
def _(*arguments):
    e, c, bias, *_ = problem = Problem(*arguments[: len(Problem._fields)])
    return (e.new_empty((), dtype=problem.work), *_fake_gradients(e, c, bias, arguments[-3:]))


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
