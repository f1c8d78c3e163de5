"""The functions through which a head runs on Triton; see :mod:`lossbook.kernels.cross_entropy.engines`."""

from torch import Tensor

from lossbook.kernels.cross_entropy.advice import row_chunks_win
from lossbook.kernels.cross_entropy.factors import Factors
from lossbook.kernels.cross_entropy.problem import Gradients, Problem
from lossbook.kernels.cross_entropy.triton import row_chunks
from lossbook.kernels.cross_entropy.triton.backward import backward_statistics
from lossbook.kernels.cross_entropy.triton.forward import empty_column_map, forward_statistics

__all__ = ["backward_statistics", "empty_column_map", "forward_statistics", "gradients_pay", "loss_and_gradients"]


def _height(problem: Problem) -> int:
    rows, features = problem.e.shape
    return row_chunks_win(rows, problem.size, features, problem.e.dtype, problem.chunk_bytes)


def gradients_pay(problem: Problem) -> bool:
    """If no filter is set and chunks of whole rows fit and cost less, see :func:`head_advice`."""
    return problem.eps_e is None and problem.eps_c is None and _height(problem) > 0


def loss_and_gradients(
    problem: Problem, factors: Factors, *, need_e: bool, need_c: bool, need_bias: bool
) -> tuple[Tensor, Gradients]:
    """The summed loss and its gradients, by chunks of whole rows."""
    return row_chunks.loss_and_gradients(
        problem, factors, _height(problem), need_e=need_e, need_c=need_c, need_bias=need_bias
    )
