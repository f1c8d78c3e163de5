"""What the pages of the built book hold, read as HTML."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from book_pages import chapters, documents, notebooks
from bs4 import BeautifulSoup

from lossbook.chapter import catalog

_WIDGETS = "application/vnd.jupyter.widget-state+json"


def read(folder, document):
    return BeautifulSoup((folder / f"{document}.html").read_text(encoding="utf-8"), "html.parser")


def article(page):
    return page.select_one("article.bd-article")


@pytest.mark.parametrize("document", documents())
def test_page_has_language_title_and_one_heading(html_book, document):
    page = read(html_book, document)
    assert page.html["lang"] == "en"
    assert page.title.text.strip()
    assert len(page.select("article h1")) == 1
    levels = [int(heading.name[1]) for heading in article(page).find_all(re.compile("^h[1-6]$"))]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), levels


@pytest.mark.parametrize("document", documents())
def test_every_image_has_alternative_text(html_book, document):
    page = read(html_book, document)
    images = page.find_all("img")
    for script in page.find_all("script", type=_WIDGETS):
        for model in json.loads(script.string)["state"].values():
            images += BeautifulSoup(str(model["state"].get("value", "")), "html.parser").find_all("img")
    assert [str(image)[:200] for image in images if not image.get("alt", "").strip()] == []


@pytest.mark.parametrize("document", documents())
def test_no_raw_tex_outside_formulas(html_book, document):
    text = article(read(html_book, document))
    for element in text.select("script, pre, code, .math"):
        element.decompose()
    found = re.findall(r".{0,30}(?:\$[^$\s][^$]*\$|\\\(|\\\[|\\frac|\\begin\{).{0,30}", text.get_text())
    assert found == []


@pytest.mark.parametrize("document", documents())
def test_no_markup_is_left_over(html_book, document):
    text = article(read(html_book, document))
    for element in text.select("script, pre, code"):
        element.decompose()
    assert re.findall(r"\{[a-z:-]+\}`|:::|^```|\]\(http", text.get_text(), re.MULTILINE) == []


@pytest.mark.parametrize("document", documents())
def test_ids_are_unique(html_book, document):
    ids = [element["id"] for element in article(read(html_book, document)).find_all(id=True)]
    ids = [name for name in ids if name not in ("exercise-content", "solution-content")]  # the exercises' own frames
    assert sorted({name for name in ids if ids.count(name) > 1}) == []


@pytest.mark.parametrize("document", chapters())
def test_chapter_numbers_are_those_of_the_book(html_book, document):
    number = int(Path(document).name[:2])
    page = read(html_book, document)
    assert article(page).h1.select_one(".section-number").text.strip() == f"{number}."
    captions = [caption.text.strip() for caption in page.select("figcaption .caption-number")]
    assert captions, "a chapter shows a numbered figure"
    assert all(caption.startswith(f"Fig. {number}.") for caption in captions)
    equations = [mark.text for mark in page.select(".eqno")]
    assert equations, "a chapter numbers its equations"
    assert all(mark.strip("()").startswith(f"{number}.") for mark in equations)


@pytest.mark.parametrize("document", [name for name in documents() if name.startswith("book/parts/")])
def test_opener_has_no_number_and_shows_its_chapters(html_book, document):
    page = read(html_book, document)
    assert page.select("h1 .section-number, h2 .section-number") == []
    part = next(part for part in catalog.parts() if part.slug == Path(document).name)
    rows = [row.get_text(" ", strip=True) for row in article(page).select(".lossbook-part tbody tr")]
    assert [row.split(".")[0] for row in rows] == [str(chapter.number) for chapter in part.chapters]
    assert page.select_one(".bd-sidebar-primary li.active > a").get_text(" ", strip=True) == "Overview"


@pytest.mark.parametrize("document", chapters())
def test_chapter_shows_its_card_and_folded_solutions(html_book, document):
    page = read(html_book, document)
    captions = [caption.text for caption in page.select(".lossbook-card caption")]
    assert len([text for text in captions if text.startswith("Reproduction card")]) == 1
    assert len(page.select(".solution.dropdown")) == len(page.select(".exercise")) == 3


def test_scoreboard_holds_every_claim_of_the_notebooks(html_book):
    from lossbook.chapter.scoreboard import scoreboard

    page = read(html_book, "book/scoreboard")
    cells = [row.get_text(" ", strip=True) for row in page.select(".lossbook-scoreboard table tr")]
    for row in scoreboard().rows:
        values = [value.split()[-1] for value in row.measured.split("; ")]
        (cell,) = [cell for cell in cells if cell.startswith(f"{row.id} (")]
        assert cell.endswith(f" {row.verdict}")
        assert all(value in cell for value in values), row.id


def test_scoreboard_counts_the_verdicts_of_every_written_chapter(html_book):
    from lossbook.chapter.scoreboard import scoreboard

    rows = [row.find_all("td") for row in read(html_book, "book/scoreboard").select(".lossbook-verdicts tbody tr")]
    assert [int(row[0].text.split(".")[0]) for row in rows] == [c.number for c in catalog.chapters() if c.written]
    counts = [int(cell.text) for row in rows for cell in row[1:] if cell.text != "–"]
    assert sum(counts) == scoreboard().totals()["claims"]


def test_welcome_shows_the_totals_and_the_whole_plan(html_book):
    from lossbook.chapter.scoreboard import scoreboard

    text = article(read(html_book, "book/welcome")).get_text(" ", strip=True)
    totals = scoreboard().totals()
    assert f"{totals['chapters']} of {totals['planned']} chapters" in re.sub(r"\s+", " ", text)
    assert all(chapter.title in text.replace("\u2019", "'") for chapter in catalog.chapters())  # smart quotes


def test_run_times_lists_every_written_notebook(html_book):
    rows = [row.get_text(" ", strip=True) for row in read(html_book, "book/run-times").select("table tr")]
    for info in catalog.notebooks():
        if info.written:
            first = f"{info.number}." if isinstance(info, catalog.ChapterInfo) else info.title
            assert any(row.startswith(first) and " cpu " in row for row in rows), info.slug


@pytest.mark.parametrize("document", [name for name in notebooks() if name not in chapters()])
def test_comparison_has_no_number_and_no_card_and_is_linked_from_its_part(html_book, document):
    page = read(html_book, document)
    assert page.select("h1 .section-number, h2 .section-number, .lossbook-card, .exercise") == []
    info = catalog.find_notebook(Path(document).name)
    part = catalog.parts()[info.part - 1]
    for name in (f"book/parts/{part.slug}", "book/welcome"):
        links = [link["href"] for link in article(read(html_book, name)).find_all("a", href=True)]
        assert any(link.split("#")[0].endswith(f"{document}.html") for link in links), name


def test_benchmarks_page_is_made_from_the_results(html_book):
    assert article(read(html_book, "book/benchmarks")).select_one(".lossbook-table").get_text(strip=True)


def test_no_broken_link(site, tmp_path):
    settings = tmp_path / "linkcheckerrc"
    settings.write_text("[checking]\nmaxrequestspersecond=1000\n", encoding="utf-8")
    program = shutil.which("linkchecker", path=str(Path(sys.executable).parent))
    command = [program, f"--config={settings}", "--no-status", "--no-warnings", "--threads=4", f"{site}index.html"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    checked = int(re.search(r"(\d+) links? in \d+ URLs? checked", done.stdout)[1])
    assert checked > len(documents())


def test_no_broken_anchor(html_book):
    """Faster than the link checker's own check, which reads a page again for each link to it."""
    pages = {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in html_book.rglob("*.html")}
    ids = {path: {element["id"] for element in page.find_all(id=True)} for path, page in pages.items()}
    broken = []
    for path, page in pages.items():
        for link in page.find_all("a", href=re.compile(r"^(?!\w+:)[^#]*#.")):
            file, _, anchor = link["href"].partition("#")
            target = (path.parent / unquote(file)).resolve() if file else path
            if target in ids and unquote(anchor) not in ids[target]:
                broken.append(f"{path.relative_to(html_book)}: {link['href']}")
    assert broken == []
