"""The table of contents lists what exists, where the plan of the book puts it."""

import re

import pytest
import yaml
from book_pages import ROOT, documents, table_of_contents

from lossbook.chapter import catalog
from lossbook.site.new_chapter import listed, part_caption
from lossbook.site.pages import opener


def files_of(part, chapters):
    """What the table of contents lists for a part: its opener and its comparison, if there are, around the chapters."""
    return [*filter(None, [opener(part)]), *(f"notebooks/{chapter.slug}" for chapter in chapters), *closing(part)]


def closing(part):
    written = part.comparison and part.comparison.written
    return [f"notebooks/{part.comparison.slug}"] if written else []


def is_chapter(file):
    return re.match(r"notebooks/\d\d_", file) is not None


def test_lists_every_written_notebook_in_its_part_and_no_planned_one():
    written = {part: [chapter for chapter in part.chapters if chapter.written] for part in catalog.parts()}
    expected = {
        part_caption(part): files_of(part, chapters) for part, chapters in written.items() if chapters or closing(part)
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
    """But an opener whose part has no chapter yet; which of those are listed is tested above."""
    pages = {f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")}
    assert pages == {name for name in documents() if name.startswith("book/") and "/parts/" not in name}


def test_openers_stand_under_the_name_of_a_part_and_show_its_chapters():
    slugs = {part.slug for part in catalog.parts()}
    for path in (ROOT / "book" / "parts").iterdir():
        assert path.suffix == ".md" and path.stem in slugs, path
        assert f"```{{lossbook-part}} {path.stem}\n```" in path.read_text(encoding="utf-8"), path


def test_openers_are_called_alike():
    entries = [entry for part in table_of_contents()["parts"] for entry in part["chapters"]]
    titles = {entry["file"]: entry.get("title") for entry in entries}
    assert {title for file, title in titles.items() if file.startswith("book/parts/")} <= {"Overview"}
    assert {title for file, title in titles.items() if not file.startswith("book/parts/")} == {None}


@pytest.mark.parametrize("chapter", catalog.chapters(), ids=lambda chapter: chapter.slug)
def test_new_chapter_finds_its_place(chapter):
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    part = catalog.parts()[chapter.part - 1]
    parts = yaml.safe_load(listed(toc, chapter))["parts"]
    captions = [entry["caption"] for entry in parts]
    assert captions.count(part_caption(part)) == 1
    files = [entry["file"] for entry in parts[captions.index(part_caption(part))]["chapters"]]
    assert f"notebooks/{chapter.slug}" in files
    chapters = [file for file in files if is_chapter(file)]
    assert chapters == sorted(chapters)
    assert files == [*filter(None, [opener(part)]), *chapters, *closing(part)]
    order = [caption for caption in (part_caption(part) for part in catalog.parts()) if caption in captions]
    assert [caption for caption in captions if caption.startswith("Part ")] == order
    assert captions[-2:] == ["Results", "Reference"]


def test_all_chapters_can_be_added_in_any_order():
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    for chapter in [*catalog.chapters()][::-1]:
        toc = listed(toc, chapter)
    files = [chapter["file"] for part in yaml.safe_load(toc)["parts"] for chapter in part["chapters"]]
    expected = [f"notebooks/{chapter.slug}" for chapter in catalog.chapters()]
    assert [file for file in files if is_chapter(file)] == expected


def test_part_without_an_opener_starts_with_its_chapter(tmp_path):
    toc = "parts:\n  - caption: Results\n    chapters: []\n"
    (part,) = yaml.safe_load(listed(toc, catalog.find(1), tmp_path))["parts"][:1]
    assert part["chapters"] == [{"file": "notebooks/01_comp_sum"}]
    with_opener = yaml.safe_load(listed(toc, catalog.find(1)))["parts"][0]["chapters"]
    assert with_opener[0] == {"file": "book/parts/first-principles", "title": "Overview"}


def test_listing_a_chapter_twice_changes_nothing():
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    once = listed(toc, catalog.find(18))
    assert listed(once, catalog.find(18)) == once
