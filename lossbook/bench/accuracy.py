"""Error of a method against a float64 reference, on a slice of the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lossbook.bench.inputs import Inputs

_VOCAB_CHUNK = 2048  # float64 copies this small are reused by the allocator instead of mapped anew


@dataclass(frozen=True)
class Accuracy:
    """Relative errors on the slice.

    Attributes:
        loss: Relative error of the mean loss.
        e_gradient: Relative Frobenius error of the gradient of the hidden states.
        c_gradient: Relative Frobenius error of the gradient of the classifier.
    """

    loss: float
    e_gradient: float
    c_gradient: float


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
    rows = torch.arange(len(e), device=e.device)
    log_p = torch.cat([e64 @ chunk.double().T for chunk in c.split(_VOCAB_CHUNK)], dim=1).log_softmax(1)
    exact = -log_p[rows, target].mean()
    p = log_p.exp_()
    p[rows, target] -= 1
    p /= len(e)

    e_gradient = torch.zeros_like(e64)
    difference = norm = torch.zeros_like(exact)
    for part, chunk, gradient in zip(
        *(x.split(_VOCAB_CHUNK, d) for x, d in ((p, 1), (c, 0), (c.grad, 0))), strict=True
    ):
        e_gradient.addmm_(part, chunk.double())
        c_gradient = part.T @ e64
        norm = norm + c_gradient.square().sum()
        difference = difference + c_gradient.sub_(gradient).square_().sum()
    return Accuracy(
        loss=((value - exact).abs() / exact.abs()).item(),
        e_gradient=((e.grad - e_gradient).norm() / e_gradient.norm()).item(),
        c_gradient=(difference / norm).sqrt().item(),
    )
