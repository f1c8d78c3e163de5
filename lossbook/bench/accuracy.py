"""Error of a method against a float64 reference, on a slice of the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lossbook.bench.inputs import ENTRY_EPS, Inputs

_VOCAB_CHUNK = 8192  # keeps the float64 copies small beside the inputs


@dataclass(frozen=True)
class Accuracy:
    """Relative errors on the slice, and what the slice says about the softmax.

    Attributes:
        loss: Relative error of the mean loss.
        e_gradient: Relative Frobenius error of the gradient of the hidden states.
        c_gradient: Relative Frobenius error of the gradient of the classifier.
        density: Fraction of softmax probabilities that reach :data:`~lossbook.bench.inputs.ENTRY_EPS`.
    """

    loss: float
    e_gradient: float
    c_gradient: float
    density: float


def check(loss: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: Inputs, rows: int) -> Accuracy:
    """Run a method on the first rows and compare it with a float64 computation on the same rounded inputs.

    Args:
        loss: The method, ``loss(e, c, target)``.
        inputs: Inputs of the benchmark.
        rows: Number of rows of the slice.

    Returns:
        The errors.
    """
    e = inputs.e.detach()[:rows].clone().requires_grad_()
    c = inputs.c.detach().requires_grad_()
    target = inputs.target[:rows]
    value = loss(e, c, target)
    value.backward()
    with torch.no_grad():
        return _compare(e, c, target, value.double())


def _compare(e: Tensor, c: Tensor, target: Tensor, value: Tensor) -> Accuracy:
    e64 = e.double()
    lse = torch.full_like(target, -torch.inf, dtype=torch.float64)
    for chunk in c.split(_VOCAB_CHUNK):
        lse = torch.logaddexp(lse, (e64 @ chunk.double().T).logsumexp(1))
    exact = (lse - (e64 * c[target].double()).sum(1)).mean()

    e_gradient = torch.zeros_like(e64)
    c_difference = c_norm = entries = torch.zeros((), dtype=torch.float64, device=e.device)
    for start in range(0, len(c), _VOCAB_CHUNK):
        chunk = c[start : start + _VOCAB_CHUNK].double()
        p = (e64 @ chunk.T - lse[:, None]).exp_()
        entries = entries + (p >= ENTRY_EPS).sum()
        inside = (target >= start) & (target < start + len(chunk))
        p[inside.nonzero()[:, 0], target[inside] - start] -= 1
        p /= len(e)
        e_gradient += p @ chunk
        c_gradient = p.T @ e64
        c_norm = c_norm + c_gradient.square().sum()
        c_difference = c_difference + (c.grad[start : start + len(chunk)].double() - c_gradient).square().sum()
    return Accuracy(
        loss=((value - exact).abs() / exact.abs()).item(),
        e_gradient=((e.grad.double() - e_gradient).norm() / e_gradient.norm()).item(),
        c_gradient=(c_difference / c_norm).sqrt().item(),
        density=(entries / (len(e) * len(c))).item(),
    )
