"""The two statistics a language-model loss is made of, on their own."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lossbook._validation import check_target_range
from lossbook.kernels.cross_entropy.arguments import (
    autocast_operands,
    check_head,
    check_softcap,
    check_target,
    resolve_impl,
)
from lossbook.kernels.cross_entropy.library import linear_statistics, result_dtype
from lossbook.kernels.cross_entropy.problem import Problem
from lossbook.kernels.cross_entropy.registration import Operator, raise_second_derivative, wanted
from lossbook.kernels.cross_entropy.tiles import spans

_CHUNK_BYTES = 64 << 20
_GATHER_BYTES = 8 << 20


def linear_logsumexp(e: Tensor, c: Tensor, bias: Tensor | None = None, *, softcap: float | None = None) -> Tensor:
    r"""Log-sum-exp of a linear head's logits, without holding them.

    For a row :math:`e` of hidden states and classifier rows :math:`c_v`, with :math:`z_v = e \cdot c_v + b_v`,

    .. math:: \mathrm{lse} = \log \sum_{v=1}^{V} e^{z_v} ,

    where a softcap :math:`s` first replaces :math:`z_v` by :math:`s \tanh(z_v / s)`.  The value is in nats.

    Args:
        e: Hidden states, shape ``(..., D)``, floating point.
        c: Classifier, shape ``(V, D)``, dtype of ``e``.
        bias: Shape ``(V,)``, dtype of ``e``. Default None.
        softcap: Bound on the magnitude of the logits, ``> 0``. Default None: no bound.

    Returns:
        Shape ``(...)``; float32, or float64 for float64 operands.

    Raises:
        TypeError: If an operand is not a floating-point tensor.
        ValueError: If a shape, device or dtype does not fit, or ``softcap <= 0``. The message names the argument.

    Examples:
        >>> linear_logsumexp(torch.zeros(2, 3), torch.zeros(4, 3))  # log 4
        tensor([1.3863, 1.3863])

    Note:
        Differentiable once by ``e``, ``c`` and ``bias``; the backward pass computes the logits again, so the memory
        beyond the gradients is one tile of at most 64 MiB. A logit of ``-inf`` counts as absent; NaN and ``+inf``
        propagate.

    References:
        Wijmans et al. (2025), Cut Your Losses in Large-Vocabulary Language Models, Sec. 4.2, Algorithms 2 and 3;
        chapter 17 (:doc:`/notebooks/17_cut_cross_entropy`).
    """
    check_softcap(softcap)
    check_head(e, c, bias)
    shape = e.shape[:-1]
    e, c, bias = autocast_operands(e, c, bias)
    e, work = e.reshape(-1, e.shape[-1]), result_dtype(e.dtype)
    impl = resolve_impl("auto", e, work)
    problem = Problem(e, c, bias, None, None, None, softcap, None, None, work, _CHUNK_BYTES, 1.0, False, False, impl)
    return linear_statistics(*problem)[0].reshape(shape)


def indexed_dot(e: Tensor, c: Tensor, index: Tensor) -> Tensor:
    r"""Dot product of each hidden state with one classifier row: the logit of the right word alone.

    .. math:: o_i = \sum_{d=1}^{D} e_{id}\, c_{x_i d}

    Args:
        e: Hidden states :math:`e`, shape ``(..., D)``, floating point.
        c: Classifier :math:`c`, shape ``(V, D)``, dtype of ``e``.
        index: Row :math:`x_i` of ``c`` for each state, in ``[0, V)``, shape ``(...)``, int64.

    Returns:
        Shape ``(...)``; float32, or float64 for float64 operands. Lower precision is accumulated in float32.

    Raises:
        TypeError: If ``e`` or ``c`` is not a floating-point tensor or ``index`` is not int64.
        ValueError: If a shape, device or dtype does not fit, or an index lies outside ``[0, V)``.

    Examples:
        >>> indexed_dot(torch.ones(2, 3), torch.arange(12.0).reshape(4, 3), torch.tensor([0, 3]))
        tensor([ 3., 30.])

    Note:
        Differentiable once by ``e`` and ``c``. Rows are gathered 8 MiB at a time.

    References:
        Wijmans et al. (2025), Cut Your Losses in Large-Vocabulary Language Models, Sec. 4.1, Algorithm 1; chapter 17
        (:doc:`/notebooks/17_cut_cross_entropy`).
    """
    check_head(e, c, None)
    check_target("index", index, e)
    check_target_range("index", index, c.shape[0], symbol="V")
    shape = e.shape[:-1]
    e, c, _ = autocast_operands(e, c, None)
    return _indexed_dot(e.reshape(-1, e.shape[-1]), c, index.reshape(-1)).reshape(shape)


@Operator
def _indexed_dot(e: Tensor, c: Tensor, index: Tensor) -> Tensor:
    return gathered_dot(e, c, index, result_dtype(e.dtype))


def gathered_dot(e: Tensor, c: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """``e[i] @ c[index[i]]`` for every row, computed in ``dtype``."""
    out = e.new_empty(len(e), dtype=dtype)
    for start, stop in _gather_spans(e):
        rows = c.index_select(0, index[start:stop]).to(dtype)
        torch.sum(rows.mul_(e[start:stop]), 1, out=out[start:stop])
    return out


@_indexed_dot.register_fake
def _(e, c, index):
    return e.new_empty(e.shape[0], dtype=result_dtype(e.dtype))


@Operator
def _indexed_dot_backward(
    e: Tensor, c: Tensor, index: Tensor, d_out: Tensor, need_e: bool, need_c: bool
) -> tuple[Tensor, Tensor]:
    """Gradients by ``e`` and ``c``, empty where not needed."""
    d_e = torch.empty_like(e, memory_format=torch.contiguous_format) if need_e else e.new_empty(0)
    d_c = c.new_zeros(c.shape, dtype=d_out.dtype) if need_c else e.new_empty(0)
    for start, stop in _gather_spans(e):
        rows, factor = index[start:stop], d_out[start:stop, None]
        if need_e:
            d_e[start:stop] = c.index_select(0, rows).to(d_out.dtype).mul_(factor)
        if need_c:
            d_c.index_add_(0, rows, e[start:stop] * factor)
    return d_e, d_c.to(c.dtype)


@_indexed_dot_backward.register_fake
def _(e, c, index, d_out, need_e, need_c):
    return e.new_empty(e.shape if need_e else 0), c.new_empty(c.shape if need_c else 0)


_indexed_dot_backward.register_autograd(raise_second_derivative)


def _save_operands(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _dot_gradients(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    gradients = _indexed_dot_backward(*ctx.saved_tensors, d_out, *needs)
    return (*wanted(gradients, needs), None)


_indexed_dot.register_autograd(_dot_gradients, setup_context=_save_operands)


def _gather_spans(e: Tensor) -> Iterator[tuple[int, int]]:
    return spans(len(e), max(1, _GATHER_BYTES // max(1, e.shape[1] * result_dtype(e.dtype).itemsize)))
