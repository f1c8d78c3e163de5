"""The ways to compute the cross-entropy of a linear head that the benchmark compares.

This module imports PyTorch only inside the functions, so that the parent process and ``lossbook bench list`` start
at once.  The other packages compared are imported when their method is built; where one is missing or fails, its row
in the report says why.
"""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]


class NotAvailableError(RuntimeError):
    """A method cannot run here; the message is the reason shown in the report."""


@dataclass(frozen=True)
class Filter:
    """What a gradient filter keeps.

    Attributes:
        eps_e: Threshold for the gradient of the hidden states; None keeps everything.
        eps_c: Threshold for the gradient of the classifier; None keeps everything.
        unit: What is kept or dropped as a whole, a key of :func:`lossbook.kernels.softmax_sparsity`: ``"columns"`` (one
            word for 128 rows) or ``"tiles"`` (128 words for 128 rows).
    """

    eps_e: float | None
    eps_c: float | None
    unit: str = "columns"

    def kept(self, facts: Mapping[str, Any]) -> tuple[float, float] | None:
        """Look up the fractions that the filter keeps for the two gradients.

        Args:
            facts: From :func:`lossbook.bench.sparsity.describe_inputs`; without thresholds if nothing was measured.

        Returns:
            Fractions for the gradients of the hidden states and of the classifier; None without a measurement.
        """
        if not (fractions := facts.get(self.unit)):
            return None
        return tuple(1.0 if eps is None else fractions[str(eps)] for eps in (self.eps_e, self.eps_c))


@dataclass(frozen=True)
class Method:
    """One way to compute the mean cross-entropy of ``e @ c.T`` against ``target``.

    Attributes:
        name: Name used on the command line and in the report.
        description: One line for ``lossbook bench list``.
        build: Called once in the worker with the implementation to take for this package's own methods, ``"torch"`` or
            ``"triton"``; returns ``loss(e, c, target)``, or raises what the row shall quote.
        filter: The gradient filter; None for methods whose gradient is exact.
        only: Implementation for which ``all`` includes the method; None for both.
        warm_up_full: True if the warm-up must have the measured shape, because the method specializes on it.
    """

    name: str
    description: str
    build: Callable[[str], Loss]
    filter: Filter | None = None
    only: str | None = None
    warm_up_full: bool = False


def methods_for(impl: str) -> list[str]:
    """Return the names that ``all`` stands for.

    Args:
        impl: Implementation of this package's own methods, ``"torch"`` or ``"triton"``.

    Returns:
        Names in the order of :data:`METHODS`.
    """
    return [method.name for method in METHODS.values() if method.only in (None, impl)]


def failure(error: BaseException) -> str:
    """Say in one line why a method has no figures.

    Args:
        error: What building or running it raised.

    Returns:
        The message of a :class:`NotAvailableError`; otherwise the type and the first line of the message.
    """
    lines = str(error).strip().splitlines() or ["no message"]
    return lines[0] if isinstance(error, NotAvailableError) else f"{type(error).__name__}: {lines[0]}"


def _dense(_impl: str) -> Loss:
    from torch.nn import functional

    return lambda e, c, target: functional.cross_entropy(e @ c.T, target)


def _cut(**options: Any) -> Callable[[str], Loss]:
    def build(impl: str) -> Loss:
        from lossbook.kernels import cut_cross_entropy

        return lambda e, c, target: cut_cross_entropy(e, c, target, **{"impl": impl} | options)

    return build


def _two_pass(_impl: str) -> Loss:
    from lossbook.kernels import cut_cross_entropy

    return lambda e, c, target: cut_cross_entropy(e, c, target, reduction="none").mean()


def _torch_linear_cross_entropy(chunked: bool) -> Callable[[str], Loss]:
    def build(_impl: str) -> Loss:
        import torch

        function = getattr(torch.nn.functional, "linear_cross_entropy", None)
        if function is None:
            raise NotAvailableError("needs torch >= 2.13")
        options = torch.nn.LinearCrossEntropyOptions() if chunked else None
        return lambda e, c, target: function(e, c, target, options=options)

    return build


def _apple(filter_eps: float | None) -> Callable[[str], Loss]:
    def build(_impl: str) -> Loss:
        from cut_cross_entropy import linear_cross_entropy

        return lambda e, c, target: linear_cross_entropy(e, c, target, filter_eps=filter_eps, impl="cce")

    return build


def _liger(_impl: str) -> Loss:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda e, c, target: loss(c, e, target)


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


def _torch_compile(impl: str) -> Loss:
    import torch

    reason = missing_compiler()
    if reason is not None:
        raise NotAvailableError(reason)
    return torch.compile(_dense(impl), dynamic=False)


_EPS_12 = 2.0**-12  # what Apple's "auto" resolves to in bfloat16
_AUTO, _FAST = Filter(2.0**-18, 2.0**-15), Filter(2.0**-16, 2.0**-14)  # documented at cut_cross_entropy

_ALL = (
    Method("dense", "F.cross_entropy(e @ c.T, target): the whole logit matrix", _dense),
    Method("torch_compile", "torch.compile of the dense loss, after compilation", _torch_compile, warm_up_full=True),
    Method("torch_default", "torch's F.linear_cross_entropy as called by default", _torch_linear_cross_entropy(False)),
    Method("torch_chunked", "torch's F.linear_cross_entropy with its chunking", _torch_linear_cross_entropy(True)),
    Method(
        "apple_cce",
        "cut-cross-entropy, tiles below 2^-12 dropped",
        _apple(_EPS_12),
        filter=Filter(_EPS_12, _EPS_12, "tiles"),
    ),
    Method("apple_cce_exact", "cut-cross-entropy without its filter", _apple(None)),
    Method("liger", "liger-kernel, LigerFusedLinearCrossEntropyLoss", _liger),
    Method(
        "two_pass",
        "cut_cross_entropy, reduction='none': logits recomputed in the backward pass",
        _two_pass,
        only="torch",
    ),
    Method("exact", "cut_cross_entropy as called by default", _cut(), only="triton"),
    Method("exact_2gib", "cut_cross_entropy, chunk_bytes=2 GiB", _cut(chunk_bytes=2 << 30), only="triton"),
    Method(
        "grad_in_forward",
        "cut_cross_entropy, reduction='mean': gradients made in the forward",
        _cut(impl="auto"),
        only="torch",
    ),
    Method("filtered_auto", "cut_cross_entropy, filter_eps='auto'", _cut(filter_eps="auto"), filter=_AUTO),
    Method("filtered_fast", "cut_cross_entropy, filter_eps='fast'", _cut(filter_eps="fast"), filter=_FAST),
    Method(
        "filtered_eps12",
        "cut_cross_entropy, filter_eps=2^-12",
        _cut(filter_eps=_EPS_12),
        filter=Filter(_EPS_12, _EPS_12),
    ),
    Method(
        "filtered_auto_full_c",
        "cut_cross_entropy, filter_eps='auto', filter_c=False: for pretraining",
        _cut(filter_eps="auto", filter_c=False),
        filter=Filter(_AUTO.eps_e, None),
    ),
)

METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})
"""Every method by name, in the order in which reports show them."""
