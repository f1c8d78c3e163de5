"""The parts of the book's pages that are written from data: contents, totals, scoreboard, run times and benchmarks.

Each function returns MyST Markdown.  No number on those pages is typed by hand.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

from lossbook.chapter import catalog
from lossbook.chapter.card import verdict_html
from lossbook.chapter.claims import VERDICTS
from lossbook.chapter.scoreboard import ScoreRow, scoreboard

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "book" / "results"
API = ROOT / "book" / "api.md"
_NAMES_SHOWN = 5  # of a chapter, in the table that opens its part


def contents() -> str:
    """The plan of the book: every part with its chapters, linked if written, and the papers behind them."""
    lines = []
    for part in catalog.parts():
        title = f"Part {part.roman}: {_escape(part.title)}"
        opened = opener(part) if any(chapter.written for chapter in part.chapters) else None
        lines += [f"**{{doc}}`{title} </{opened}>`**" if opened else f"**{title}**", ""]
        for chapter in part.chapters:
            title = _escape(chapter.title)
            link = f"{{doc}}`{title} </notebooks/{chapter.slug}>`" if chapter.written else f"{title} (planned)"
            lines.append(f"{chapter.number}. {link}\\\n   {_paper(chapter.paper)}")
        lines.append("")
        if part.comparison and part.comparison.written:
            lines += [f"Side by side: {_link(part.comparison)}", ""]
    return "\n".join(lines)


def opener(part: catalog.Part, root: Path = ROOT) -> str | None:
    """The page that opens a part, listed before its chapters, or None if nobody has written it.

    Args:
        part: The part.
        root: The checkout.

    Returns:
        The document, without its ending.
    """
    document = f"book/parts/{part.slug}"
    return document if (root / f"{document}.md").is_file() else None


def part(slug: str) -> str:
    """The chapters of a part: what each asks, what it adds to the package, and how long its published run took.

    Args:
        slug: The part's name in the plan of the book.

    Returns:
        A table with one row for each chapter, planned ones included.

    Raises:
        ValueError: If there is no such part.
    """
    parts = {part.slug: part for part in catalog.parts()}
    if slug not in parts:
        raise ValueError(f"slug must be one of {', '.join(parts)}, got {slug!r}")
    rows = []
    for chapter in parts[slug].chapters:
        seconds = _run(chapter).get("cpu_seconds") if chapter.written else None
        rows.append(f"| {_link(chapter)} | {_imports(chapter)} | {'–' if seconds is None else f'{seconds:.0f}'} |")
    return "| Chapter | You can import | CPU seconds |\n|---|---|---:|\n" + "\n".join(rows)


def totals() -> str:
    """One paragraph: chapters written, claims tested and how many claims got which verdict."""
    counts = scoreboard().totals()
    verdicts = ", ".join(f"**{counts[name]}** {name}" for name in VERDICTS if counts[name])
    head = f"**{counts['chapters']}** of {counts['planned']} chapters written, **{counts['claims']}** claims tested"
    return f"{head}: {verdicts}." if verdicts else f"{head}."


def verdicts() -> str:
    """How many claims of each written chapter got which verdict."""
    rows = [
        f"| {_link(chapter)} | {' | '.join(str(_count(claims, name) or '–') for name in VERDICTS)} |"
        for chapter, claims in _claims_by_chapter()
    ]
    head = f"| Chapter | {' | '.join(VERDICTS)} |\n|---|{'--:|' * len(VERDICTS)}\n"
    return head + "\n".join(rows) if rows else "No chapter is written yet."


def claims_table() -> str:
    """The scoreboard: a table for each written chapter, with one row for each claim."""
    tables = []
    for chapter, claims in _claims_by_chapter():
        rows = [f"| {row.cells()} | {verdict_html(row.verdict)} |" for row in claims]
        head = ["| Claim | Paper | Criterion: **here** | Verdict |", "|---|---|---|---|"]
        tables.append("\n".join([f":::{{rubric}} {_link(chapter)}\n:::\n", *head, *rows]))
    return "\n\n".join(tables) or "No chapter is written yet."


def run_times() -> str:
    """How long each written chapter took when its committed outputs were made, and with what."""
    head = "| Chapter | Profile | CPU seconds | Wall-clock seconds | Made with |\n|---|---|---:|---:|---|\n"
    rows = [_run_row(info) for info in catalog.notebooks() if info.written]
    return head + "\n".join(rows) if rows else "No chapter is written yet."


def benchmarks() -> str:
    """The tables of every benchmark result under ``book/results``."""
    from lossbook.bench.report import markdown_table

    return markdown_table(RESULTS)


def compiled() -> str:
    """What the compiler makes of the kernels that multiply matrices."""
    from lossbook.bench.compiled import compiled_table
    from lossbook.bench.files import read_json

    results = read_json(RESULTS / "compiled-kernels.json")
    return f"Triton {results['triton']}.\n\n{compiled_table(results, essential=True)}"


def decode_attention() -> str:
    """The tables of every measurement of decode attention under ``book/results``."""
    from lossbook.bench.sparse_attention.report import decode_table

    return decode_table(RESULTS)


def decode_floors() -> str:
    """The bytes of a decode step over the bandwidth of a GPU."""
    from lossbook.bench.sparse_attention.report import decode_floors_table

    return decode_floors_table()


def sources() -> list[Path]:
    """Every file the generated pages are made from."""
    notebooks = [info.notebook for info in catalog.notebooks() if info.written]
    plans = sorted((ROOT / "lossbook" / "chapter").glob("**/*.yaml"))
    return [*notebooks, *plans, *sorted(RESULTS.glob("*.json")), API]


def _claims_by_chapter() -> list[tuple[catalog.ChapterInfo, list[ScoreRow]]]:
    rows = scoreboard().rows
    written = [chapter for chapter in catalog.chapters() if chapter.written]
    return [(chapter, [row for row in rows if row.number == chapter.number]) for chapter in written]


def _count(claims: list[ScoreRow], verdict: str) -> int:
    return sum(row.verdict == verdict for row in claims)


def _run(info: catalog.NotebookInfo) -> dict:
    """What a written notebook says of the run that made its outputs."""
    return nbformat.read(info.notebook, as_version=4).metadata.get("lossbook", {})


def _run_row(info: catalog.NotebookInfo) -> str:
    run = _run(info)
    versions = ", ".join(f"{name} {number}" for name, number in run.get("versions", {}).items() if name != "lossbook")
    seconds = " | ".join(f"{run[key]:.0f}" if key in run else "–" for key in ("cpu_seconds", "wall_seconds"))
    return f"| {_link(info)} | {run.get('profile', '–')} | {seconds} | {versions or '–'} |"


def _link(info: catalog.NotebookInfo) -> str:
    """Title, of a chapter with its number, linked if it can be read."""
    number = f"{info.number}. " if isinstance(info, catalog.ChapterInfo) else ""
    title = f"{number}{_escape(info.title)}"
    return f"{{doc}}`{title} </notebooks/{info.slug}>`" if info.written else f"{title} (planned)"


def _imports(chapter: catalog.ChapterInfo) -> str:
    """The first public names, in the order of the API page, whose documentation refers to a chapter."""
    mark = f":doc:`/notebooks/{chapter.slug}`"
    found = [name for name, thing in _public_names() if mark in (inspect.getdoc(thing) or "")]
    shown = ", ".join(f"{{py:obj}}`~{name}`" for name in found[:_NAMES_SHOWN])
    rest = len(found) - _NAMES_SHOWN
    return f"{shown} and {rest} {{doc}}`more </book/api>`" if rest > 0 else shown or "–"


def _public_names() -> Iterator[tuple[str, object]]:
    """Every name that the API page lists, with what it stands for."""
    module, listing = "", False
    for line in API.read_text(encoding="utf-8").splitlines():
        if line.startswith(".. "):
            listing = line.startswith(".. autosummary::")
            module = line.removeprefix(".. currentmodule:: ") if ".. currentmodule:: " in line else module
        elif listing and re.fullmatch(r"   \w+", line):
            yield f"{module}.{line.strip()}", getattr(importlib.import_module(module), line.strip())


def _paper(paper: catalog.Paper) -> str:
    return f"{_escape(_authors(paper.authors))}, *{_escape(paper.title)}*, {paper.year}"


def _authors(names: str) -> str:
    """Two names in full, more as the first one's last name and "et al."."""
    people = [name.removeprefix("and ").strip() for name in names.split(",")]
    return names if len(people) <= 2 else f"{people[0]} et al."


def _escape(text: str) -> str:
    return "".join(f"\\{mark}" if mark in "*_[]`|" else mark for mark in text)
