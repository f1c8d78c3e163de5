"""The cache folder: where assets live, how they are sealed with checksums and put in place at once.

An asset is a folder ``<cache>/<name>`` with a ``manifest.json`` that lists every file with its size and SHA-256.
It is built in ``<cache>/.<name>.partial`` and renamed when finished, so a folder without the dot is always complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from lossbook.data.errors import DataError

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1

_verified: set[tuple[str, int, int]] = set()


def cache_dir() -> Path:
    """Return the folder that holds fetched models and data.

    It is ``$LOSSBOOK_CACHE`` where that is set, else the user's cache folder of the operating system. The folder is
    not created by this call.

    Returns:
        An absolute path.

    Examples:
        >>> cache_dir().is_absolute()
        True
    """
    chosen = os.environ.get("LOSSBOOK_CACHE")
    folder = Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("lossbook", appauthor=False)
    return folder.absolute()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Damage:
    """What is wrong with an asset's folder: ``state`` is ``missing`` or ``corrupt``, ``detail`` says why."""

    state: str
    detail: str


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Seal a folder: record size and SHA-256 of every file in it, together with ``facts`` about its origin."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    text = json.dumps({"format": MANIFEST_FORMAT, **facts, "files": files}, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder; raises ValueError where it is missing or unreadable as one."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        current = manifest["format"] == MANIFEST_FORMAT and manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{MANIFEST} is missing or damaged") from error
    if not current:
        raise ValueError(f"{MANIFEST} was written by another version of lossbook")
    return manifest


def inspect(folder: Path, *, deep: bool = True) -> Damage | None:
    """Compare a sealed folder with its manifest.

    Sizes are always compared. With ``deep`` the SHA-256 of every file is compared too, once per process for a file
    whose size and time of change stay the same.

    Returns:
        None where all is well, else the damage.
    """
    if not folder.is_dir():
        return Damage("missing", f"{folder} does not exist")
    try:
        files = read_manifest(folder)["files"]
        for name, expected in files.items():
            problem = _check_file(folder / name, expected, deep)
            if problem:
                return Damage("corrupt", f"{name} {problem}")
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        return Damage("corrupt", str(error))
    return None


def _check_file(path: Path, expected: dict[str, Any], deep: bool) -> str | None:
    if not path.is_file():
        return "is missing"
    stat = path.stat()
    if stat.st_size != expected["bytes"]:
        return f"has {stat.st_size:,} of {expected['bytes']:,} bytes"
    seen = (str(path), stat.st_size, stat.st_mtime_ns)
    if not deep or seen in _verified:
        return None
    if sha256(path) != expected["sha256"]:
        return "does not match its checksum"
    _verified.add(seen)
    return None


def forget_verified() -> None:
    """Drop the memory of files already verified in this process, so that the next check reads them again."""
    _verified.clear()


def folder_bytes(folder: Path) -> int:
    """Return the summed size of the files below a folder, 0 where it does not exist."""
    total = 0
    for path in folder.rglob("*"):
        # A file may vanish while a download is being watched.
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def stage_path(cache: Path, name: str) -> Path:
    """Return the folder in which an asset is built before it is renamed to its final place."""
    return cache / f".{name}.partial"


@contextmanager
def locked(cache: Path, name: str, mend: str) -> Iterator[None]:
    """Create the cache folder and hold the asset's lock, so that one process at a time builds it.

    Raises:
        DataError: If the folder cannot be written.
    """
    with explain_os_errors(cache, mend):
        cache.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(cache / f".{name}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staged(cache: Path, name: str, mend: str, keep: tuple[str, ...] = (".whl", ".tgz")) -> Iterator[Path]:
    """Yield an empty folder beside ``<cache>/<name>`` and rename it there when the block ends without an error.

    What a killed process left is removed first, except files with an ending in ``keep``: a complete download is worth
    re-using, and its checksum is compared by whoever uses it. After an error nothing is left behind.
    """
    stage, target, old = stage_path(cache, name), cache / name, cache / f".{name}.old"
    with explain_os_errors(cache, mend):
        _restore(old, target)
        stage.mkdir(exist_ok=True)
        for leftover in stage.iterdir():
            if leftover.suffix not in keep:
                remove(leftover)
        try:
            yield stage
            if target.exists():
                target.rename(old)
            stage.rename(target)
            remove(old)
        finally:
            # Also on Ctrl-C; after the rename there is nothing left under this name.
            remove(stage)
            _restore(old, target)


def _restore(old: Path, target: Path) -> None:
    """Finish or undo a swap that was cut between its two renames."""
    if old.exists() and not target.exists():
        old.rename(target)
    remove(old)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all it holds; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def require_space(cache: Path, needed: int, mend: str) -> None:
    """Raise :class:`DataError` unless the disk of the cache folder has ``needed`` bytes free."""
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise DataError(
            f"the disk of {cache} has {free / 1e6:,.0f} MB free and {needed / 1e6:,.0f} MB are needed"
            " (free some space, or set LOSSBOOK_CACHE to a folder on another disk)",
            mend,
        )


@contextmanager
def explain_os_errors(cache: Path, mend: str) -> Iterator[None]:
    """Turn operating-system errors on the cache folder into a :class:`DataError` with the mend."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem = f"the disk of {cache} is full (free some space, or set LOSSBOOK_CACHE to another disk)"
        else:
            problem = f"the cache folder {cache} cannot be written: {reason} (set LOSSBOOK_CACHE to one that can)"
        raise DataError(problem, mend) from error
