"""What computes the statistics of a head and their gradients: plain torch, or Triton kernels."""

from typing import Protocol

from torch import Tensor

from lossbook.kernels.cross_entropy import grad_in_forward, two_pass
from lossbook.kernels.cross_entropy.factors import Factors
from lossbook.kernels.cross_entropy.problem import Gradients, Problem, Saved, Statistics
from lossbook.kernels.cross_entropy.tiles import fits_row_chunk


class Engine(Protocol):
    """The functions of an engine; each drops the rows that are not valid by itself."""

    def forward_statistics(self, problem: Problem) -> Statistics:
        """The statistics of every row that ``problem`` asks for, over the rows of ``problem.c``."""

    def backward_statistics(
        self,
        problem: Problem,
        saved: Saved,
        d_lse: Tensor | None,
        d_target: Tensor | None,
        d_logit_sum: Tensor | None,
        d_mean: Tensor | None,
        *,
        need_e: bool,
        need_c: bool,
        need_bias: bool,
    ) -> Gradients:
        """Gradients of the statistics, each weighted by its ``d_...`` and summed.

        ``saved.lse`` and ``saved.mean_logit`` are of the whole vocabulary, also where ``problem.c`` is a shard of it;
        ``saved.column_map`` is what this engine's forward pass left.
        """

    def empty_column_map(self, problem: Problem) -> Tensor | None:
        """An uninitialized ``column_map`` as the forward pass returns it for ``problem``, or None if it returns none.

        A function of shapes, dtypes and options alone: ``problem`` may hold fake tensors.
        """

    def gradients_pay(self, problem: Problem) -> bool:
        """Whether to call :meth:`loss_and_gradients` for a loss that allows it and needs a gradient."""

    def loss_and_gradients(
        self, problem: Problem, factors: Factors, *, need_e: bool, need_c: bool, need_bias: bool
    ) -> tuple[Tensor, Gradients]:
        """The sum of :meth:`Factors.loss` over the valid rows in the working dtype, and its gradients."""


class TorchEngine:
    """Chunks of plain torch operations, on any device."""

    forward_statistics = staticmethod(two_pass.forward_statistics)
    backward_statistics = staticmethod(two_pass.backward_statistics)
    loss_and_gradients = staticmethod(grad_in_forward.loss_and_gradients)

    @staticmethod
    def empty_column_map(problem: Problem) -> None:
        """None: the second pass computes every tile of logits again."""

    @staticmethod
    def gradients_pay(problem: Problem) -> bool:
        """If a chunk of whole rows fits, and the operands have the working dtype.

        Below it the gradient of ``c`` would need an accumulator of the classifier's size, where two passes need one of
        a chunk's.
        """
        rows, work = problem.e.shape[0], problem.work
        return problem.e.dtype == work and fits_row_chunk(rows, problem.size, work.itemsize, problem.chunk_bytes)


def engine(impl: str) -> Engine:
    """The engine called ``impl``; the first use of ``"triton"`` imports Triton."""
    if impl == "triton":
        from lossbook.kernels.cross_entropy.triton import engine as triton_engine

        return triton_engine
    return TorchEngine
