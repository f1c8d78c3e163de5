"""The operands of one head as the kernels take them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.linear_sum import LinearSum
from lossbook.kernels.cross_entropy.problem import Problem, take
from lossbook.kernels.cross_entropy.triton.config import BLOCK_ROWS, architecture


@dataclass(frozen=True)
class Operands:
    """Rows that count, with unit stride along the features.

    Attributes:
        problem: Where they come from.
        rows: Which rows of the problem they are, or None for all.
        e: Shape ``(count, D)``.
        c: Shape ``(V, D)``.
        bias: Shape ``(V,)`` or None.
        target: Shape ``(count,)`` or None.
    """

    problem: Problem
    rows: Tensor | None
    e: Tensor
    c: Tensor
    bias: Tensor | None
    target: Tensor | None

    @classmethod
    def of(cls, problem: Problem) -> "Operands":
        """Prepare a problem; copies what has other strides, and the rows that count if they are not all."""
        rows = problem.rows()
        return cls(
            problem,
            rows,
            _multipliable(take(problem.e, rows)),
            _multipliable(problem.c),
            None if problem.bias is None else problem.bias.contiguous(),
            None if problem.target is None else take(problem.target, rows).contiguous(),
        )

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.e.shape[0]

    @property
    def blocks(self) -> int:
        """Number of blocks of rows."""
        return -(-self.count // BLOCK_ROWS)

    @property
    def size(self) -> int:
        """Vocabulary size."""
        return self.c.shape[0]

    @property
    def features(self) -> int:
        """Width of the hidden states."""
        return self.e.shape[1]

    @property
    def precision(self) -> str:
        """How float32 products are made: exactly, or from three TensorFloat-32 ones if torch's setting allows it.

        Never from a single one: its error of ``2**-11`` in every logit is not rounding.  The three want more registers
        than an Ampere device has.
        """
        allowed = torch.get_float32_matmul_precision() != "highest"
        return "tf32x3" if allowed and architecture(self.e.device) in ("sm_90", "sm_100") else "ieee"

    @cached_property
    def linear_sum(self) -> LinearSum | None:
        """The logit sum of label smoothing where no cap bends it."""
        return LinearSum.of(self.problem)

    def arguments(self) -> dict[str, Any]:
        """What every kernel that computes logits takes."""
        return {
            "e": self.e,
            "c": self.c,
            "bias": self.bias,
            "n_rows": self.count,
            "n_features": self.features,
            "e_stride": self.e.stride(0),
            "c_stride": self.c.stride(0),
            "scale": self.problem.scale,
            "softcap": self.problem.softcap,
        }

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uninitialized memory beside the operands."""
        return self.e.new_empty(shape, dtype=dtype)


def _multipliable(matrix: Tensor) -> Tensor:
    """The matrix with unit stride along its rows."""
    if matrix.dtype == torch.bfloat16 and matrix.device.type == "cpu":
        # The interpreter multiplies the bit patterns of bfloat16 numbers as if they were integers.
        matrix = matrix.float()
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] <= 1 else matrix.contiguous()
