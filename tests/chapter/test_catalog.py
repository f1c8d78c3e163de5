"""The plan of the book."""

import subprocess
import sys

import pytest

from lossbook.chapter import catalog


def test_28_chapters_numbered_in_order():
    assert [chapter.number for chapter in catalog.chapters()] == list(range(1, 29))
    assert [part.number for part in catalog.parts()] == list(range(1, len(catalog.parts()) + 1))
    assert len({chapter.paper.key for chapter in catalog.chapters()}) == 28


@pytest.mark.parametrize("which", [17, "17", "17_cut_cross_entropy", "cut_cross_entropy", " 17 "])
def test_find(which):
    assert catalog.find(which).slug == "17_cut_cross_entropy"


@pytest.mark.parametrize("which", [0, 99, "nothing", "", "-1"])
def test_find_says_what_exists(which):
    with pytest.raises(catalog.ChapterNotFoundError, match="numbered 1 to 28"):
        catalog.find(which)


def test_a_comparison_closes_its_part_and_is_found_by_its_name():
    (comparison,) = catalog.comparisons()
    assert catalog.parts()[comparison.part - 1].comparison is comparison
    assert catalog.find_notebook(f" {comparison.slug} ") is comparison
    assert catalog.find_notebook(17) is catalog.find(17)
    assert catalog.notebooks() == (*catalog.chapters(), comparison)
    with pytest.raises(catalog.ChapterNotFoundError, match="there is no chapter 'embedding_losses'"):
        catalog.find(comparison.slug)
    with pytest.raises(catalog.ChapterNotFoundError, match="there is no chapter 'nothing'"):
        catalog.find_notebook("nothing")


def test_every_notebook_is_planned():
    planned = {info.notebook.name for info in catalog.notebooks()}
    assert {path.name for path in catalog.notebooks_dir().glob("*.ipynb")} <= planned


def test_catalog_needs_neither_torch_nor_matplotlib():
    code = "import sys, lossbook.chapter.catalog as c; c.chapters(); print({'torch', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
