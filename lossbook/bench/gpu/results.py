"""What a run on a GPU has recorded so far, as data: the file that a later call continues."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lossbook.bench.files import read_json, write_json
from lossbook.bench.results import CCEReport

KIND = "gpu"


@dataclass
class GPURun:
    """A run of ``lossbook bench gpu``, complete or not.

    Attributes:
        settings: Device, seed, sizes and methods; a call continues only a file with equal ones.
        environment: Versions and the facts of the device.
        date: Day on which it began, ISO 8601, UTC.
        phases: For each phase begun its ``status`` (``"done"``, ``"out of time"``, ``"interrupted"`` or ``"failed"``),
            ``seconds``, ``records``, and the ``reason`` if it is not done.
        path: Where it is kept.
    """

    settings: dict[str, Any]
    environment: dict[str, Any]
    date: str
    path: Path
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)

    def save(self) -> None:
        """Write the file: a complete one or none, never half of one."""
        content = asdict(self)
        del content["path"]
        write_json({"benchmark": KIND} | content, self.path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GPURun:
        """Read a run.

        Args:
            path: File that :meth:`save` wrote.

        Returns:
            The run.

        Raises:
            ValueError: If the file is something else.
        """
        content = read_json(path)
        if not isinstance(content, dict) or content.pop("benchmark", None) != KIND:
            raise ValueError(f"path must hold a run of 'lossbook bench gpu', got {path}")
        try:
            return cls(**content, path=Path(path))
        except TypeError as error:
            raise ValueError(f"path must hold a run of 'lossbook bench gpu', got {path}: {error}") from error

    def done(self, phase: str) -> bool:
        """Whether a phase is complete.

        Args:
            phase: Its name.

        Returns:
            True if nothing of it is left to do.
        """
        return self.phases.get(phase, {}).get("status") == "done"

    def records(self, phase: str) -> list[dict[str, Any]]:
        """Return what a phase has recorded.

        Args:
            phase: Its name.

        Returns:
            The records, none if it has not begun.
        """
        return self.phases.get(phase, {}).get("records", [])

    def tables(self) -> list[tuple[str, CCEReport]]:
        """Return the side-by-side measurements.

        Returns:
            Pairs of a shape's name and a report.
        """
        return [(record["shape"], CCEReport.from_dict(record["report"])) for record in self.records("tables")]
