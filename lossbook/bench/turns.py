"""Collect what :mod:`lossbook.bench.side_by_side` measures into reports, whatever happens to its process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from lossbook.bench.environment import describe
from lossbook.bench.methods import METHODS
from lossbook.bench.process import BenchmarkError, OutOfTimeError
from lossbook.bench.results import CCEReport, CCERow
from lossbook.bench.stream import stream

_WORKER = "lossbook.bench.side_by_side"


def reports_in_turns(
    settings: dict[str, Any],
    methods: list[str],
    densities: list[float | None],
    *,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    on_method: Callable[[str], None] | None = None,
) -> Iterator[CCEReport]:
    """Measure the methods in turns in one process, one report for each density.

    A method that ends the process gets a row with the reason, and the others start again without it.  When the time is
    up, a last report with ``complete`` false among its data holds what was measured until then.

    Args:
        settings: As for :func:`lossbook.bench.side_by_side.records`, without methods and densities.
        methods: Names of the methods.
        densities: Densities; None for inputs that are not tuned to one.
        timeout: Seconds of wall-clock time for everything.
        environment: Further environment variables of the process.
        on_method: Called with a method's name whenever it starts.

    Yields:
        The reports, as they are done.

    Raises:
        OutOfTimeError: When the time is up, after the last report.
        BenchmarkError: If the process fails for a reason that no method is to blame for.
    """
    deadline = time.monotonic() + timeout
    lost: dict[str, str] = {}
    left = list(densities)
    while left:
        table = _Table(settings, methods, dict(lost))
        spec = settings | {"methods": [name for name in methods if name not in lost], "densities": left}
        try:
            for record in stream(
                _WORKER,
                spec,
                timeout=deadline - time.monotonic(),
                threads=settings["threads"],
                environment=environment,
            ):
                table.add(record)
                if "begin" in record and on_method is not None:
                    on_method(record["begin"])
                if record.get("done"):
                    left = left[1:]
                    yield table.report(complete=True)
                    table.facts = table.begun = None
        except OutOfTimeError as error:
            if table.facts is not None:
                yield table.report(complete=False, unmeasured=f"not measured: {error}")
            raise
        except BenchmarkError as error:
            if table.begun is None:
                raise
            lost[table.begun] = str(error).splitlines()[0]


class _Table:
    """What is known about the density being measured."""

    def __init__(self, settings: dict[str, Any], methods: list[str], lost: dict[str, str]) -> None:
        self._settings, self._methods, self._lost = settings, methods, lost
        self._environment: dict[str, Any] = {}
        self._ceiling = float("nan")
        self._density: float | None = None
        self._answers: dict[str, dict[str, Any]] = {}
        self.facts: dict[str, Any] | None = None
        self.begun: str | None = None

    def add(self, record: dict[str, Any]) -> None:
        if "environment" in record:
            self._environment = record["environment"] | {"matrix_tflops": record["ceiling"] / 1e12}
            self._ceiling = record["ceiling"]
        elif "facts" in record:
            self._density, self.facts, self.begun = record["density"], record["facts"], None
            self._answers = {name: {"not_available": why} for name, why in self._lost.items()}
        elif "begin" in record:
            self.begun = record["begin"]
        elif "sample" in record:
            answer = self._answers[record["method"]]
            shared = {"loss": answer["loss"], "extra_bytes": answer["extra_bytes"]}
            answer["samples"].append(record["sample"] | shared)
        elif "method" in record:
            answer = record.get("answer")
            outcome = {"not_available": record["not_available"]} if answer is None else answer | {"samples": []}
            self._answers[record["method"]] = outcome

    def report(self, *, complete: bool, unmeasured: str = "not measured") -> CCEReport:
        sizes = self._settings
        product_seconds = 2 * sizes["n"] * sizes["vocab"] * sizes["dim"] / self._ceiling
        rows = []
        for name in self._methods:
            answer = self._answers.get(name, {})
            if not answer.get("samples"):
                answer = {"not_available": answer.get("not_available", unmeasured)}
            which = METHODS[name].filter
            kept = which and which.kept(self.facts)
            rows.append(CCERow.from_answer(name, answer, kept=kept, product_seconds=product_seconds))
        return CCEReport(
            settings=self._settings | {"density": self._density},
            environment=describe() | self._environment,
            data=self.facts | {"complete": complete},
            rows=tuple(rows),
            date=datetime.now(UTC).date().isoformat(),
        )
