"""Phase ``tuning``: the fastest configuration of the kernels for each shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from lossbook.bench.inputs import make_inputs
from lossbook.bench.measure import use_device
from lossbook.bench.methods import failure


def records(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Time the candidates of every kernel for every shape.

    Args:
        spec: ``device``, ``dtype``, ``seed``, ``density`` of the inputs, and ``shapes`` (name to ``n``, ``vocab``,
            ``dim``).

    Yields:
        For every shape ``{"shape", "kernels"}`` as :func:`lossbook.kernels.cross_entropy.triton.tuning.tune` returns
        them, a candidate that does not run with the time None; or ``{"shape", "failure"}``; or ``{"skipped": reason}``
        if nothing can be tuned here.
    """
    if spec["device"] == "cpu":
        yield {"skipped": "the kernels are tuned on a GPU only"}
        return
    from lossbook.kernels.cross_entropy.triton.tuning import tune

    use_device(spec["device"])
    common = {name: spec[name] for name in ("device", "seed", "density")}
    seen: list[dict[str, Any]] = []
    for shape, sizes in spec["shapes"].items():
        try:
            inputs = make_inputs(**sizes, **common, dtype=getattr(torch, spec["dtype"]), data="peaked")
            kernels = [kernel for kernel in tune(inputs.e, inputs.c, inputs.target) if kernel not in seen]
        except Exception as error:
            yield {"shape": shape, "failure": failure(error)}
            continue
        seen += kernels
        yield {"shape": shape, "kernels": [_with_finite_times(kernel) for kernel in kernels]}


def _with_finite_times(kernel: dict[str, Any]) -> dict[str, Any]:
    """An infinite time as None: JSON knows no infinity."""
    candidates = []
    for candidate in kernel["candidates"]:
        candidates.append(candidate | {"ms": candidate["ms"] if math.isfinite(candidate["ms"]) else None})
    return kernel | {"candidates": candidates}
