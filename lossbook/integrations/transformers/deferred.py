"""What stands in a forward pass for the logits, their head and the model while a loss is computed without logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class DeferredLogits:
    r"""Logits nobody has computed: what the head was applied to, and what was done to the result since.

    With :math:`z = eC^\top + b`, they are ``scale * z``, or ``gain * tanh(scale * z)`` once capped.  Only the
    operations that models put between head and loss are defined; any other raises the error Python has for it, so that
    no step of a model is left out unnoticed.
    """

    def __init__(self, hidden: Tensor, head: nn.Linear, scale: float = 1.0, gain: float | None = None) -> None:
        self.hidden, self.head, self.scale, self.gain = hidden, head, scale, gain

    def __mul__(self, factor: float) -> DeferredLogits:
        if not isinstance(factor, (int, float)) or not factor > 0:
            return NotImplemented
        if self.gain is None:
            return DeferredLogits(self.hidden, self.head, self.scale * factor)
        return DeferredLogits(self.hidden, self.head, self.scale, self.gain * factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> DeferredLogits:
        if not isinstance(divisor, (int, float)) or not divisor > 0:
            return NotImplemented
        return self * (1 / divisor)

    def float(self) -> DeferredLogits:
        """Themselves: the kernel computes in float32 or better."""
        return self

    def contiguous(self) -> DeferredLogits:
        """Themselves: nothing is laid out in memory yet."""
        return self

    def tanh(self) -> DeferredLogits:
        """Capped logits; a second cap is not supported."""
        if self.gain is not None:
            raise TypeError("logits can be capped by tanh only once")
        return DeferredLogits(self.hidden, self.head, self.scale, 1.0)

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return args[0].tanh() if function is torch.tanh and len(args) == 1 and not kwargs else NotImplemented

    def options(self) -> dict[str, float]:
        """The same in terms of softcap and temperature, which :func:`cut_cross_entropy` applies in this order."""
        if self.gain is None:
            return {} if self.scale == 1 else {"temperature": 1 / self.scale}
        # gain * tanh(scale * z) is z with softcap 1 / scale, divided by the temperature 1 / (gain * scale).
        cap, temperature = {"softcap": 1 / self.scale}, 1 / (self.gain * self.scale)
        return cap if math.isclose(temperature, 1) else {**cap, "temperature": temperature}


class DeferredHead:
    """A linear head that gives :class:`DeferredLogits`, and is itself in every other respect."""

    def __init__(self, head: nn.Linear) -> None:
        self._head = head

    def __call__(self, hidden: Tensor) -> DeferredLogits:
        """What the head would give for ``hidden``."""
        return DeferredLogits(hidden, self._head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)


class View:
    """An object whose attributes are those of another, except for the ones given here.

    Passed to a forward function as ``self``, it replaces parts of a model for one call, while the model itself is not
    touched: nothing has to be put back, and calls on other threads see no difference.
    """

    def __init__(self, viewed: Any, **substitutes: Any) -> None:
        object.__setattr__(self, "_viewed", viewed)
        object.__setattr__(self, "_substitutes", substitutes)

    def __getattr__(self, name: str) -> Any:
        substitutes = self.__dict__["_substitutes"]
        return substitutes[name] if name in substitutes else getattr(self.__dict__["_viewed"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._viewed, name, value)


class StubBackbone(View):
    """Stands for a backbone while the rest of a forward pass is examined: it answers with given hidden states."""

    def __call__(self, *args: Any, **kwargs: Any) -> StubOutput:
        """The given hidden states, whatever the inputs."""
        return StubOutput(self.hidden)


class StubOutput:
    """Output of a backbone of which only the last hidden states are known; every other field is None."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int | slice) -> Tensor | tuple:
        return (self.last_hidden_state,)[index]
