"""Every written notebook keeps its contract, and the linter sees each way of breaking it."""

import copy

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lossbook.chapter import catalog
from lossbook.site import lint, new_chapter

WRITTEN = [info for info in catalog.notebooks() if info.written]
every_notebook = pytest.mark.parametrize("info", WRITTEN, ids=lambda info: info.slug)
CPU_BUDGET = 60  # seconds on one core


@every_notebook
def test_notebook_keeps_its_contract(info):
    assert lint.lint_notebook(info.notebook, info) == []


@every_notebook
def test_notebook_keeps_its_time(info):
    run = nbformat.read(info.notebook, as_version=4).metadata["lossbook"]
    assert run["cpu_seconds"] <= CPU_BUDGET


@pytest.fixture
def chapter():
    return catalog.find(17)


@pytest.fixture
def template(chapter):
    """The template as a notebook: it keeps the contract, so that a test can break one thing."""
    return new_chapter.notebook_of(chapter, chapter.title)


@pytest.fixture
def problems(monkeypatch, tmp_path, chapter):
    """Lint a notebook that has the two claims of the template."""
    monkeypatch.setattr(lint, "load_claims", lambda slug: {"17.a": None, "17.b": None})

    def check(notebook, executed=False):
        path = tmp_path / "chapter.ipynb"
        nbformat.write(notebook, path)
        return lint.lint_notebook(path, chapter, executed=executed)

    return check


def test_template_keeps_the_contract(template, problems):
    assert problems(template) == []


def code(notebook, text):
    """The first code cell that holds ``text``."""
    return next(cell for cell in notebook.cells if cell.cell_type == "code" and text in cell.source)


def prose(notebook, text):
    return next(cell for cell in notebook.cells if cell.cell_type == "markdown" and text in cell.source)


def swap(cell, old, new):
    assert old in cell.source
    cell.source = cell.source.replace(old, new)


def picture(cell, **mystnb):
    cell.outputs = [new_output("display_data", data={"image/png": "aGk="})]
    cell.metadata["mystnb"] = mystnb


def printed(cell, text, name="stdout"):
    cell.outputs = [new_output("stream", name=name, text=text)]


BREACHES = {
    "label": (lambda n: swap(n.cells[0], "(ch-", "(chapter-"), "begin with a label"),
    "title": (lambda n: swap(n.cells[0], "# Cross", "# Across"), "the title must be"),
    "citation": (lambda n: swap(n.cells[0], "wijmans2025cce", "someone"), "cite the paper"),
    "parameters": (lambda n: swap(code(n, "profile ="), "seed = 0", "seed = 1"), "first code cell"),
    "parameters tag": (lambda n: code(n, "profile =").metadata.tags.remove("remove-cell"), "first code cell"),
    "second parameters": (
        lambda n: code(n, "linspace").metadata.update(tags=["parameters"]),
        "must not have the tag parameters",
    ),
    "set-up": (lambda n: swap(code(n, "Chapter("), "seed=seed", "seed=0"), "second code cell"),
    "set-up tag": (lambda n: code(n, "Chapter(").metadata.update(tags=[]), "hide-input"),
    "unknown tag": (lambda n: code(n, "linspace").metadata.update(tags=["hide_input"]), "'hide_input'"),
    "card unchecked": (
        lambda n: code(n, "chapter.card").metadata.tags.append("nbval-ignore-output"),
        "must be compared",
    ),
    "no alt": (lambda n: code(n, "style(").metadata.mystnb.image.update(alt=" "), "without alternative text"),
    "picture without alt": (lambda n: picture(code(n, "slopes")), "without alternative text"),
    "picture without caption": (lambda n: picture(code(n, "slopes"), image={"alt": "x"}), "without a caption"),
    "html image": (
        lambda n: code(n, "slopes").update(outputs=[new_output("display_data", data={"text/html": "<img src='x'>"})]),
        "without alternative text",
    ),
    "figure and more": (
        lambda n: code(n, "style(").update(outputs=[new_output("stream", text="x")] * 2),
        "a figure and 1 other outputs",
    ),
    "markdown image": (lambda n: n.cells.append(new_markdown_cell("![](x.png)")), "without alternative text"),
    "figure directive": (lambda n: n.cells.append(new_markdown_cell("```{figure} x.png\n```")), "without ':alt:'"),
    "claim left out": (lambda n: swap(code(n, "17.b"), "chapter.claim", "print"), "claim 17.b is never measured"),
    "claim unknown": (lambda n: swap(code(n, "17.b"), "17.b", "17.z"), "claim 17.z is measured but"),
    "claim computed": (lambda n: swap(code(n, "17.b"), '"17.b"', "'17.' + 'b'"), "must be written out"),
    "no card": (lambda n: swap(code(n, "chapter.card"), "chapter.card()", "pass"), "exactly one card"),
    "no explorer": (lambda n: swap(code(n, "explore("), "explore(", "print("), "at least one explorer"),
    "two exercises": (lambda n: swap(prose(n, "-3\n"), "exercise-start", "exercise"), "3 exercises"),
    "open solution": (lambda n: swap(prose(n, "{solution-start}"), ":class: dropdown", ""), "folded"),
    "empty solution": (lambda n: n.cells.remove(code(n, "log1p")), "holds no code cell"),
    "long cell": (lambda n: n.cells.append(new_code_cell("1\n" * 30)), "lines; at most"),
    "many cells": (lambda n: n.cells.extend(new_code_cell("1") for _ in range(20)), "at most 28 code cells"),
    "long output": (lambda n: printed(code(n, "slopes"), "x\n" * 30), "prints 30 lines"),
    "large file": (lambda n: printed(code(n, "slopes"), "x" * 1_000_001), "at most 1,000,000 bytes"),
    "installation": (lambda n: n.cells.append(new_code_cell("!pip install x")), "begins with ! or %"),
    "magic": (lambda n: n.cells.append(new_code_cell("%pip install x")), "begins with ! or %"),
    "download": (lambda n: n.cells.append(new_code_cell("u = 'https://x.org/a.csv'")), "holds an address"),
    "private import": (
        lambda n: n.cells.append(new_code_cell("from lossbook.chapter.card import _MARKS")),
        "is not public",
    ),
    "hidden import": (
        lambda n: n.cells.append(new_code_cell("from lossbook.chapter import catalogue")),
        "is not public",
    ),
    "private attribute": (lambda n: n.cells.append(new_code_cell("chapter._outcomes")), "private name _outcomes"),
    "count": (lambda n: code(n, "slopes").update(execution_count=3), "execution count"),
    "error": (
        lambda n: code(n, "slopes").update(outputs=[new_output("error", ename="E", evalue="", traceback=[])]),
        "holds an error",
    ),
    "stderr": (lambda n: printed(code(n, "slopes"), "careful", name="stderr"), "standard error"),
    "path in output": (lambda n: printed(code(n, "slopes"), "/home/me/x"), "names a path"),
    "path in code": (lambda n: n.cells.append(new_code_cell("open('/tmp/x')")), "names a path"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_breach_is_reported(template, problems, breach):
    change, words = BREACHES[breach]
    broken = copy.deepcopy(template)
    change(broken)
    found = problems(broken)
    assert any(words in problem for problem in found), found


def test_chapter_must_be_committed_executed(template, problems):
    assert any("make reproduce CHAPTER=17" in problem for problem in problems(template, executed=True))
    template.metadata["lossbook"] = {"profile": "cpu", "seed": 0}
    assert any("no reproduction card" in problem for problem in problems(template, executed=True))


COMPARISON = catalog.comparisons()[0]


@pytest.fixture
def side_by_side():
    """The smallest notebook that keeps the contract of a comparison."""
    head = f"(ch-embedding-losses)=\n# {COMPARISON.title}"
    made = f'comparison = Comparison("{COMPARISON.slug}", profile=profile, seed=seed)'
    cells = [
        new_markdown_cell(head),
        new_code_cell(lint.PARAMETERS, metadata={"tags": ["parameters", "remove-cell"]}),
        new_code_cell(made, metadata={"tags": ["hide-input"]}),
        new_code_cell("explore(draw, alt='x', n=[1])"),
    ]
    for cell in cells:
        if cell.cell_type == "code":
            cell.execution_count = None
    return new_notebook(cells=cells)


@pytest.fixture
def problems_of_comparison(tmp_path):
    def check(notebook, executed=False):
        path = tmp_path / "comparison.ipynb"
        nbformat.write(notebook, path)
        return lint.lint_notebook(path, COMPARISON, executed=executed)

    return check


def test_comparison_needs_neither_claims_nor_exercises_nor_a_paper(side_by_side, problems_of_comparison):
    assert problems_of_comparison(side_by_side) == []
    side_by_side.metadata["lossbook"] = {"profile": "cpu", "seed": 0}
    assert problems_of_comparison(side_by_side, executed=True) == []


def test_comparison_keeps_the_rest_of_the_contract(side_by_side, problems_of_comparison):
    (problem,) = problems_of_comparison(side_by_side, executed=True)
    assert problem.endswith("make reproduce CHAPTER=embedding_losses")
    side_by_side.cells[2].source = side_by_side.cells[2].source.replace("Comparison(", "Chapter(")
    side_by_side.cells[3].source = "print()"
    found = " ".join(problems_of_comparison(side_by_side))
    assert 'must make comparison = Comparison("embedding_losses"' in found
    assert "at least one explorer" in found
