"""Claims: what a chapter promises to show, fixed in a file before anything is run.

Every chapter has ``lossbook/chapter/claims/NN_slug.yaml``.  A notebook supplies measured values only; the
criterion they are held against stands in that file, so that it can not be loosened inside a notebook unseen.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

KINDS = ("identity", "kernel", "trend")
VERDICTS = ("reproduced", "partly", "needs GPU", "not reproduced")  # best first

_RELATIONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq}
_CRITERION = re.compile(r"^(<=|>=|<|>|==)\s*([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?:/(\d+))?$")
_INTERVAL = re.compile(r"^in\s*\[\s*([-+.\deE]+)\s*,\s*([-+.\deE]+)\s*\]$")
_FIELDS = {"id", "statement", "kind", "central", "paper", "where", "unit", "criteria", "expect", "reason"}


class ClaimsFileError(ValueError):
    """A claims file is missing or malformed; the message names the file and the field."""


@dataclass(frozen=True)
class Criterion:
    """One fixed condition on one measured number, such as ``<= 1e-10`` or ``in [0.9, 1.1]``.

    Args:
        name: Name of the measured quantity, a Python identifier.
        text: The condition: ``<=``, ``>=``, ``<``, ``>`` or ``==`` and a number or fraction (``<= 1/6``), or
            ``in [low, high]``.

    Raises:
        ValueError: If ``text`` is not of that form.
    """

    name: str
    text: str

    def __post_init__(self) -> None:
        if not (_CRITERION.match(self.text) or _INTERVAL.match(self.text)):
            raise ValueError(
                f"criterion {self.name!r} must be a relation and a number such as '<= 1e-6', or 'in [low, high]', "
                f"got {self.text!r}"
            )

    def holds(self, value: float) -> bool:
        """Whether a value meets the condition.

        Args:
            value: The measured number; NaN meets no condition.

        Returns:
            True if it does.
        """
        if math.isnan(value):
            return False
        if interval := _INTERVAL.match(self.text):
            return float(interval[1]) <= value <= float(interval[2])
        relation, threshold, divisor = _CRITERION.match(self.text).groups()
        return bool(_RELATIONS[relation](value, float(threshold) / float(divisor or 1)))


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, what the paper reports for it, and the criterion we hold ourselves to.

    Args:
        id: Chapter number and letter, ``"17.a"``.
        statement: One sentence.
        kind: ``"identity"`` (holds to rounding), ``"kernel"`` (memory, time) or ``"trend"`` (direction of an effect).
        central: Whether this is the chapter's central claim.
        paper: The paper's own figure, as text.
        where: Where in the paper it stands.
        unit: Unit of the measured values, as text; may be empty.
        criteria: Conditions by the name of the measured quantity, in order.
        expect: The verdict the chapter has argued for in its text; anything worse fails the chapter.
        reason: Why a claim is expected to fall short; required unless ``expect`` is ``"reproduced"``.
    """

    id: str
    statement: str
    kind: str
    central: bool
    paper: str
    where: str
    unit: str
    criteria: tuple[Criterion, ...]
    expect: str = "reproduced"
    reason: str = ""

    def judge(self, measured: Mapping[str, float]) -> str:
        """The verdict for measured values: all criteria met, some, or none.

        Args:
            measured: One finite or non-finite number for every criterion's name.

        Returns:
            ``"reproduced"``, ``"partly"`` or ``"not reproduced"``.

        Raises:
            ValueError: If the names are not exactly those of the criteria.
        """
        names = [criterion.name for criterion in self.criteria]
        if set(measured) != set(names):
            raise ValueError(f"claim {self.id} measures {', '.join(names)}; got {', '.join(measured) or 'nothing'}")
        met = sum(criterion.holds(float(measured[criterion.name])) for criterion in self.criteria)
        return "reproduced" if met == len(names) else "partly" if met else "not reproduced"

    def accepts(self, verdict: str) -> bool:
        """Whether a verdict is at least as good as the one the chapter expects.

        Args:
            verdict: One of ``"reproduced"``, ``"partly"``, ``"needs GPU"`` and ``"not reproduced"``, best first.

        Returns:
            True if it is.
        """
        return VERDICTS.index(verdict) <= VERDICTS.index(self.expect)


def load_claims(slug: str) -> dict[str, Claim]:
    """Read the claims of one chapter.

    Args:
        slug: The chapter's slug with its number, ``"17_cut_cross_entropy"``.

    Returns:
        The claims by id, in the file's order.

    Raises:
        ClaimsFileError: If the file is missing, or a field is missing, unknown or out of its range.
    """
    file = resources.files("lossbook.chapter") / "claims" / f"{slug}.yaml"
    if not file.is_file():
        raise ClaimsFileError(f"no claims file lossbook/chapter/claims/{slug}.yaml: every chapter needs one")
    return parse_claims(file.read_text(encoding="utf-8"), slug)


def parse_claims(text: str, slug: str) -> dict[str, Claim]:
    """Parse and check the text of a claims file.

    Args:
        text: The YAML text.
        slug: The chapter it must belong to.

    Returns:
        The claims by id, in the file's order.

    Raises:
        ClaimsFileError: As for :func:`load_claims`.
    """
    where = f"claims file {slug}.yaml"
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ClaimsFileError(f"{where} is not YAML: {error}") from error
    if not isinstance(document, dict) or document.get("chapter") != slug or not document.get("claims"):
        raise ClaimsFileError(f"{where} must hold 'chapter: {slug}' and a non-empty list 'claims'")
    claims: dict[str, Claim] = {}
    for entry in document["claims"]:
        claim = _claim(entry, where, prefix=f"{int(slug[:2])}.")
        if claim.id in claims:
            raise ClaimsFileError(f"{where}: claim {claim.id} stands twice")
        claims[claim.id] = claim
    if sum(claim.central for claim in claims.values()) != 1:
        raise ClaimsFileError(f"{where}: exactly one claim must have 'central: true'")
    return claims


def _claim(entry: dict[str, Any], where: str, prefix: str) -> Claim:
    label = f"{where}: claim {entry.get('id', '?')}"
    if unknown := set(entry) - _FIELDS:
        raise ClaimsFileError(f"{label} has unknown fields {sorted(unknown)}; known are {sorted(_FIELDS)}")
    if missing := {"id", "statement", "kind", "paper", "where", "criteria"} - set(entry):
        raise ClaimsFileError(f"{label} lacks {sorted(missing)}")
    if not str(entry["id"]).startswith(prefix):
        raise ClaimsFileError(f"{label}: id must start with {prefix!r}")
    if entry["kind"] not in KINDS:
        raise ClaimsFileError(f"{label}: kind must be one of {KINDS}, got {entry['kind']!r}")
    expect = entry.get("expect", "reproduced")
    if expect not in VERDICTS:
        raise ClaimsFileError(f"{label}: expect must be one of {VERDICTS}, got {expect!r}")
    if expect != "reproduced" and not entry.get("reason"):
        raise ClaimsFileError(f"{label}: expect {expect!r} needs a reason")
    try:
        criteria = tuple(Criterion(name, str(condition)) for name, condition in entry["criteria"].items())
    except (ValueError, AttributeError) as error:
        raise ClaimsFileError(f"{label}: {error}") from error
    if not criteria:
        raise ClaimsFileError(f"{label}: criteria must not be empty")
    return Claim(
        id=str(entry["id"]),
        statement=str(entry["statement"]).strip(),
        kind=entry["kind"],
        central=bool(entry.get("central", False)),
        paper=str(entry["paper"]),
        where=str(entry["where"]),
        unit=str(entry.get("unit", "")),
        criteria=criteria,
        expect=expect,
        reason=str(entry.get("reason", "")).strip(),
    )
