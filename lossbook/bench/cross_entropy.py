"""Compare ways to compute the cross-entropy of a linear head, each in its own process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from lossbook.bench.environment import describe, require_device
from lossbook.bench.methods import METHODS
from lossbook.bench.process import Nursery, run_worker
from lossbook.bench.results import CCEReport, CCERow

DTYPES = ("float32", "bfloat16", "float16", "float64")
DATA = ("gaussian", "peaked")
_WORKER = "lossbook.bench.worker"


def cce(
    n: int = 2048,
    vocab: int = 49152,
    dim: int = 576,
    dtype: str = "float32",
    methods: Sequence[str] = ("dense", "two_pass", "grad_in_forward", "torch_chunked"),
    *,
    repeats: int = 1,
    threads: int = 1,
    device: str = "cpu",
    seed: int = 0,
    data: str = "gaussian",
    check_rows: int = 128,
    timeout: float = 1800.0,
    on_method: Callable[[str], None] | None = None,
) -> CCEReport:
    """Measure time, memory and error of the mean cross-entropy of a linear head, method by method.

    Each method gets a new Python process, the same seeded inputs, one small warm-up call and then ``repeats`` forward
    and backward passes.  Time is the CPU time of the process (on a GPU also the time between CUDA events); memory is
    the peak beyond what was resident before the call, so it contains the two gradients.  Errors come from a float64
    computation on the first ``check_rows`` rows, after the measurement.

    Args:
        n: Number of tokens N.
        vocab: Vocabulary size V.
        dim: Width D of the hidden states.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"float64"``.
        methods: Names from :data:`lossbook.bench.METHODS`.  The default is what chapter 17 compares.
        repeats: Forward and backward passes to time; medians are reported.
        threads: Threads each worker may use.
        device: ``"cpu"`` or a CUDA device such as ``"cuda"``.
        seed: Seed of the inputs.
        data: ``"gaussian"`` (nearly flat softmax) or ``"peaked"`` (Zipf targets, mean loss tuned to 2.5 nats, about as
            sparse as a small language model).
        check_rows: Rows of the slice on which errors are computed. The default is one block of the gradient filter;
            0 computes none.
        timeout: Seconds of wall-clock time one worker may take.
        on_method: Called with the name of each method before it starts, to show progress.

    Returns:
        The report; a method that cannot run here has a row that says why.

    Raises:
        ValueError: If an argument is not as above, or ``device`` is not present.
        BenchmarkError: If a worker fails; the message ends with the worker's own.

    Examples:
        >>> report = cce(n=64, vocab=512, dim=16, methods=["dense"])
        >>> report.ratio("dense")
        1.0
    """
    counts = {"n": n, "vocab": vocab, "dim": dim, "repeats": repeats, "threads": threads}
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an int >= 1, got {value!r}")
    if not isinstance(check_rows, int) or isinstance(check_rows, bool) or check_rows < 0:
        raise ValueError(f"check_rows must be an int >= 0, got {check_rows!r}")
    for name, value, allowed in (("dtype", dtype, DTYPES), ("data", data, DATA)):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")
    _check_methods(methods)
    require_device(device)

    settings = counts | {"check_rows": check_rows, "dtype": dtype, "device": device, "seed": seed, "data": data}
    rows, answers, scale = [], [], None
    with _workers(device, threads, timeout) as measure:
        for method in methods:
            if on_method is not None:
                on_method(method)
            answer = measure(settings | {"method": method, "scale": scale})
            rows.append(CCERow.from_answer(method, answer))
            if "not_available" not in answer:
                answers.append(answer)
                scale = answer["scale"]  # found once: the workers after the first need not search for it again
    return CCEReport(
        settings=settings,
        environment=describe() | _environment(answers),
        data={"scale": scale, "entry_density": answers[0]["accuracy"]["density"] if answers and check_rows else None},
        rows=tuple(rows),
        date=datetime.now(UTC).date().isoformat(),
    )


@contextmanager
def _workers(device: str, threads: int, timeout: float) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """A function that measures a method in a process of its own."""
    if device == "cpu" and sys.platform == "linux":
        with Nursery(_WORKER, threads=threads) as nursery:
            yield partial(nursery.run, timeout=timeout)
    else:
        yield partial(run_worker, _WORKER, threads=threads, timeout=timeout)


def _check_methods(methods: Sequence[str]) -> None:
    if isinstance(methods, str):
        raise ValueError(f"methods must be a sequence of names, got the string {methods!r}")
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ValueError(f"methods must be names out of {list(METHODS)}, got {unknown or list(methods)}")
    if len(set(methods)) < len(methods):
        raise ValueError(f"methods must not repeat a name, got {list(methods)}")


def _environment(answers: list[dict[str, Any]]) -> dict[str, Any]:
    if not answers:
        return {}
    facts = answers[0]["environment"] | {"clock": answers[0]["clock"], "memory": answers[0]["memory"]}
    return facts | {"device_name": facts["gpu"]} if "gpu" in facts else facts
