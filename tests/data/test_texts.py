"""Shipped texts: frozen, checked, documented."""

import hashlib
import shutil

import pytest

from lossbook import data
from lossbook.data import assets, build_texts, texts

NAMES = ["dataset_notes", "python_docs", "python_source"]


def test_names():
    assert data.text_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_text_matches_its_record(name):
    content, info = data.text(name).encode(), data.text_info(name)
    assert (len(content), hashlib.sha256(content).hexdigest()) == (info.size, info.sha256)
    assert info.size <= 200_000
    assert info.license in ("PSF-2.0", "BSD-3-Clause") and info.source and info.date and info.command
    assert len((texts.FOLDER / info.license_file).read_text()) > 1000
    assert data.text(name) == data.text(name)


def test_unknown_text_is_refused():
    with pytest.raises(
        ValueError, match="name must be one of 'dataset_notes', 'python_docs', 'python_source', got 'x'"
    ):
        data.text("x")


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the shipped texts that may be damaged."""
    folder = tmp_path / "lossbook" / "data" / "excerpts"
    shutil.copytree(texts.FOLDER, folder)
    monkeypatch.setattr(texts, "FOLDER", folder)
    texts._catalog.cache_clear()
    yield folder
    texts._catalog.cache_clear()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "python_docs.txt").write_text("other"), "does not match its checksum"),
        (lambda folder: (folder / "python_docs.txt").unlink(), "is missing"),
        (lambda folder: (folder / "texts.json").write_text("{"), "is missing or damaged"),
        (lambda folder: (folder / "texts.json").unlink(), "is missing or damaged"),
    ],
)
def test_damage_is_named_with_its_mend(copied, damage, problem):
    damage(copied)
    with pytest.raises(data.DataError, match=rf"{problem}; run: pip install --force-reinstall --no-deps lossbook$"):
        data.text("python_docs")


def test_in_a_checkout_the_mend_is_git(copied):
    (copied.parents[2] / ".git").mkdir()
    (copied / "python_docs.txt").unlink()
    with pytest.raises(data.DataError, match=r"; run: git -C .* checkout -- lossbook/data/excerpts$"):
        data.text("python_docs")


def test_status_reports_damaged_texts(copied, tmp_path):
    (copied / "python_docs.txt").unlink()
    entry = next(entry for entry in assets.status(cache=tmp_path) if entry.name == "texts")
    assert entry.state == "corrupt" and "python_docs.txt is missing" in entry.detail and entry.fix


def test_windows_line_ends_do_no_harm(copied):
    path = copied / "python_docs.txt"
    before = data.text("python_docs")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert data.text("python_docs") == before


def test_the_named_command_builds_texts_that_can_be_read(tmp_path, monkeypatch):
    infos = build_texts.build(tmp_path / "excerpts")
    monkeypatch.setattr(texts, "FOLDER", tmp_path / "excerpts")
    texts._catalog.cache_clear()
    try:
        assert [info.name for info in infos] == data.text_names() == NAMES
        for info in infos:
            assert 20_000 < len(data.text(info.name).encode()) <= 200_000
            assert (tmp_path / "excerpts" / info.license_file).is_file()
    finally:
        texts._catalog.cache_clear()


def test_whole_pieces_never_cuts_one():
    assert build_texts.whole_pieces(["aa\n\n", "bb", "cccccccccc", "d"], 8) == "aa\n\nbb\n"
