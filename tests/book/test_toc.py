"""The table of contents lists what exists, where the plan of the book puts it."""

import pytest
import yaml
from book_pages import ROOT, documents, table_of_contents

from lossbook.chapter import catalog
from lossbook.site.new_chapter import listed, part_caption


def test_lists_every_written_chapter_in_its_part_and_no_planned_one():
    captions = {part_caption(part): [c for c in part.chapters if c.written] for part in catalog.parts()}
    expected = {
        caption: [f"notebooks/{chapter.slug}" for chapter in written]
        for caption, written in captions.items()
        if written
    }
    found = {
        part["caption"]: [chapter["file"] for chapter in part["chapters"]]
        for part in table_of_contents()["parts"]
        if part["caption"].startswith("Part ")
    }
    assert found == expected
    assert list(found) == list(expected), "parts must stand in the order of the book"


def test_lists_no_page_twice():
    assert len(documents()) == len(set(documents()))


def test_lists_every_page_of_prose():
    pages = {f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")}
    assert pages == {name for name in documents() if name.startswith("book/")}


@pytest.mark.parametrize("chapter", catalog.chapters(), ids=lambda chapter: chapter.slug)
def test_new_chapter_finds_its_place(chapter):
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    part = catalog.parts()[chapter.part - 1]
    parts = yaml.safe_load(listed(toc, chapter))["parts"]
    captions = [entry["caption"] for entry in parts]
    assert captions.count(part_caption(part)) == 1
    files = [entry["file"] for entry in parts[captions.index(part_caption(part))]["chapters"]]
    assert f"notebooks/{chapter.slug}" in files
    assert files == sorted(files)
    order = [caption for caption in (part_caption(part) for part in catalog.parts()) if caption in captions]
    assert [caption for caption in captions if caption.startswith("Part ")] == order
    assert captions[-2:] == ["Results", "Reference"]


def test_all_chapters_can_be_added_in_any_order():
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    for chapter in [*catalog.chapters()][::-1]:
        toc = listed(toc, chapter)
    files = [chapter["file"] for part in yaml.safe_load(toc)["parts"] for chapter in part["chapters"]]
    expected = [f"notebooks/{chapter.slug}" for chapter in catalog.chapters()]
    assert [file for file in files if file.startswith("notebooks/")] == expected


def test_listing_a_chapter_twice_changes_nothing():
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    once = listed(toc, catalog.find(18))
    assert listed(once, catalog.find(18)) == once
