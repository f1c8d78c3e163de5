"""Phase ``correctness``: every option of the kernel against a dense float64 computation, at small ragged sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lossbook.bench.measure import use_device
from lossbook.bench.methods import failure
from lossbook.kernels import cut_cross_entropy

#: Largest relative error of a value and of a gradient, by dtype: a few roundings of the operands.
TOLERANCES: Mapping[str, float] = MappingProxyType({"float32": 2e-5, "bfloat16": 1e-2, "float16": 2e-3})
# A filter may keep more than the reference keeps, or decide a tie otherwise.
_FILTER_SLACK = 1.5

_IGNORED = -100
_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "return_lse": {"return_lse": True, "reduction": "none"},
    "softcap": {"softcap": 4.0},
    "label_smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 1e-2},
    "bias": {"bias": True},
    "weight": {"weight": True},
    "ignored_rows": {"ignored": True},
    "shift": {"shift": 1},
    "frozen_e": {"frozen": ("e",)},
    "frozen_c": {"frozen": ("c",)},
    "large_chunks": {"chunk_bytes": 2 << 30},
    "filter_auto": {"filter_eps": "auto"},
    "filter_fast": {"filter_eps": "fast"},
    "filter_eps": {"filter_eps": 2.0**-12},
    "filter_full_c": {"filter_eps": 2.0**-12, "filter_c": False},
    "filter_full_e": {"filter_eps": 2.0**-12, "filter_e": False},
    "everything": {
        "bias": True, "weight": True, "ignored": True, "softcap": 6.0, "label_smoothing": 0.05, "z_loss": 1e-3,
        "reduction": "none", "return_lse": True,
    },
}  # fmt: skip


def records(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Compare every option in every dtype.

    Args:
        spec: ``device``, ``impl``, ``seed``, ``dtypes``, the sizes ``n``, ``vocab`` and ``dim``, and ``skip``, the
            number of cases that an earlier process has dealt with.

    Yields:
        For every case ``{"begin": {"case", "dtype"}}``, and then ``{"case", "dtype", "passed"}`` with the relative
        ``errors`` of every output and gradient and those ``allowed``, or with the ``failure``.
    """
    use_device(spec["device"])
    for dtype, case in itertools.islice(itertools.product(spec["dtypes"], _OPTIONS), spec["skip"], None):
        record = {"case": case, "dtype": dtype}
        yield {"begin": record}
        try:
            outcome = _compare(spec, getattr(torch, dtype), dict(_OPTIONS[case]), TOLERANCES[dtype])
        except Exception as error:
            if spec["device"] != "cpu":
                torch.cuda.synchronize()  # raises, and so ends this process, if the GPU cannot be used any more
            outcome = {"passed": False, "failure": failure(error)}
        yield record | outcome


def _compare(spec: dict[str, Any], dtype: torch.dtype, options: dict[str, Any], tolerance: float) -> dict[str, Any]:
    operands, arguments = _arguments(spec, dtype, options)
    got = _results(operands, arguments | {"impl": spec["impl"]}, spec["seed"])
    exact_operands = {name: value and (value[0].double(), value[1]) for name, value in operands.items()}
    exact_arguments = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    } | {"impl": "dense", "accum_dtype": torch.float64}
    exact = _results(exact_operands, exact_arguments | {"filter_eps": None}, spec["seed"])
    errors = {name: _relative(got[name], exact[name]) for name in exact}
    allowed = dict.fromkeys(errors, tolerance)
    if "filter_eps" in arguments:
        filtered = _results(exact_operands, exact_arguments, spec["seed"])
        for name in allowed:
            allowed[name] += _FILTER_SLACK * _relative(filtered[name], exact[name])
    passed = got.keys() == exact.keys() and all(errors[name] <= allowed[name] for name in errors)
    return {"passed": passed, "errors": errors, "allowed": allowed}


def _arguments(
    spec: dict[str, Any], dtype: torch.dtype, options: dict[str, Any]
) -> tuple[dict[str, tuple[Tensor, bool] | None], dict[str, Any]]:
    """The operands, each with whether it needs a gradient, and the other arguments."""
    device, n, vocab, dim = (spec[name] for name in ("device", "n", "vocab", "dim"))
    generator = torch.Generator().manual_seed(spec["seed"])
    frozen = options.pop("frozen", ())
    target = torch.randint(vocab, (n,), generator=generator)
    c = torch.randn(vocab, dim, generator=generator) * dim**-0.5
    # Confident in part, so that a filter has something to drop and something to keep.
    e = torch.randn(n, dim, generator=generator) + 12 * torch.rand(n, 1, generator=generator) * c[target]
    operands = {
        "e": (e.to(device, dtype), "e" not in frozen),
        "c": (c.to(device, dtype), "c" not in frozen),
        "bias": (torch.randn(vocab, generator=generator).to(device, dtype), True) if options.pop("bias", 0) else None,
    }
    if options.pop("weight", False):
        options["weight"] = (0.5 + torch.rand(vocab, generator=generator)).to(device, dtype)
    if options.pop("ignored", False):
        target[torch.rand(n, generator=generator) < 0.3] = _IGNORED
    return operands, options | {"target": target.to(device)}


def _results(
    operands: dict[str, tuple[Tensor, bool] | None], arguments: dict[str, Any], seed: int
) -> dict[str, Tensor]:
    leaves = {
        name: value[0].detach().clone().requires_grad_(value[1])
        for name, value in operands.items()
        if value is not None
    }
    outputs = cut_cross_entropy(**leaves, **arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    # A different upstream gradient for every row: a uniform one hides a backward pass that ignores it.
    generator = torch.Generator().manual_seed(seed + 1)
    upstream = [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
    torch.autograd.backward(outputs, upstream)
    gradients = {f"d_{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return dict(zip(("loss", "lse"), (x.detach() for x in outputs), strict=False)) | gradients


def _relative(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()
