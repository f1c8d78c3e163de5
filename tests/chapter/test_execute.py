"""Executing a notebook, cleaning it, and reading its card back."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lossbook.chapter import catalog, execute, scoreboard


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A folder of notebooks with one small chapter in it."""
    monkeypatch.setattr(catalog, "notebooks_dir", lambda: tmp_path)
    cells = [
        new_markdown_cell("# A chapter"),
        new_code_cell('profile = "cpu"\nseed = 0', metadata={"tags": ["parameters"]}),
        new_code_cell(
            "import sys, os\nfrom IPython.display import display\n"
            "names = ('LOSSBOOK_STATIC', 'LOSSBOOK_THREADS', 'LOSSBOOK_SWEEP_CACHE')\n"
            "print('profile', profile, seed, *(os.environ.get(name) or '-' for name in names))\n"
            "print('noise', file=sys.stderr)\n"
            "display({'text/plain': 'card'}, metadata={'lossbook': {'profile': profile, 'claims': [\n"
            "    {'id': '17.a', 'verdict': 'reproduced', 'measured': {'x': 1e-12}}]}}, raw=True)"
        ),
        new_code_cell(
            "import ipywidgets as w; one, two, three = (w.IntSlider(description=d) for d in 'abc')\n"
            "w.jslink((two, 'value'), (three, 'value')); w.jslink((one, 'value'), (two, 'value'))\n"
            "display(w.VBox([one, two, three]))"
        ),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "17_cut_cross_entropy.ipynb")
    return catalog.find(17)


@pytest.mark.notebook
def test_execute_rewrite_and_clean(book, tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSBOOK_SWEEP_CACHE", "kept")
    progress = []
    result = execute.execute(
        book, profile="smoke", seed=1, out=tmp_path / "runs", on_progress=lambda *a: progress.append(a)
    )
    assert result.failed is None
    assert result.path.name == "17_cut_cross_entropy-smoke-seed1.ipynb"
    assert result.card["claims"][0]["verdict"] == "reproduced"
    assert progress[-1] == (5, 5), "four cells and the injected parameters"
    run = nbformat.read(result.path, as_version=4)
    assert "profile smoke 1 1 - kept" in str(run.cells), "a reader's run chooses its threads and its cache itself"
    assert run.metadata.lossbook["profile"] == "smoke"
    assert "profile smoke" not in book.notebook.read_text()

    first = (execute.rewrite(book), book.notebook.read_text())[1]
    second = (execute.rewrite(book), book.notebook.read_text())[1]
    for text in (first, second):
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
        assert len(notebook.cells) == 4
        assert "profile cpu 0 1 1 -" in text, "the published run uses one thread and no earlier result"
        assert all(cell.get("execution_count") is None for cell in notebook.cells)
        assert "noise" not in [output.get("text") for output in notebook.cells[2].outputs]
        assert notebook.metadata.widgets, "the widgets' state must be kept for the page"
        assert notebook.metadata.lossbook["cpu_seconds"] > 0
    strip = [nbformat.reads(text, as_version=4) for text in (first, second)]
    for notebook in strip:
        notebook.metadata.pop("lossbook")
    assert strip[0] == strip[1], "two equal runs must give equal notebooks"


@pytest.mark.notebook
def test_failure_is_kept_and_leaves_the_chapter_alone(book, tmp_path):
    notebook = nbformat.read(book.notebook, as_version=4)
    notebook.cells.append(new_code_cell("raise ValueError('gamma must be >= 0, got -1')"))
    nbformat.write(notebook, book.notebook)
    before = book.notebook.read_text()
    result = execute.rewrite(book)
    assert result.failed == "ValueError: gamma must be >= 0, got -1"
    assert book.notebook.read_text() == before
    assert "profile cpu 0" in result.path.read_text()
    assert not list(tmp_path.glob("*.partial"))


BUSY = """
import time, joblib

def work():
    start = time.process_time()
    while time.process_time() - start < 2:
        pass

joblib.Parallel(n_jobs=2)(joblib.delayed(work)() for _ in range(2))
"""


@pytest.mark.notebook
def test_processes_that_a_chapter_starts_count(book, tmp_path):
    """As those of a sweep do: the published seconds are what the work costs, on however many cores."""
    notebook = nbformat.read(book.notebook, as_version=4)
    notebook.cells = [notebook.cells[1], new_code_cell(BUSY)]
    nbformat.write(notebook, book.notebook)
    result = execute.execute(book, out=tmp_path / "runs")
    assert result.failed is None
    assert result.cpu_seconds > 2 * 2


def test_planned_chapter_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "notebooks_dir", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"chapter 18 .* is planned but not written yet"):
        execute.execute(catalog.find(18), out=tmp_path)


def test_scoreboard_counts_every_claim():
    board = scoreboard.scoreboard()
    totals = board.totals()
    assert totals["planned"] == 28
    assert totals["claims"] == len(board.rows) == sum(totals[verdict] for verdict in scoreboard.VERDICTS)
    assert board.to_markdown().count("\n") == len(board.rows) + 2
