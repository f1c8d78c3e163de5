"""``lossbook doctor``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from lossbook.cli_common import FAILURE, err, out, print_json

_SIGNS = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}
_WIDTH = 15


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """Check the installation; each problem comes with the line that mends it. Exit code 1 if something failed."""
    from lossbook.doctor import FAIL, WARN, Check, examine, report

    checks: list[Check] = []
    with err().status("checking"):
        for check in examine():
            checks.append(check)
            if not as_json:
                _show(check)
    findings = report(checks)
    if as_json:
        print_json(findings)
    else:
        failures, warnings = (sum(check.state == state for check in checks) for state in (FAIL, WARN))
        out().print(f"\nlossbook {findings['lossbook']}: {_count(failures, 'failure')}, {_count(warnings, 'warning')}")
    if not findings["ok"]:
        raise typer.Exit(FAILURE)


def _show(check) -> None:
    # soft_wrap: a command broken over two lines could not be copied.
    out().print(f"{_SIGNS[check.state]} {check.name:<{_WIDTH}} {escape(check.detail)}", soft_wrap=True)
    if check.fix:
        out().print(f"  {'':<{_WIDTH}} fix: [bold]{escape(check.fix)}[/]", soft_wrap=True)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
