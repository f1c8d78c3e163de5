"""The ``lossbook bench`` command group."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lossbook.bench.cross_entropy import cce
from lossbook.bench.methods import METHODS
from lossbook.bench.process import BenchmarkError

cli_app = typer.Typer(name="bench", help="Measure methods side by side, each in its own process.", no_args_is_help=True)


@cli_app.command("list")
def list_methods() -> None:
    """List the benchmarks and the methods they compare."""
    table = Table(title="cce: cross-entropy of a linear head")
    table.add_column("method", no_wrap=True)
    table.add_column("what it is")
    for method in METHODS.values():
        table.add_row(method.name, method.description)
    Console().print(table)


@cli_app.command("cce")
def run_cce(
    n: Annotated[int, typer.Option("--n", help="Tokens N.")] = 2048,
    vocab: Annotated[int, typer.Option(help="Vocabulary size V.")] = 49152,
    dim: Annotated[int, typer.Option(help="Width D.")] = 576,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    threads: Annotated[int, typer.Option(help="Threads of each worker.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed passes; medians are shown.")] = 3,
    methods: Annotated[
        str, typer.Option(help="Comma-separated names, see 'lossbook bench list'; 'all' for all of them.")
    ] = "dense,two_pass,grad_in_forward,torch_chunked",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    data: Annotated[str, typer.Option(help="gaussian or peaked logits.")] = "gaussian",
    seed: Annotated[int, typer.Option(help="Seed of the inputs.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON: a file, or an existing folder.")] = None,
) -> None:
    """Time, memory and error of the cross-entropy of a linear head."""
    console = Console()
    names = list(METHODS) if methods == "all" else [name.strip() for name in methods.split(",") if name.strip()]
    try:
        with console.status("starting") as status:
            report = cce(
                n,
                vocab,
                dim,
                dtype,
                names,
                repeats=repeats,
                threads=threads,
                device=device,
                data=data,
                seed=seed,
                on_method=lambda method: status.update(f"measuring {method}"),
            )
        console.print(report.table())
        if out is not None:
            console.print(f"wrote {report.to_json(out)}")
    except (ValueError, BenchmarkError, OSError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from None
