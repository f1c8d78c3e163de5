"""``lossbook run``: execute chapters as the published notebooks are executed, and report their claims."""

from __future__ import annotations

import csv
import os
import statistics
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lossbook.cli_common import FAILURE, INTERRUPTED, USAGE, CommandError, err, out, say, verdict_text

if TYPE_CHECKING:
    from lossbook.chapter.catalog import NotebookInfo
    from lossbook.chapter.execute import ExecutionResult

COLUMNS = "chapter slug profile seed claim quantity measured criterion met verdict wall_seconds cpu_seconds".split()
_ADDED_BY_PAPERMILL = {"injected-parameters", "papermill-error-cell-tag"}


class Profile(StrEnum):
    """Size of a run."""

    smoke = "smoke"
    cpu = "cpu"
    gpu = "gpu"


def run(
    chapters: Annotated[
        list[str], typer.Argument(help="Numbers or names of chapters or comparisons, or all.", show_default=False)
    ],
    profile: Annotated[
        Profile, typer.Option(help="smoke: seconds; cpu: as published; gpu: near the paper's scale.")
    ] = Profile.cpu,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run, or of the first of several.")] = 0,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the executed notebooks.")] = Path("runs"),
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds to run, counted up from --seed.")] = 1,
    table: Annotated[Path | None, typer.Option("--csv", help="Also write every measured value to this file.")] = None,
) -> None:
    """Execute chapters and show what became of their claims; the exit code is 1 if one failed."""
    infos = choose(chapters)
    _require_gpu(profile)
    _require_writable_folder(folder)
    if table is not None:
        _require_writable_file(table)
    records: list[dict[str, Any]] = []
    failures: list[str] = []
    try:
        for info in infos:
            for number in range(seed, seed + seeds):
                result = _execute(info, profile.value, number, folder)
                records += measured_records(info, profile.value, number, result)
                _show_result(info, profile.value, number, result)
                if result.failed:
                    failures.append(_failure(info, number, result))
                    say(f"lossbook: {failures[-1]}")
    finally:
        # Also after Ctrl-C: what is measured is kept.
        if table is not None and records:
            write_csv(table, records)
            out().print(f"measured values: {table}", soft_wrap=True)
    if seeds > 1:
        out().print(_summary(records))
    if failures:
        raise typer.Exit(FAILURE)


def choose(names: list[str]) -> list[NotebookInfo]:
    """Find the notebooks meant, each once; raises CommandError for one that does not exist or is not written."""
    from lossbook.chapter import catalog

    written = [info for info in catalog.notebooks() if info.written]
    ready = ", ".join(info.label.removeprefix("chapter ") for info in written) or "none yet"
    chosen: dict[str, NotebookInfo] = {}
    for name in names:
        if name == "all":
            chosen |= {info.slug: info for info in written}
            continue
        try:
            info = catalog.find_notebook(name)
        except catalog.ChapterNotFoundError:
            raise CommandError(f"there is no chapter {name!r}; written chapters: {ready}", USAGE) from None
        if not info.written:
            described = info.label if info.name in info.label else f"{info.label} ({info.name})"
            raise CommandError(f"{described} is planned but not written yet; written chapters: {ready}", USAGE)
        chosen[info.slug] = info
    if not chosen:
        raise CommandError("no chapter is written yet, so there is nothing to run", USAGE)
    return list(chosen.values())


def _require_gpu(profile: Profile) -> None:
    if profile is not Profile.gpu:
        return
    import torch

    if not torch.cuda.is_available():
        raise CommandError(
            "the gpu profile needs a CUDA device and torch sees none: run with --profile cpu, or find out why with"
            " lossbook doctor",
            USAGE,
        )


def _require_writable_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CommandError(f"cannot write to the folder {folder} ({reason}): give another with --out", USAGE) from error


def _require_writable_file(path: Path) -> None:
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise CommandError(f"cannot write the file {path}: give --csv a file in an existing, writable folder", USAGE)


def _execute(info: NotebookInfo, profile: str, seed: int, folder: Path) -> ExecutionResult:
    """Execute one chapter under a progress bar; a stop part-way becomes a sentence that names what was kept."""
    from lossbook.chapter.execute import execute

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    before = {path: path.stat().st_mtime_ns for path in folder.glob(f"{info.slug}*.ipynb")}
    try:
        with Progress(*columns, console=err()) as bar:
            task = bar.add_task(f"{info.label}, {profile}, seed {seed}", total=None)

            def show(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            return execute(info, profile=profile, seed=seed, out=folder, on_progress=show)
    except KeyboardInterrupt:
        message = f"{info.label} was interrupted; {_kept(info, folder, before)}"
        raise CommandError(message, INTERRUPTED) from None
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        message = f"{info.label} stopped by {type(error).__name__}: {reason}; {_kept(info, folder, before)}"
        raise CommandError(message) from error


def _kept(info: NotebookInfo, folder: Path, before: dict[Path, int]) -> str:
    """Say where the partial notebook of a run is: the one that is new or changed since it began."""
    for path in folder.glob(f"{info.slug}*.ipynb"):
        if path.stat().st_mtime_ns != before.get(path):
            return f"the notebook up to there is kept in {path}"
    return "no cell had run"


def measured_records(info: NotebookInfo, profile: str, seed: int, result: ExecutionResult) -> list[dict[str, Any]]:
    """Return one record for each measured quantity of a run, as the columns of the CSV file."""
    from lossbook.chapter.claims import Criterion

    records = []
    for claim in result.card["claims"] if result.card else []:
        for name, value in claim["measured"].items():
            criterion = Criterion(name, claim["criteria"][name])
            values = [info.number, info.slug, profile, seed, claim["id"], name, value, criterion.text]
            values += [criterion.holds(float(value)), claim["verdict"]]
            values += [round(result.wall_seconds, 1), round(result.cpu_seconds, 1)]
            records.append(dict(zip(COLUMNS, values, strict=True)))
    return records


def write_csv(path: Path, records: list[dict[str, Any]]) -> None:
    """Write records to a CSV file at once: a reader finds the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(records)
    partial.replace(path)


def _show_result(info: NotebookInfo, profile: str, seed: int, result: ExecutionResult) -> None:
    if result.card:
        out().print(_card_table(f"{info.number}. {info.title} (profile {profile}, seed {seed})", result.card))
        if not all(claim["enforced"] for claim in result.card["claims"]):
            out().print(f"* not enforced by profile {profile}")
    seconds = f"{result.wall_seconds:.0f} s ({result.cpu_seconds:.0f} s of processor time)"
    out().print(f"{info.label}: {seconds}, notebook: {result.path}", soft_wrap=True)


def _card_table(title: str, card: dict[str, Any]) -> Table:
    """One line for each claim with its verdict, under it one for each measured quantity with its criterion."""
    from lossbook.chapter.card import criterion_text, number
    from lossbook.chapter.claims import Criterion

    table = Table(title=escape(title), title_justify="left", box=None, expand=True)
    table.add_column("claim", no_wrap=True)
    table.add_column("statement and measured quantity", ratio=1)
    table.add_column("here", no_wrap=True, justify="right")
    table.add_column("criterion, verdict", no_wrap=True)
    for claim in card["claims"]:
        verdict = verdict_text(claim["verdict"]) + ("" if claim["enforced"] else " *")
        table.add_row(claim["id"], f"[bold]{escape(claim['statement'])}[/]", "", verdict)
        for name, value in claim["measured"].items():
            criterion = Criterion(name, claim["criteria"][name])
            met = "✓" if criterion.holds(float(value)) else "✗"
            wanted = escape(criterion_text(criterion.text))
            table.add_row("", f"  {name.replace('_', ' ')}", number(float(value)), f"{met} {wanted}")
    return table


def _failure(info: NotebookInfo, seed: int, result: ExecutionResult) -> str:
    """One sentence: which claim or which cell failed, why, and where the notebook is."""
    where = f"{info.label} (seed {seed})"
    short = " ".join((result.failed or "").split())
    kept = f"the notebook is kept in {result.path}"
    failed = failed_claims(result.card)
    if failed:
        return f"{where} failed claim {', '.join(failed)}: {short}; {kept}"
    return f"{where} failed in {_failed_cell(result.path)}: {short}; {kept}"


def failed_claims(card: dict[str, Any] | None) -> list[str]:
    """Ids of the enforced claims of a card whose verdict is worse than the chapter expects."""
    from lossbook.chapter.claims import VERDICTS

    return [
        claim["id"]
        for claim in (card or {}).get("claims", [])
        if claim["enforced"] and VERDICTS.index(claim["verdict"]) > VERDICTS.index(claim["expect"])
    ]


def _failed_cell(path: Path) -> str:
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    # Numbered as in the chapter itself, without what papermill puts in between.
    cells = [cell for cell in cells if not _ADDED_BY_PAPERMILL & set(cell.metadata.get("tags", []))]
    for number, cell in enumerate(cells, start=1):
        if any(output.get("output_type") == "error" for output in cell.get("outputs", [])):
            code = [line.strip() for line in cell.source.splitlines() if line.strip() and not line.startswith("#")]
            return f"cell {number} of {len(cells)} ({code[0] if code else 'empty'})"
    return "an unknown cell"


def _summary(records: list[dict[str, Any]]) -> Table:
    """Mean and spread of each measured quantity over the seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["chapter"], record["claim"], record["quantity"]), []).append(record)
    table = Table(title="over seeds")
    for name in ("claim", "quantity", "criterion", "mean", "sd", "lowest", "highest", "criterion met"):
        table.add_column(name, justify="left" if name in ("claim", "quantity", "criterion") else "right")
    for (_, claim, quantity), group in groups.items():
        values = [float(record["measured"]) for record in group]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        numbers = (f"{value:.3g}" for value in (statistics.fmean(values), spread, min(values), max(values)))
        met = f"{sum(record['met'] for record in group)} of {len(group)}"
        table.add_row(claim, quantity, escape(group[0]["criterion"]), *numbers, met)
    return table
