"""Turn stored measurements of decode attention into Markdown for the book's benchmarks page."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable
from pathlib import Path

from lossbook.bench.environment import PACKAGES, device_text
from lossbook.bench.files import read_json
from lossbook.bench.gpu.results import KIND as GPU_KIND
from lossbook.bench.gpu.results import GPURun
from lossbook.bench.report import escape, head, line, not_available
from lossbook.bench.roofline import H200_TERABYTES
from lossbook.bench.sparse_attention.cases import DECODE_METHODS, DECODE_SHAPES
from lossbook.bench.sparse_attention.results import (
    KIND,
    STAGES,
    STEP,
    DecodeRow,
    SparseAttentionReport,
    read_sparse_reports,
    text,
)

PHASE = "sparse attention"
_AWAITING = (
    "Absolute times: awaiting a GPU run. "
    f'`lossbook bench gpu --phases "device,{PHASE}" --out book/results/gpu.json` records one.'
)


def decode_table(json_dir: str | os.PathLike[str]) -> str:
    """Return every stored measurement of decode attention as Markdown.

    CPU results appear as ratios to the fastest dense method only; GPU results in milliseconds, with the GPU's name and
    the versions.

    Args:
        json_dir: Folder of files written by ``lossbook bench sparse-attention`` or ``lossbook bench gpu``.

    Returns:
        GPU results first, then CPU results, one table for each shape; a sentence that says so where no GPU result is
        there.

    Raises:
        ValueError: If a file there is not a benchmark report.
    """
    gpu, cpu = [], []
    for path in sorted(Path(json_dir).glob("*.json")):
        content = read_json(path)
        kind = content.get("benchmark") if isinstance(content, dict) else None
        if kind == KIND:
            for report in read_sparse_reports(path):
                (cpu if report.on_cpu else gpu).append(_section(report))
        elif kind == GPU_KIND:
            gpu += _gpu_run(GPURun.load(path))
    return "\n\n".join([*(gpu or [_AWAITING]), *cpu]) + "\n"


def decode_floors_table() -> str:
    """Return the bytes of a decode step over the bandwidth of a GPU, for every shape that is measured there.

    Returns:
        A table in microseconds, with the ratio of bytes to those of dense attention.
    """
    sparse = {name: method.sparsity for name, method in DECODE_METHODS.items() if method.sparsity}
    lines = [
        f"At {H200_TERABYTES:g} TB/s, one NVIDIA H200, with keys and values of 16 bits; in microseconds, and how many "
        "times fewer bytes than dense attention.",
        "",
        *head(("shape", "dense MB", "dense", *(f"`{name}`" for name in sparse))),
    ]
    for name, shape in DECODE_SHAPES.items():
        if name.startswith("small"):
            continue
        counted = {method: sparsity.bytes(shape) for method, sparsity in sparse.items()}
        dense = next(iter(counted.values()))["dense"]
        cells = [f"{_microseconds(parts['total'])} ({dense / parts['total']:.1f}x)" for parts in counted.values()]
        lines.append(line([name, f"{dense / 1e6:.0f}", _microseconds(dense), *cells]))
    return "\n".join(lines) + "\n"


def _gpu_run(run: GPURun) -> Iterable[str]:
    for record in run.records(PHASE):
        yield _section(SparseAttentionReport.from_dict(record["report"]))
    if steps := run.records("decode"):
        lines = [f"SmolLM2's architecture, {device_text(run.environment)}; {run.date}.", ""]
        lines += head(("decode step of the whole model", "ms a token"))
        for step in steps:
            if "not_available" in step:
                figure = f"not available: {escape(step['not_available'])}"
            else:
                figure = f"{1e3 * statistics.median(step['samples']):.2f}"
            lines.append(line([f"`{step['variant']}`", figure]))
        yield "\n".join(lines)


def _microseconds(size: int) -> str:
    return f"{size / H200_TERABYTES / 1e6:.0f}"


def _section(report: SparseAttentionReport) -> str:
    sizes = "B = {batch}, Hq = {query_heads}, Hkv = {key_heads}, S = {tokens}, D = {features}".format(
        **report.settings["sizes"]
    )
    conditions = f"**{report.shape}**\\\n{sizes}, {report.settings['dtype']}, seed {report.settings['seed']}; "
    conditions += f"{report.date}. "
    if report.on_cpu:
        threads = report.settings["threads"]
        facts = ", ".join(f"{name} {report.environment[name]}" for name in PACKAGES if report.environment.get(name))
        conditions += f"CPU, {threads} thread{'s' if threads > 1 else ''}, {facts}; ratios to the fastest dense method."
        header = ("method", "error", "time", "spread", "bytes", *STAGES)
        cells = _ratio_cells
    else:
        bandwidth = report.environment["copy_terabytes"]
        conditions += f"{device_text(report.environment)}; {bandwidth:.2f} TB/s copied in this run; milliseconds."
        stages = [f"{stage} ms" for stage in STAGES]
        header = ("method", "error", "ms", "spread", "x best dense", "MB", "TB/s", "x floor", *stages, "CUDA graph")
        cells = _absolute_cells
    lines = [conditions, "", *head(header)]
    for row in report.rows:
        if row.parts:
            lines.append(line([f"`{row.method}`", text(row.error, ".1e"), *cells(report, row)]))
    return "\n".join(lines + not_available(report.rows))


def _ratio_cells(report: SparseAttentionReport, row: DecodeRow) -> Iterable[str]:
    best = report.best_dense()
    step = row.parts[STEP]
    yield text(report.ratio(row), ".2f")
    yield text(step.spread, ".0%")
    yield "–" if best is None else f"{step.bytes / best.parts[STEP].bytes:.2f}"
    for stage in STAGES:
        part = row.parts.get(stage)
        yield "" if part is None or best is None else f"{part.seconds / best.parts[STEP].seconds:.2f}"


def _absolute_cells(report: SparseAttentionReport, row: DecodeRow) -> Iterable[str]:
    step = row.parts[STEP]
    yield f"{1e3 * step.seconds:.4f}"
    yield text(step.spread, ".1%")
    yield text(report.ratio(row), ".2f")
    yield f"{step.bytes / 1e6:.0f}"
    yield text(step.terabytes, ".2f")
    yield text(step.floor_ratio, ".2f")
    for stage in STAGES:
        yield f"{1e3 * row.parts[stage].seconds:.4f}" if stage in row.parts else ""
    yield {True: "yes", False: "no", None: "in part"}[row.graphs]
