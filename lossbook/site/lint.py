"""The contract of a chapter's notebook, or of a comparison's, checked without running it (``make lint``).

Each rule is one function from a :class:`Page` to messages; ``RULES`` lists those of a chapter, ``COMPARISON_RULES``
those of a comparison, which has no claims and no exercises.  CONTRIBUTING.md explains them.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from lossbook.chapter import catalog
from lossbook.chapter.claims import ClaimsFileError, load_claims

TAGS = {
    "parameters",
    "hide-input",
    "hide-output",
    "hide-cell",
    "remove-input",
    "remove-output",
    "remove-cell",
    "nbval-ignore-output",
    "raises-exception",
    "full-width",
}
PARAMETERS = 'profile = "cpu"\nseed = 0'
MAX_BYTES, MAX_CODE_CELLS, MAX_CELL_LINES, MAX_OUTPUT_LINES, MAX_TITLE_WORDS = 1_000_000, 28, 25, 20, 8
EXERCISES = 3

_MACHINE_PATH = re.compile(
    r"(?<![\w:/])/(?:home|root|Users|tmp|work|private|var/folders)/\w|[A-Z]:\\\\?Users|\.venv/|site-packages"
)
_FIGURES = ("image/png", "image/svg+xml", "image/jpeg")
_DIRECTIVE_IMAGE = re.compile(r"^(`{3,}|:{3,})\{(?:figure|image)\}(.*?)^\1", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Page:
    """A notebook of the book with what it is checked against."""

    info: catalog.NotebookInfo
    notebook: NotebookNode
    size: int
    executed: bool = True

    @cached_property
    def code(self) -> list[tuple[int, NotebookNode]]:
        """Code cells with their positions in the notebook, counted from 1."""
        return [(place, cell) for place, cell in enumerate(self.notebook.cells, start=1) if cell.cell_type == "code"]

    @cached_property
    def prose(self) -> list[tuple[int, NotebookNode]]:
        """Markdown cells with their positions."""
        return [(place, cell) for place, cell in enumerate(self.notebook.cells, start=1) if cell.cell_type != "code"]

    @cached_property
    def calls(self) -> list[tuple[int, str, ast.Call]]:
        """Every call in the code as (cell, dotted name, node)."""
        found = []
        for place, cell in self.code:
            for node in ast.walk(_tree(cell.source)):
                if isinstance(node, ast.Call):
                    found.append((place, ast.unparse(node.func), node))
        return found


def lint_notebook(path: Path, info: catalog.NotebookInfo, *, executed: bool = True) -> list[str]:
    """Check one chapter or comparison against its contract.

    Args:
        path: The notebook.
        info: The chapter or comparison it must be.
        executed: Whether it must carry the outputs of a ``cpu`` run, as committed notebooks do.

    Returns:
        One sentence for each breach; empty if there is none.
    """
    page = Page(info, nbformat.read(path, as_version=4), path.stat().st_size, executed)
    rules = RULES if isinstance(info, catalog.ChapterInfo) else COMPARISON_RULES
    return [f"{path.name}: {message}" for rule in rules for message in rule(page)]


def opening(page: Page) -> Iterator[str]:
    """Label and title come first, then the parameters, then the set-up."""
    first = page.notebook.cells[0].source if page.notebook.cells else ""
    found = re.match(r"\(ch-[a-z0-9-]+\)=\n# (.+)", first)
    if not found:
        yield "cell 1 must begin with a label '(ch-name)=' and on the next line '# Title'"
    elif found[1].strip() != page.info.title:
        yield f"the title must be {page.info.title!r} as in lossbook/chapter/book.yaml, got {found[1].strip()!r}"
    if len(page.info.title.split()) > MAX_TITLE_WORDS:
        yield f"the title must have at most {MAX_TITLE_WORDS} words, got {page.info.title!r}"
    cells = [cell for _, cell in page.code[:2]]
    if len(cells) < 2:
        yield "a notebook has a parameters cell and a set-up cell"
        return
    if cells[0].source.strip() != PARAMETERS or set(_tags(cells[0])) != {"parameters", "remove-cell"}:
        yield f"the first code cell must be exactly {PARAMETERS!r} with the tags parameters and remove-cell"
    kind = "Chapter" if isinstance(page.info, catalog.ChapterInfo) else "Comparison"
    if f'{kind}("{page.info.slug}", profile=profile, seed=seed)' not in cells[1].source:
        made = f'{kind.lower()} = {kind}("{page.info.slug}", profile=profile, seed=seed)'
        yield f"the second code cell must make {made}"
    elif "hide-input" not in _tags(cells[1]):
        yield "the set-up cell must have the tag hide-input"


def citation(page: Page) -> Iterator[str]:
    """The paper is cited before any code."""
    before = [cell.source for place, cell in page.prose if not page.code or place < page.code[0][0]]
    if not re.search(r"\{cite:[tp]\}`[^`]*" + page.info.paper.key, "\n".join(before)):
        yield f"the text before the code must cite the paper: {{cite:t}}`{page.info.paper.key}`"


def tags(page: Page) -> Iterator[str]:
    """Only tags that the book, papermill or nbval understand; the card is always compared."""
    for place, cell in enumerate(page.notebook.cells, start=1):
        for tag in sorted(set(_tags(cell)) - TAGS):
            yield f"cell {place} has the tag {tag!r}; allowed are {', '.join(sorted(TAGS))}"
    for place, cell in page.code[1:]:
        if "parameters" in _tags(cell):
            yield f"cell {place} must not have the tag parameters: it belongs to the first code cell"
    for place, name, _ in page.calls:
        if name == "chapter.card" and "nbval-ignore-output" in _tags(page.notebook.cells[place - 1]):
            yield f"cell {place} shows the card, which must be compared: remove the tag nbval-ignore-output"


def alternative_text(page: Page) -> Iterator[str]:
    """Every picture says in words what it shows."""
    for place, cell in page.code:
        pictures = [kind for output in cell.outputs for kind in output.get("data", {}) if kind in _FIGURES]
        meta = cell.metadata.get("mystnb", {})
        if (pictures or "figure" in meta) and not str(meta.get("image", {}).get("alt", "")).strip():
            yield f"cell {place} shows a figure without alternative text (metadata mystnb: image: alt)"
        if pictures and not meta.get("figure", {}).get("caption"):
            yield f"cell {place} shows a figure without a caption (metadata mystnb: figure: caption)"
        # The caption and its label would be those of every output.
        if "figure" in meta and len(cell.outputs) > 1:
            others = len(cell.outputs) - 1
            yield f"cell {place} shows a figure and {others} other outputs: a figure has a cell of its own"
        for output in cell.outputs:
            for tag in re.findall(r"<img\b[^>]*>", _text(output.get("data", {}).get("text/html", ""))):
                if not re.search(r'\balt="[^"]+"', tag):
                    yield f"cell {place} shows an image without alternative text"
    for place, cell in page.prose:
        if re.search(r"!\[\s*\]\(", cell.source):
            yield f"cell {place} has an image without alternative text: ![what it shows](...)"
        for match in _DIRECTIVE_IMAGE.finditer(cell.source):
            if not re.search(r"^:alt: \S", match[2], re.MULTILINE):
                yield f"cell {place} has a figure directive without ':alt:'"


def claims(page: Page) -> Iterator[str]:
    """Every claim of the claims file is measured once, and one card ends the account."""
    try:
        known = set(load_claims(page.info.slug))
    except ClaimsFileError as error:
        yield str(error)
        return
    measured: Counter[str] = Counter()
    for place, name, node in page.calls:
        if name in ("chapter.claim", "chapter.needs_gpu"):
            if node.args and isinstance(node.args[0], ast.Constant):
                measured[str(node.args[0].value)] += 1
            else:
                yield f"cell {place}: the claim's id must be written out, so that it can be found"
    for claim in sorted(known - set(measured)):
        yield f'claim {claim} is never measured: chapter.claim("{claim}", value)'
    for claim in sorted(set(measured) - known):
        yield f"claim {claim} is measured but not in the claims file"
    cards = [place for place, name, _ in page.calls if name == "chapter.card"]
    if len(cards) != 1:
        yield f"a chapter shows exactly one card (chapter.card()), this one {len(cards)}"


def explorer(page: Page) -> Iterator[str]:
    """At least one explorer."""
    if not any(name.split(".")[-1] == "explore" for _, name, _ in page.calls):
        yield "a notebook has at least one explorer: explore(draw, alt=..., name=[...])"


def exercises(page: Page) -> Iterator[str]:
    """Three gated exercises, each with one folded solution that contains executed code."""
    text = "\n".join(cell.source for _, cell in page.prose)
    labels = re.findall(r"\{exercise-start\}[^\n]*\n(?::[^\n]*\n)*?:label: (\S+)", text)
    solved = re.findall(r"\{solution-start\} (\S+)", text)
    ends = len(re.findall(r"\{exercise-end\}", text)), len(re.findall(r"\{solution-end\}", text))
    if len(labels) != EXERCISES or sorted(labels) != sorted(solved) or ends != (len(labels), len(solved)):
        yield (
            f"a chapter has {EXERCISES} exercises between exercise-start and exercise-end, each with one solution; "
            f"found exercises {labels} and solutions {solved}, ends {ends}"
        )
    if len(re.findall(r"\{solution-start\} [^\n]*\n(?::[^\n]*\n)*?:class: [^\n]*dropdown", text)) != len(solved):
        yield "every solution-start needs ':class: dropdown', so that it is folded"
    solution, holds_code = None, False
    for place, cell in enumerate(page.notebook.cells, start=1):
        if cell.cell_type == "code":
            holds_code = True
            continue
        for word in re.findall(r"\{(solution-(?:start|end))\}", cell.source):
            if word == "solution-end" and solution is not None and not holds_code:
                yield f"the solution that begins in cell {solution} holds no code cell"
            solution, holds_code = (place, False) if word == "solution-start" else (None, False)


def size(page: Page) -> Iterator[str]:
    """Short enough to read, small enough to keep."""
    if page.size > MAX_BYTES:
        yield f"the file must be at most {MAX_BYTES:,} bytes, it has {page.size:,}"
    if len(page.code) > MAX_CODE_CELLS:
        yield f"a notebook has at most {MAX_CODE_CELLS} code cells, this one {len(page.code)}"
    for place, cell in page.code:
        lines = cell.source.count("\n") + 1
        if lines > MAX_CELL_LINES:
            yield f"cell {place} has {lines} lines; at most {MAX_CELL_LINES}"
        for output in cell.outputs:
            shown = _text(output.get("text", "")) or _text(output.get("data", {}).get("text/plain", ""))
            plain = "text/html" not in output.get("data", {})
            if plain and shown.count("\n") > MAX_OUTPUT_LINES:
                yield f"cell {place} prints {shown.count(chr(10))} lines; at most {MAX_OUTPUT_LINES}"


def offline(page: Page) -> Iterator[str]:
    """No installation and no download at run time."""
    for place, cell in page.code:
        if re.search(r"^\s*[!%]", cell.source, re.MULTILINE):
            yield f"cell {place} has a line that begins with ! or %: notebooks install nothing and use no magics"
        if re.search(r"https?://", cell.source):
            yield f"cell {place} holds an address: data comes from lossbook.data, which is offline once fetched"


def public_names(page: Page) -> Iterator[str]:
    """What a chapter imports, a reader can import too: public names of the package only."""
    for place, cell in page.code:
        for node in ast.walk(_tree(cell.source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lossbook":
                for alias in node.names:
                    if not _is_public(node.module, alias.name):
                        yield f"cell {place}: {node.module}.{alias.name} is not public (not in {node.module}.__all__)"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("lossbook") and "._" in alias.name:
                        yield f"cell {place}: {alias.name} is not public"
            elif isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr):
                yield f"cell {place} uses the private name {node.attr}"


def clean_outputs(page: Page) -> Iterator[str]:
    """Outputs of a finished cpu run, without what differs from run to run or tells of a machine."""
    for place, cell in page.code:
        if cell.execution_count is not None:
            yield f"cell {place} has an execution count"
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in _tags(cell):
                yield f"cell {place} holds an error: {output.get('ename')}"
            if output.get("name") == "stderr":
                yield f"cell {place} holds standard error output"
            for text in [_text(output.get("text", "")), *(_text(data) for data in output.get("data", {}).values())]:
                if found := _MACHINE_PATH.search(re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)):
                    yield f"the output of cell {place} names a path of the machine: {found[0]}..."
        if found := _MACHINE_PATH.search(cell.source):
            yield f"cell {place} names a path of the machine: {found[0]}..."
    if not page.executed:
        return
    if not _executed(page):
        command = f"make reproduce CHAPTER={page.info.label.split()[-1]}"
        yield f"the notebook must be committed executed with profile cpu and seed 0: {command}"


def card(page: Page) -> Iterator[str]:
    """An executed chapter reached its card."""
    cards = [output for _, cell in page.code for output in cell.outputs if output.get("metadata", {}).get("lossbook")]
    if page.executed and _executed(page) and not cards:
        yield "the notebook holds no reproduction card in its outputs"


COMPARISON_RULES: tuple[Callable[[Page], Iterator[str]], ...] = (
    opening,
    tags,
    alternative_text,
    explorer,
    size,
    offline,
    public_names,
    clean_outputs,
)
RULES = (*COMPARISON_RULES, citation, claims, exercises, card)


def _executed(page: Page) -> bool:
    run = page.notebook.metadata.get("lossbook", {})
    return (run.get("profile"), run.get("seed")) == ("cpu", 0)


def _is_public(module: str, name: str) -> bool:
    if any(part.startswith("_") for part in [*module.split("."), name]):
        return False
    home = importlib.import_module(module)
    if name in getattr(home, "__all__", ()):
        return True
    try:
        return bool(importlib.import_module(f"{module}.{name}").__name__)
    except ModuleNotFoundError:
        return False


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _text(data: object) -> str:
    return "".join(data) if isinstance(data, list) else data if isinstance(data, str) else ""


def _tree(source: str) -> ast.AST:
    """Syntax of a cell; lines that are no Python are the business of the rule ``offline``."""
    return ast.parse(re.sub(r"^\s*[!%].*$", "", source, flags=re.MULTILINE))


def main() -> int:
    """Lint every written chapter and comparison, and every stray notebook."""
    folder = catalog.notebooks_dir()
    planned = {info.notebook: info for info in catalog.notebooks()}
    problems = [
        f"{path.name}: not a notebook of lossbook/chapter/book.yaml"
        for path in sorted(folder.glob("*.ipynb"))
        if path not in planned
    ]
    written = [info for info in planned.values() if info.written]
    for info in written:
        problems += lint_notebook(info.notebook, info)
    kept = f"{len(written)} notebooks keep the contract" if len(written) != 1 else "1 notebook keeps the contract"
    print("\n".join(problems) or kept)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
