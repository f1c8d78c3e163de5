"""The parts of the book's pages that are written from data: contents, totals, scoreboard, run times and benchmarks.

Each function returns MyST Markdown.  No number on those pages is typed by hand.
"""

from __future__ import annotations

from pathlib import Path

import nbformat

from lossbook.chapter import catalog
from lossbook.chapter.claims import VERDICTS
from lossbook.chapter.scoreboard import scoreboard

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "book" / "results"


def contents() -> str:
    """The plan of the book: every part with its chapters, linked if written, and the papers behind them."""
    lines = []
    for part in catalog.parts():
        lines += [f"**Part {part.roman}: {part.title}**", ""]
        for chapter in part.chapters:
            title = _escape(chapter.title)
            link = f"{{doc}}`{title} </notebooks/{chapter.slug}>`" if chapter.written else f"{title} (planned)"
            lines.append(f"{chapter.number}. {link}\\\n   {_paper(chapter.paper)}")
        lines.append("")
    return "\n".join(lines)


def totals() -> str:
    """One paragraph: chapters written, claims tested and how many claims got which verdict."""
    counts = scoreboard().totals()
    verdicts = ", ".join(f"**{counts[name]}** {name}" for name in VERDICTS if counts[name])
    head = f"**{counts['chapters']}** of {counts['planned']} chapters written, **{counts['claims']}** claims tested"
    return f"{head}: {verdicts}." if verdicts else f"{head}."


def claims_table() -> str:
    """The scoreboard, one row for each claim."""
    return scoreboard().to_markdown() if scoreboard().rows else "No chapter is written yet."


def run_times() -> str:
    """How long each written chapter took when its committed outputs were made, and with what."""
    head = "| Chapter | Profile | CPU seconds | Wall-clock seconds | Made with |\n|---|---|---:|---:|---|\n"
    rows = [_run_row(chapter) for chapter in catalog.chapters() if chapter.written]
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
    notebooks = [chapter.notebook for chapter in catalog.chapters() if chapter.written]
    return [*notebooks, *sorted((ROOT / "lossbook" / "chapter").glob("**/*.yaml")), *sorted(RESULTS.glob("*.json"))]


def _run_row(chapter: catalog.ChapterInfo) -> str:
    run = nbformat.read(chapter.notebook, as_version=4).metadata.get("lossbook", {})
    versions = ", ".join(f"{name} {number}" for name, number in run.get("versions", {}).items() if name != "lossbook")
    seconds = " | ".join(f"{run[key]:.0f}" if key in run else "–" for key in ("cpu_seconds", "wall_seconds"))
    link = f"{{doc}}`{chapter.number}. {_escape(chapter.title)} </notebooks/{chapter.slug}>`"
    return f"| {link} | {run.get('profile', '–')} | {seconds} | {versions or '–'} |"


def _paper(paper: catalog.Paper) -> str:
    return f"{_escape(_authors(paper.authors))}, *{_escape(paper.title)}*, {paper.year}"


def _authors(names: str) -> str:
    """Two names in full, more as the first one's last name and "et al."."""
    people = [name.removeprefix("and ").strip() for name in names.split(",")]
    return names if len(people) <= 2 else f"{people[0]} et al."


def _escape(text: str) -> str:
    return "".join(f"\\{mark}" if mark in "*_[]`|" else mark for mark in text)
