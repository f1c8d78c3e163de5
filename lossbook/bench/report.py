"""Turn stored benchmark results into Markdown for the book's benchmarks page."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from lossbook.bench.results import CCEReport, CCERow

_MIB = 2**20
_AWAITING = "Absolute times: awaiting a GPU run. `lossbook bench cce --device cuda --out FILE` writes them."


def markdown_table(json_dir: str | os.PathLike[str]) -> str:
    """Return every stored result as Markdown.

    A CPU's seconds say more about the machine than about the method, so CPU results appear as ratios to the dense
    method only; GPU results appear in milliseconds, with the GPU's name and the versions.

    Args:
        json_dir: Folder of ``<name>-<device>.json`` files written by :meth:`CCEReport.to_json`.

    Returns:
        One table for each file, GPU results first; a sentence that says so where no GPU result is there.

    Raises:
        ValueError: If a file there is not a benchmark report.
    """
    reports = [CCEReport.from_json(path) for path in sorted(Path(json_dir).glob("*.json"))]
    gpu = [report for report in reports if report.device_slug != "cpu"]
    cpu = [report for report in reports if report.device_slug == "cpu"]
    parts = [_gpu_section(report) for report in gpu] or [_AWAITING]
    return "\n\n".join([*parts, *(_cpu_section(report) for report in cpu)]) + "\n"


def _gpu_section(report: CCEReport) -> str:
    environment = report.environment
    conditions = f"{_conditions(report)} {environment['gpu']}, CUDA {environment['cuda']}, {_versions(report)}."
    header = ("method", "forward ms", "backward ms", "both ms", "peak MiB", "x dense", *_ERRORS)

    def cells(row: CCERow) -> Iterable[str]:
        for seconds in (row.device_seconds_forward, row.device_seconds_backward, row.device_seconds):
            yield f"{1e3 * seconds:.3f}"
        yield f"{row.peak_extra_bytes / _MIB:.0f}"
        yield report.ratio_text(row.method, "device_seconds")
        yield from _errors(row)

    return _section(report, conditions, header, cells)


def _cpu_section(report: CCEReport) -> str:
    threads = report.settings["threads"]
    conditions = (
        f"{_conditions(report)} CPU, {threads} thread{'s' if threads > 1 else ''}, {_versions(report)}; "
        "ratios to the dense method, below 1 is better."
    )
    header = ("method", "CPU time", "peak memory", "gradients in peak", *_ERRORS)

    def cells(row: CCERow) -> Iterable[str]:
        yield report.ratio_text(row.method, "cpu_seconds")
        yield report.ratio_text(row.method, "peak_extra_bytes")
        yield f"{row.gradient_bytes / row.peak_extra_bytes:.0%}" if row.peak_extra_bytes else ""
        yield from _errors(row)

    return _section(report, conditions, header, cells)


_ERRORS = ("loss error", "dE error", "dC error")


def _errors(row: CCERow) -> Iterable[str]:
    errors = (row.loss_error, row.e_gradient_error, row.c_gradient_error)
    return ("–" if error is None else f"{error:.1e}" for error in errors)


def _conditions(report: CCEReport) -> str:
    settings = report.settings
    density = report.data["entry_density"]
    data = f"{settings['data']} logits" + ("" if density is None else f", {density:.2%} of probabilities >= 2^-12")
    return "N = {n}, V = {vocab}, D = {dim}, {dtype}, {data}; {date}.".format(
        **settings | {"data": data}, date=report.date
    )


def _versions(report: CCEReport) -> str:
    names = ("torch", "triton", "lossbook")
    return ", ".join(f"{name} {report.environment[name]}" for name in names if report.environment.get(name))


def _section(
    report: CCEReport, conditions: str, header: tuple[str, ...], cells: Callable[[CCERow], Iterable[str]]
) -> str:
    lines = [conditions, "", _line(header), _line(["---", *["---:"] * (len(header) - 1)])]
    for row in report.rows:
        if row.not_available is None:
            lines.append(_line([f"`{row.method}`", *cells(row)]))
        else:
            lines.append(_line([f"`{row.method}`", f"not available: {row.not_available}", *[""] * (len(header) - 2)]))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
