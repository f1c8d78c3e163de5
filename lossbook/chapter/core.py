"""The object that makes a notebook a chapter: its profile, seed, claims and reproduction card; or a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from IPython.display import display

from lossbook.chapter import card as cards
from lossbook.chapter import catalog, figures
from lossbook.chapter.claims import load_claims
from lossbook.chapter.repeatability import limit_threads, seed_everything

PROFILES = ("smoke", "cpu", "gpu")
_UNSET: Any = object()
T = TypeVar("T")


class ClaimsFailedError(AssertionError):
    """At least one enforced claim fell short of its criterion, or was not measured."""


class _Run:
    """What a chapter and a comparison share: profile, seed and device."""

    def __init__(self, info: catalog.NotebookInfo, profile: str, seed: int) -> None:
        if profile not in PROFILES:
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
        if profile == "gpu" and not torch.cuda.is_available():
            raise RuntimeError(
                f"profile 'gpu' needs a CUDA device and torch sees none: run {info.label} with profile 'cpu', "
                "or check the installation with: lossbook doctor"
            )
        self.info = info
        self.profile = profile
        self.seed = seed
        self.device = torch.device("cuda" if profile == "gpu" else "cpu")
        seed_everything(seed)
        limit_threads()
        figures.use_style()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.info.slug!r}, profile={self.profile!r}, seed={self.seed})"

    def pick(self, *, cpu: T, smoke: T = _UNSET, gpu: T = _UNSET) -> T:
        """Choose a value by profile.

        Args:
            cpu: Value for ``cpu``, and for any profile not given.
            smoke: Value for ``smoke``.
            gpu: Value for ``gpu``.

        Returns:
            The value for this notebook's profile.
        """
        value = {"smoke": smoke, "cpu": cpu, "gpu": gpu}[self.profile]
        return cpu if value is _UNSET else value

    def generator(self, offset: int = 0) -> torch.Generator:
        """A fresh torch generator on the notebook's device.

        Args:
            offset: Added to the notebook's seed, so that its parts draw independently.

        Returns:
            The seeded generator.
        """
        return torch.Generator(self.device).manual_seed(self.seed + offset)


class Comparison(_Run):
    """Profile, seed and device of a notebook that runs the losses of a part side by side, and has no claims.

    Profiles: ``"smoke"`` runs in seconds, ``"cpu"`` is what the published book shows, and ``"gpu"`` runs at a larger
    scale and needs CUDA.  Creating one seeds the global random states, applies ``LOSSBOOK_THREADS`` and sets the book's
    figure style.

    Args:
        slug: Name of the comparison, ``"embedding_losses"``.
        profile: ``"smoke"``, ``"cpu"`` (default) or ``"gpu"``.
        seed: Seed of everything random in the notebook, ``>= 0``, default 0.

    Raises:
        ValueError: If the comparison, profile or seed does not exist.
        RuntimeError: If ``profile="gpu"`` and torch sees no CUDA device.

    Examples:
        >>> comparison = Comparison("embedding_losses", profile="smoke")
        >>> comparison.pick(smoke=1, cpu=3, gpu=10)
        1
    """

    def __init__(self, slug: str, *, profile: str = "cpu", seed: int = 0) -> None:
        named = {comparison.slug: comparison for comparison in catalog.comparisons()}
        if slug not in named:
            raise ValueError(f"slug must be one of {', '.join(named)}, got {slug!r}")
        super().__init__(named[slug], profile, seed)


class Chapter(_Run):
    """A chapter's profile, seed, device and claims.

    Profiles: ``"smoke"`` runs in seconds and enforces identities only; ``"cpu"`` is what the published book shows;
    ``"gpu"`` runs at a scale near the paper's and needs CUDA.  In the last two every claim is enforced.

    Creating one seeds the global random states, applies ``LOSSBOOK_THREADS`` and sets the book's figure style.

    Args:
        slug: Number and name, ``"17_cut_cross_entropy"``.
        profile: ``"smoke"``, ``"cpu"`` (default) or ``"gpu"``.
        seed: Seed of everything random in the chapter, ``>= 0``, default 0.

    Raises:
        ValueError: If the chapter, profile or seed does not exist.
        RuntimeError: If ``profile="gpu"`` and torch sees no CUDA device.

    Examples:
        >>> chapter = Chapter("17_cut_cross_entropy", profile="smoke")
        >>> chapter.pick(smoke=64, cpu=2048, gpu=8192)
        64
    """

    def __init__(self, slug: str, *, profile: str = "cpu", seed: int = 0) -> None:
        super().__init__(catalog.find(slug), profile, seed)
        self.claims = load_claims(self.info.slug)
        self._outcomes: dict[str, cards.Outcome] = {}

    def show_claims(self) -> None:
        """Show what the chapter sets out to measure: every claim with its criterion, before anything is run.

        Returns:
            None.
        """
        display(cards.plan(self.claims.values()), raw=True)

    def claim(self, claim_id: str, value: float | Mapping[str, float] | None = None, **values: float) -> str:
        """Hold measured values against a claim's fixed criteria, and show the verdict.

        Args:
            claim_id: The claim's id, ``"17.a"``.
            value: The measured number when the claim has one criterion, or a mapping of names to numbers.
            **values: Measured numbers by the criteria's names.

        Returns:
            The verdict.

        Raises:
            KeyError: If the chapter has no such claim.
            ValueError: If the values' names are not those of the criteria.
        """
        claim = self._find(claim_id)
        if isinstance(value, Mapping):
            values = {**value, **values}
        elif value is not None:
            values = {claim.criteria[0].name: value, **values}
        measured = {name: float(number) for name, number in values.items()}
        verdict = claim.judge(measured)
        ordered = {criterion.name: measured[criterion.name] for criterion in claim.criteria}
        return self._settle(claim_id, ordered, verdict)

    def needs_gpu(self, claim_id: str, note: str) -> str:
        """Record that a claim can not be measured without a GPU.

        Args:
            claim_id: The claim's id.
            note: What would be measured, in one sentence.

        Returns:
            The verdict, ``"needs GPU"``.

        Raises:
            KeyError: If the chapter has no such claim.
        """
        return self._settle(claim_id, {}, "needs GPU", note)

    def card(self) -> None:
        """Show the reproduction card, then stop the chapter if an enforced claim fell short.

        Returns:
            None.

        Raises:
            ClaimsFailedError: Naming each failed or unmeasured claim with its numbers.
        """
        outcomes = [self._outcomes[claim_id] for claim_id in self.claims if claim_id in self._outcomes]
        bundle = cards.card(outcomes, title=self.info.paper.title, profile=self.profile)
        display(bundle, metadata={"lossbook": self.record()}, raw=True)
        problems = [
            f"{o.claim.id} is {o.verdict}, expected {o.claim.expect}: measured {cards.measured_text(o.measured)}, "
            f"criterion {cards.criteria_text(o.record()['criteria'])}"
            for o in outcomes
            if o.failed
        ]
        problems += [f"{claim_id} was not measured" for claim_id in self.claims if claim_id not in self._outcomes]
        if problems:
            raise ClaimsFailedError("; ".join(problems))

    def record(self) -> dict[str, Any]:
        """The card in a JSON-ready form, as the scoreboard reads it.

        Returns:
            Chapter, profile, seed and one entry per measured claim.
        """
        return {
            "chapter": self.info.slug,
            "profile": self.profile,
            "seed": self.seed,
            "claims": [self._outcomes[claim_id].record() for claim_id in self.claims if claim_id in self._outcomes],
        }

    def _find(self, claim_id: str):
        if claim_id not in self.claims:
            raise KeyError(f"chapter {self.info.slug} has claims {', '.join(self.claims)}; got {claim_id!r}")
        return self.claims[claim_id]

    def _settle(self, claim_id: str, measured: dict[str, float], verdict: str, note: str = "") -> str:
        claim = self._find(claim_id)
        enforced = self.profile != "smoke" or claim.kind == "identity"
        self._outcomes[claim_id] = cards.Outcome(claim, measured, verdict, enforced, note)
        display(cards.line(self._outcomes[claim_id]), raw=True)
        return verdict
