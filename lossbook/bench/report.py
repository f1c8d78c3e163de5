"""Turn stored benchmark results into Markdown for the book's benchmarks page."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lossbook.bench.environment import PACKAGES, device_text
from lossbook.bench.files import read_json
from lossbook.bench.gpu.results import GPURun
from lossbook.bench.results import CCEReport, CCERow, read_reports
from lossbook.bench.roofline import H200_TERABYTES, H200_TFLOPS, roofline
from lossbook.bench.shapes import SHAPES

_MIB = 2**20
_AWAITING = (
    "Absolute times: awaiting a GPU run. `lossbook bench gpu --budget 1500 --out book/results/gpu.json` records one."
)
_KEPT = (0.1, 0.25, 0.4)  # fractions at which the table of floors shows a filter
_ELSEWHERE = ("sparse-attention", "compiled")  # shown in tables of their own
_ACCURACY = ("dE error", "dC error", "kept dE, dC")


def markdown_table(json_dir: str | os.PathLike[str]) -> str:
    """Return every stored result as Markdown.

    A CPU's seconds say more about the machine than about the method, so CPU results appear as ratios to the dense
    method only; GPU results appear in milliseconds, with the GPU's name and the versions.

    Args:
        json_dir: Folder of files written by ``lossbook bench cce`` or ``lossbook bench gpu``.

    Returns:
        GPU results first, then CPU results, one table for each side-by-side measurement; a sentence that says so
        where no GPU result is there.

    Raises:
        ValueError: If a file there is not a benchmark report, or comes from a trial of ``lossbook bench gpu`` on a CPU.
    """
    gpu, cpu = [], []
    for path in sorted(Path(json_dir).glob("*.json")):
        content = read_json(path)
        kind = content.get("benchmark") if isinstance(content, dict) else None
        if kind == "gpu":
            gpu.append(_gpu_run(GPURun.load(path)))
        elif kind not in _ELSEWHERE:
            for report in read_reports(path):
                if report.device_slug == "cpu":
                    cpu.append(_cpu_section(report))
                else:
                    gpu.append(_gpu_section(report))
    return "\n\n".join([*(gpu or [_AWAITING]), *cpu]) + "\n"


def floors_table() -> str:
    """Return the floors of :func:`lossbook.bench.roofline` for every named shape as Markdown.

    Returns:
        A table in milliseconds at the ceiling of one H200 in bfloat16, with the sizes of gradients and logits.
    """
    header = (
        "head", "N", "V", "D", "forward", "exact", "two passes", *(f"f = {f:g}" for f in _KEPT), "gradients MiB",
        "logits MiB",
    )  # fmt: skip
    lines = [
        f"At {H200_TFLOPS:g} TFLOP/s in bfloat16 and {H200_TERABYTES:g} TB/s, one NVIDIA H200, in milliseconds.",
        "",
        *head(header),
    ]
    for name, shape in SHAPES.items():
        sizes = (shape.rows, shape.vocab, shape.features)
        floors = roofline(*sizes)
        filtered = [roofline(*sizes, f=f).filtered for f in _KEPT]
        seconds = (floors.forward, floors.exact, floors.two_pass, *filtered)
        milliseconds = [f"{1e3 * value:.1f}" for value in seconds]
        mebibytes = [f"{size / _MIB:.0f}" for size in (floors.gradient_bytes, floors.logits_bytes)]
        lines.append(line([name, *map(str, sizes), *milliseconds, *mebibytes]))
    return "\n".join(lines) + "\n"


def _gpu_run(run: GPURun) -> str:
    if run.settings["device"] == "cpu":
        raise ValueError(f"path must hold a run on a GPU, got {run.path} with device 'cpu'")
    parts = []
    ceilings = {name: value for record in run.records("device") for name, value in record.items()}
    if "matrix_tflops" in ceilings:
        parts.append(
            f"{device_text(run.environment)}; {run.date}: {ceilings['copy_terabytes']:.2f} TB/s copied, "
            f"{ceilings['matrix_tflops']:.0f} TFLOP/s in a {ceilings['dtype']} matrix product."
        )
    if cases := run.records("correctness"):
        wrong = [f"`{case['case']}` in {case['dtype']}" for case in cases if not case["passed"]]
        verdict = f"all but {', '.join(wrong)}" if wrong else "all"
        parts.append(f"Options compared with float64: {len(cases)}; within their tolerance: {verdict}.")
    for shape, report in run.tables():
        parts.append(f"**{shape}**\\\n{_gpu_section(report)}")
    if steps := run.records("train"):
        table = [*head(("training step", "ms", "peak MiB"))]
        for step in steps:
            table.append(line([step["variant"], *_step(step)]))
        parts.append("\n".join([f"SmolLM2's architecture, {device_text(run.environment)}; {run.date}.", "", *table]))
    return "\n\n".join(parts)


def _step(step: dict) -> Sequence[str]:
    if "not_available" in step:
        return (f"not available: {escape(step['not_available'])}", "")
    seconds = statistics.median(sample["both"] for sample in step["samples"])
    return (f"{1e3 * seconds:.1f}", f"{step['extra_bytes'] / _MIB:.0f}")


def _gpu_section(report: CCEReport) -> str:
    ceiling = report.environment["matrix_tflops"]
    conditions = (
        f"{_conditions(report)} {device_text(report.environment)}; ceiling {ceiling:.0f} TFLOP/s, measured in this run."
    )
    header = (
        "method", *_ACCURACY, "forward ms", "backward ms", "both ms", "spread", "floor ms", "x floor", "TFLOP/s",
        "MiB beyond gradients", "loss error",
    )  # fmt: skip

    def cells(row: CCERow) -> Iterable[str]:
        yield from _accuracy(row)
        for seconds in (row.device_seconds_forward, row.device_seconds_backward, row.device_seconds):
            yield f"{1e3 * seconds:.3f}"
        yield f"{row.spread:.1%}"
        yield f"{1e3 * row.floor_seconds:.3f}"
        yield f"{row.floor_ratio:.2f}"
        yield f"{report.useful_tflops(row):.0f}"
        yield f"{(row.peak_extra_bytes - row.gradient_bytes) / _MIB:.0f}"
        yield _scientific(row.loss_error)

    return _section(report, conditions, header, cells)


def _cpu_section(report: CCEReport) -> str:
    threads = report.settings["threads"]
    facts = ", ".join(f"{name} {report.environment[name]}" for name in PACKAGES if report.environment.get(name))
    conditions = (
        f"{_conditions(report)} CPU, {threads} thread{'s' if threads > 1 else ''}, {facts}; "
        "ratios to the dense method, below 1 is better."
    )
    header = ("method", *_ACCURACY, "CPU time", "spread", "peak memory", "MiB beyond gradients", "loss error")

    def cells(row: CCERow) -> Iterable[str]:
        yield from _accuracy(row)
        yield report.ratio_text(row.method, "cpu_seconds")
        yield "" if row.spread is None else f"{row.spread:.0%}"
        yield report.ratio_text(row.method, "peak_extra_bytes")
        yield f"{(row.peak_extra_bytes - row.gradient_bytes) / _MIB:.0f}"
        yield _scientific(row.loss_error)

    return _section(report, conditions, header, cells)


def _accuracy(row: CCERow) -> Iterable[str]:
    yield _scientific(row.e_gradient_error)
    yield _scientific(row.c_gradient_error)
    yield "all" if row.kept is None else ", ".join(f"{fraction:.1%}" for fraction in row.kept)


def _scientific(error: float | None) -> str:
    return "–" if error is None else f"{error:.1e}"


def _conditions(report: CCEReport) -> str:
    sizes = "N = {n}, V = {vocab}, D = {dim}, {dtype}".format(**report.settings)
    density = report.density_text(", ")
    return f"{sizes}, {report.settings['data']} logits{density}, seed {report.settings['seed']}; {report.date}."


def _section(
    report: CCEReport, conditions: str, header: tuple[str, ...], cells: Callable[[CCERow], Iterable[str]]
) -> str:
    lines = [conditions, "", *head(header)]
    for row in report.rows:
        if row.not_available is None:
            lines.append(line([f"`{row.method}`", *cells(row)]))
        else:
            lines.append(line([f"`{row.method}`", "n/a", *[""] * (len(header) - 2)]))
    return "\n".join(lines + not_available(report.rows))


def not_available(rows: Iterable[Any]) -> list[str]:
    """Return why methods have no figures, each reason once.

    Args:
        rows: Rows with the attributes ``method`` and ``not_available``.

    Returns:
        Lines to follow a table; none if every method has figures.
    """
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.not_available is not None:
            reasons.setdefault(row.not_available, []).append(f"`{row.method}`")
    missing = [f"{', '.join(names)}: {escape(reason.removesuffix('.'))}" for reason, names in reasons.items()]
    return ["", f"Not available: {'; '.join(missing)}."] if missing else []


def escape(text: str) -> str:
    """Keep Markdown from reading a quoted message as markup.

    Args:
        text: The message.

    Returns:
        The same with backslashes.
    """
    return re.sub(r"([\\`*_{}\[\]<>$|])", r"\\\1", text)


def head(header: Sequence[str]) -> list[str]:
    """Return the first lines of a table, all columns but the first one aligned to the right.

    Args:
        header: Names of the columns.

    Returns:
        Two lines.
    """
    return [line(header), line(["---", *["---:"] * (len(header) - 1)])]


def line(cells: Iterable[str]) -> str:
    """Return a line of a table.

    Args:
        cells: Its cells.

    Returns:
        The line.
    """
    return f"| {' | '.join(cells)} |"
