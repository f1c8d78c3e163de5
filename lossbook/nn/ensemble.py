"""Several models of one architecture, trained at once as one model with stacked parameters.

A sweep over seeds or methods repeats the same small step many times, and on small models most of a step is overhead.
:class:`Ensemble` takes that step for all of them with batched matrix products, and keeps them independent: nothing of
one member reaches another, so each follows the path that it would follow alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lossbook._validation import check_integer, check_positive

__all__ = ["Ensemble", "ensemble_batches"]


class Ensemble(nn.Module):
    r"""Models of one architecture as one module, with a leading dimension of members on every parameter and buffer.

    Give every member its own loss and add them up: the gradient of the sum by a member's parameters is the gradient of
    its own loss. An optimizer that treats each number by itself, such as SGD with momentum, Adam or AdamW, then updates
    each member as it would alone, to rounding. One that looks at a whole tensor, such as LARS or Muon, does not.
    Members share the optimizer's settings; make one ensemble for each learning rate.

    Args:
        members: Modules of one class with the same parameters and buffers by name, shape and dtype; copied. What is no
            tensor, such as a rate of dropout or the mode of training, is taken from the first.

    Attributes:
        stacked: A module of the members' class whose parameters and buffers hold all members, shape ``(B, ...)`` each.

    Raises:
        TypeError: If the members are not modules of one class.
        ValueError: If there is none, or their parameters and buffers differ in name, shape or dtype.

    Examples:
        >>> ensemble = Ensemble([nn.Linear(3, 2) for seed in range(4)])
        >>> ensemble(torch.zeros(4, 5, 3)).shape, ensemble(torch.zeros(5, 3), shared=True).shape
        (torch.Size([4, 5, 2]), torch.Size([4, 5, 2]))
        >>> ensemble.member(1)
        Linear(in_features=3, out_features=2, bias=True)

    Note:
        Dropout draws different masks for the members, from the global random state.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        members = list(members)
        _check_members(members)
        self._size = len(members)
        self.stacked = copy.deepcopy(members[0])
        states = [_tensors(member) for member in members]
        _replace(self.stacked, lambda name: torch.stack([state[name].detach() for state in states]))

    def __len__(self) -> int:
        return self._size

    def forward(self, *inputs: Tensor, shared: bool = False) -> Any:
        """Every member's output.

        Args:
            *inputs: Arguments of the members: tensors with a leading dimension of members, shape ``(B, ...)``.
            shared: Whether every member gets the same inputs, without that dimension. Default False.

        Returns:
            What a member returns, with a leading dimension of members on every tensor.

        Raises:
            ValueError: If an input that is not shared has no dimension of members.
        """
        for place, value in enumerate(() if shared else inputs):
            if value.dim() == 0 or value.shape[0] != self._size:
                raise ValueError(
                    f"inputs[{place}] must have shape (B, ...) = ({self._size}, ...), got {tuple(value.shape)}; "
                    "pass shared=True to give all members the same input"
                )
        if shared:
            inputs = tuple(value.expand(self._size, *value.shape) for value in inputs)

        def alone(tensors: dict[str, Tensor], *values: Tensor) -> Any:
            return functional_call(self.stacked, tensors, values)

        return vmap(alone, randomness="different")(_tensors(self.stacked), *inputs)

    def member(self, index: int) -> nn.Module:
        """A model of its own with one member's parameters and buffers.

        Args:
            index: Which member, in ``[0, B)``.

        Returns:
            A copy: training it changes nothing here.

        Raises:
            TypeError: If ``index`` is not an int.
            ValueError: If there is no such member.
        """
        check_integer("index", index)
        if not 0 <= index < self._size:
            raise ValueError(f"index must lie in [0, B) = [0, {self._size}), got {index}")
        alone = copy.deepcopy(self.stacked)
        state = _tensors(self.stacked)
        _replace(alone, lambda name: state[name].detach()[index].clone())
        return alone

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale each member's gradient down to a norm, as :func:`torch.nn.utils.clip_grad_norm_` does for one model.

        Args:
            max_norm: Largest norm of one member's gradient, over all its parameters, ``> 0``.

        Returns:
            The norms before, shape ``(B,)``; zeros if there is no gradient.

        Raises:
            TypeError: If ``max_norm`` is not a number.
            ValueError: If it is not finite and positive.
        """
        check_positive("max_norm", max_norm)
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        if not gradients:
            return torch.zeros(self._size)
        norms = torch.stack([gradient.reshape(self._size, -1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        scale = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.to(gradient.dtype).view(-1, *[1] * (gradient.dim() - 1)))
        return norms


def ensemble_batches(
    num_examples: int,
    batch_size: int,
    *,
    seeds: Sequence[int],
    epochs: int = 1,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """Minibatches for all members of an ensemble, each in its own random order.

    A member's order depends on its seed alone: members with the same seed see the same batches, which pairs their
    comparison, and a member sees the same batches in any ensemble.

    Args:
        num_examples: Size of the data set, ``> 0``.
        batch_size: Examples in a batch, ``> 0``; the last batch of an epoch holds what is left.
        seeds: One seed for each member, ``>= 0``. The global random states are neither read nor changed.
        epochs: Passes over the data, each in a new order. Default 1.
        device: Where the indices are wanted. Default: the CPU, where they are drawn in any case.

    Yields:
        Indices in ``[0, num_examples)``, int64, shape ``(B, batch)``.

    Raises:
        TypeError: If a number is not an int.
        ValueError: If one is out of its range, or there is no seed.

    Examples:
        >>> [tuple(index.shape) for index in ensemble_batches(5, 2, seeds=[0, 1, 2])]
        [(3, 2), (3, 2), (3, 1)]
    """
    for name, value in (("num_examples", num_examples), ("batch_size", batch_size), ("epochs", epochs)):
        check_integer(name, value)
        check_positive(name, value)
    if not seeds:
        raise ValueError("seeds must hold one seed for each member, got none")
    return _batches(num_examples, batch_size, list(seeds), epochs, device)


def _batches(
    num_examples: int, batch_size: int, seeds: list[int], epochs: int, device: torch.device | str | None
) -> Iterator[Tensor]:
    generators = {seed: torch.Generator().manual_seed(seed) for seed in seeds}
    for _ in range(epochs):
        orders = {seed: torch.randperm(num_examples, generator=draw) for seed, draw in generators.items()}
        yield from torch.stack([orders[seed] for seed in seeds]).to(device).split(batch_size, dim=1)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that are shared inside the module once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _replace(module: nn.Module, value: Callable[[str], Tensor]) -> None:
    """Put ``value(name)`` in place of every parameter and buffer, and keep shared ones shared."""
    every = {"recurse": False, "remove_duplicate": False}
    present = _tensors(module)
    new: dict[int, Tensor] = {}
    for name, old in present.items():
        is_parameter = isinstance(old, nn.Parameter)
        new[id(old)] = nn.Parameter(value(name), old.requires_grad) if is_parameter else value(name)
    for part in module.modules():
        for name, old in [*part.named_parameters(**every), *part.named_buffers(**every)]:
            setattr(part, name, new[id(old)])


def _check_members(members: list[nn.Module]) -> None:
    if not members:
        raise ValueError("members must hold at least one module, got none")
    for place, member in enumerate(members):
        if not isinstance(member, nn.Module) or type(member) is not type(members[0]):
            raise TypeError(
                f"members must be modules of one class, got {type(members[0]).__name__} and, "
                f"at {place}, {type(member).__name__}"
            )
    first = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in _tensors(members[0]).items()}
    for place, member in enumerate(members):
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in _tensors(member).items()}
        if found != first:
            different = sorted(name for name in first.keys() | found.keys() if first.get(name) != found.get(name))
            raise ValueError(
                f"members must have the same parameters and buffers, got a different {different[0]} at {place}"
            )
