"""Real text for language-model chapters: frozen excerpts shipped with the package, each with source and license."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lossbook.data.errors import DataError, shipped_mend

FOLDER = Path(__file__).with_name("excerpts")


@dataclass(frozen=True)
class TextInfo:
    """Origin of a shipped text.

    Attributes:
        name: Name for :func:`text`.
        title: What it is.
        source: Where the text comes from, with version.
        license: SPDX identifier; the license itself lies beside the text.
        license_file: Name of the license's file in ``lossbook/data/excerpts``.
        command: The command that made the excerpt.
        date: The day it was made.
        size: Length in bytes (UTF-8).
        sha256: Checksum of these bytes.
    """

    name: str
    title: str
    source: str
    license: str
    license_file: str
    command: str
    date: str
    size: int
    sha256: str


@cache
def _catalog() -> dict[str, TextInfo]:
    try:
        entries = json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))
        return {entry["name"]: TextInfo(**entry) for entry in entries}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{FOLDER / 'texts.json'} is missing or damaged", shipped_mend(FOLDER)) from error


def text_names() -> list[str]:
    """Return the names of the shipped texts.

    Returns:
        Names for :func:`text`, in alphabetical order.

    Examples:
        >>> text_names()
        ['dataset_notes', 'python_docs', 'python_source']
    """
    return sorted(_catalog())


def text_info(name: str) -> TextInfo:
    """Return where a shipped text comes from.

    Args:
        name: One of :func:`text_names`.

    Returns:
        Source, license, size and checksum.

    Raises:
        ValueError: If there is no text of this name.

    Examples:
        >>> text_info("python_docs").license
        'PSF-2.0'
    """
    if name not in _catalog():
        raise ValueError(f"name must be one of {', '.join(map(repr, text_names()))}, got {name!r}")
    return _catalog()[name]


def text(name: str) -> str:
    """Return a shipped text, checked against its checksum.

    ``python_docs`` is English about Python (the language reference and docstrings), ``python_source`` is code,
    ``dataset_notes`` is English prose about well-known data sets. The excerpts are frozen: they are the same whatever
    Python runs them, so that the numbers of a chapter do not change with it. Each has at most 200 kB.

    Args:
        name: One of :func:`text_names`.

    Returns:
        The text.

    Raises:
        ValueError: If there is no text of this name.
        DataError: If the file is missing or damaged; the message ends with the command that mends it.

    Examples:
        >>> text("python_docs")[:22]
        'The "assert" statement'

    References:
        Used in :doc:`/notebooks/17_cut_cross_entropy`.
    """
    info = text_info(name)
    path = FOLDER / f"{name}.txt"
    try:
        # A checkout on Windows may have turned line ends into CRLF.
        content = path.read_bytes().replace(b"\r\n", b"\n")
    except OSError as error:
        raise DataError(f"the text {path} is missing", shipped_mend(FOLDER)) from error
    if hashlib.sha256(content).hexdigest() != info.sha256:
        raise DataError(f"the text {path} does not match its checksum", shipped_mend(FOLDER))
    return content.decode("utf-8")
