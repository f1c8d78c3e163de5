"""The ``lossbook bench`` command group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lossbook.bench.compiled import ARCHITECTURES, compile_all, compiled_table, to_json
from lossbook.bench.cross_entropy import DENSITIES, cce_reports
from lossbook.bench.files import write_json
from lossbook.bench.gpu.driver import PHASES, run_gpu
from lossbook.bench.gpu.results import GPURun
from lossbook.bench.gpu.summary import summary
from lossbook.bench.methods import METHODS, methods_for
from lossbook.bench.process import BenchmarkError
from lossbook.bench.results import CCEReport, write_reports
from lossbook.bench.shapes import SHAPES, Shape
from lossbook.bench.sparse_attention import sparse_attention_reports
from lossbook.bench.sparse_attention.cases import DECODE_METHODS, DECODE_SHAPES
from lossbook.bench.sparse_attention.results import SparseAttentionReport, write_sparse_reports

cli_app = typer.Typer(name="bench", help="Measure methods side by side.", no_args_is_help=True)
_DEFAULT_SHAPE = Shape(rows=2048, vocab=49152, features=576)

Methods = Annotated[
    str, typer.Option(help="Comma-separated names, see 'lossbook bench list'; 'all' for all that fit the device.")
]


@cli_app.command("list")
def list_methods() -> None:
    """List the methods, the shapes and the phases."""
    console = Console()
    methods = Table("method", "what it is", title="cce: cross-entropy of a linear head")
    for method in METHODS.values():
        methods.add_row(method.name, method.description)
    shapes = Table("shape", "rows", "vocab", "features", title="Shapes")
    for name, shape in SHAPES.items():
        shapes.add_row(name, str(shape.rows), str(shape.vocab), str(shape.features))
    decode_methods = Table("method", "what it is", title="sparse-attention: attention of a decode step")
    for method in DECODE_METHODS.values():
        decode_methods.add_row(method.name, method.description)
    decode_shapes = Table("shape", "requests", "query heads", "key heads", "tokens", "head size", title="Its shapes")
    for name, shape in DECODE_SHAPES.items():
        decode_shapes.add_row(name, *map(str, astuple(shape)))
    phases = Table("phase", "what it does", title="gpu: an unattended run")
    for phase in PHASES.values():
        phases.add_row(phase.name, phase.description)
    console.print(methods, shapes, decode_methods, decode_shapes, phases)


@cli_app.command("cce")
def run_cce(
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}; default the sizes of chapter 17.")] = "",
    rows: Annotated[int, typer.Option(help="Tokens N, in place of the shape's.")] = 0,
    vocab: Annotated[int, typer.Option(help="Vocabulary size V, in place of the shape's.")] = 0,
    features: Annotated[int, typer.Option(help="Width D, in place of the shape's.")] = 0,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16 or float64; default float32, on a GPU bfloat16.")
    ] = "",
    threads: Annotated[int, typer.Option(help="Threads of each worker.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed passes, on a GPU timed turns; medians are shown.")] = 2,
    methods: Methods = "all",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    data: Annotated[str, typer.Option(help="gaussian or peaked logits.")] = "peaked",
    density: Annotated[
        str,
        typer.Option(
            help="Comma-separated fractions of softmax entries of at least 2^-12 to tune peaked logits to; 'loss' "
            "tunes the loss instead."
        ),
    ] = ",".join(map(str, DENSITIES)),
    check_rows: Annotated[int, typer.Option(help="Rows of the slice compared with float64.")] = 128,
    seconds: Annotated[float, typer.Option(help="Length of one method's turn on a GPU.")] = 1.0,
    timeout: Annotated[float, typer.Option(help="Seconds one worker may take.")] = 1800.0,
    seed: Annotated[int, typer.Option(help="Seed of the inputs.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the reports as JSON: a file, or an existing folder.")] = None,
) -> None:
    """Time, memory and error of the cross-entropy of a linear head, at several densities of its softmax."""
    console = Console()
    reports: list[CCEReport] = []
    with _one_line_errors(), console.status("starting") as status:
        sizes = _shape(shape)
        for report in cce_reports(
            rows or sizes.rows,
            vocab or sizes.vocab,
            features or sizes.features,
            dtype or ("float32" if device == "cpu" else "bfloat16"),
            methods_for("torch" if device == "cpu" else "triton") if methods == "all" else _names(methods),
            densities=_densities(density, data),
            repeats=repeats,
            threads=threads,
            device=device,
            seed=seed,
            data=data,
            check_rows=check_rows,
            seconds=seconds,
            timeout=timeout,
            on_method=lambda method: status.update(f"measuring {method}"),
        ):
            reports.append(report)
            console.print(f"seed {seed}", report.table())
            if out is not None:
                console.print(f"wrote {write_reports(reports, out)}")


@cli_app.command("sparse-attention")
def run_sparse_attention(
    shapes: Annotated[
        str, typer.Option(help="Comma-separated names, see 'lossbook bench list'; default those for the device.")
    ] = "",
    methods: Methods = "all",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; default float32, on a GPU bfloat16.")] = "",
    threads: Annotated[int, typer.Option(help="Threads of the process that measures.")] = 1,
    repeats: Annotated[int, typer.Option(help="Turns of every method; medians are shown.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seconds: Annotated[float, typer.Option(help="Length of the turn of a step or a stage.")] = 0.3,
    timeout: Annotated[float, typer.Option(help="Seconds that everything may take.")] = 1800.0,
    seed: Annotated[int, typer.Option(help="Seed of the inputs.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the reports as JSON: a file, or an existing folder.")] = None,
) -> None:
    """Time and error of the attention of a decode step: dense, Double Sparsity stage by stage, and baselines."""
    console = Console()
    small = [name for name in DECODE_SHAPES if name.startswith("small") == (device == "cpu")]
    reports: list[SparseAttentionReport] = []
    with _one_line_errors(), console.status("starting") as status:
        for report in sparse_attention_reports(
            _names(shapes) or small,
            list(DECODE_METHODS) if methods == "all" else _names(methods),
            device=device,
            dtype=dtype or ("float32" if device == "cpu" else "bfloat16"),
            repeats=repeats,
            seconds=seconds,
            threads=threads,
            seed=seed,
            timeout=timeout,
            on_method=lambda method: status.update(f"measuring {method}"),
        ):
            reports.append(report)
            console.print(f"seed {seed}", report.table())
            if out is not None:
                console.print(f"wrote {write_sparse_reports(reports, out)}")


@cli_app.command("decode-quality")
def run_decode_quality(
    methods: Annotated[str, typer.Option(help="Names separated by semicolons; default all.")] = "",
    passages: Annotated[int, typer.Option(help="Passages, at even distances from the whole text.")] = 12,
    context: Annotated[int, typer.Option(help="Tokens read densely.")] = 512,
    new: Annotated[int, typer.Option(help="Tokens predicted one at a time after them.")] = 128,
    threads: Annotated[int, typer.Option(help="Threads of the process.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Write the report to this JSON file too.")] = None,
) -> None:
    """Loss of SmolLM2 when it decodes by Double Sparsity and by other ways to attend to few tokens."""
    import torch

    from lossbook.bench.decode_quality import QUALITY_METHODS, decode_quality, quality_table
    from lossbook.data import DataError, smollm2

    console = Console()
    torch.set_num_threads(threads)
    chosen = [name.strip() for name in methods.split(";")] if methods else list(QUALITY_METHODS)
    try:
        with console.status("reading the passages") as status:
            report = decode_quality(
                smollm2(),
                chosen,
                passages=passages,
                context=context,
                new=new,
                device=device,
                on_method=lambda method: status.update(f"measuring {method}"),
            )
    except (ValueError, DataError) as error:
        raise typer.BadParameter(str(error)) from error
    console.print(quality_table(report))
    if out is not None:
        console.print(f"wrote {write_json(report, out)}")


@cli_app.command("compiled")
def run_compiled(
    out: Annotated[Path | None, typer.Option(help="Write the results to this JSON file too.")] = None,
    targets: Annotated[str, typer.Option(help=f"Comma-separated, out of {', '.join(ARCHITECTURES)}.")] = "",
) -> None:
    """Compile the Triton kernels without a GPU and count registers, spills and instructions."""
    try:
        results = to_json(compile_all([name.strip() for name in targets.split(",")] if targets else ARCHITECTURES))
    except (ValueError, RuntimeError, ModuleNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    if out is not None:
        write_json(results, out)
    typer.echo(compiled_table(results))


@cli_app.command("gpu")
def run_on_gpu(
    out: Annotated[Path, typer.Option(help="JSON file to write; if it exists, the run in it is continued.")],
    budget: Annotated[float, typer.Option(help="Seconds this call may take.")] = 1500.0,
    phases: Annotated[
        str, typer.Option(help=f"Comma-separated, in this order: {', '.join(PHASES)}; default all.")
    ] = "",
    device: Annotated[str, typer.Option(help="cuda; or cpu, which tries everything at tiny sizes.")] = "cuda",
    methods: Methods = "all",
    seed: Annotated[int, typer.Option(help="Seed of all inputs.")] = 0,
) -> None:
    """Everything the book wants to know of a GPU, unattended and within a budget of time."""
    console = Console()
    try:
        with _one_line_errors(), console.status("starting") as status:
            run_gpu(
                budget,
                out,
                phases=_names(phases),
                device=device,
                methods=() if methods == "all" else _names(methods),
                seed=seed,
                on_phase=lambda name, seconds: status.update(f"{name}, at most {seconds:.0f} s"),
            )
    except KeyboardInterrupt:
        if out.exists():
            _show(console, out)
        raise
    _show(console, out)


def _show(console: Console, out: Path) -> None:
    console.print(summary(GPURun.load(out)))
    console.print(f"results so far are in {out}; the same command continues it where it is not done")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (ValueError, BenchmarkError, OSError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _shape(name: str) -> Shape:
    if name and name not in SHAPES:
        raise ValueError(f"shape must be one of {list(SHAPES)}, got {name!r}")
    return SHAPES[name] if name else _DEFAULT_SHAPE


def _densities(text: str, data: str) -> list[float | None]:
    if data != "peaked" or text == "loss":
        return [None]
    try:
        return [float(part) for part in _names(text)]
    except ValueError:
        raise ValueError(f"density must be fractions separated by commas, or 'loss', got {text!r}") from None
