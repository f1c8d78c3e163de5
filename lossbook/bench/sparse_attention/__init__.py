"""Side-by-side measurement of the attention of a decode step, dense and sparse.

Dense attention is this package's own and PyTorch's with each backend forced; sparse attention is Double Sparsity,
whole and stage by stage, and two baselines.  All methods take turns in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from lossbook.bench.environment import describe, require_device
from lossbook.bench.restarts import collect
from lossbook.bench.sparse_attention.cases import DECODE_METHODS, DECODE_SHAPES, DecodeShape
from lossbook.bench.sparse_attention.results import DecodeRow, SparseAttentionReport

_WORKER = "lossbook.bench.sparse_attention.worker"
_DTYPES = ("float32", "bfloat16", "float16")


def sparse_attention_reports(
    shapes: Sequence[str],
    methods: Sequence[str] = tuple(DECODE_METHODS),
    *,
    device: str = "cpu",
    dtype: str = "float32",
    repeats: int = 2,
    seconds: float = 0.3,
    threads: int = 1,
    seed: int = 0,
    timeout: float = 1800.0,
    on_method: Callable[[str], None] | None = None,
) -> Iterator[SparseAttentionReport]:
    """Measure the attention of a decode step by all methods, shape by shape.

    Args:
        shapes: Names from :data:`DECODE_SHAPES`.
        methods: Names from :data:`DECODE_METHODS`. Default: all.
        device: ``"cpu"``, where this package's kernels are those in plain torch and time is the processor time of the
            process; or a CUDA device.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        repeats: Turns of every method; medians are reported.
        seconds: Wall-clock time of one part's turn.
        threads: Threads of the process.
        seed: Seed of queries, keys and values, which are standard normal.
        timeout: Seconds of wall-clock time for everything.
        on_method: Called with a method's name whenever it starts.

    Yields:
        One report for each shape, as soon as it is done.

    Raises:
        ValueError: If an argument is not as above, or ``device`` is not present.
        BenchmarkError: If the process fails or the time is up, after what was measured until then.
    """
    for name, values, allowed in (("shapes", shapes, DECODE_SHAPES), ("methods", methods, DECODE_METHODS)):
        unknown = [value for value in values if value not in allowed]
        if isinstance(values, str) or unknown or not values:
            raise ValueError(f"{name} must be names out of {list(allowed)}, got {unknown or values!r}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {list(_DTYPES)}, got {dtype!r}")
    for name, value in (("repeats", repeats), ("threads", threads)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an int >= 1, got {value!r}")
    require_device(device)
    settings = {
        "device": device,
        "dtype": dtype,
        "impl": "torch" if device == "cpu" else "triton",
        "repeats": repeats,
        "seconds": seconds,
        "threads": threads,
        "seed": seed,
    }
    sizes = {name: DECODE_SHAPES[name] for name in shapes}
    return decode_reports(settings, sizes, list(methods), timeout=timeout, on_method=on_method)


def decode_reports(
    settings: dict[str, Any],
    shapes: Mapping[str, DecodeShape],
    methods: list[str],
    *,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    on_method: Callable[[str], None] | None = None,
) -> Iterator[SparseAttentionReport]:
    """Collect what the worker measures, whatever happens to its process: see :func:`lossbook.bench.restarts.collect`.

    Args:
        settings: As for :func:`lossbook.bench.sparse_attention.worker.records`, without shapes and methods.
        shapes: Sizes by name.
        methods: Names of the methods.
        timeout: Seconds of wall-clock time.
        environment: Further environment variables of the process.
        on_method: Called with a method's name whenever it starts.

    Returns:
        The reports, as they are done.

    Raises:
        OutOfTimeError: When the time is up, after the last report.
        BenchmarkError: If the process fails for a reason that no method is to blame for.
    """
    return collect(
        _WORKER,
        lambda names, left: settings | {"methods": names, "shapes": {name: asdict(shapes[name]) for name in left}},
        lambda lost: _Collector(settings, methods, shapes, lost),
        methods,
        list(shapes),
        timeout=timeout,
        threads=settings["threads"],
        environment=environment,
        on_method=on_method,
    )


class _Collector:
    """What is known about the shape being measured."""

    def __init__(
        self, settings: dict[str, Any], methods: list[str], shapes: Mapping[str, DecodeShape], lost: Mapping[str, str]
    ) -> None:
        self._settings, self._methods, self._shapes, self._lost = settings, methods, shapes, lost
        self._environment: dict[str, Any] = {}
        self._bandwidth = float("nan")
        self._answers: dict[str, dict[str, Any]] = {}
        self.close()

    @property
    def opened(self) -> bool:
        return self.shape is not None

    def close(self) -> None:
        self.shape: str | None = None
        self.begun: str | None = None

    def add(self, record: dict[str, Any]) -> None:
        if "environment" in record:
            self._environment, self._bandwidth = record["environment"], record["bandwidth"]
        elif "begin" in record:
            self.begun = record["begin"]
        elif "samples" in record:
            samples = self._answers[record["method"]]["samples"]
            for part, seconds in record["samples"].items():
                samples.setdefault(part, []).append(seconds)
        elif "answer" in record:
            self._answers[record["method"]] = record["answer"] | {"samples": {}}
        elif "not_available" in record:
            self._answers[record["method"]] = {"not_available": record["not_available"]}
        elif not record.get("done"):
            self.shape, self.begun = record["shape"], None
            self._answers = {name: {"not_available": why} for name, why in self._lost.items()}

    def report(self, *, complete: bool, unmeasured: str = "not measured") -> SparseAttentionReport:
        rows = []
        for name in self._methods:
            answer = self._answers.get(name, {})
            if not answer.get("samples"):
                answer = {"not_available": answer.get("not_available", unmeasured)}
            rows.append(DecodeRow.from_answer(name, answer, self._bandwidth))
        return SparseAttentionReport(
            shape=self.shape,
            settings=self._settings | {"sizes": asdict(self._shapes[self.shape])},
            environment=describe() | self._environment,
            rows=tuple(rows),
            complete=complete,
            date=datetime.now(UTC).date().isoformat(),
        )
