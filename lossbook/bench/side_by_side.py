"""Measure all methods in one process, in turns: the way of a GPU, whose speed drifts with its temperature.

:func:`records` is run by :mod:`lossbook.bench.stream`.  Every method is checked against float64 before it is timed.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from lossbook.bench.accuracy import check
from lossbook.bench.environment import device_facts
from lossbook.bench.inputs import Inputs, make_inputs
from lossbook.bench.measure import gauge_for, matrix_ceiling, median_passes, timed_passes, use_device
from lossbook.bench.methods import METHODS, Loss, failure
from lossbook.bench.sparsity import describe_inputs

_WARM_UP = 5
_INPUT_SETS = 3
_MOST_PASSES = 200


def records(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure the methods at every density and say what is being done.

    Args:
        spec: ``methods``, ``densities``, the other arguments of :func:`~lossbook.bench.inputs.make_inputs` (``dtype``
            as a string), ``impl``, ``threads``, ``repeats`` (turns of every method), ``seconds`` (of a method's turn)
            and ``check_rows``.

    Yields:
        ``{"environment": ..., "ceiling": ...}``; then for every density ``{"density", "facts"}``, for every method
        ``{"begin": method}`` before anything that may go wrong, ``{"method", "not_available"}`` or ``{"method",
        "answer"}``, for every turn ``{"method", "sample"}``, and at the end ``{"density", "done": true}``.
    """
    torch.set_num_threads(spec["threads"])
    torch.set_float32_matmul_precision("high")
    use_device(spec["device"])
    dtype, device = getattr(torch, spec["dtype"]), spec["device"]
    gauge = gauge_for(device)
    environment = {"clock": "CUDA events" if device != "cpu" else "time.perf_counter", "memory": gauge.memory}
    yield {
        "environment": device_facts(device) | environment | {"threads": torch.get_num_threads()},
        "ceiling": matrix_ceiling(dtype, device),
    }
    losses: dict[str, Loss] = {}
    filters = [METHODS[name].filter for name in spec["methods"] if METHODS[name].filter]
    for density in spec["densities"]:
        sizes = {name: spec[name] for name in ("n", "vocab", "dim", "device", "seed", "data")}
        try:
            inputs = make_inputs(**sizes, dtype=dtype, density=density)
        except ValueError as error:
            yield {"density": density, "facts": {}}
            yield from ({"method": name, "not_available": failure(error)} for name in spec["methods"])
            yield {"density": density, "done": True}
            continue
        sets = _input_sets(inputs)
        yield {"density": density, "facts": describe_inputs(inputs, filters) | {"input_sets": len(sets)}}

        ready = []
        for name in spec["methods"]:
            yield {"begin": name}
            try:
                if name not in losses:
                    losses[name] = METHODS[name].build(spec["impl"])
                outcome = {"answer": _prepare(losses[name], inputs, device, spec["check_rows"])}
                ready.append(name)
            except Exception as error:
                outcome = {"not_available": failure(error)}
            if name not in ready:  # outside the handler, whose traceback keeps tensors alive
                _recover(inputs, device)
            yield {"method": name} | outcome
        for _ in range(spec["repeats"]):
            for name in ready:
                yield {"begin": name}
                passes = timed_passes(_steps(losses[name], sets), device, seconds=spec["seconds"], most=_MOST_PASSES)
                yield {"method": name, "sample": {"device": asdict(median_passes(passes)), "count": len(passes)}}
        yield {"density": density, "done": True}
        del inputs, sets
        gc.collect()


def _prepare(loss: Loss, inputs: Inputs, device: str, check_rows: int) -> dict[str, Any]:
    """Errors on a slice, then compilation and warm-up, then the memory of one call."""
    rows = min(check_rows, len(inputs.e))
    accuracy = asdict(check(loss, inputs, rows)) if rows else None
    for _ in range(_WARM_UP if device != "cpu" else 1):
        loss(inputs.e, inputs.c, inputs.target).backward()
        _drop_gradients(inputs)
    gauge = gauge_for(device)
    gauge.start()
    value = loss(inputs.e, inputs.c, inputs.target)
    value.backward()
    answer = {
        "accuracy": accuracy,
        "loss": value.item(),
        "extra_bytes": gauge.extra_bytes(),
        "gradient_bytes": inputs.e.grad.nbytes + inputs.c.grad.nbytes,
    }
    _drop_gradients(inputs)
    return answer


def _recover(inputs: Inputs, device: str) -> None:
    """Free what a failed method left behind; raises if it left the GPU unusable, which ends this process."""
    _drop_gradients(inputs)
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _drop_gradients(inputs: Inputs) -> None:
    inputs.e.grad = inputs.c.grad = None


def _input_sets(inputs: Inputs) -> list[Inputs]:
    """The inputs, and copies of them where one set could stay in the GPU's second-level cache between passes."""
    if not inputs.e.is_cuda:
        return [inputs]
    cache = torch.cuda.get_device_properties(inputs.e.device).L2_cache_size
    needed = 1 + 2 * cache // (inputs.e.nbytes + inputs.c.nbytes)
    return [inputs] + [inputs.copy() for _ in range(max(needed, _INPUT_SETS) - 1 if needed > 1 else 0)]


def _steps(loss: Loss, sets: list[Inputs]) -> Iterator[tuple[Callable[[], Tensor], Callable[[], None]]]:
    for inputs in itertools.cycle(sets):
        yield (
            lambda inputs=inputs: loss(inputs.e, inputs.c, inputs.target),
            lambda inputs=inputs: _drop_gradients(inputs),
        )
