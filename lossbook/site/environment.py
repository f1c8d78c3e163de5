"""Make and mend the virtual environment ``.venv`` that the ``make`` targets work in.

Runs before anything is installed, as a plain script, so it uses the standard library only.
``constraints.txt`` holds every version; this file only says which extras a target needs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

EXTRAS = {
    "book": ("book",),
    "lab": ("book", "models"),
    "test": ("book", "models", "test"),
    "bench": ("bench", "book", "models", "test"),
}
MINIMUM = (3, 11)


class SetupError(Exception):
    """The environment can not be made; the message is one sentence that says what to do."""


def prepare(root: Path, target: str, *, exact: bool = False) -> bool:
    """Bring ``.venv`` to what ``target`` needs.

    Args:
        root: The repository.
        target: A key of ``EXTRAS``.
        exact: Whether ``.venv`` must be of the version of the Python that runs this script.  Without it, an environment
            that was made with another one is kept.

    Returns:
        Whether anything had to be installed.

    Raises:
        SetupError: If Python is too old or an installation fails.
    """
    if sys.version_info < MINIMUM:
        raise SetupError(
            f"Lossbook needs Python 3.11 or newer, and {sys.executable} is {sys.version.split()[0]}; "
            "name another one with: make PYTHON=python3.12"
        )
    venv = root / ".venv"
    with _locked(root / "_build" / ".environment.lock"):
        state = _read_state(venv)
        if exact and state is not None and state["python"] != _python():
            state = None
        wanted = _fingerprint(root)
        if state is not None and state["fingerprint"] == wanted and set(EXTRAS[target]) <= set(state["extras"]):
            return False
        if state is None or not _usable(venv):
            _create(venv)
            state = {"extras": [], "python": _python()}
        extras = sorted(set(EXTRAS[target]) | set(state["extras"]))
        _install(root, venv, extras)
        _write_state(venv, {"fingerprint": wanted, "extras": extras, "python": state["python"], "root": str(root)})
    return True


def _state_file(venv: Path) -> Path:
    return venv / "lossbook.json"


def _read_state(venv: Path) -> dict | None:
    """What is installed, or None if the environment is missing, half-made or was moved here from elsewhere.

    The file is written last and removed first, so that an interrupted installation leaves none.
    """
    try:
        state = json.loads(_state_file(venv).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if state.get("root") == str(venv.parent) and _interpreter(venv).exists() else None


def _write_state(venv: Path, state: dict) -> None:
    _state_file(venv).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def _fingerprint(root: Path) -> str:
    """Changes when what is to be installed changes, not when a linter's setting does."""
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    parts = json.dumps([project["project"], project["build-system"]], sort_keys=True)
    return hashlib.sha256(parts.encode() + (root / "constraints.txt").read_bytes()).hexdigest()


def _interpreter(venv: Path) -> Path:
    return venv / "bin" / "python"


def _usable(venv: Path) -> bool:
    done = subprocess.run([_interpreter(venv), "-m", "pip", "--version"], capture_output=True, check=False)
    return done.returncode == 0


def _python() -> str:
    """The interpreter that runs this script, as ``3.12``."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _create(venv: Path) -> None:
    if venv.is_symlink():
        raise SetupError(f"{venv} is a link; remove it, then run make again")
    if venv.exists():
        print("Removing an unfinished or outdated .venv", flush=True)
        shutil.rmtree(venv)
    print(f"Making .venv with Python {sys.version.split()[0]}", flush=True)
    done = subprocess.run([sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(venv, ignore_errors=True)
        hint = "install your system's venv package (Debian: apt-get install python3-venv), then run make again"
        raise SetupError(f"Python could not make a virtual environment; {hint}\n{(done.stdout + done.stderr).strip()}")


def _install(root: Path, venv: Path, extras: list[str]) -> None:
    _state_file(venv).unlink(missing_ok=True)
    # Both names: pip up to 25.2 passes the first on to the isolated build, later ones the second.
    # Both hold lists separated by blanks, so the path is relative: the repository's own may contain one.
    environ = {**os.environ, "PIP_CONSTRAINT": "constraints.txt", "PIP_BUILD_CONSTRAINT": "constraints.txt"}
    spec = f".[{','.join(extras)}]"
    print(f"Installing lossbook[{','.join(extras)}] at the versions of constraints.txt (some minutes)", flush=True)
    start = time.perf_counter()
    command = [_interpreter(venv), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", spec]
    if subprocess.run(command, cwd=root, env=environ, check=False).returncode:
        raise SetupError("pip could not install Lossbook: see its message above, then run make again")
    print(f"Installed in {time.perf_counter() - start:.0f} s", flush=True)


@contextlib.contextmanager
def _locked(path: Path):
    """Two targets of one ``make -j`` must not install at the same time."""
    import fcntl

    path.parent.mkdir(exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Prepare the environment named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=EXTRAS)
    parser.add_argument("--exact", action="store_true", help="make .venv anew if it is of another Python version")
    args = parser.parse_args()
    try:
        prepare(Path(__file__).resolve().parents[2], args.target, exact=args.exact)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the next make starts .venv anew", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
