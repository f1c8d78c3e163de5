"""The ``lossbook`` command.

Only the command line itself is imported here; every command imports what it needs when it runs, so that
``lossbook --help`` and ``lossbook list`` do not wait for torch.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import lossbook
from lossbook import cli_doctor, cli_fetch, cli_list, cli_run
from lossbook.cli_common import FAILURE, INTERRUPTED, USAGE, CommandError, say

DEBUG = "LOSSBOOK_DEBUG"


class FriendlyGroup(TyperGroup):
    """Turns exceptions into one sentence on standard error and an exit code, unless debugging is on."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; let typer's own exceptions through, they are shown by typer."""
        try:
            return super().invoke(ctx)
        except CommandError as error:
            if error.__cause__ is not None and _debugging():
                raise
            _give_up(str(error), error.code)
        except KeyboardInterrupt:
            _give_up("interrupted", INTERRUPTED)
        except Exception as error:
            if _is_typers_own(error) or _debugging():
                raise
            _give_up(*_describe(error))


def _is_typers_own(error: Exception) -> bool:
    # typer brings its own copy of click in newer versions and imports it in older ones.
    return any(cls.__module__.split(".")[0] in ("typer", "click") for cls in type(error).__mro__)


def _debugging() -> bool:
    return os.environ.get(DEBUG) == "1"


def _give_up(message: str, code: int) -> None:
    say(f"lossbook: {message}")
    raise typer.Exit(code)


def _describe(error: Exception) -> tuple[str, int]:
    """The sentence and the exit code for an exception that a command did not expect."""
    from lossbook.chapter.catalog import ChapterNotFoundError
    from lossbook.chapter.claims import ClaimsFileError
    from lossbook.data.errors import DataError

    if isinstance(error, ChapterNotFoundError):
        return str(error), USAGE
    if isinstance(error, DataError | ClaimsFileError):
        return str(error), FAILURE
    reason = " ".join(str(error).split()) or "no message"
    return f"stopped by {type(error).__name__}: {reason} (for the traceback, run it again with --debug)", FAILURE


app = typer.Typer(
    name="lossbook",
    cls=FriendlyGroup,
    help="Run, check and list the chapters of Lossbook.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"lossbook {lossbook.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run, check and list the chapters of Lossbook."""
    if debug:
        os.environ[DEBUG] = "1"


app.command("list")(cli_list.list_chapters)
app.command("run")(cli_run.run)
app.command("doctor")(cli_doctor.doctor)
app.command("fetch")(cli_fetch.fetch)
app.command("scoreboard")(cli_list.scoreboard)

try:
    from lossbook.bench.cli import cli_app

    app.add_typer(cli_app, name="bench")
except ImportError as reason:
    _problem = str(reason)

    @app.command("bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def bench_unavailable() -> None:
        """Measure methods side by side (not available in this installation)."""
        raise CommandError(
            f"the benchmarks cannot be imported ({_problem}); to see what is missing, run: lossbook doctor"
        )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code.

    0: done. 1: a claim, a check or a download failed. 2: the request makes no sense. 130: interrupted.

    Args:
        arguments: The words after ``lossbook``; default those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Accepted after the command too, where one adds it to a line that has just failed.
    if "--debug" in words:
        words.remove("--debug")
        words.insert(0, "--debug")
    app(args=words, prog_name="lossbook")
