"""What computes the stages of a decode step: plain torch, or Triton kernels."""

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from lossbook._validation import check_choice
from lossbook.kernels._implementations import TRITON_DTYPES, resolve_triton, triton_obstacle
from lossbook.kernels.sparse_attention import torch_engine

if TYPE_CHECKING:
    from lossbook.kernels.sparse_attention.labels import LabelCache

IMPLEMENTATIONS = ("auto", "torch", "triton")


class Engine(Protocol):
    """The functions of an engine.

    Arguments are checked already, ``lengths`` and ``block_table`` are contiguous int32, and nothing is None but a
    ``block_table`` where the cache is not paged.  No function waits for the device.
    """

    def append_labels(self, cache: "LabelCache", k_new: Tensor) -> None:
        """Write the labels of ``k_new`` into ``cache`` behind each request's own, without changing its lengths."""

    def approx_scores(self, q: Tensor, cache: "LabelCache", group_reduce: str, head_dim: int) -> Tensor:
        """Scores of all tokens of the cache, ``(B, H, capacity)``, ``-inf`` from each request's length on."""

    def select_tokens(
        self, scores: Tensor, budget: int, lengths: Tensor, sink: int, recent: int
    ) -> tuple[Tensor, Tensor]:
        """Ascending indices of the best tokens, padded with -1, and their number, both int32."""

    def sparse_decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        index: Tensor,
        count: Tensor,
        scale: float,
        block_table: Tensor | None,
        k_scale: float,
        v_scale: float,
    ) -> Tensor:
        """Attention over the first ``count`` tokens of each list."""

    def dense_decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Tensor,
        scale: float,
        block_table: Tensor | None,
        k_scale: float,
        v_scale: float,
    ) -> Tensor:
        """Attention over all tokens of each request."""


def check_impl(impl: str) -> None:
    """Require the name of an implementation; whether it can run is seen when it is used."""
    check_choice("impl", impl, IMPLEMENTATIONS)


def engine(impl: str, name: str, tensor: Tensor) -> Engine:
    """The engine that ``impl`` means for operands like ``tensor``, the argument called ``name``.

    The first use of Triton imports it.

    Raises:
        ValueError: If there is no such implementation.
        ImplementationUnavailableError: If ``impl="triton"`` cannot run here.
    """
    check_impl(impl)
    if impl == "torch":
        return torch_engine
    obstacle = triton_obstacle(name, tensor, (*TRITON_DTYPES, torch.float8_e4m3fn))
    if resolve_triton(impl, tensor, obstacle, "plain torch, any device and dtype") == "torch":
        return torch_engine
    from lossbook.kernels.sparse_attention.triton import engine as triton_engine

    return triton_engine
