"""The plan of the book, read from ``book.yaml``: its parts, their chapters and papers, and their comparisons."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import yaml


class ChapterNotFoundError(ValueError):
    """No chapter of the book answers to the given number or name."""


@dataclass(frozen=True)
class Paper:
    """Citation of the paper that a chapter reproduces; ``key`` is its BibTeX key."""

    key: str
    title: str
    authors: str
    year: int
    venue: str | None = None
    arxiv: str | None = None
    code: str | None = None


class _Notebook:
    """What is planned as a notebook, which its slug names."""

    slug: str

    @property
    def notebook(self) -> Path:
        """Where the notebook is, or will be."""
        return notebooks_dir() / f"{self.slug}.ipynb"

    @property
    def written(self) -> bool:
        """Whether the notebook exists."""
        return self.notebook.is_file()


@dataclass(frozen=True)
class ChapterInfo(_Notebook):
    """One planned chapter: ``slug`` carries the number, ``name`` does not, ``part`` counts from 1."""

    number: int
    slug: str
    title: str
    paper: Paper
    part: int

    @property
    def name(self) -> str:
        """The slug without its number."""
        return self.slug[3:]

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"chapter {self.number}"


@dataclass(frozen=True)
class ComparisonInfo(_Notebook):
    """A notebook that runs the losses of a part side by side: it reproduces no paper, and has no number or claims."""

    slug: str
    title: str
    part: int

    @property
    def name(self) -> str:
        """The slug, which has no number."""
        return self.slug

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"comparison {self.slug}"


NotebookInfo = ChapterInfo | ComparisonInfo


@dataclass(frozen=True)
class Part:
    """One part of the book; ``number`` counts from 1, ``roman`` is how the book prints it.

    ``comparison`` closes the part, after its chapters; not every part has one.
    """

    number: int
    roman: str
    slug: str
    title: str
    chapters: tuple[ChapterInfo, ...]
    comparison: ComparisonInfo | None = None


def notebooks_dir() -> Path:
    """The folder with the notebooks: of the checkout, or the copy inside an installed wheel."""
    package = Path(str(resources.files("lossbook")))
    checkout = package.parent / "notebooks"
    return checkout if checkout.is_dir() else package / "_notebooks"


@cache
def parts() -> tuple[Part, ...]:
    """All parts of the book with their chapters, in order.

    Returns:
        The parts, numbered from 1.

    Raises:
        ValueError: If a chapter's number and slug in ``book.yaml`` disagree or a number stands twice.
    """
    text = (resources.files("lossbook.chapter") / "book.yaml").read_text(encoding="utf-8")
    found: list[Part] = []
    seen: set[int] = set()
    for number, entry in enumerate(yaml.safe_load(text)["parts"], start=1):
        chapters = []
        for item in entry["chapters"]:
            if not re.fullmatch(rf"{item['number']:02d}_[a-z0-9_]+", item["slug"]) or item["number"] in seen:
                raise ValueError(f"book.yaml: chapter {item['number']} has slug {item['slug']!r} or stands twice")
            seen.add(item["number"])
            paper = {**item["paper"], "arxiv": item["paper"].get("arxiv") and str(item["paper"]["arxiv"])}
            chapters.append(ChapterInfo(item["number"], item["slug"], item["title"], Paper(**paper), number))
        comparison = ComparisonInfo(**entry["comparison"], part=number) if "comparison" in entry else None
        found.append(Part(number, entry["roman"], entry["slug"], entry["title"], tuple(chapters), comparison))
    return tuple(found)


def chapters() -> tuple[ChapterInfo, ...]:
    """All planned chapters in the order of the book."""
    return tuple(chapter for part in parts() for chapter in part.chapters)


def comparisons() -> tuple[ComparisonInfo, ...]:
    """All planned comparisons in the order of the book."""
    return tuple(part.comparison for part in parts() if part.comparison)


def notebooks() -> tuple[NotebookInfo, ...]:
    """Everything planned that is a notebook: the chapters, then the comparisons."""
    return *chapters(), *comparisons()


def find(which: int | str) -> ChapterInfo:
    """Look a chapter up.

    Args:
        which: Its number (``17`` or ``"17"``), slug (``"17_cut_cross_entropy"``) or name (``"cut_cross_entropy"``).

    Returns:
        The chapter.

    Raises:
        ChapterNotFoundError: If there is none; the message says which numbers exist.

    Examples:
        >>> find(17).slug
        '17_cut_cross_entropy'
    """
    text = str(which).strip()
    for chapter in chapters():
        if text in (chapter.slug, chapter.name) or (text.isdigit() and int(text) == chapter.number):
            return chapter
    numbers = [chapter.number for chapter in chapters()]
    raise ChapterNotFoundError(
        f"there is no chapter {text!r}: chapters are numbered {min(numbers)} to {max(numbers)} "
        "(lossbook list shows their names)"
    )


def find_notebook(which: int | str) -> NotebookInfo:
    """Look a chapter or a comparison up.

    Args:
        which: What :func:`find` takes, or the slug of a comparison (``"embedding_losses"``).

    Returns:
        The chapter or the comparison.

    Raises:
        ChapterNotFoundError: If there is neither.

    Examples:
        >>> find_notebook("embedding_losses").label
        'comparison embedding_losses'
    """
    named = {comparison.slug: comparison for comparison in comparisons()}
    return named.get(str(which).strip()) or find(which)
