"""How claims are shown: one line when measured, and the reproduction card that ends a chapter.

Measured numbers stand in elements of class ``measured``: they differ between machines, everything around them may not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from lossbook.chapter.claims import Claim

_MARKS = {"reproduced": "✓", "partly": "◐", "needs GPU": "⧗", "not reproduced": "✗"}
_RELATION_SIGNS = {"<=": "≤", ">=": "≥", "==": "="}


@dataclass(frozen=True)
class Outcome:
    """A claim, what was measured for it and the verdict; ``measured`` is empty when a GPU is needed."""

    claim: Claim
    measured: dict[str, float]
    verdict: str
    enforced: bool
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether this outcome must stop the chapter."""
        return self.enforced and not self.claim.accepts(self.verdict)

    def record(self) -> dict[str, Any]:
        """A JSON-ready form; non-finite numbers become strings."""
        return {
            **{key: value for key, value in asdict(self.claim).items() if key != "criteria"},
            "criteria": {criterion.name: criterion.text for criterion in self.claim.criteria},
            "measured": {name: value if math.isfinite(value) else str(value) for name, value in self.measured.items()},
            "verdict": self.verdict,
            "enforced": self.enforced,
            "note": self.note,
        }


def slugged(verdict: str) -> str:
    """The verdict as a CSS class."""
    return verdict.lower().replace(" ", "-")


def number(value: float) -> str:
    """A measured value to three significant digits."""
    return f"{value:.3g}"


def criterion_text(text: str) -> str:
    """A criterion as it is printed, with typographic relation signs."""
    for plain, sign in _RELATION_SIGNS.items():
        text = text.replace(plain, sign)
    return text


def _named(values: Mapping[str, str]) -> list[str]:
    """One text per value with its name; a single one goes without."""
    if len(values) == 1:
        return list(values.values())
    return [f"{name.replace('_', ' ')} {value}" for name, value in values.items()]


def criteria_lines(criteria: Mapping[str, str]) -> list[str]:
    """One text per criterion of a claim."""
    return _named({name: criterion_text(text) for name, text in criteria.items()})


def measured_lines(measured: Mapping[str, float | str]) -> list[str]:
    """One text per measured value of a claim."""
    return _named({name: number(float(value)) for name, value in measured.items()})


def criteria_text(criteria: Mapping[str, str]) -> str:
    """All criteria of a claim in one line."""
    return "; ".join(criteria_lines(criteria))


def measured_text(measured: Mapping[str, float | str]) -> str:
    """All measured values of a claim in one line."""
    return "; ".join(measured_lines(measured))


def _criteria_html(criteria: Mapping[str, str]) -> str:
    return "<br>".join(escape(text) for text in criteria_lines(criteria))


def _measured_html(measured: Mapping[str, float]) -> str:
    return "<br>".join(f'<span class="measured">{escape(text)}</span>' for text in measured_lines(measured) or ["–"])


def verdict_html(verdict: str) -> str:
    """The verdict with its mark, so that it does not depend on color alone."""
    return f'<span class="verdict verdict-{slugged(verdict)}">{_MARKS[verdict]} {escape(verdict)}</span>'


def line(outcome: Outcome) -> dict[str, str]:
    """The display bundle for one measured claim."""
    record = outcome.record()
    criteria = criteria_text(record["criteria"])
    measured = measured_text(outcome.measured) or "–"
    unit = f" ({outcome.claim.unit})" if outcome.claim.unit else ""
    html = (
        f'<p class="lossbook-claim">{verdict_html(outcome.verdict)} <strong>{escape(outcome.claim.id)}</strong> '
        f'measured <span class="measured">{escape(measured)}</span>{escape(unit)}, '
        f"criterion {escape(criteria)}. <em>Paper: {escape(outcome.claim.paper)}.</em></p>"
    )
    return {
        "text/html": html,
        "text/plain": f"{outcome.claim.id} {outcome.verdict} [{criteria}] measured={measured}",
    }


def plan(claims: Iterable[Claim]) -> dict[str, str]:
    """The display bundle of the claims a chapter sets out to measure, before anything is run."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Claim", "Paper", "Criterion"))
    rows, plain = [], []
    for claim in claims:
        criteria = {criterion.name: criterion.text for criterion in claim.criteria}
        rows.append(
            f'<tr><th scope="row">{claim.id}<br><span class="statement">{escape(claim.statement)}</span></th>'
            f'<td>{escape(claim.paper)}<br><span class="where">{escape(claim.where)}</span></td>'
            f"<td>{_criteria_html(criteria)}</td></tr>"
        )
        plain.append(f"{claim.id} {claim.statement} [{criteria_text(criteria)}]")
    html = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return {"text/html": f'<div class="lossbook-card">{html}</div>', "text/plain": "\n".join(plain)}


def card(outcomes: list[Outcome], *, title: str, profile: str) -> dict[str, str]:
    """The display bundle of a chapter's reproduction card.

    Args:
        outcomes: One outcome for every claim.
        title: Title of the paper.
        profile: Profile under which the values were measured.

    Returns:
        HTML and plain text by MIME type.
    """
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("Claim", "Paper", "Criterion, fixed beforehand", "Here", "Verdict")
    )
    rows = []
    for outcome in outcomes:
        record, claim = outcome.record(), outcome.claim
        central = " <strong>(central)</strong>" if claim.central else ""
        note = outcome.note or (claim.reason if outcome.verdict == claim.expect != "reproduced" else "")
        note = f'<br><span class="note">{escape(note)}</span>' if note else ""
        unit = f"<br>{escape(claim.unit)}" if claim.unit else ""
        rows.append(
            f'<tr><th scope="row">{claim.id}{central}<br><span class="statement">{escape(claim.statement)}</span></th>'
            f'<td>{escape(claim.paper)}<br><span class="where">{escape(claim.where)}</span></td>'
            f"<td>{_criteria_html(record['criteria'])}{unit}</td>"
            f"<td>{_measured_html(outcome.measured)}</td>"
            f"<td>{verdict_html(outcome.verdict)}{note}</td></tr>"
        )
    html = (
        f'<div class="lossbook-card"><table><caption>Reproduction card: {escape(title)} (profile {profile})</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    plain = "\n".join([f"Reproduction card: {title} (profile {profile})", *(line(o)["text/plain"] for o in outcomes)])
    return {"text/html": html, "text/plain": plain}
