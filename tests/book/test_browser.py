"""The offline book in a browser: formulas, sliders, phones, dark mode, search, and nothing from the network."""

import contextlib
import io

import pytest
from book_pages import chapters, documents, notebooks
from PIL import Image

from lossbook.chapter import catalog

pytestmark = pytest.mark.browser

# Two slips of the theme that do no harm; anything else is a failure.
KNOWN_ERRORS = (
    "Identifier 'THEBE_JS_URL' has already been declared",
    "Cannot read properties of null (reading 'classList')",
)
PHONE, DESKTOP = {"width": 375, "height": 740}, {"width": 1280, "height": 900}
ARTICLE = "article.bd-article"


@contextlib.contextmanager
def opened(browser, address, *, viewport=DESKTOP, scheme="light", **options):
    """A page after its scripts have run, with what it asked for and complained of."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme, **options)
    page = context.new_page()
    page.asked, page.errors = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("requestfailed", lambda request: page.errors.append(f"could not load {request.url}"))
    page.goto(address, wait_until="load")
    if options.get("java_script_enabled", True):
        page.evaluate("() => window.MathJax?.startup?.promise")
        if page.locator('script[type="application/vnd.jupyter.widget-view+json"]').count():
            page.locator(".noUi-handle").first.wait_for()
    yield page
    context.close()


def surprises(page):
    return [error for error in page.errors if not any(known in error for known in KNOWN_ERRORS)]


@pytest.mark.parametrize("document", [*documents(), "search", "genindex"])
def test_page_opens_without_errors_and_without_the_network(browser, site, document):
    with opened(browser, f"{site}{document}.html") as page:
        page.wait_for_load_state("networkidle")
        assert surprises(page) == []
        assert [url for url in page.asked if not url.startswith((site, "data:", "blob:"))] == []


@pytest.mark.parametrize("document", documents())
def test_formulas_are_typeset(browser, site, document):
    with opened(browser, f"{site}{document}.html") as page:
        count = page.locator(f"{ARTICLE} .math").count()
        assert page.locator(f"{ARTICLE} .math mjx-container").count() >= count
        assert page.locator("mjx-merror").count() == 0
        text = page.locator(ARTICLE).inner_text()
        assert [mark for mark in (r"\(", r"\[", r"\begin", r"\frac") if mark in text] == []


@pytest.mark.parametrize("document", notebooks())
def test_every_slider_moves_the_picture_by_keyboard(browser, site, document):
    with opened(browser, f"{site}{document}.html") as page:
        handles = page.locator(f"{ARTICLE} .noUi-handle")
        assert handles.count() >= 1
        for index in range(handles.count()):
            handle = handles.nth(index)
            output = handle.locator("xpath=ancestor::div[contains(@class, 'cell_output')][1]")
            picture = output.locator("img.lossbook-frame:visible")
            assert picture.count() == 1
            before = picture.get_attribute("src")
            at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
            handle.focus()
            page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
            page.wait_for_function(
                "([image, before]) => !image.isConnected || image.src !== before",
                arg=[picture.element_handle(), before],
            )
            assert picture.count() == 1
            assert picture.get_attribute("src") != before, f"slider {index} does not move the picture"
            assert picture.get_attribute("alt")


@pytest.mark.parametrize("document", [*documents(), "search"])
def test_page_fits_a_phone(browser, site, document):
    with opened(browser, f"{site}{document}.html", viewport=PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("width", [800, 1100, 1440])
@pytest.mark.parametrize("document", notebooks())
def test_notebook_fits_every_screen(browser, site, document, width):
    with opened(browser, f"{site}{document}.html", viewport={"width": width, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("document", notebooks())
def test_figures_stay_on_white_in_the_dark(browser, site, document):
    with opened(browser, f"{site}{document}.html", scheme="dark") as page:
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        figures = page.locator(f"{ARTICLE} .cell_output img:visible")
        assert figures.count() >= 2
        for index in range(figures.count()):
            picture = Image.open(io.BytesIO(figures.nth(index).screenshot())).convert("RGB")
            middle = picture.height // 2
            assert picture.getpixel((3, middle)) == picture.getpixel((picture.width // 2, 3)) == (255, 255, 255)


CONTRAST = """element => {
  const shade = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(value => value / 255)
      .map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let ground = element;
  while (/rgba\\(.*, 0\\)|transparent/.test(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
  const [a, b] = [shade(getComputedStyle(element).color), shade(getComputedStyle(ground).backgroundColor)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("document", chapters())
def test_text_can_be_told_from_its_background(browser, site, document, scheme):
    with opened(browser, f"{site}{document}.html", scheme=scheme) as page:
        for selector in (
            ".verdict",
            "figcaption .caption-text",
            ".lossbook-card td",
            ".lossbook-card .where",
            ".widget-label",
        ):
            elements = page.locator(f"{ARTICLE} {selector}:visible")
            assert elements.count() >= 1, selector
            assert elements.first.evaluate(CONTRAST) >= 4.5, selector


@pytest.mark.parametrize("document", notebooks())
def test_search_finds_the_notebook(browser, site, document):
    title = catalog.find_notebook(document.removeprefix("notebooks/")).title
    with opened(browser, f"{site}search.html?q={title.replace(' ', '+')}") as page:
        page.locator("#search-results li a").first.wait_for()
        links = page.locator("#search-results li a").evaluate_all("links => links.map(link => link.href)")
        assert any(f"{document}.html" in link for link in links)


@pytest.mark.parametrize("document", notebooks())
def test_notebook_works_from_disk(browser, offline_book, document):
    with opened(browser, (offline_book / f"{document}.html").as_uri()) as page:
        assert surprises(page) == []
        assert [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))] == []
        assert page.locator("mjx-container").count() > 0
        assert page.locator("img.lossbook-frame:visible").count() >= 1


@pytest.mark.parametrize("document", notebooks())
def test_explorer_shows_a_picture_without_scripts(browser, site, document):
    with opened(browser, f"{site}{document}.html", java_script_enabled=False) as page:
        assert page.locator("noscript img.lossbook-frame:visible").count() >= 1
