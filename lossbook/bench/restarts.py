"""Reports from a process that is started again without the method that ended it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from lossbook.bench.process import BenchmarkError, OutOfTimeError
from lossbook.bench.stream import stream

Report = TypeVar("Report", covariant=True)
Case = TypeVar("Case")


class Collector(Protocol[Report]):
    """What is known about the case being measured.

    Attributes:
        begun: Method being measured, to be blamed if the process ends; None between methods.
        opened: Whether the case has begun, so that there is something to report.
    """

    begun: str | None

    @property
    def opened(self) -> bool:
        """Whether a case has begun."""

    def add(self, record: dict[str, Any]) -> None:
        """Take note of a record."""

    def report(self, *, complete: bool, unmeasured: str = "not measured") -> Report:
        """What is known; ``unmeasured`` is the reason of methods without figures."""

    def close(self) -> None:
        """The case is done."""


def collect(
    worker: str,
    spec: Callable[[Sequence[str], Sequence[Case]], Mapping[str, Any]],
    collector: Callable[[Mapping[str, str]], Collector[Report]],
    methods: Sequence[str],
    cases: Sequence[Case],
    *,
    timeout: float,
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
    on_method: Callable[[str], None] | None = None,
) -> Iterator[Report]:
    """Measure methods in turns in one process, one report for each case.

    A method that ends the process gets a row with the reason, and the case starts again without it.  When the time is
    up, a last report that is not complete holds what was measured until then.

    Args:
        worker: Module with a function ``records``. A record with ``begin`` names the method that starts, one with
            ``done`` ends a case; the collector makes sense of the others.
        spec: From methods and cases, the argument of ``records``.
        collector: Makes a collector, from the methods that have ended a process and the reasons.
        methods: Names of the methods.
        cases: What there is to measure, in the order in which the worker does.
        timeout: Seconds of wall-clock time for everything.
        threads: Threads of the process.
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
    left = list(cases)
    while left:
        table = collector(dict(lost))
        request = spec([name for name in methods if name not in lost], left)
        seconds = deadline - time.monotonic()
        try:
            for record in stream(worker, request, timeout=seconds, threads=threads, environment=environment):
                table.add(record)
                if "begin" in record and on_method is not None:
                    on_method(record["begin"])
                if record.get("done"):
                    left = left[1:]
                    yield table.report(complete=True)
                    table.close()
        except OutOfTimeError as error:
            if table.opened:
                yield table.report(complete=False, unmeasured=f"not measured: {error}")
            raise
        except BenchmarkError as error:
            if table.begun is None:
                raise
            lost[table.begun] = str(error).splitlines()[0]
