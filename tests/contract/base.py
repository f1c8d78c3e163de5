"""What a test needs to know about a loss (``Case``) or about another name with a formula (``Display``)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """A call that must be refused.

    Attributes:
        name: For the test's id.
        change: Maps good inputs to the arguments that spoil them.
        message: Regular expression for the message, which names the argument and what it got.
        error: Type of the exception.
    """

    name: str
    change: Callable[[Inputs], Inputs]
    message: str
    error: type[Exception] = ValueError


@dataclass(frozen=True)
class Formula:
    """The formulas a docstring displays, and one call to compare them with.

    Attributes:
        displayed: Exact text of each ``.. math::`` block of the docstring, in order.
        naive: The formula in plain Python on float64, written from the displayed text and nothing else; takes the
            inputs and returns one value per example, or a tuple if the call does.
        options: Further arguments for both, made from the inputs and a generator.
    """

    displayed: tuple[str, ...]
    naive: Callable[..., Tensor | tuple[Tensor, ...]]
    options: Callable[[Inputs, torch.Generator], Inputs] = lambda inputs, generator: {}


@dataclass(frozen=True)
class Display:
    """The formulas of a public name that is no loss, and what to compare them with.

    Attributes:
        documented: Whose docstring displays them.
        displayed: As in :class:`Formula`.
        compare: From a generator, what the code computes and what the displayed formula gives.
    """

    documented: Any
    displayed: tuple[str, ...]
    compare: Callable[[torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """One function under the contract.

    Attributes:
        name: Its public name.
        function: The function.
        reference: Plain torch, same arguments, any floating dtype.
        make_inputs: ``make_inputs(n, dtype, generator)`` gives the arguments of one call with ``n`` examples.
        differentiable: Inputs that get a gradient; the first has one row per example.
        formula: The displayed formula and its naive implementation.
        bad: Calls to refuse.
        reductions: Values of ``reduction``; empty if there is no such argument and one value per example comes out.
        options: Further arguments to run everything with, by name.
        extreme: Turns inputs into such with logits of magnitude 1e4.
        empty_mean: Mean over an empty batch.
        smallest: Examples a batch must have; smaller ones are refused, such as one without anything to contrast with.
        values: Values per example, where each has several anchors.
        ignore_index: Default of ``ignore_index``; None if there is no such argument.
        rowwise: Whether an example's value depends on that example only.
        inductor: Whether to compile with the default backend too, which takes seconds.
        documented: Whose docstring displays the formula, if not that of ``function``.
        compiles: False where the function builds a module, which cannot be compiled; the module's own tests do that.
    """

    name: str
    function: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    make_inputs: Callable[[int, torch.dtype, torch.Generator], Inputs]
    differentiable: tuple[str, ...]
    formula: Formula
    bad: tuple[Bad, ...]
    extreme: Callable[[Inputs], Inputs]
    reductions: tuple[str, ...] = ("mean", "sum", "none")
    options: Mapping[str, Callable[[Inputs, torch.Generator], Inputs]] = field(default_factory=dict)
    empty_mean: float = math.nan
    smallest: int = 0
    values: int = 1
    ignore_index: int | None = None
    rowwise: bool = True
    inductor: bool = False
    documented: Any = None
    compiles: bool = True

    def __post_init__(self):
        object.__setattr__(self, "options", {"default": lambda inputs, generator: {}} | dict(self.options))
        object.__setattr__(self, "documented", self.documented or self.function)


def drop(inputs: Inputs, name: str, dim: int = 0) -> Inputs:
    """One input with the last entry of a dimension cut off: a wrong shape."""
    return {name: inputs[name].narrow(dim, 0, inputs[name].shape[dim] - 1)}
