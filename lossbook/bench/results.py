"""What a cross-entropy benchmark measured, as data: a report, its rows, its JSON and its table."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_RATIOS = ("cpu_seconds", "device_seconds", "peak_extra_bytes")
_MIB = 2**20


@dataclass(frozen=True)
class CCERow:
    """One method's figures.

    Times are medians over the repeats of one forward pass, one backward pass, and both together.

    Attributes:
        method: Name, a key of :data:`lossbook.bench.METHODS`.
        not_available: Why the method could not run here; None if it ran. All figures are None if it did not.
        cpu_seconds: CPU seconds of all threads, forward and backward together.
        cpu_seconds_forward: CPU seconds of the forward pass.
        cpu_seconds_backward: CPU seconds of the backward pass.
        device_seconds: Seconds on the GPU, forward and backward together; None on the CPU.
        device_seconds_forward: Seconds on the GPU in the forward pass.
        device_seconds_backward: Seconds on the GPU in the backward pass.
        peak_extra_bytes: Largest peak memory beyond what was held before the call, gradients included.
        gradient_bytes: Size of the two gradients, which no method can avoid.
        loss: Mean loss over all rows, in nats.
        loss_error: Relative error of the loss against float64 on a slice of the rows.
        e_gradient_error: Relative Frobenius error of the gradient of the hidden states on that slice.
        c_gradient_error: Relative Frobenius error of the gradient of the classifier on that slice.
        samples: The single repeats, as measured.
    """

    method: str
    not_available: str | None = None
    cpu_seconds: float | None = None
    cpu_seconds_forward: float | None = None
    cpu_seconds_backward: float | None = None
    device_seconds: float | None = None
    device_seconds_forward: float | None = None
    device_seconds_backward: float | None = None
    peak_extra_bytes: int | None = None
    gradient_bytes: int | None = None
    loss: float | None = None
    loss_error: float | None = None
    e_gradient_error: float | None = None
    c_gradient_error: float | None = None
    samples: tuple[dict[str, Any], ...] = ()

    @classmethod
    def from_answer(cls, method: str, answer: dict[str, Any]) -> CCERow:
        """Make the row of a method from its worker's answer.

        Args:
            method: Name of the method.
            answer: What :func:`lossbook.bench.process.run_worker` returned.

        Returns:
            The row.
        """
        if "not_available" in answer:
            return cls(method, not_available=answer["not_available"])
        samples, accuracy = answer["samples"], answer["accuracy"] or {}
        figures: dict[str, float] = {}
        for clock, name in (("cpu", "cpu_seconds"), ("device", "device_seconds")):
            if samples[0][clock] is not None:
                figures[name] = statistics.median(sum(sample[clock]) for sample in samples)
                figures[f"{name}_forward"] = statistics.median(sample[clock][0] for sample in samples)
                figures[f"{name}_backward"] = statistics.median(sample[clock][1] for sample in samples)
        return cls(
            method,
            **figures,
            peak_extra_bytes=max(sample["extra_bytes"] for sample in samples),
            gradient_bytes=answer["gradient_bytes"],
            loss=samples[0]["loss"],
            loss_error=accuracy.get("loss"),
            e_gradient_error=accuracy.get("e_gradient"),
            c_gradient_error=accuracy.get("c_gradient"),
            samples=tuple(samples),
        )


@dataclass(frozen=True)
class CCEReport:
    """A side-by-side measurement of the cross-entropy of a linear head.

    Attributes:
        settings: The arguments of the run.
        environment: Versions, processor or GPU, clock and memory gauge.
        data: Facts about the inputs: their scale and the fraction of softmax entries of at least 2^-12.
        rows: One :class:`CCERow` for each method, in the order asked for.
        date: Day of the run, ISO 8601, UTC.
        name: Name of the benchmark.
    """

    settings: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    rows: tuple[CCERow, ...]
    date: str
    name: str = field(default="cce")

    def row(self, method: str) -> CCERow:
        """Return the row of a method.

        Args:
            method: Name of the method.

        Returns:
            Its row.

        Raises:
            ValueError: If the method was not part of this run.
        """
        for row in self.rows:
            if row.method == method:
                return row
        raise ValueError(f"method must be one of {[row.method for row in self.rows]}, got {method!r}")

    def ratio(self, method: str, *, to: str = "dense", what: str = "cpu_seconds") -> float:
        """Return how many times as much of something a method needed as another one did.

        Args:
            method: Method in the numerator.
            to: Method in the denominator.
            what: ``"cpu_seconds"``, ``"device_seconds"`` or ``"peak_extra_bytes"``.

        Returns:
            The ratio; below 1 the method needed less.

        Raises:
            ValueError: If a name is unknown, or one of the two methods has no such figure.
        """
        if what not in _RATIOS:
            raise ValueError(f"what must be one of {list(_RATIOS)}, got {what!r}")
        values = []
        for name in (method, to):
            row = self.row(name)
            if getattr(row, what) is None:
                raise ValueError(f"{name} has no {what}: {row.not_available or 'not measured on this device'}")
            values.append(getattr(row, what))
        if values[1] == 0:
            raise ValueError(f"{to} has {what} = 0, too small to measure; take larger sizes")
        return values[0] / values[1]

    @property
    def device_slug(self) -> str:
        """``"cpu"``, or the GPU's name in a form fit for a file name."""
        gpu = self.environment.get("gpu")
        return "cpu" if gpu is None else "-".join(gpu.lower().replace("/", " ").split())

    @property
    def file_name(self) -> str:
        """Name under which the book keeps this result: ``<name>-<device>.json``."""
        return f"{self.name}-{self.device_slug}.json"

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as JSON: a complete file or none, never half of one.

        Args:
            path: File to write; an existing directory means :attr:`file_name` in it.

        Returns:
            The file written.
        """
        path = Path(path)
        if path.is_dir():
            path /= self.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> CCEReport:
        """Read a report written by :meth:`to_json`.

        Args:
            path: File to read.

        Returns:
            An equal report.

        Raises:
            ValueError: If the file is not such a report.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = tuple(CCERow(**row | {"samples": tuple(row["samples"])}) for row in content.pop("rows"))
            return cls(rows=rows, **content)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"path must hold a benchmark report, got {path}: {error}") from error

    def table(self) -> Table:
        """Return the figures as a table to print with rich or to show in a notebook.

        Returns:
            One line for each method; ratios are to ``dense`` where it was measured, the error is the larger one of
            the two gradients' relative errors.
        """
        from rich import box
        from rich.table import Table

        on_gpu = self.device_slug != "cpu"
        clock, unit, factor = ("device_seconds", "GPU ms", 1e3) if on_gpu else ("cpu_seconds", "CPU s", 1.0)
        environment = self.environment
        missing = [f"{row.method} is not available: {row.not_available}" for row in self.rows if row.not_available]
        facts = f"{environment.get('device_name')}, torch {environment.get('torch')}"
        table = Table(
            title="N={n} V={vocab} D={dim} {dtype} {data}, {threads} thread(s)".format(**self.settings),
            caption="\n".join([facts, *missing]),
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("method", no_wrap=True)
        for heading in (unit, "fwd", "bwd", "x dense", "peak MiB", "x dense", "loss", "error"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            if row.not_available is None:
                table.add_row(row.method, *self._cells(row, clock, factor))
        return table

    def _cells(self, row: CCERow, clock: str, factor: float) -> tuple[str, ...]:
        return (
            *(f"{factor * getattr(row, clock + part):.3f}" for part in ("", "_forward", "_backward")),
            self.ratio_text(row.method, clock),
            f"{row.peak_extra_bytes / _MIB:.0f}",
            self.ratio_text(row.method, "peak_extra_bytes"),
            f"{row.loss:.5f}",
            "–" if row.e_gradient_error is None else f"{max(row.e_gradient_error, row.c_gradient_error):.0e}",
        )

    def ratio_text(self, method: str, what: str) -> str:
        """Return :meth:`ratio` to ``dense`` as text.

        Args:
            method: Method in the numerator.
            what: As in :meth:`ratio`.

        Returns:
            Two decimals, or an empty text where there is no such ratio.
        """
        try:
            return f"{self.ratio(method, what=what):.2f}"
        except ValueError:
            return ""
