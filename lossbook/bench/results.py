"""What a cross-entropy benchmark measured, as data: a report, its rows, its JSON and its table."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossbook.bench.environment import device_text
from lossbook.bench.files import read_reports_of, slug, write_reports_of
from lossbook.bench.roofline import EXACT_PRODUCTS, filtered_products

if TYPE_CHECKING:
    from rich.table import Table

_RATIOS = ("cpu_seconds", "device_seconds", "peak_extra_bytes")
_MIB = 2**20
_SUFFIX = {"both": "", "forward": "_forward", "backward": "_backward"}
_KIND = "cce"


@dataclass(frozen=True)
class CCERow:
    """One method's figures.

    Times are medians over the repeats of one forward pass, one backward pass, and both together.

    Attributes:
        method: Name, a key of :data:`lossbook.bench.METHODS`.
        not_available: Why the method could not run here; None if it ran. All figures are None if it did not.
        cpu_seconds: CPU seconds of all threads, forward and backward together; None on a GPU.
        cpu_seconds_forward: CPU seconds of the forward pass.
        cpu_seconds_backward: CPU seconds of the backward pass.
        device_seconds: Seconds on the GPU, forward and backward together; None on the CPU.
        device_seconds_forward: Seconds on the GPU in the forward pass.
        device_seconds_backward: Seconds on the GPU in the backward pass.
        spread: Largest minus smallest of the repeats' times, forward and backward together, relative to the median.
        peak_extra_bytes: Largest peak memory beyond what was held before the call, gradients included.
        gradient_bytes: Size of the two gradients, which no method can avoid.
        loss: Mean loss over all rows, in nats; None if it was not recorded.
        loss_error: Relative error of the loss against float64 on a slice of the rows.
        e_gradient_error: Relative Frobenius error of the gradient of the hidden states on that slice.
        c_gradient_error: Relative Frobenius error of the gradient of the classifier on that slice.
        kept: Fractions that the method's gradient filter keeps for the gradients of the hidden states and of the
            classifier; None for a method without a filter.
        floor_seconds: Least seconds for forward and backward at this accuracy, as by ``lossbook.bench.roofline`` with
            the ceiling measured in the same run; None where none was measured.
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
    spread: float | None = None
    peak_extra_bytes: int | None = None
    gradient_bytes: int | None = None
    loss: float | None = None
    loss_error: float | None = None
    e_gradient_error: float | None = None
    c_gradient_error: float | None = None
    kept: tuple[float, float] | None = None
    floor_seconds: float | None = None
    samples: tuple[dict[str, Any], ...] = ()

    @property
    def floor_ratio(self) -> float | None:
        """Time of forward and backward over its floor, at least 1 up to noise; None without either."""
        if self.floor_seconds is None or self.device_seconds is None:
            return None
        return self.device_seconds / self.floor_seconds

    @property
    def error(self) -> float | None:
        """The larger one of the two gradients' relative errors; None if they were not measured."""
        return None if self.e_gradient_error is None else max(self.e_gradient_error, self.c_gradient_error)

    @property
    def seconds(self) -> float | None:
        """Seconds of forward and backward by the clock of the run: the GPU's, or the CPU time of the process."""
        return self.cpu_seconds if self.device_seconds is None else self.device_seconds

    @classmethod
    def from_answer(
        cls,
        method: str,
        answer: dict[str, Any],
        *,
        kept: tuple[float, float] | None = None,
        product_seconds: float | None = None,
    ) -> CCERow:
        """Make the row of a method from its worker's answer.

        Args:
            method: Name of the method.
            answer: ``{"not_available": reason}``, or samples, errors and sizes.
            kept: What the method's filter keeps.
            product_seconds: Seconds that one product of ``2 N V D`` operations takes at the ceiling of the device.

        Returns:
            The row.
        """
        if "not_available" in answer:
            return cls(method, not_available=answer["not_available"])
        samples, accuracy = answer["samples"], answer["accuracy"] or {}
        clock = "cpu" if "cpu" in samples[0] else "device"
        times = [sample[clock] for sample in samples]
        medians = {part: statistics.median(time[part] for time in times) for part in ("both", "forward", "backward")}
        both = [time["both"] for time in times]
        products = EXACT_PRODUCTS if kept is None else filtered_products(*kept)
        return cls(
            method,
            **{f"{clock}_seconds{_SUFFIX[part]}": seconds for part, seconds in medians.items()},
            spread=(max(both) - min(both)) / medians["both"] if medians["both"] else None,
            peak_extra_bytes=max(sample["extra_bytes"] for sample in samples),
            gradient_bytes=answer["gradient_bytes"],
            loss=samples[0]["loss"],
            loss_error=accuracy.get("loss"),
            e_gradient_error=accuracy.get("e_gradient"),
            c_gradient_error=accuracy.get("c_gradient"),
            kept=kept,
            floor_seconds=None if product_seconds is None else products * product_seconds,
            samples=tuple(samples),
        )


@dataclass(frozen=True)
class CCEReport:
    """A side-by-side measurement of the cross-entropy of a linear head.

    Attributes:
        settings: The arguments of the run.
        environment: Versions, processor or GPU, driver, clock, memory gauge and, where measured, the ceiling of matrix
            products in 10^12 operations per second (``matrix_tflops``).
        data: Facts about the inputs: their scale, the fraction of softmax entries of at least 2^-12, and the fractions
            of columns and tiles that reach each threshold.
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
        return slug(self.environment)

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
        return write_reports([self], path)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> CCEReport:
        """Read a report written by :meth:`to_json`.

        Args:
            path: File to read.

        Returns:
            An equal report.

        Raises:
            ValueError: If the file does not hold exactly one such report.
        """
        reports = read_reports(path)
        if len(reports) != 1:
            raise ValueError(f"path must hold one benchmark report, got {len(reports)} in {path}")
        return reports[0]

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> CCEReport:
        """Make a report from what :func:`dataclasses.asdict` made of it.

        Args:
            content: The attributes, as JSON holds them.

        Returns:
            An equal report.

        Raises:
            ValueError: If that is something else.
        """
        try:
            rows = []
            for row in content["rows"]:
                kept = row["kept"] and tuple(row["kept"])
                rows.append(CCERow(**row | {"samples": tuple(row["samples"]), "kept": kept}))
            return cls(**content | {"rows": tuple(rows)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"content must be that of a benchmark report: {error!r}") from error

    def table(self) -> Table:
        """Return the figures as a table to print with rich or to show in a notebook.

        Returns:
            One line for each method; ratios are to ``dense`` where it was measured, the error is the larger one of
            the two gradients' relative errors, memory is the peak without the gradients, and the ratio to the floor is
            shown where a ceiling was measured.
        """
        from rich import box
        from rich.table import Table

        on_cpu = any(row.cpu_seconds for row in self.rows)
        floors = any(row.floor_ratio for row in self.rows)
        missing = [f"{row.method} is not available: {row.not_available}" for row in self.rows if row.not_available]
        table = Table(
            title="N={n} V={vocab} D={dim} {dtype} {data}".format(**self.settings) + self.density_text(", "),
            caption="\n".join([device_text(self.environment), *missing]),
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("method", no_wrap=True)
        headings = ("CPU s" if on_cpu else "ms", "fwd", "bwd", "+-", "x dense", "MiB", "x dense", "error")
        for heading in (*headings, "x floor") if floors else headings:
            table.add_column(heading, justify="right", no_wrap=not heading.startswith("x"))
        for row in self.rows:
            if row.not_available is None:
                table.add_row(row.method, *self._cells(row), *([f"{row.floor_ratio:.3g}"] if floors else []))
        return table

    def useful_tflops(self, row: CCERow) -> float | None:
        """Return the speed at which a method did the operations that its accuracy needs.

        Operations that a method repeats do not count, nor those on what its filter could have left out.

        Args:
            row: One of :attr:`rows`.

        Returns:
            10^12 operations per second, or None if the row or the run has no such figure.
        """
        ceiling = self.environment.get("matrix_tflops")
        return None if ceiling is None or row.floor_ratio is None else ceiling / row.floor_ratio

    def density_text(self, before: str = "") -> str:
        """Return the share of softmax entries that reach 2^-12 as text.

        Args:
            before: Put in front of the text if there is one.

        Returns:
            The sentence, or an empty text if nothing was measured.
        """
        density = self.data.get("entry_density")
        return "" if density is None else f"{before}{density:.3%} of probabilities ≥ 2⁻¹²"

    def _cells(self, row: CCERow) -> tuple[str, ...]:
        clock, factor, digits = ("cpu_seconds", 1.0, 3) if row.device_seconds is None else ("device_seconds", 1e3, 2)
        return (
            *(f"{factor * getattr(row, clock + part):.{digits}f}" for part in ("", "_forward", "_backward")),
            "" if row.spread is None else f"{row.spread:.0%}",
            self.ratio_text(row.method, clock),
            f"{(row.peak_extra_bytes - row.gradient_bytes) / _MIB:.0f}",
            self.ratio_text(row.method, "peak_extra_bytes"),
            "–" if row.error is None else f"{row.error:.0e}",
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


def write_reports(reports: Sequence[CCEReport], path: str | os.PathLike[str]) -> Path:
    """Write reports of one device as one JSON file: a complete file or none, never half of one.

    Args:
        reports: At least one.
        path: File to write; an existing directory means :attr:`CCEReport.file_name` in it.

    Returns:
        The file written.
    """
    return write_reports_of(_KIND, reports, path)


def read_reports(path: str | os.PathLike[str]) -> list[CCEReport]:
    """Read the reports that :func:`write_reports` wrote.

    Args:
        path: File to read.

    Returns:
        Equal reports.

    Raises:
        ValueError: If the file is something else.
    """
    try:
        return [CCEReport.from_dict(report) for report in read_reports_of(_KIND, path)]
    except ValueError as error:
        raise ValueError(f"path must hold a benchmark report, got {path}: {error}") from error
