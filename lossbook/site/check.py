"""Everything that ``make test`` checks, quickest first, so that a mistake shows early."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys

import pytest

from lossbook.site import build, lint, offline

_STYLED = ["book", "lossbook", "tests", "notebooks"]
# The limits that make numbers repeatable and two workers fit two cores, and the promise that no test goes online.
_TEST_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "LOSSBOOK_STATIC": "1",
    "JUPYTER_PREFER_ENV_PATH": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def style() -> None:
    """Stop unless the code is clean and every written chapter keeps the contract."""
    for command in (["check", "--quiet"], ["format", "--check", "--quiet"]):
        if subprocess.run([sys.executable, "-m", "ruff", *command, *_STYLED], cwd=build.ROOT, check=False).returncode:
            raise SystemExit(
                f"ruff {command[0]} found something; .venv/bin/ruff {command[0]} {' '.join(_STYLED)} mends it"
            )
    if lint.main():
        raise SystemExit(1)


def books() -> None:
    """Build the book and, where there is npm, its offline copy, which the browser tests open."""
    build.main()
    try:
        offline.make_offline()
    except offline.OfflineError as error:
        print(f"No offline book: {error}", flush=True)
    os.environ["LOSSBOOK_BOOK_IS_BUILT"] = "1"  # the tests need not look again whether it is up to date


def tests(arguments: list[str]) -> int:
    """Run every test, re-execute every notebook, and run the tests of the Triton kernels in Triton's interpreter.

    Args:
        arguments: More arguments for pytest.

    Returns:
        pytest's exit code, the first one that is not 0.
    """
    nbval = ["--nbval", "--nbval-current-env", "--nbval-sanitize-with=tests/notebooks/sanitize.cfg"]
    codes = [_pytest(["tests", "notebooks", *nbval, *arguments])]
    if importlib.util.find_spec("triton"):  # it exists for Linux only
        # Triton asks for this when it is imported, and its compiler is tested above: the two need their own processes.
        codes.append(_pytest(["tests/interpreted", *arguments], TRITON_INTERPRET="1"))
    failed = [code for code in codes if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)]
    # A choice of tests (-k) may leave nothing to one of the two, but not to both.
    return failed[0] if failed else min(codes)


def _pytest(arguments: list[str], **environment: str) -> int:
    workers = max(2, min(os.cpu_count() or 2, 4))
    command = [sys.executable, "-m", "pytest", "-q", f"-n{workers}", "--dist=loadfile", "--durations=10", *arguments]
    return subprocess.run(command, cwd=build.ROOT, env=os.environ | environment, check=False).returncode


def main() -> int:
    """Run the checks named on the command line: ``--lint`` for style alone, else all, with arguments for pytest."""
    os.environ.update(_TEST_ENVIRONMENT)
    # Whoever starts this in the background makes it deaf to interrupts, and the tests interrupt what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.argv[1:] == ["--lint"]:
        style()
        return 0
    style()
    if subprocess.run([sys.executable, "-m", "lossbook", "fetch"], cwd=build.ROOT, check=False).returncode:
        return 1
    books()
    return tests(sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
