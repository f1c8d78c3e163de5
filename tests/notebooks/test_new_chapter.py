"""A chapter started from the template runs and keeps the contract; what can not be started says why."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lossbook.chapter import catalog
from lossbook.site import new_chapter

ROOT = Path(__file__).resolve().parents[2]
PLANNED = next(chapter for chapter in catalog.chapters() if not chapter.written)


@pytest.fixture
def checkout(tmp_path):
    """A copy of what a chapter is written into."""
    root = tmp_path / "checkout"
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for folder in ("lossbook", "notebooks"):
        shutil.copytree(ROOT / folder, root / folder, ignore=skip)
    shutil.copy(ROOT / "_toc.yml", root)
    return root


def python(root, *arguments):
    environ = {**os.environ, "PYTHONPATH": str(root), "LOSSBOOK_STATIC": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.notebook
def test_started_chapter_runs_and_keeps_the_contract(checkout, tmp_path):
    started = python(checkout, "-m", "lossbook.site.new_chapter", str(PLANNED.number), PLANNED.name)
    assert started.returncode == 0, started.stderr
    assert f"notebooks/{PLANNED.slug}.ipynb" in started.stdout
    assert (checkout / "notebooks" / f"{PLANNED.slug}.ipynb").is_file()

    linted = python(checkout, "-m", "lossbook.site.lint")
    assert [line for line in linted.stdout.splitlines() if PLANNED.slug in line] == []

    run = ["run", str(PLANNED.number), "--profile", "smoke", "--out", str(tmp_path / "out")]
    smoked = python(checkout, "-m", "lossbook", *run)
    assert smoked.returncode == 0, smoked.stdout + smoked.stderr

    styled = python(
        checkout, "-m", "ruff", "check", f"--config={ROOT / 'pyproject.toml'}", f"notebooks/{PLANNED.slug}.ipynb"
    )
    assert styled.returncode == 0, styled.stdout
    formatted = python(
        checkout,
        "-m",
        "ruff",
        "format",
        "--check",
        f"--config={ROOT / 'pyproject.toml'}",
        f"notebooks/{PLANNED.slug}.ipynb",
    )
    assert formatted.returncode == 0, formatted.stdout

    again = python(checkout, "-m", "lossbook.site.new_chapter", str(PLANNED.number), PLANNED.name)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_another_title_goes_into_the_plan(checkout):
    changed = new_chapter.create(PLANNED, title='Why "now"?', root=checkout)
    plan = checkout / "lossbook" / "chapter" / "book.yaml"
    assert plan in changed
    entries = [c for part in yaml.safe_load(plan.read_text(encoding="utf-8"))["parts"] for c in part["chapters"]]
    titles = {entry["number"]: entry["title"] for entry in entries}
    assert titles[PLANNED.number] == 'Why "now"?'
    assert {number: title for number, title in titles.items() if number != PLANNED.number} == {
        chapter.number: chapter.title for chapter in catalog.chapters() if chapter.number != PLANNED.number
    }


def test_nothing_is_written_when_a_file_exists(checkout):
    claims = checkout / "lossbook" / "chapter" / "claims" / f"{PLANNED.slug}.yaml"
    claims.parent.mkdir(exist_ok=True)
    claims.write_text("mine", encoding="utf-8")
    toc = (checkout / "_toc.yml").read_text(encoding="utf-8")
    with pytest.raises(new_chapter.NewChapterError, match="exists already"):
        new_chapter.create(PLANNED, root=checkout)
    assert claims.read_text(encoding="utf-8") == "mine"
    assert not (checkout / "notebooks" / f"{PLANNED.slug}.ipynb").exists()
    assert (checkout / "_toc.yml").read_text(encoding="utf-8") == toc


@pytest.mark.parametrize(
    ("number", "slug", "message"),
    [
        ("99", "anything", "there is no chapter '99'"),
        ("0", "anything", "there is no chapter '0'"),
        ("x", "anything", "NUMBER must be"),
        ("-3", "anything", "NUMBER must be"),
        (str(PLANNED.number), "Bad Slug", "SLUG must be"),
        (str(PLANNED.number), "../etc", "SLUG must be"),
        (str(PLANNED.number), "another_paper", f"is planned as SLUG={PLANNED.name}"),
    ],
)
def test_bad_number_or_slug_is_refused(number, slug, message):
    with pytest.raises(new_chapter.NewChapterError, match=message):
        new_chapter.find_planned(number, slug)


@pytest.mark.parametrize("slug", [PLANNED.name, PLANNED.slug])
def test_slug_goes_with_or_without_its_number(slug):
    assert new_chapter.find_planned(f"{PLANNED.number:02d}", slug) == PLANNED


def test_long_title_is_refused(checkout):
    with pytest.raises(new_chapter.NewChapterError, match="at most 8 words"):
        new_chapter.create(PLANNED, title="a b c d e f g h i", root=checkout)
