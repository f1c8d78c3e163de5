"""How pages are rewritten for a room without internet."""

import pytest

from lossbook.site import offline

MATHJAX = "https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-mml-chtml.js"
MANAGER = "https://cdn.jsdelivr.net/npm/@jupyter-widgets/html-manager@^1.0.1/dist/embed-amd.js"
REQUIRE = "https://cdnjs.cloudflare.com/ajax/libs/require.js/2.3.4/require.min.js"


def test_scripts_become_local_at_every_depth():
    page = f'<script defer="defer" src="{MATHJAX}"></script>'
    top, needed = offline.rewrite(page, 0)
    assert top == '<script defer="defer" src="_static/vendor/mathjax/es5/tex-mml-chtml.js"></script>'
    assert offline.rewrite(page, 2)[0].count("../../_static/vendor/mathjax/") == 1
    assert [script.package for script in needed] == ["mathjax"]


def test_checksums_and_cross_origin_marks_go():
    page = f'<script crossorigin="anonymous" integrity="sha256-x=" src="{REQUIRE}"></script>'
    assert offline.rewrite(page, 0)[0] == '<script src="_static/vendor/requirejs/require.js"></script>'


def test_widget_host_and_font_path_become_local():
    page = (
        f'<script data-jupyter-widgets-cdn="https://cdn.jsdelivr.net/npm/" src="{MANAGER}"></script>'
        f'<script>var require = {{"paths": {{"m": "{MANAGER.replace("embed", "libembed")}"}}}};</script>'
    )
    text, needed = offline.rewrite(page, 1)
    assert "https:" not in text
    assert 'data-jupyter-widgets-cdn="../_static/vendor/"' in text
    assert '"../_static/vendor/html-manager/dist/libembed-amd.js"' in text
    assert [script.package for script in needed] == ["@jupyter-widgets/html-manager"]


@pytest.mark.parametrize(
    "page",
    [
        '<a href="https://arxiv.org/abs/2411.09009">paper</a>',
        '<link rel="canonical" href="https://example.org/book/">',
        '<img src="_images/map.png" alt="map">',
        "<p>Type https://example.org in the address bar.</p>",
    ],
)
def test_what_loads_nothing_stays(page):
    assert offline.rewrite(page, 0) == (page, set())


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://example.org/x.js"></script>',
        '<link rel="stylesheet" href="https://example.org/x.css">',
        '<img alt="x" src="https://example.org/x.png">',
        '<iframe src="https://example.org/"></iframe>',
    ],
)
def test_anything_else_that_loads_is_refused(tag):
    with pytest.raises(offline.OfflineError, match=r"a page loads https://example.org/.*SCRIPTS"):
        offline.rewrite(tag, 0)


@pytest.fixture
def built(tmp_path, monkeypatch):
    html = tmp_path / "html"
    (html / "book").mkdir(parents=True)
    (html / "index.html").write_text("<p>start</p>", encoding="utf-8")
    (html / "book" / "page.html").write_text(f'<script src="{REQUIRE}"></script>', encoding="utf-8")
    monkeypatch.setattr(offline, "_KEPT", tmp_path / "kept")
    return html


def test_missing_npm_is_a_sentence_and_keeps_the_earlier_copy(built, tmp_path, monkeypatch):
    (tmp_path / "offline").mkdir()
    (tmp_path / "offline" / "index.html").write_text("earlier", encoding="utf-8")
    monkeypatch.setattr(offline.shutil, "which", lambda name: None)
    with pytest.raises(offline.OfflineError, match=r"no npm here: install Node\.js"):
        offline.make_offline(built, tmp_path / "offline")
    assert (tmp_path / "offline" / "index.html").read_text(encoding="utf-8") == "earlier"


def test_book_that_is_not_built_is_a_sentence(tmp_path):
    with pytest.raises(offline.OfflineError, match="run: make book"):
        offline.make_offline(tmp_path / "nothing", tmp_path / "offline")


def test_failing_npm_is_a_sentence_and_keeps_nothing(built, tmp_path, monkeypatch):
    monkeypatch.setattr(offline.shutil, "which", lambda name: "/bin/false")
    with pytest.raises(offline.OfflineError, match="npm could not fetch requirejs"):
        offline.make_offline(built, tmp_path / "offline")
    assert list((tmp_path / "kept").iterdir()) == []
    assert not (tmp_path / "offline").exists()
