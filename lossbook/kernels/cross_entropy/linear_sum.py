"""The logit sum of label smoothing where no cap bends the logits."""

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.problem import Gradients, Problem
from lossbook.kernels.cross_entropy.tiles import spans

_SLICE_ROWS = 4096


class LinearSum:
    """The class-weighted sum of a row's logits: one product with one row of the classifier.

    Its gradient has rank one, is exact, and no filter sees it.  Rows may come a chunk at a time; what they contribute
    to the gradients of the classifier is kept as two small sums until the end.
    """

    @staticmethod
    def of(problem: Problem) -> "LinearSum | None":
        """What ``problem`` needs of it; None if it needs nothing."""
        weight = problem.linear_weight(0, problem.size)
        return None if weight is None else LinearSum(problem, weight)

    def __init__(self, problem: Problem, weight: Tensor) -> None:
        self.weight = weight * problem.scale
        if problem.c.dtype == weight.dtype:
            self.row = self.weight @ problem.c
        else:
            # In slices, so that no wider copy of the classifier comes into being.
            self.row = weight.new_zeros(problem.c.shape[1])
            for start, stop in spans(problem.size, _SLICE_ROWS):
                self.row += self.weight[start:stop] @ problem.c[start:stop].to(weight.dtype)
        self.offset = 0.0 if problem.bias is None else self.weight @ problem.bias.to(weight.dtype)
        self.weighted_e = torch.zeros_like(self.row)
        self.total = weight.new_zeros(())

    def forward(self, e: Tensor) -> Tensor:
        """The sums of some rows."""
        return e.to(self.row.dtype) @ self.row + self.offset

    def backward_(self, factor: Tensor, e: Tensor, d_e: Tensor | None) -> None:
        """Take in the gradient of ``sum(factor * forward(e))``, and add that by ``e`` to ``d_e``."""
        if d_e is not None:
            d_e.addr_(factor.to(d_e.dtype), self.row.to(d_e.dtype))
        self.weighted_e += factor @ e.to(factor.dtype)
        self.total += factor.sum()

    def finish_(self, gradients: Gradients) -> None:
        """Add the gradients by ``c`` and ``bias`` of everything taken in."""
        if gradients.c is not None:
            gradients.c.addr_(self.weight.to(gradients.c.dtype), self.weighted_e.to(gradients.c.dtype))
        if gradients.bias is not None:
            gradients.bias.add_(self.weight * self.total)
