"""Start a chapter from the template (``make new-chapter NUMBER=18 SLUG=double_sparsity``).

What it writes passes the chapter contract and runs: the author replaces its parts one by one, with the tests green.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import jupytext
import nbformat
import yaml

from lossbook.chapter import catalog
from lossbook.chapter.execute import rewrite
from lossbook.site.pages import opener

TEMPLATE = Path(__file__).parent / "template"
REPOSITORY = Path(__file__).resolve().parents[2]


class NewChapterError(ValueError):
    """A chapter can not be started; the message is one sentence that says why."""


def find_planned(number: str, slug: str) -> catalog.ChapterInfo:
    """The planned chapter that a number and a name stand for.

    Args:
        number: Its number, as typed.
        slug: Its name, with or without the number in front.

    Returns:
        The chapter.

    Raises:
        NewChapterError: If they are malformed, not in the plan, or disagree with it.
    """
    if not re.fullmatch(r"\d{1,2}", number):
        raise NewChapterError(f"NUMBER must be a chapter's number such as 18, got {number!r}")
    name = re.sub(r"^\d\d_", "", slug)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise NewChapterError(
            f"SLUG must be lower-case letters, digits and underscores such as double_sparsity, got {slug!r}"
        )
    try:
        info = catalog.find(int(number))
    except catalog.ChapterNotFoundError as error:
        raise NewChapterError(f"{error}; plan a new one in lossbook/chapter/book.yaml first") from None
    if f"{int(number):02d}_{name}" != info.slug:
        raise NewChapterError(f"chapter {info.number} is planned as SLUG={info.name}, got {slug!r}")
    return info


def create(info: catalog.ChapterInfo, *, title: str = "", root: Path = REPOSITORY) -> list[Path]:
    """Write the notebook and the claims file of a chapter from the template, and list it in the table of contents.

    Args:
        info: The planned chapter.
        title: Its title; default: the planned one.  Another title is written into the plan, too.
        root: The checkout to write to.

    Returns:
        The new files and the changed ones.

    Raises:
        NewChapterError: If a file of the chapter exists already or the title is too long; nothing is written then.
    """
    title = title.strip() or info.title
    if len(title.split()) > 8 or "\n" in title:
        raise NewChapterError(f"TITLE must be one line of at most 8 words, got {title!r}")
    notebook = root / "notebooks" / f"{info.slug}.ipynb"
    claims = root / "lossbook" / "chapter" / "claims" / f"{info.slug}.yaml"
    for path in (notebook, claims):
        if path.exists():
            raise NewChapterError(f"{path.relative_to(root)} exists already: chapter {info.number} has been started")
    claims.parent.mkdir(parents=True, exist_ok=True)
    notebook.parent.mkdir(parents=True, exist_ok=True)
    claims.write_text(_filled("claims.yaml", info, title), encoding="utf-8")
    nbformat.write(notebook_of(info, title), notebook)
    toc = root / "_toc.yml"
    toc.write_text(listed(toc.read_text(encoding="utf-8"), info, root), encoding="utf-8")
    return [notebook, claims, toc, *_retitled(info, title, root)]


def notebook_of(info: catalog.ChapterInfo, title: str) -> nbformat.NotebookNode:
    """The template as the notebook of a chapter, not yet executed.

    Args:
        info: The chapter.
        title: Its title.

    Returns:
        The notebook.
    """
    notebook = jupytext.reads(_filled("chapter.md", info, title), fmt="md:myst")
    for index, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{index:02d}"
    notebook.metadata = nbformat.NotebookNode(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
        }
    )
    notebook.nbformat_minor = 5
    return notebook


def listed(toc: str, info: catalog.ChapterInfo, root: Path = REPOSITORY) -> str:
    """Add a chapter to the table of contents, in its part and in order.

    Args:
        toc: Text of ``_toc.yml``; comments and layout are kept.
        info: The chapter.
        root: The checkout; if it holds a page that opens the part, the part's first chapter brings it along.

    Returns:
        The new text.
    """
    entry = f"      - file: notebooks/{info.slug}"
    lines = toc.rstrip("\n").split("\n")
    if entry in lines:
        return toc
    part = catalog.parts()[info.part - 1]
    caption = part_caption(part)
    heads = [line for line in lines if line.strip() == f'- caption: "{caption}"']
    if not heads:
        first = [f"      - file: {document}", "        title: Overview"] if (document := opener(part, root)) else []
        new = [f'  - caption: "{caption}"', "    numbered: 2", "    chapters:", *first, entry]
        position = _place_for_part(lines, info.part)
        return "\n".join([*lines[:position], *new, *lines[position:]]) + "\n"
    position = lines.index(heads[0]) + 1
    while position < len(lines) and not lines[position].startswith("  - "):
        if lines[position].startswith("      - file: ") and lines[position] > entry:
            break
        position += 1
    return "\n".join([*lines[:position], entry, *lines[position:]]) + "\n"


def part_caption(part: catalog.Part) -> str:
    """The caption of a part in the table of contents."""
    return f"Part {part.roman}: {part.title}"


def _place_for_part(lines: list[str], number: int) -> int:
    """Where a part that has no chapter yet comes: before the next one that has, else before the results."""
    followers = [f'"{part_caption(part)}"' for part in catalog.parts() if part.number > number] + ["Results"]
    return next(
        index for index, line in enumerate(lines) if line.startswith("  - caption: ") and line[13:] in followers
    )


def _filled(name: str, info: catalog.ChapterInfo, title: str) -> str:
    values = {
        "LABEL": info.name.replace("_", "-"),
        "TITLE": title,
        "KEY": info.paper.key,
        "SLUG": info.slug,
        "NUMBER": str(info.number),
    }
    text = (TEMPLATE / name).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], text)


def _retitled(info: catalog.ChapterInfo, title: str, root: Path) -> list[Path]:
    """Write another title into the plan of the book, where the chapter's other pages take it from."""
    if title == info.title:
        return []
    plan = root / "lossbook" / "chapter" / "book.yaml"
    quoted = yaml.safe_dump(title, width=1000, default_style='"').strip()
    text = re.sub(
        rf"(slug: {info.slug}\n\s+title: ).*", lambda match: match[1] + quoted, plan.read_text(encoding="utf-8")
    )
    plan.write_text(text, encoding="utf-8")
    return [plan]


def main() -> int:
    """Start the chapter named on the command line and execute it."""
    parser = argparse.ArgumentParser(description="Start a chapter from the template.")
    parser.add_argument("number")
    parser.add_argument("slug")
    parser.add_argument("--title", default="")
    args = parser.parse_args()
    if not args.number or not args.slug:
        print("name the chapter, for example: make new-chapter NUMBER=18 SLUG=double_sparsity", file=sys.stderr)
        return 2
    try:
        info = find_planned(args.number, args.slug)
        written = create(info, title=args.title)
    except NewChapterError as error:
        print(error, file=sys.stderr)
        return 2
    catalog.parts.cache_clear()
    result = rewrite(catalog.find(info.number))
    if result.failed:
        print(f"the template does not run here: {result.failed}", file=sys.stderr)
        return 1
    for path in written:
        print(path.relative_to(REPOSITORY))
    print(f"Chapter {info.number} runs. Edit it with: make lab   Check it with: make lint   See it with: make book")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
