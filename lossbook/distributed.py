"""Data parallelism for losses that compare the examples of a batch with each other."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lossbook._validation import check_tensor

__all__ = ["gather_with_gradient"]

_MAX_DIMENSIONS = 8
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def gather_with_gradient(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Concatenate the tensors of all processes along the first dimension, in every process, with a gradient.

    The backward pass sums, over the processes, the gradients of what each made of this process's rows. A loss that
    compares the rows of a batch with each other is then called on the gathered tensors, and sees the joined batch.

    If every process computes the same loss :math:`L` of the joined batch, each contributes the same gradient, and the
    sum is :math:`W` times the gradient of :math:`L` by this process's rows, :math:`W` being the number of processes.
    ``DistributedDataParallel`` divides by :math:`W` when it averages the gradients of the parameters, so these come
    out as those of one process with the joined batch: nothing is left to scale. Without it, sum the gradients of the
    parameters over the processes and divide by :math:`W`.

    Args:
        tensor: The rows of this process, at least 1-D. Any number of rows, also none; the other sizes, the dtype and
            whether a gradient is needed must be the same in all processes. Integers and booleans have no gradient.
        group: The processes; default all of them.

    Returns:
        The rows of rank 0, then those of rank 1 and so on. ``tensor`` itself where there is only one process, or
        torch.distributed is not initialized.

    Raises:
        TypeError: If ``tensor`` is no tensor.
        ValueError: If its dtype cannot be gathered, it is 0-D, or the processes do not agree; every one raises then.

    Examples:
        >>> gather_with_gradient(torch.ones(2, 3)).shape  # one process
        torch.Size([2, 3])

    Note:
        Every process of the group must make the call, and the backward pass of what follows, or the others wait.
        Gradients of float16 and bfloat16 are summed in float32.
    """
    check_tensor("tensor", tensor)
    if tensor.ndim == 0 or tensor.ndim > _MAX_DIMENSIONS:
        raise ValueError(f"tensor must have 1 to {_MAX_DIMENSIONS} dimensions, got {tensor.ndim}")
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"tensor must have a real or integer dtype, got {tensor.dtype}")
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return tensor
    return _Gather.apply(tensor, _agreed_sizes(tensor, group), group)


def _agreed_sizes(tensor: Tensor, group: dist.ProcessGroup | None) -> list[int]:
    """Number of rows in each process, after all have found that the rest is the same."""
    # A process without a gradient would not take part in the backward pass, and the others would wait for it.
    needs_gradient = torch.is_grad_enabled() and tensor.requires_grad
    facts = [int(needs_gradient), _DTYPES.index(tensor.dtype), tensor.ndim, *tensor.shape]
    facts += [0] * (3 + _MAX_DIMENSIONS - len(facts))
    own = torch.tensor(facts, device=tensor.device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, own, group)
    rows = [each.tolist() for each in gathered]
    if any(row[:3] + row[4:] != facts[:3] + facts[4:] for row in rows):
        raise ValueError(f"tensor must agree in all processes but for its rows, got {'; '.join(map(_described, rows))}")
    return [row[3] for row in rows]


def _described(facts: list[int]) -> str:
    needs_gradient, dtype, dimensions, *sizes = facts
    gradient = "with" if needs_gradient else "without"
    return f"{_DTYPES[dtype]} of shape {tuple(sizes[:dimensions])} {gradient} gradient"


class _Gather(torch.autograd.Function):
    """All-gather of rows, padded to the longest process; its backward is a reduce-scatter."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        # gloo does not know booleans.
        rows = tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
        own = _padded(rows, max(sizes))
        pieces = [torch.empty_like(own) for _ in sizes]
        dist.all_gather(pieces, own, group)
        return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)]).view(tensor.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        wide = gradient if gradient.dtype == torch.float64 else gradient.float()
        pieces = [_padded(piece, max(ctx.sizes)) for piece in wide.split(ctx.sizes)]
        own = torch.empty_like(pieces[0])
        dist.reduce_scatter(own, pieces, group=ctx.group)
        return own[: ctx.sizes[dist.get_rank(ctx.group)]].to(gradient.dtype), None, None


def _padded(rows: Tensor, length: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])]).contiguous()
