"""One linear head and its rows, as every schedule takes it."""

from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """Operands and options of one head, in the order in which the registered operators take them.

    Attributes:
        e: Hidden states, shape ``(N, D)``.
        c: Classifier rows, shape ``(V, D)``.
        bias: Shape ``(V,)``, or None.
        target: Column of each row's target logit, int64, shape ``(N,)``; out of ``[0, V)`` where the row's target is
            no column of ``c`` (another process owns it). None if no target logit is wanted.
        valid: Rows to compute, bool, shape ``(N,)``; the others stay zero everywhere. None for all.
        class_weight: Weights of the logit sum of label smoothing, shape ``(V,)``; None if it is not wanted.
        softcap: Cap of the logits, or None.
        eps_e: Filter threshold of the gradient of ``e``, None for exact.
        eps_c: Filter threshold of the gradients of ``c`` and ``bias``, None for exact.
        work: Dtype of tiles and accumulators.
        chunk_bytes: Bound on the logits buffer.
        scale: Factor of the logits after bias and cap, one over the temperature.
        want_mean: Whether the mean logit is asked for.
        want_argmax: Whether the argmax is asked for.
        impl: The engine, ``"torch"`` or ``"triton"``; ``"dense"`` for the reference, which is none.
    """

    e: Tensor
    c: Tensor
    bias: Tensor | None
    target: Tensor | None
    valid: Tensor | None
    class_weight: Tensor | None
    softcap: float | None
    eps_e: float | None
    eps_c: float | None
    work: torch.dtype
    chunk_bytes: int
    scale: float
    want_mean: bool
    want_argmax: bool
    impl: str

    @property
    def size(self) -> int:
        """Number of vocabulary entries here."""
        return self.c.shape[0]

    @property
    def on_cpu(self) -> bool:
        """Whether tiles should fit a cache."""
        return self.e.device.type == "cpu"

    @property
    def linear_scale(self) -> float:
        """What the product with the classifier is multiplied by: the scale, or 1 where it follows a cap."""
        return self.scale if self.softcap is None else 1.0

    def rows(self) -> Tensor | None:
        """Indices of the valid rows; None if all are."""
        if self.valid is None or bool(self.valid.all()):
            return None
        return self.valid.nonzero()[:, 0]

    def classifier(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Entries ``[start, stop)`` of ``c`` and ``bias`` in the working dtype."""
        bias = None if self.bias is None else self.bias[start:stop].to(self.work)
        return self.c[start:stop].to(self.work), bias

    def linear_weight(self, start: int, stop: int) -> Tensor | None:
        """Class weights of a logit sum that is linear in ``e`` (no softcap), else None."""
        return self._class_weight(start, stop) if self.softcap is None else None

    def capped_weight(self, start: int, stop: int) -> Tensor | None:
        """Class weights of a logit sum that needs every capped logit, else None."""
        return self._class_weight(start, stop) if self.softcap is not None else None

    def _class_weight(self, start: int, stop: int) -> Tensor | None:
        return None if self.class_weight is None else self.class_weight[start:stop].to(self.work)


class Statistics(NamedTuple):
    r"""What the forward pass finds out about each row; all but ``lse`` are None if not asked for.

    Attributes:
        lse: Log-sum-exp, zero at rows that are not valid, like the others.
        target_logit: Logit of the target.
        logit_sum: Logits summed with the class weights.
        mean_logit: Mean logit under the softmax, :math:`\sum_v p_v z_v`, not above ``lse``: their difference is the
            entropy.
        argmax: Column of the largest logit, the first of several, int64.
        column_map: What an engine records for its own backward pass, of any shape and dtype.
    """

    lse: Tensor
    target_logit: Tensor | None
    logit_sum: Tensor | None
    mean_logit: Tensor | None
    argmax: Tensor | None
    column_map: Tensor | None


class Saved(NamedTuple):
    """The statistics a backward pass needs again, over the whole vocabulary except for ``column_map``."""

    lse: Tensor
    mean_logit: Tensor | None
    column_map: Tensor | None


class Gradients(NamedTuple):
    """By ``e``, ``c`` and ``bias``; None where not asked for."""

    e: Tensor | None
    c: Tensor | None
    bias: Tensor | None


def take(values: Tensor | None, rows: Tensor | slice | None) -> Tensor | None:
    """The given rows of ``values``; everything if ``rows`` is None."""
    if values is None or rows is None:
        return values
    return values[rows] if isinstance(rows, slice) else values.index_select(0, rows)


def put(values: Tensor | None, rows: Tensor | None, count: int) -> Tensor | None:
    """The inverse of :func:`take`: ``values`` at ``rows`` of ``count`` rows, zero elsewhere."""
    if values is None or rows is None:
        return values
    return values.new_zeros(count, *values.shape[1:]).index_copy_(0, rows, values)
