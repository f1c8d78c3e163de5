"""Which pages the book has, for tests that run once for each."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def table_of_contents():
    """The parsed ``_toc.yml``."""
    return yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))


def documents():
    """Every document of the book, without its ending, in order."""
    toc = table_of_contents()
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def notebooks():
    """The documents that are notebooks: chapters and comparisons."""
    return [name for name in documents() if name.startswith("notebooks/")]


def chapters():
    """The documents that are chapters, which have a number."""
    return [name for name in notebooks() if re.match(r"notebooks/\d\d_", name)]
