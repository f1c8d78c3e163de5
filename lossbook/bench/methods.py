"""The ways to compute the cross-entropy of a linear head that the benchmark compares.

This module imports PyTorch only inside the functions, so that the parent process and ``lossbook bench list`` start
at once.
"""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]


class NotAvailableError(RuntimeError):
    """A method cannot run here; the message is the reason shown in the report."""


@dataclass(frozen=True)
class Method:
    """One way to compute the mean cross-entropy of ``e @ c.T`` against ``target``.

    Attributes:
        name: Name used on the command line and in the report.
        description: One line for ``lossbook bench list``.
        build: Called once in the worker; returns ``loss(e, c, target)`` or raises :class:`NotAvailableError`.
        exact: False for methods whose gradient is approximate by design.
        warm_up_full: True if the warm-up must have the measured shape, because the method specialises on it.
    """

    name: str
    description: str
    build: Callable[[], Loss]
    exact: bool = True
    warm_up_full: bool = False


def _dense() -> Loss:
    from torch.nn import functional

    return lambda e, c, target: functional.cross_entropy(e @ c.T, target)


def _two_pass() -> Loss:
    from lossbook.kernels import cut_cross_entropy

    return lambda e, c, target: cut_cross_entropy(e, c, target, reduction="none").mean()


def _grad_in_forward() -> Loss:
    from lossbook.kernels import cut_cross_entropy

    return lambda e, c, target: cut_cross_entropy(e, c, target, reduction="mean")


def _filtered(preset: str) -> Callable[[], Loss]:
    def build() -> Loss:
        from lossbook.kernels import cut_cross_entropy

        return lambda e, c, target: cut_cross_entropy(e, c, target, reduction="mean", filter_eps=preset)

    return build


def _torch_linear_cross_entropy(chunked: bool) -> Callable[[], Loss]:
    def build() -> Loss:
        import torch

        function = getattr(torch.nn.functional, "linear_cross_entropy", None)
        if function is None:
            raise NotAvailableError("needs torch >= 2.13")
        options = torch.nn.LinearCrossEntropyOptions() if chunked else None
        return lambda e, c, target: function(e, c, target, options=options)

    return build


def missing_compiler() -> str | None:
    """Say what the default backend of ``torch.compile`` lacks on this machine.

    Returns:
        The reason it cannot work, or None.
    """
    if not any(shutil.which(compiler) for compiler in ("g++", "clang++", "cl")):
        return "needs a C++ compiler (g++, clang++ or cl) on the PATH"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "needs the headers of Python (Python.h)"
    return None


def _torch_compile() -> Loss:
    import torch

    reason = missing_compiler()
    if reason is not None:
        raise NotAvailableError(reason)
    return torch.compile(_dense(), dynamic=False)


_ALL = (
    Method("dense", "F.cross_entropy(e @ c.T, target): the whole logit matrix", _dense),
    Method("two_pass", "cut_cross_entropy, reduction='none': logits recomputed in the backward pass", _two_pass),
    Method("grad_in_forward", "cut_cross_entropy, reduction='mean': gradients made in the forward", _grad_in_forward),
    Method("filtered_auto", "cut_cross_entropy, filter_eps='auto'", _filtered("auto"), exact=False),
    Method("filtered_fast", "cut_cross_entropy, filter_eps='fast'", _filtered("fast"), exact=False),
    Method("torch_default", "torch's F.linear_cross_entropy as called by default", _torch_linear_cross_entropy(False)),
    Method("torch_chunked", "torch's F.linear_cross_entropy with its chunking", _torch_linear_cross_entropy(True)),
    Method("torch_compile", "torch.compile of the dense loss, after compilation", _torch_compile, warm_up_full=True),
)

METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})
"""Every method by name, in the order in which reports show them."""
