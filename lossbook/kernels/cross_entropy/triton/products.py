"""Matrix products of the library, into results wider than their operands."""

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.problem import Gradients, Problem
from lossbook.kernels.cross_entropy.tiles import spans

_SLICE_ROWS = 4096
# ROCm has no product with a result wider than its operands.
_WIDENS = torch.version.hip is None


def product(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    """``a @ b`` into ``out``, summed in float32 and rounded once to its dtype."""
    if out.dtype == a.dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda and _WIDENS:
        return torch.mm(a, b, out.dtype, out=out)
    return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``total += a @ b``, in the dtype of ``total``."""
    if total.dtype == a.dtype:
        return total.addmm_(a, b)
    if a.is_cuda and _WIDENS:
        return torch.addmm(total, a, b, total.dtype, out=total)
    return total.addmm_(a.to(total.dtype), b.to(total.dtype))


class LinearSum:
    """The class-weighted sum of a row's logits where no cap bends them: one product with one row of the classifier.

    Its gradient has rank one, is exact, and no filter sees it.
    """

    @staticmethod
    def of(problem: Problem) -> "LinearSum | None":
        """What ``problem`` needs of it; None if it needs nothing."""
        weight = problem.linear_weight(0, problem.size)
        return None if weight is None else LinearSum(problem, weight)

    def __init__(self, problem: Problem, weight: Tensor) -> None:
        self.weight, self.scale = weight, problem.scale
        self.row = weight.new_zeros(problem.c.shape[1])
        for start, stop in spans(problem.size, _SLICE_ROWS):
            self.row += weight[start:stop] @ problem.c[start:stop].to(weight.dtype)
        self.offset = 0.0 if problem.bias is None else weight @ problem.bias.to(weight.dtype)

    def forward(self, e: Tensor) -> Tensor:
        """The sums of some rows."""
        return (e.to(self.row.dtype) @ self.row + self.offset) * self.scale

    def add_gradients_(self, factor: Tensor, e: Tensor, gradients: Gradients) -> None:
        """Add the gradients of ``sum(factor * forward(e))``."""
        factor = factor * self.scale
        if gradients.e is not None:
            gradients.e.addr_(factor.to(gradients.e.dtype), self.row.to(gradients.e.dtype))
        if gradients.c is not None:
            weighted = factor @ e.to(factor.dtype)
            gradients.c.addr_(self.weight.to(gradients.c.dtype), weighted.to(gradients.c.dtype))
        if gradients.bias is not None:
            gradients.bias.add_(self.weight * factor.sum())
