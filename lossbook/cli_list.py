"""``lossbook list`` and ``lossbook scoreboard``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from lossbook.cli_common import MARKS, USAGE, CommandError, out, print_json, verdict_text

if TYPE_CHECKING:
    from lossbook.chapter.catalog import ChapterInfo
    from lossbook.chapter.scoreboard import ScoreRow

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]


def list_chapters(as_json: AsJson = False) -> None:
    """List the chapters with their papers, claims, verdicts and run time."""
    from lossbook.chapter import catalog
    from lossbook.chapter.scoreboard import scoreboard as read

    rows: dict[int, list[ScoreRow]] = {}
    for row in read().rows:
        rows.setdefault(row.number, []).append(row)
    if as_json:
        print_json([_chapter_record(info, rows.get(info.number, [])) for info in catalog.chapters()])
        return
    for part in catalog.parts():
        table = Table(title=f"{part.roman}. {escape(part.title)}", title_justify="left", box=None, expand=True)
        table.add_column("", width=2, justify="right")
        table.add_column("chapter", ratio=5)
        table.add_column("paper", ratio=4)
        table.add_column("claims", ratio=3)
        table.add_column("seconds", width=7, justify="right")
        for info in part.chapters:
            table.add_row(*_cells(info, rows.get(info.number, [])), style=None if info.written else "dim")
        if part.comparison:
            state = ("side by side", part.comparison.slug) if part.comparison.written else ("side by side", "planned")
            table.add_row("", escape(part.comparison.title), *state, style=None if part.comparison.written else "dim")
        out().print(table)
        out().print()
    written = sum(info.written for info in catalog.chapters())
    out().print("  ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items()))
    out().print(f"{written} of {len(catalog.chapters())} chapters written; run one with: lossbook run NUMBER")


def _cells(info: ChapterInfo, rows: list[ScoreRow]) -> tuple[str, str, str, str, str]:
    paper = f"{_surname(info.paper.authors)} {info.paper.year}"
    if not info.written:
        return str(info.number), escape(info.title), escape(paper), "planned", ""
    verdicts = [row.verdict for row in rows]
    counted = "  ".join(f"{mark} {verdicts.count(name)}" for name, mark in MARKS.items() if name in verdicts)
    return str(info.number), escape(info.title), escape(paper), counted or "no claims", _seconds(rows)


def _surname(authors: str) -> str:
    names = [name.strip() for name in authors.replace(" and ", ", ").split(",") if name.strip()]
    first = names[0].split()[-1]
    return first if len(names) == 1 else f"{first} et al."


def _seconds(rows: list[ScoreRow]) -> str:
    return f"{rows[0].seconds:.0f}" if rows and rows[0].seconds else ""


def _chapter_record(info: ChapterInfo, rows: list[ScoreRow]) -> dict[str, Any]:
    paper = info.paper
    return {
        "number": info.number,
        "slug": info.slug,
        "title": info.title,
        "part": info.part,
        "written": info.written,
        "notebook": str(info.notebook) if info.written else None,
        "paper": {"title": paper.title, "authors": paper.authors, "year": paper.year, "arxiv": paper.arxiv},
        "profile": rows[0].profile if rows else None,
        "seconds": rows[0].seconds if rows else None,
        "claims": [{"id": row.id, "statement": row.statement, "verdict": row.verdict} for row in rows],
    }


def scoreboard(
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the Markdown table of the book.")] = False,
) -> None:
    """Show every claim of the written chapters: the paper's figure, ours and the verdict."""
    from lossbook.chapter.scoreboard import scoreboard as read

    if as_json and markdown:
        raise CommandError("--json and --markdown exclude each other: give one of them", USAGE)
    board = read()
    if as_json:
        print_json({"totals": board.totals(), "rows": board.to_json()})
        return
    if markdown:
        print(board.to_markdown(), end="")
        return
    table = Table(expand=True)
    table.add_column("claim", no_wrap=True)
    for name, ratio in (("statement", 6), ("paper", 4), ("criterion", 3), ("here", 3), ("verdict", 3)):
        table.add_column(name, ratio=ratio)
    for row in board.rows:
        described = escape(row.statement) + (" [bold](central)[/]" if row.central else "")
        cells = (escape(text) for text in (row.paper, row.criterion, row.measured))
        table.add_row(row.id, described, *cells, verdict_text(row.verdict))
    if board.rows:
        out().print(table)
    totals = board.totals()
    verdicts = ", ".join(f"{totals[verdict]} {verdict}" for verdict in MARKS)
    chapters = f"{totals['chapters']} of {totals['planned']} chapters"
    out().print(f"{totals['claims']} claims in {chapters}: {verdicts}", soft_wrap=True)
