"""What a benchmark of decode attention measured, as data: a report, its rows, its JSON and its table."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossbook.bench.environment import device_text
from lossbook.bench.files import read_reports_of, slug, write_reports_of
from lossbook.bench.sparse_attention.cases import DECODE_METHODS, DecodeShape

if TYPE_CHECKING:
    from rich.table import Table

KIND = "sparse-attention"
STEP = "step"
STAGES = ("append", "scores", "select", "attend")


@dataclass(frozen=True)
class PartTime:
    """Time of a step or of one of its stages.

    Attributes:
        seconds: Median over the repeats; on the CPU processor time.
        spread: Largest minus smallest repeat, relative to the median.
        bytes: What has to be read and written; None where that is not counted.
        floor_seconds: Bytes over the bandwidth measured in the same run.
    """

    seconds: float
    spread: float | None
    bytes: int | None
    floor_seconds: float | None

    @property
    def terabytes(self) -> float | None:
        """Bandwidth achieved, in 10^12 bytes per second."""
        return None if self.bytes is None or not self.seconds else self.bytes / self.seconds / 1e12

    @property
    def floor_ratio(self) -> float | None:
        """Time over the floor."""
        return None if not self.floor_seconds else self.seconds / self.floor_seconds


@dataclass(frozen=True)
class DecodeRow:
    """One method's figures.

    Attributes:
        method: Name, a key of :data:`~lossbook.bench.sparse_attention.cases.DECODE_METHODS`.
        not_available: Why the method could not run here; None if it ran.
        error: Relative Frobenius error against float64 attention over the same tokens, on a sample of heads.
        score_error: The same for the scores; None without scores.
        graphs: Whether the calls were replayed from a CUDA graph; None if some parts were and some not.
        parts: Times of the whole ``"step"`` and of its stages, in order.
        samples: Seconds of the single repeats, by part.
    """

    method: str
    not_available: str | None
    error: float | None
    score_error: float | None
    graphs: bool | None
    parts: Mapping[str, PartTime]
    samples: Mapping[str, Sequence[float]]

    @classmethod
    def from_answer(cls, method: str, answer: Mapping[str, Any], bandwidth: float) -> DecodeRow:
        """Make the row of a method from what its worker said.

        Args:
            method: Name of the method.
            answer: ``{"not_available": reason}``, or errors, bytes and samples.
            bandwidth: Bytes per second that the device copies.

        Returns:
            The row.
        """
        if "not_available" in answer:
            return cls(method, answer["not_available"], None, None, None, {}, {})
        parts = {}
        for name, times in answer["samples"].items():
            median, size = statistics.median(times), answer["bytes"][name]
            spread = (max(times) - min(times)) / median if median else None
            parts[name] = PartTime(median, spread, size, None if size is None else size / bandwidth)
        captured = set(answer["graphs"].values())
        graphs = captured.pop() if len(captured) == 1 else None
        return cls(method, None, answer["error"], answer["score_error"], graphs, parts, answer["samples"])

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DecodeRow:
        """Make a row from what :func:`dataclasses.asdict` made of it.

        Args:
            content: The attributes.

        Returns:
            An equal row.
        """
        return cls(**content | {"parts": {name: PartTime(**part) for name, part in content["parts"].items()}})


@dataclass(frozen=True)
class SparseAttentionReport:
    """A side-by-side measurement of the attention of one decode step.

    Attributes:
        shape: Name of the shape.
        settings: The arguments of the run, with the sizes of the shape.
        environment: Versions, processor or GPU, driver, clock and the copy bandwidth in 10^12 bytes per second
            (``copy_terabytes``).
        rows: One row for each method, in the order asked for.
        complete: False if the time ran out before the last measurement.
        date: Day of the run, ISO 8601, UTC.
    """

    shape: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    rows: tuple[DecodeRow, ...]
    complete: bool
    date: str

    @property
    def sizes(self) -> DecodeShape:
        """The sizes of the shape."""
        return DecodeShape(**self.settings["sizes"])

    @property
    def on_cpu(self) -> bool:
        """Whether the figures are those of a CPU."""
        return slug(self.environment) == "cpu"

    def best_dense(self) -> DecodeRow | None:
        """Return the fastest dense method.

        Returns:
            Its row, or None if none ran.
        """
        dense = [row for row in self.rows if row.parts and DECODE_METHODS[row.method].dense]
        return min(dense, key=lambda row: row.parts[STEP].seconds, default=None)

    def ratio(self, row: DecodeRow) -> float | None:
        """Return the time of a method over that of the fastest dense one.

        Args:
            row: One of :attr:`rows`.

        Returns:
            The ratio, below 1 for a faster method; None without a time to divide by.
        """
        best = self.best_dense()
        if best is None or not row.parts or not best.parts[STEP].seconds:
            return None
        return row.parts[STEP].seconds / best.parts[STEP].seconds

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> SparseAttentionReport:
        """Make a report from what :func:`dataclasses.asdict` made of it.

        Args:
            content: The attributes, as JSON holds them.

        Returns:
            An equal report.

        Raises:
            ValueError: If that is something else.
        """
        try:
            return cls(**content | {"rows": tuple(DecodeRow.from_dict(row) for row in content["rows"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"content must be that of a benchmark report: {error!r}") from error

    def table(self) -> Table:
        """Return the figures as a table to print with rich.

        Returns:
            One line for each method, stages in milliseconds.
        """
        from rich import box
        from rich.table import Table

        missing = [f"{row.method} is not available: {row.not_available}" for row in self.rows if row.not_available]
        sizes = "B={batch} Hq={query_heads} Hkv={key_heads} S={tokens} D={features}".format(**self.settings["sizes"])
        table = Table(
            title=f"{self.shape}: {sizes} {self.settings['dtype']}",
            caption="\n".join([device_text(self.environment), *missing]),
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("method", no_wrap=True)
        for heading in ("ms", "+-", "x dense", "TB/s", "x floor", "error", *STAGES):
            table.add_column(heading, justify="right", no_wrap=not heading.startswith("x"))
        for row in self.rows:
            if row.parts:
                table.add_row(row.method, *self._cells(row))
        return table

    def _cells(self, row: DecodeRow) -> tuple[str, ...]:
        step = row.parts[STEP]
        return (
            f"{1e3 * step.seconds:.3f}",
            text(step.spread, ".0%"),
            text(self.ratio(row), ".2f"),
            text(step.terabytes, ".2f"),
            text(step.floor_ratio, ".2f"),
            text(row.error, ".0e"),
            *(f"{1e3 * row.parts[stage].seconds:.3f}" if stage in row.parts else "" for stage in STAGES),
        )


def text(value: float | None, form: str) -> str:
    """Return a figure as text.

    Args:
        value: The figure, or None.
        form: How to format it.

    Returns:
        The text; a dash for None.
    """
    return "–" if value is None else format(value, form)


def write_sparse_reports(reports: Sequence[SparseAttentionReport], path: str | os.PathLike[str]) -> Path:
    """Write reports of one device as one JSON file.

    Args:
        reports: At least one.
        path: File to write; an existing directory means ``sparse-attention-<device>.json`` in it.

    Returns:
        The file written.
    """
    return write_reports_of(KIND, reports, path)


def read_sparse_reports(path: str | os.PathLike[str]) -> list[SparseAttentionReport]:
    """Read the reports that :func:`write_sparse_reports` wrote.

    Args:
        path: File to read.

    Returns:
        Equal reports.

    Raises:
        ValueError: If the file is something else.
    """
    return [SparseAttentionReport.from_dict(report) for report in read_reports_of(KIND, path)]
