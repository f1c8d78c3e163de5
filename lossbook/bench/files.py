"""JSON files of results, written so that a reader never finds half of one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any


def write_json(content: Any, path: str | os.PathLike[str]) -> Path:
    """Write a JSON file, making its folder if need be.

    Args:
        content: What to write.
        path: The file; it is replaced in one step.

    Returns:
        The file written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        ValueError: If it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"path must hold a benchmark report, got {path}: {error}") from error


def write_reports_of(kind: str, reports: Sequence[Any], path: str | os.PathLike[str]) -> Path:
    """Write the reports of one benchmark on one device as one JSON file: a complete file or none, never half of one.

    Args:
        kind: Name of the benchmark.
        reports: At least one; data classes with an ``environment``.
        path: File to write; an existing directory means ``<kind>-<device>.json`` in it.

    Returns:
        The file written.
    """
    path = Path(path)
    if path.is_dir():
        path /= f"{kind}-{slug(reports[0].environment)}.json"
    return write_json({"benchmark": kind, "reports": [asdict(report) for report in reports]}, path)


def read_reports_of(kind: str, path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read what :func:`write_reports_of` wrote.

    Args:
        kind: Name of the benchmark.
        path: File to read.

    Returns:
        The reports, as JSON holds them.

    Raises:
        ValueError: If the file is something else, or of another benchmark.
    """
    content = read_json(path)
    found = content if isinstance(content, dict) else {}
    if found.get("benchmark") != kind or not isinstance(found.get("reports"), list):
        raise ValueError(f"path must hold a report of 'lossbook bench {kind}', got {path}")
    return found["reports"]


def slug(environment: Mapping[str, Any]) -> str:
    """Return a device's name in a form fit for a file name.

    Args:
        environment: Facts about the machine; ``gpu`` is the name of the GPU, if one computed.

    Returns:
        ``"cpu"``, or the GPU's name.
    """
    gpu = environment.get("gpu")
    return "cpu" if gpu is None else "-".join(gpu.lower().replace("/", " ").split())
