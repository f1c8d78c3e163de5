"""The short table at the end of a run on a GPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from lossbook.bench.environment import device_text
from lossbook.bench.gpu.results import GPURun
from lossbook.bench.sparse_attention.cases import DECODE_METHODS
from lossbook.bench.sparse_attention.results import SparseAttentionReport

_MIB = 2**20


def summary(run: GPURun) -> RenderableType:
    """Return what a run found, to print with rich.

    Args:
        run: The run.

    Returns:
        Device and versions, one line for each phase, then a table for each side-by-side measurement.
    """
    phases = Table(show_header=False, box=None)
    for name, entry in run.phases.items():
        status = entry["status"] + (f": {entry['reason'].splitlines()[0]}" if entry.get("reason") else "")
        phases.add_row(name, f"{entry['seconds']:.0f} s", status, "; ".join(_LINES[name](entry["records"])))
    return Group(device_text(run.environment), phases, *(report.table() for _, report in run.tables()))


def _device(records: list[dict[str, Any]]) -> Iterator[str]:
    for record in records:
        if "copy_terabytes" in record:
            yield f"{record['copy_terabytes']:.2f} TB/s copied"
        if "matrix_tflops" in record:
            yield f"{record['matrix_tflops']:.3g} TFLOP/s {record['dtype']}"


def _correctness(records: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{sum(record['passed'] for record in records)} of {len(records)} cases passed"
    wrong = [record for record in records if not record["passed"]]
    reasons = {record.get("failure", "error too large") for record in wrong}
    if wrong:
        yield f"not {', '.join(sorted({record['case'] for record in wrong}))} ({'; '.join(sorted(reasons))})"


def _tuning(records: list[dict[str, Any]]) -> Iterator[str]:
    for record in records:
        if "skipped" in record:
            yield f"skipped: {record['skipped']}"
        else:
            yield f"{record['shape']}: {record.get('failure', 'tuned')}"


def _tables(records: list[dict[str, Any]]) -> Iterator[str]:
    complete = sum(record["report"]["data"]["complete"] for record in records)
    yield f"{complete} complete" + (f", {len(records) - complete} begun" if complete < len(records) else "")


def _train(records: list[dict[str, Any]]) -> Iterator[str]:
    for record in records:
        if "not_available" in record:
            yield f"{record['variant']}: {record['not_available']}"
        else:
            seconds = statistics.median(sample["both"] for sample in record["samples"])
            yield f"{record['variant']}: {1e3 * seconds:.1f} ms, {record['extra_bytes'] / _MIB:.0f} MiB"


def _sparse_attention(records: list[dict[str, Any]]) -> Iterator[str]:
    for record in records:
        report = SparseAttentionReport.from_dict(record["report"])
        sparse = [row for row in report.rows if row.parts and DECODE_METHODS[row.method].sparsity]
        ratios = [(ratio, row.method) for row in sparse if (ratio := report.ratio(row)) is not None]
        if ratios:
            ratio, method = min(ratios)
            yield f"{report.shape}: {method} takes {ratio:.2f} of the best dense time"


def _decode(records: list[dict[str, Any]]) -> Iterator[str]:
    for record in records:
        if "not_available" in record:
            yield f"{record['variant']}: {record['not_available']}"
        else:
            yield f"{record['variant']}: {1e3 * statistics.median(record['samples']):.2f} ms a token"


_LINES: dict[str, Callable[[list[dict[str, Any]]], Iterator[str]]] = {
    "device": _device,
    "correctness": _correctness,
    "tuning": _tuning,
    "tables": _tables,
    "train": _train,
    "sparse attention": _sparse_attention,
    "decode": _decode,
}
