"""The scoreboard: every claim of every chapter, read from the executed notebooks."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lossbook.chapter import catalog
from lossbook.chapter.card import criteria_text, measured_text
from lossbook.chapter.claims import VERDICTS, Claim, load_claims

_RELATION = re.compile("([≤≥<>=]) ")


@dataclass(frozen=True)
class ScoreRow:
    """One claim of one chapter: what the paper says, what we measured, and the verdict."""

    number: int
    chapter: str
    slug: str
    id: str
    statement: str
    kind: str
    central: bool
    paper: str
    measured: str
    criterion: str
    verdict: str
    profile: str
    seconds: float

    def cells(self) -> str:
        """The cells of a Markdown table from the claim to the measured values."""
        central = ", **central**" if self.central else ""
        claim = f"**{self.id}** ({self.kind}{central}) {_cell(self.statement)}"
        return f"{claim} | {_cell(self.paper)} | {_side_by_side(self)}"


@dataclass(frozen=True)
class Scoreboard:
    """All rows, in the order of the book."""

    rows: tuple[ScoreRow, ...]

    def totals(self) -> dict[str, int]:
        """How many chapters are planned and written, how many claims there are, and how many by verdict."""
        counts = Counter(row.verdict for row in self.rows)
        return {
            "planned": len(catalog.chapters()),
            "chapters": len({row.number for row in self.rows}),
            "claims": len(self.rows),
            **{verdict: counts.get(verdict, 0) for verdict in VERDICTS},
        }

    def to_markdown(self) -> str:
        """A MyST table with one row per claim and links to the chapters."""
        head = "| Chapter | Claim | Paper | Criterion: **here** | Verdict |\n|---|---|---|---|---|\n"
        rows = [(f"{{doc}}`{row.number:02d} </notebooks/{row.slug}>`", row.cells(), row.verdict) for row in self.rows]
        return head + "".join(f"| {' | '.join(cells)} |\n" for cells in rows)

    def to_json(self) -> list[dict[str, Any]]:
        """The rows as plain dictionaries."""
        return [dict(row.__dict__) for row in self.rows]


def scoreboard() -> Scoreboard:
    """Read the reproduction cards of all written chapters.

    Returns:
        The scoreboard; a claim whose chapter was executed without reaching its card, or before the claim's criteria
        became what they are, counts as not reproduced.
    """
    return Scoreboard(tuple(row for info in catalog.chapters() if info.written for row in _rows(info)))


def find_card(notebook: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of the reproduction card in an executed notebook.

    Args:
        notebook: The notebook, as nbformat or plain JSON reads it.

    Returns:
        The record, or None if the card was not reached.
    """
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if record := output.get("metadata", {}).get("lossbook"):
                return dict(record)
    return None


def _rows(info: catalog.ChapterInfo) -> list[ScoreRow]:
    # Plain JSON: importing nbformat takes longer than reading every chapter.
    notebook = json.loads(info.notebook.read_text(encoding="utf-8"))
    run = notebook["metadata"].get("lossbook", {})
    record = find_card(notebook) or {"claims": [], "profile": run.get("profile", "none")}
    settled = {entry["id"]: entry for entry in record["claims"]}
    rows = []
    for claim in load_claims(info.slug).values():
        criteria = {criterion.name: criterion.text for criterion in claim.criteria}
        entry = settled.get(claim.id)
        if entry and entry["criteria"] != criteria:
            entry = None
        rows.append(
            ScoreRow(
                number=info.number,
                chapter=info.title,
                slug=info.slug,
                id=claim.id,
                statement=claim.statement,
                kind=claim.kind,
                central=claim.central,
                paper=claim.paper,
                measured=_in_order(claim, entry["measured"]) if entry and entry["measured"] else "–",
                criterion=criteria_text(criteria),
                verdict=entry["verdict"] if entry else "not reproduced",
                profile=record["profile"],
                seconds=float(run.get("cpu_seconds", 0.0)),
            )
        )
    return rows


def _in_order(claim: Claim, measured: Mapping[str, float | str]) -> str:
    """Notebooks are stored with sorted keys; a reader expects the order of the criteria."""
    return measured_text({criterion.name: measured[criterion.name] for criterion in claim.criteria})


def _side_by_side(row: ScoreRow) -> str:
    """One line per criterion with its measured value; a column of each would be too narrow to read."""
    criteria, values = row.criterion.split("; "), row.measured.split("; ")
    if len(criteria) != len(values):
        values = [row.measured] * len(criteria)
    # A line breaks in the name of a criterion rather than inside "≥ 0.5: 0.7".
    lines = [_RELATION.sub("\\1\u00a0", _cell(criterion)) for criterion in criteria]
    return "<br>".join(f"{line}:\u00a0**{value.split(' ')[-1]}**" for line, value in zip(lines, values, strict=True))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
