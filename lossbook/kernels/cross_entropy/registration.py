"""How a function becomes an operator of ``torch.ops.lossbook``."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Keeps the registrations alive for as long as this module is.
_LIBRARY = torch.library.Library("lossbook", "FRAGMENT")

SECOND_DERIVATIVE = (
    "the chunked kernels have no second derivative: autograd cannot see through their gradients; "
    "use cut_cross_entropy(..., impl='dense') to differentiate twice"
)


class Operator:
    """An operator that ``torch.compile`` takes as a whole, made from a function on tensors of any device.

    Its schema is read off the function's annotations unless it is given.

    What :func:`torch.library.custom_op` does, minus its wrapper that imports the compiler (and with it Triton) when
    the operator is first called: three seconds and 150 MiB that eager code has no use for.
    """

    def __init__(self, function: Callable[..., Any], schema: str | None = None) -> None:
        self.name = f"lossbook::{function.__name__.strip('_')}"
        if schema is None:
            schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(self.name, schema, lib=_LIBRARY, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(self.name, "default", function, lib=_LIBRARY)
        self.overload = getattr(torch.ops.lossbook, function.__name__.strip("_")).default

    def __call__(self, *args: Any) -> Any:
        """Call the operator."""
        return self.overload(*args)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register shapes and dtypes of the results."""
        return torch.library.register_fake(self.name, function, lib=_LIBRARY)

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None] | None = None) -> None:
        """Register the derivative."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context, lib=_LIBRARY)


def raise_second_derivative(ctx: Any, *grads: Tensor) -> None:
    """The derivative of every gradient here."""
    raise RuntimeError(SECOND_DERIVATIVE)


def once(gradients: Sequence[Tensor | None], *sources: Tensor | None) -> Sequence[Tensor | None]:
    """The gradients themselves; under ``create_graph=True`` tied to ``sources`` by a graph that ends in an error."""
    return _Once.apply(len(sources), *sources, *gradients) if torch.is_grad_enabled() else gradients


class _Once(torch.autograd.Function):
    """Identity on the gradients, whose derivative by anything in ``sources`` raises."""

    @staticmethod
    def forward(ctx: Any, skip: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if value is None else value.view_as(value) for value in tensors[skip:])

    backward = staticmethod(raise_second_derivative)


def wanted(gradients: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The gradients that are needed, None for the others."""
    return tuple(value if need else None for value, need in zip(gradients, needs, strict=True))
