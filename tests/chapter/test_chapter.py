"""Profiles, claims inside a chapter, and the reproduction card."""

import re

import pytest
import torch

from lossbook.chapter import Chapter, ClaimsFailedError, Comparison, core
from lossbook.chapter.claims import parse_claims
from lossbook.chapter.source import source_of

CLAIMS = """
chapter: 17_cut_cross_entropy
claims:
  - {id: "17.a", statement: same, kind: identity, central: true, paper: p, where: w, criteria: {error: "<= 1e-10"}}
  - {id: "17.b", statement: less, kind: trend, paper: p, where: w, criteria: {low: ">= 0.5", high: "< 2"}}
  - {id: "17.c", statement: sad, kind: trend, paper: p, where: w, criteria: {gain: "> 0"},
     expect: not reproduced, reason: too small a model}
"""


@pytest.fixture
def shown(monkeypatch):
    """Collects what a chapter displays, as (bundle, metadata)."""
    outputs = []
    monkeypatch.setattr(core, "display", lambda bundle, metadata=None, raw=False: outputs.append((bundle, metadata)))
    monkeypatch.setattr(core, "load_claims", lambda slug: parse_claims(CLAIMS, slug))
    return outputs


def chapter(profile="cpu", **options):
    return Chapter("17_cut_cross_entropy", profile=profile, **options)


def test_pick(shown):
    assert chapter().pick(smoke=1, cpu=2, gpu=3) == 2
    assert chapter("smoke").pick(smoke=1, cpu=2, gpu=3) == 1
    assert chapter("smoke").pick(cpu=2) == 2
    assert chapter("smoke").pick(smoke=None, cpu=2) is None


def test_unknown_profile_and_seed(shown):
    with pytest.raises(ValueError, match="profile must be one of smoke, cpu, gpu, got 'fast'"):
        chapter("fast")
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        chapter(seed=-1)


def test_a_comparison_has_a_profile_and_no_claims():
    comparison = Comparison("embedding_losses", profile="smoke", seed=3)
    assert comparison.pick(smoke=1, cpu=2) == 1 and comparison.info.label == "comparison embedding_losses"
    assert repr(comparison) == "Comparison('embedding_losses', profile='smoke', seed=3)"
    assert not any(hasattr(comparison, name) for name in ("claim", "claims", "card"))
    drawn = torch.rand(2)
    Comparison("embedding_losses", seed=3)
    assert torch.equal(torch.rand(2), drawn)
    with pytest.raises(ValueError, match="slug must be one of embedding_losses, got '17_cut_cross_entropy'"):
        Comparison("17_cut_cross_entropy")
    with pytest.raises(ValueError, match="profile must be one of smoke, cpu, gpu, got 'fast'"):
        Comparison("embedding_losses", profile="fast")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_profile_without_a_gpu_says_so(shown):
    with pytest.raises(RuntimeError, match=r"needs a CUDA device.*lossbook doctor"):
        chapter("gpu")


def test_seed_repeats_draws(shown):
    first = (chapter(seed=3), torch.rand(2))[1]
    assert torch.equal(first, (chapter(seed=3), torch.rand(2))[1])
    assert not torch.equal(first, (chapter(seed=4), torch.rand(2))[1])
    book = chapter(seed=3)
    assert torch.equal(torch.rand(2, generator=book.generator(1)), torch.rand(2, generator=book.generator(1)))


def test_card_of_a_chapter_that_passes(shown):
    book = chapter()
    assert book.claim("17.a", 1e-12) == "reproduced"
    assert book.claim("17.b", low=0.7, high=1) == "reproduced"
    assert book.claim("17.c", -1.0) == "not reproduced"
    book.card()
    bundle, metadata = shown[-1]
    record = metadata["lossbook"]
    assert [entry["verdict"] for entry in record["claims"]] == ["reproduced", "reproduced", "not reproduced"]
    assert record["profile"] == "cpu"
    assert "too small a model" in bundle["text/html"]
    assert len(re.findall('<span class="measured">', bundle["text/html"])) == 4


def test_everything_but_measured_values_is_stable(shown):
    """Two runs with other values but the same verdicts differ only inside the elements of class measured."""
    texts = []
    for error in (1e-12, 3.33e-13):
        book = chapter()
        book.claim("17.a", error)
        texts.append(shown[-1][0])
    plain = [re.sub("measured=.*", "", text["text/plain"]) for text in texts]
    html = [re.sub('class="measured">[^<]*<', "", text["text/html"]) for text in texts]
    assert texts[0] != texts[1]
    assert plain[0] == plain[1]
    assert html[0] == html[1]


def test_card_raises_with_numbers_after_showing(shown):
    book = chapter()
    book.claim("17.a", 0.5)
    book.claim("17.b", low=0.7, high=5)
    book.claim("17.c", 1.0)
    with pytest.raises(ClaimsFailedError, match=r"17\.a is not reproduced.*0\.5.*≤ 1e-10; 17\.b is partly.*high 5"):
        book.card()
    assert "lossbook-card" in shown[-1][0]["text/html"]


def test_unmeasured_claim_fails(shown):
    book = chapter()
    book.claim("17.a", 0.0)
    with pytest.raises(ClaimsFailedError, match=r"17\.b was not measured; 17\.c was not measured"):
        book.card()


def test_smoke_enforces_identities_only(shown):
    book = chapter("smoke")
    book.claim("17.a", 0.0)
    book.claim("17.b", low=0, high=9)
    book.claim("17.c", -1)
    book.card()
    book.claim("17.a", float("nan"))
    with pytest.raises(ClaimsFailedError, match=r"17\.a is not reproduced"):
        book.card()
    assert book.record()["claims"][0]["measured"] == {"error": "nan"}


def test_needs_gpu_is_worse_than_reproduced(shown):
    book = chapter()
    book.claim("17.a", 0.0)
    book.needs_gpu("17.b", "times on a GPU")
    book.needs_gpu("17.c", "times on a GPU")
    with pytest.raises(ClaimsFailedError, match=r"^17\.b is needs GPU"):
        book.card()


def test_unknown_claim_and_names(shown):
    book = chapter()
    with pytest.raises(KeyError, match=r"has claims 17\.a, 17\.b, 17\.c; got '17.z'"):
        book.claim("17.z", 1)
    with pytest.raises(ValueError, match="measures low, high; got low"):
        book.claim("17.b", 1)


def test_plan_shows_every_criterion_before_anything_is_measured(shown):
    chapter().show_claims()
    assert "17.a same [≤ 1e-10]" in shown[-1][0]["text/plain"]
    assert shown[-1][0]["text/html"].count("<tr>") == 4


def test_source_is_shown_without_its_docstring():
    text = source_of(source_of)
    assert text.startswith("def source_of(function: Callable | str, *parts: tuple[str, str]) -> str:")
    assert "dedented source text" not in text
    assert "ast.get_docstring" in text
    with pytest.raises(TypeError, match="function must be written in Python"):
        source_of(len)


@pytest.mark.parametrize("show", ["card", "plan"])
def test_relations_survive_in_html(shown, show):
    """One criterion per line, and no line break inside an escaped relation."""
    book = chapter()
    book.claim("17.a", 0.0)
    book.claim("17.b", low=0.7, high=1)
    book.claim("17.c", -1.0)
    book.card() if show == "card" else book.show_claims()
    html = shown[-1][0]["text/html"]
    assert "low ≥ 0.5<br>high &lt; 2" in html
    assert "&gt; 0" in html
