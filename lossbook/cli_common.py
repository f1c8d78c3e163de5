"""What the commands share: the error they raise for the user, and the consoles they print to."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console

USAGE = 2
FAILURE = 1
INTERRUPTED = 130

MARKS = {"reproduced": "✓", "partly": "◐", "needs GPU": "⧗", "not reproduced": "✗"}
COLORS = {"reproduced": "green", "partly": "yellow", "needs GPU": "cyan", "not reproduced": "red"}


class CommandError(Exception):
    """A problem the user can mend: shown as one sentence on standard error, without a traceback.

    Args:
        message: What is wrong and what to do about it.
        code: Exit code, ``USAGE`` for a request that makes no sense, else ``FAILURE``.
    """

    def __init__(self, message: str, code: int = FAILURE):
        super().__init__(message)
        self.code = code


def out() -> Console:
    """The console of results. Made anew each time, because tests replace the standard streams."""
    return Console(highlight=False)


def err() -> Console:
    """The console of progress and messages."""
    return Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Print a value as JSON, for other programs to read."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def say(message: str) -> None:
    """Print one message to standard error, unwrapped, so that paths and commands in it can be copied."""
    print(message, file=sys.stderr, flush=True)


def verdict_text(verdict: str) -> str:
    """A verdict with its mark, colored for a terminal."""
    return f"[{COLORS[verdict]}]{MARKS[verdict]} {verdict}[/]"
