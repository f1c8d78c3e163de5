"""Measurements that take too long for a chapter: shipped as data, each with the command that repeats it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lossbook.data.errors import DataError, shipped_mend

FOLDER = Path(__file__).with_name("recordings")
COMMANDS = {"decode_quality": "lossbook bench decode-quality"}


def recorded(name: str) -> dict[str, Any]:
    """Return a measurement that was made once, and can be repeated by one command.

    Args:
        name: ``"decode_quality"``: what sparse decoding costs SmolLM2-135M on passages of Python's documentation, in
            nats per token, by method and passage.

    Returns:
        The report as its command writes it, with settings, versions, processor and date.

    Raises:
        ValueError: If there is no such measurement.
        DataError: If its file is missing or damaged; the message says what mends it.

    Examples:
        >>> report = recorded("decode_quality")
        >>> report["settings"]["context"], len(report["passages"])
        (512, 12)

    References:
        ``decode_quality`` is made by ``lossbook bench decode-quality``; used in :doc:`/notebooks/18_double_sparsity`.
    """
    if name not in COMMANDS:
        raise ValueError(f"name must be one of {', '.join(map(repr, COMMANDS))}, got {name!r}")
    path = FOLDER / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged", shipped_mend(FOLDER)) from error
