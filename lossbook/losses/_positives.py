"""What the losses that contrast an anchor with its positives do when there are none.

One policy for the whole family.  An anchor without a positive has loss zero, connected to the graph: backward works and
gives it a zero gradient.  A mean leaves it out, unless the loss defines its mean over all rows.  A batch in which no
anchor has a positive, such as one without anchors, gives zero, connected to the graph, and a warning, never NaN: it
happens by chance in small batches and must not end a run, but a run in which it is the rule learns nothing.
"""

import warnings

import torch
from torch import Tensor

from lossbook._validation import check_choice, values_are_readable
from lossbook.losses._shared import REDUCTIONS, reduce

__all__ = ["NoPositivesWarning"]


class NoPositivesWarning(UserWarning):
    """No anchor of a batch has a positive, so the loss is zero and nothing is learned from the batch.

    Given where the values may be looked at: on the CPU, or on a GPU with ``LOSSBOOK_DEBUG=1``, and not in compiled
    code. Python shows it once for each line that calls a loss, as it does with every warning;
    ``warnings.filterwarnings("error", category=NoPositivesWarning)`` makes it an error.
    """


def reduce_anchors(
    losses: Tensor,
    has_positive: Tensor,
    reduction: str,
    dtype: torch.dtype,
    *,
    count_all: bool = False,
    stacklevel: int = 3,
) -> Tensor:
    """One loss per anchor to what the caller asked for, with zero for anchors without a positive.

    Args:
        losses: Shape (N,), in the dtype of the computation; finite also where there is no positive, or the gradient
            would be NaN.
        has_positive: Which anchors have one, bool, shape (N,).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        dtype: Of the result.
        count_all: Whether the mean is over all anchors instead of those with a positive.
        stacklevel: Frames between :func:`warnings.warn` and the caller of the loss; 3 from the loss itself.

    Raises:
        ValueError: If ``reduction`` is anything else.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    if values_are_readable(has_positive) and not has_positive.any():
        warn_of_no_positives(
            f"none of the {has_positive.numel()} anchors of the batch has a positive", stacklevel=stacklevel + 1
        )
    # The product, not a constant: it stays connected to the graph, and a NaN in it stays visible.
    losses = torch.where(has_positive, losses, losses * 0)
    if reduction == "mean" and not (count_all and len(losses)):
        return (losses.sum() / has_positive.sum().clamp(min=1)).to(dtype)
    return reduce(losses, reduction, dtype)


def reduce_rows(losses: Tensor, reduction: str, dtype: torch.dtype, *, stacklevel: int = 3) -> Tensor:
    """Reduce losses of rows that all have their positive: only a batch without rows is one without positives.

    Args:
        losses: Shape (N,), in the dtype of the computation.
        reduction: ``"mean"`` (over N), ``"sum"`` or ``"none"``.
        dtype: Of the result.
        stacklevel: As for :func:`reduce_anchors`.

    Raises:
        ValueError: If ``reduction`` is anything else.
    """
    if len(losses):
        return reduce(losses, reduction, dtype)
    nobody = torch.zeros_like(losses, dtype=torch.bool)
    return reduce_anchors(losses, nobody, reduction, dtype, count_all=True, stacklevel=stacklevel + 1)


def warn_of_no_positives(reason: str, *, stacklevel: int) -> None:
    """Say that a batch teaches nothing, at the line that called the loss; silent in compiled code."""
    if not torch.compiler.is_compiling():
        warnings.warn(f"{reason}: the loss is zero", NoPositivesWarning, stacklevel=stacklevel)
