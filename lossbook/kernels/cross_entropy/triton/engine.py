"""The functions through which a head runs on Triton; see :class:`lossbook.kernels.cross_entropy.engines.Engine`."""

from typing import Any

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.advice import row_chunks_win
from lossbook.kernels.cross_entropy.factors import Factors
from lossbook.kernels.cross_entropy.problem import Gradients, Problem, Saved, Statistics
from lossbook.kernels.cross_entropy.tiles import FILTER_ROWS
from lossbook.kernels.cross_entropy.triton import backward, forward, row_chunks

empty_column_map = forward.empty_column_map


def forward_statistics(problem: Problem) -> Statistics:
    """One pass over the vocabulary."""
    # Triton launches on the current device, whatever device the operands are on.
    with torch.cuda.device_of(problem.e):
        return forward.forward_statistics(problem)


def backward_statistics(problem: Problem, saved: Saved, *slopes: Tensor | None, **needs: bool) -> Gradients:
    """Gradients from recomputed tiles."""
    with torch.cuda.device_of(problem.e):
        return backward.backward_statistics(problem, saved, *slopes, **needs)


def gradients_pay(problem: Problem) -> bool:
    """If no filter is set and chunks of whole rows fit and cost less, see :func:`head_advice`."""
    return problem.eps_e is None and problem.eps_c is None and _height(problem) > 0


def loss_and_gradients(problem: Problem, factors: Factors, **needs: Any) -> tuple[Tensor, Gradients]:
    """The summed loss and its gradients, by chunks of whole rows."""
    with torch.cuda.device_of(problem.e):
        return row_chunks.loss_and_gradients(problem, factors, _height(problem) or FILTER_ROWS, **needs)


def _height(problem: Problem) -> int:
    rows, features = problem.e.shape
    return row_chunks_win(rows, problem.size, features, problem.e.dtype, problem.chunk_bytes)
