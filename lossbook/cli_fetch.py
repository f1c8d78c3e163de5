"""``lossbook fetch``."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lossbook.cli_common import INTERRUPTED, USAGE, CommandError, err, out


def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="What to fetch; default: all that chapters need.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch again even what is whole.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List what can be fetched and what is present.")] = False,
) -> None:
    """Fetch the models that chapters need into the cache, checked and put in place at once."""
    from lossbook.data.assets import ASSETS, expand

    chosen = names or ["all"]
    unknown = [name for name in chosen if name not in (*ASSETS, "all")]
    if unknown:
        known = ", ".join(ASSETS)
        raise CommandError(f"there is nothing called {unknown[0]!r} to fetch: choose from {known}, or all", USAGE)
    if show:
        _list()
        return
    for name in expand(chosen):
        _fetch_one(name, force)


def _fetch_one(name: str, force: bool) -> None:
    from lossbook import data

    steps: list[str] = []
    start = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    try:
        with Progress(*columns, TimeElapsedColumn(), console=err()) as bar:
            task = bar.add_task(name, total=1.0, visible=False)

            def show(name: str, step: str, fraction: float) -> None:
                steps.append(step)
                bar.update(task, description=f"{name}: {step}", completed=fraction, visible=step != "present")

            [path] = data.fetch(name, force, show)
    except KeyboardInterrupt:
        message = f"the fetch was interrupted and nothing half-written was left; run: lossbook fetch {name}"
        raise CommandError(message, INTERRUPTED) from None
    if steps[-1] == "present":
        out().print(f"{name}: already present in {path}", soft_wrap=True)
    else:
        size = next(entry.bytes for entry in data.status() if entry.name == name)
        seconds = time.perf_counter() - start
        out().print(f"{name}: {size / 1e6:,.0f} MB in {path}, after {seconds:.0f} s", soft_wrap=True)


def _list() -> None:
    from lossbook import data
    from lossbook.data.assets import ASSETS

    table = Table()
    for column in ("name", "state", "MB", "license", "what it is"):
        table.add_column(column, justify="right" if column == "MB" else "left")
    for entry in data.status():
        if asset := ASSETS.get(entry.name):
            size = f"{asset.bytes / 1e6:,.0f}"
            table.add_row(asset.name, entry.state, size, asset.license, f"{asset.title}; {asset.source}")
    out().print(table)
    out().print(f"cache: {data.cache_dir()}", soft_wrap=True)
