"""Criteria, claims files and verdicts."""

import math

import pytest

from lossbook.chapter import catalog
from lossbook.chapter.claims import ClaimsFileError, Criterion, load_claims, parse_claims

CLAIMS = """
chapter: 17_cut_cross_entropy
claims:
  - {id: "17.a", statement: s, kind: identity, central: true, paper: p, where: w, criteria: {error: "<= 1e-10"}}
  - {id: "17.b", statement: s, kind: trend, paper: p, where: w, criteria: {low: ">= 0.5", high: "< 2"}}
"""


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("<= 1e-10", 1e-10, 1.1e-10),
        (">= 0.02", 0.02, 0.019),
        ("< 1", 0.999, 1.0),
        ("> 0", 1e-300, 0.0),
        ("<= 1/6", 0.1666, 0.1667),
        ("== 0", 0.0, 1e-300),
        ("in [0.9, 1.1]", 1.1, 1.2),
    ],
)
def test_criterion(text, inside, outside):
    criterion = Criterion("x", text)
    assert criterion.holds(inside)
    assert not criterion.holds(outside)
    assert not criterion.holds(math.nan)


@pytest.mark.parametrize("text", ["", "about 3", "<= ", "=> 3", "<= x", "in [1]"])
def test_criterion_rejects_other_text(text):
    with pytest.raises(ValueError, match="relation and a number"):
        Criterion("x", text)


def test_verdicts():
    claim = parse_claims(CLAIMS, "17_cut_cross_entropy")["17.b"]
    assert claim.judge({"low": 1, "high": 1}) == "reproduced"
    assert claim.judge({"low": 0, "high": 1}) == "partly"
    assert claim.judge({"low": 0, "high": 3}) == "not reproduced"
    assert claim.judge({"low": math.nan, "high": math.nan}) == "not reproduced"
    assert claim.accepts("reproduced")
    assert not claim.accepts("partly")
    with pytest.raises(ValueError, match="measures low, high; got low"):
        claim.judge({"low": 1})


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("kind: trend", "kind: hope", "kind must be one of"),
        ('id: "17.b"', 'id: "17.a"', "stands twice"),
        ('id: "17.b"', 'id: "18.b"', "must start with '17.'"),
        ("central: true, ", "", "exactly one claim"),
        ("where: w, criteria: {low", "criteria: {low", "lacks"),
        ("kind: trend", "kind: trend, mood: good", "unknown fields"),
        ("kind: trend", "kind: trend, expect: partly", "needs a reason"),
        ("kind: trend", "kind: trend, expect: maybe", "expect must be one of"),
        ('"< 2"', '"small"', "relation and a number"),
        ("chapter: 17_cut", "chapter: 16_cut", "must hold 'chapter: 17_cut_cross_entropy'"),
    ],
)
def test_malformed_files(before, after, message):
    assert before in CLAIMS
    with pytest.raises(ClaimsFileError, match=message):
        parse_claims(CLAIMS.replace(before, after, 1), "17_cut_cross_entropy")


def test_broken_yaml_names_the_file():
    with pytest.raises(ClaimsFileError, match=r"17_cut_cross_entropy\.yaml is not YAML"):
        parse_claims("chapter: [", "17_cut_cross_entropy")


def test_missing_file():
    with pytest.raises(ClaimsFileError, match=r"no claims file lossbook/chapter/claims/02_nothing\.yaml"):
        load_claims("02_nothing")


@pytest.mark.parametrize("info", [info for info in catalog.chapters() if info.written], ids=lambda info: info.slug)
def test_written_chapters_have_claims(info):
    claims = load_claims(info.slug)
    assert all(claim_id.startswith(f"{info.number}.") for claim_id in claims)
