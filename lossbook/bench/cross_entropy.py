"""Compare ways to compute the cross-entropy of a linear head."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from lossbook.bench.environment import describe, require_device
from lossbook.bench.methods import METHODS
from lossbook.bench.process import BenchmarkError, Nursery, OutOfTimeError, run_worker
from lossbook.bench.results import CCEReport, CCERow
from lossbook.bench.roofline import ITEM_BYTES
from lossbook.bench.turns import reports_in_turns

DTYPES = tuple(ITEM_BYTES)
DATA = ("gaussian", "peaked")
#: Fractions of softmax entries of at least 2^-12 at which the benchmarks compare: a large language model on its own
#: kind of text, one on harder text, and a small model.
DENSITIES = (0.0002, 0.001, 0.004)
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
    density: float | None = None,
    check_rows: int = 128,
    seconds: float = 1.0,
    timeout: float = 1800.0,
    on_method: Callable[[str], None] | None = None,
) -> CCEReport:
    """Measure time, memory and error of the mean cross-entropy of a linear head, method by method.

    All methods get the same seeded inputs.  On the CPU each runs in a new Python process: one small warm-up call, then
    ``repeats`` forward and backward passes, timed by the CPU time of the process.  On a GPU all run in one process, in
    turns, ``repeats`` times for ``seconds`` each, timed by CUDA events; medians are taken within a turn, and the
    ceiling of matrix products is measured first.  Memory is the peak beyond what was held before the call, so it
    contains the two gradients.  Errors come from a float64 computation on the first ``check_rows`` rows.

    Args:
        n: Number of tokens N.
        vocab: Vocabulary size V.
        dim: Width D of the hidden states.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"float64"``.
        methods: Names from :data:`lossbook.bench.METHODS`.  The default is what chapter 17 compares.
        repeats: On the CPU passes, on a GPU turns; medians are reported.
        threads: Threads each worker may use.
        device: ``"cpu"`` or a CUDA device such as ``"cuda"``, where this package's methods take ``impl="triton"``.
        seed: Seed of the inputs.
        data: ``"gaussian"`` (nearly flat softmax) or ``"peaked"`` (Zipf targets, as sparse as a language model).
        density: Fraction of the softmax entries of peaked inputs that shall reach 2^-12; it is met within a fifth.
            Default None: the mean loss is tuned to 2.5 nats instead.
        check_rows: Rows of the slice on which errors are computed. The default is one block of the gradient filter;
            0 computes none.
        seconds: Wall-clock time of one method's turn on a GPU.
        timeout: Seconds of wall-clock time one worker may take.
        on_method: Called with the name of each method before it starts, to show progress.

    Returns:
        The report; a method that cannot run here, or fails, has a row that says why.

    Raises:
        ValueError: If an argument is not as above, a density cannot be reached, or ``device`` is not present.
        BenchmarkError: If a worker takes too long, or no method could be measured; the message ends with the reason.

    Examples:
        >>> report = cce(n=64, vocab=512, dim=16, methods=["dense"])
        >>> report.ratio("dense")
        1.0
    """
    return next(
        cce_reports(
            n,
            vocab,
            dim,
            dtype,
            methods,
            densities=[density],
            repeats=repeats,
            threads=threads,
            device=device,
            seed=seed,
            data=data,
            check_rows=check_rows,
            seconds=seconds,
            timeout=timeout,
            on_method=on_method,
        )
    )


def cce_reports(
    n: int,
    vocab: int,
    dim: int,
    dtype: str,
    methods: Sequence[str],
    *,
    densities: Sequence[float | None],
    repeats: int,
    threads: int,
    device: str,
    seed: int,
    data: str,
    check_rows: int,
    seconds: float,
    timeout: float,
    on_method: Callable[[str], None] | None = None,
) -> Iterator[CCEReport]:
    """Measure as :func:`cce` does, at several densities.

    Args:
        n: As for :func:`cce`, like everything not mentioned here.
        vocab: See there.
        dim: See there.
        dtype: See there.
        methods: See there.
        densities: One or more densities.
        repeats: See there.
        threads: See there.
        device: See there.
        seed: See there.
        data: See there.
        check_rows: See there.
        seconds: See there.
        timeout: See there.
        on_method: See there.

    Yields:
        One report for each density, as soon as it is done.

    Raises:
        ValueError: As for :func:`cce`.
        BenchmarkError: As for :func:`cce`.
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
    check_methods(methods)
    check_densities(densities, data)
    require_device(device)

    settings = counts | {"check_rows": check_rows, "dtype": dtype, "device": device, "seed": seed, "data": data}
    if device == "cpu":
        reports = _reports_in_processes(settings, methods, densities, timeout, on_method)
    else:
        settings |= {"impl": "triton", "seconds": seconds}
        reports = reports_in_turns(settings, list(methods), list(densities), timeout=timeout, on_method=on_method)
    for report in reports:
        if all(row.not_available for row in report.rows):
            raise BenchmarkError(f"no method could be measured; {methods[0]}: {report.rows[0].not_available}")
        yield report


def _reports_in_processes(
    settings: dict[str, Any],
    methods: Sequence[str],
    densities: Sequence[float | None],
    timeout: float,
    on_method: Callable[[str], None] | None,
) -> Iterator[CCEReport]:
    spec = settings | {"methods": list(methods)}
    with _workers(settings["threads"], timeout) as measure:
        for density in densities:
            inputs, facts = {"density": density, "scale": None}, {}
            if settings["check_rows"] or settings["data"] != "gaussian":
                facts = measure(spec | inputs | {"method": None})
                if "unreachable" in facts:
                    raise ValueError(facts["unreachable"])
                inputs["scale"] = facts["scale"]  # found once: the methods' workers need not search for it again
            rows, environment = [], {}
            for method in methods:
                if on_method is not None:
                    on_method(method)
                answer = _answer(measure, spec | inputs | {"method": method})
                which = METHODS[method].filter
                rows.append(CCERow.from_answer(method, answer, kept=which and which.kept(facts)))
                environment |= answer.get("environment", {})
            yield CCEReport(
                settings=settings | {"density": density},
                environment=describe() | environment,
                data=facts,
                rows=tuple(rows),
                date=datetime.now(UTC).date().isoformat(),
            )


def _answer(measure: Callable[[dict[str, Any]], dict[str, Any]], spec: dict[str, Any]) -> dict[str, Any]:
    """What a worker says of a method; if it was killed, that."""
    try:
        return measure(spec)
    except OutOfTimeError:
        raise
    except BenchmarkError as error:
        return {"not_available": str(error).splitlines()[0]}


@contextmanager
def _workers(threads: int, timeout: float) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """A function that measures a method in a process of its own."""
    if sys.platform == "linux":
        with Nursery(_WORKER, threads=threads) as nursery:
            yield partial(nursery.run, timeout=timeout)
    else:
        yield partial(run_worker, _WORKER, threads=threads, timeout=timeout)


def check_methods(methods: Sequence[str]) -> None:
    """Require names of methods, each once.

    Args:
        methods: The names.

    Raises:
        ValueError: If they are something else.
    """
    if isinstance(methods, str):
        raise ValueError(f"methods must be a sequence of names, got the string {methods!r}")
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ValueError(f"methods must be names out of {list(METHODS)}, got {unknown or list(methods)}")
    if len(set(methods)) < len(methods):
        raise ValueError(f"methods must not repeat a name, got {list(methods)}")


def check_densities(densities: Sequence[float | None], data: str) -> None:
    """Require fractions, and peaked data to tune.

    Args:
        densities: The densities; None for inputs not tuned to one.
        data: Kind of the inputs.

    Raises:
        ValueError: If a density is not a fraction, or the data cannot be tuned.
    """
    if not densities:
        raise ValueError("densities must have at least one entry, got none")
    for density in densities:
        if density is None:
            continue
        if not (isinstance(density, int | float) and 0 < density < 1):
            raise ValueError(f"density must be a fraction in (0, 1), got {density!r}")
        if data != "peaked":
            raise ValueError(f"density must be None for data {data!r}, got {density}")
