"""Collect what :mod:`lossbook.bench.side_by_side` measures into reports, whatever happens to its process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from lossbook.bench.environment import describe
from lossbook.bench.methods import METHODS
from lossbook.bench.restarts import collect
from lossbook.bench.results import CCEReport, CCERow

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

    As by :func:`lossbook.bench.restarts.collect`; a report that is not complete says so among its data.

    Args:
        settings: As for :func:`lossbook.bench.side_by_side.records`, without methods and densities.
        methods: Names of the methods.
        densities: Densities; None for inputs that are not tuned to one.
        timeout: Seconds of wall-clock time for everything.
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
        lambda names, left: settings | {"methods": names, "densities": left},
        lambda lost: _Table(settings, methods, lost),
        methods,
        densities,
        timeout=timeout,
        threads=settings["threads"],
        environment=environment,
        on_method=on_method,
    )


class _Table:
    """What is known about the density being measured."""

    def __init__(self, settings: dict[str, Any], methods: list[str], lost: Mapping[str, str]) -> None:
        self._settings, self._methods, self._lost = settings, methods, lost
        self._environment: dict[str, Any] = {}
        self._ceiling = float("nan")
        self._density: float | None = None
        self._answers: dict[str, dict[str, Any]] = {}
        self.close()

    @property
    def opened(self) -> bool:
        return self.facts is not None

    def close(self) -> None:
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
