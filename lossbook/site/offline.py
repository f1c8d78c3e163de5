"""Make a copy of the built book that asks the network for nothing (``make offline-book``).

The pages load a few scripts from public hosts.  The copy holds them itself: they are fetched once through npm, kept
under ``_build`` and never committed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lossbook.site.build import HTML, ROOT

OFFLINE = ROOT / "_build" / "offline"
_KEPT = ROOT / "_build" / ".npm"
_VENDOR = "_static/vendor"


class OfflineError(RuntimeError):
    """The offline copy can not be made; the message is a sentence that says what to do."""


@dataclass(frozen=True)
class Script:
    """An npm package that stands in for the addresses that ``address`` matches.

    Args:
        package: Its name on npm.
        version: Its exact version.
        keep: Paths inside the package that the pages need; a folder's end with a slash.
        address: Pattern of the addresses that the pages ask for.
        local: Path inside the package that answers them; groups of ``address`` may stand in it.
    """

    package: str
    version: str
    keep: tuple[str, ...]
    address: str
    local: str

    @property
    def folder(self) -> str:
        """Name of the package's folder in the offline copy."""
        return self.package.rsplit("/", 1)[-1]


SCRIPTS = (
    Script(
        package="mathjax",
        version="3.2.2",
        keep=(
            "es5/tex-mml-chtml.js",
            "es5/output/chtml/fonts/",
            "es5/input/tex/extensions/",
            "es5/a11y/",
            "es5/sre/mathmaps/base.json",
            "es5/sre/mathmaps/en.json",
        ),
        address=r"https://cdn\.jsdelivr\.net/npm/mathjax@[^/]+/([^\"'\s<>]+)",
        local=r"\1",
    ),
    Script(
        package="requirejs",
        version="2.3.8",
        keep=("require.js",),
        address=r"https://cdnjs\.cloudflare\.com/ajax/libs/require\.js/[^/]+/require(?:\.min)?\.js",
        local="require.js",
    ),
    Script(
        package="@jupyter-widgets/html-manager",
        version="1.0.15",
        keep=("dist/",),
        address=r"https://cdn\.jsdelivr\.net/npm/@jupyter-widgets/html-manager@[^/]+/([^\"'\s<>]+)",
        local=r"\1",
    ),
)

_LOADING_TAG = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*>")
_ADDRESS = re.compile(r'\b(?:src|href)="(https?://[^"]+)"')
_NOT_LOADED = re.compile(r'\brel="(?:canonical|license|author|next|prev|search)"')


def make_offline(html: Path = HTML, target: Path = OFFLINE) -> Path:
    """Copy a built book and replace every script that it would load from elsewhere by a file of its own.

    Args:
        html: Folder of the built book.
        target: Folder to make; an earlier copy there is replaced once the new one is complete.

    Returns:
        The path of the copy's ``index.html``.

    Raises:
        OfflineError: If the book is not built, npm is missing or fails, or a page loads something without a stand-in.
    """
    if not (html / "index.html").is_file():
        raise OfflineError(f"there is no built book in {html}: run: make book")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(html, partial)
    needed = set()
    for page in sorted(partial.rglob("*.html")):
        text, used = rewrite(page.read_text(encoding="utf-8"), depth=len(page.relative_to(partial).parts) - 1)
        needed |= used
        page.write_text(text, encoding="utf-8")
    for script in needed:
        shutil.copytree(_fetched(script), partial / _VENDOR / script.folder)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target / "index.html"


def rewrite(text: str, depth: int) -> tuple[str, set[Script]]:
    """Point the scripts that a page loads from other hosts at the local copies.

    Args:
        text: The page.
        depth: How many folders below the book's root the page lies.

    Returns:
        The page, and which scripts it needs.

    Raises:
        OfflineError: If the page loads an address that no script stands in for.
    """
    needed: set[Script] = set()
    vendor = "../" * depth + _VENDOR

    def tag(match: re.Match[str]) -> str:
        if "://" not in match[0] or _NOT_LOADED.search(match[0]):
            return match[0]
        # The checksum is of the other host's file, and a page opened from disk may not ask for cross-origin files.
        bare = re.sub(r'\s+(?:integrity|crossorigin)="[^"]*"', "", match[0])
        return re.sub(r'data-jupyter-widgets-cdn="[^"]*"', f'data-jupyter-widgets-cdn="{vendor}/"', bare)

    text = _LOADING_TAG.sub(tag, text)
    for script in SCRIPTS:
        text, count = re.subn(script.address, f"{vendor}/{script.folder}/{script.local}", text)
        needed |= {script} if count else set()
    for loading in _LOADING_TAG.findall(text):
        if (found := _ADDRESS.search(loading)) and not _NOT_LOADED.search(loading):
            raise OfflineError(f"a page loads {found[1]}: add a local stand-in to SCRIPTS in lossbook/site/offline.py")
    return text, needed


def _fetched(script: Script) -> Path:
    """The folder with the kept files of an npm package, fetched on first use."""
    folder = _KEPT / f"{script.folder}-{script.version}"
    if folder.is_dir():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise OfflineError(
            "the offline book takes MathJax and the widget scripts from npm, and there is no npm here: "
            "install Node.js (Debian: apt-get install npm), then run: make offline-book"
        )
    _KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_KEPT) as scratch:
        command = [npm, "pack", f"{script.package}@{script.version}", "--silent", "--pack-destination", scratch]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not archives:
            raise OfflineError(f"npm could not fetch {script.package} {script.version}: {done.stderr.strip()}")
        unpacked = Path(scratch) / "unpacked"
        _unpack(archives[0], script, unpacked)
        unpacked.rename(folder)
    return folder


def _unpack(archive: Path, script: Script, target: Path) -> None:
    with tarfile.open(archive) as bundle:
        for member in bundle:
            path = member.name.partition("/")[2]
            kept = any(path.startswith(keep) if keep.endswith("/") else path == keep for keep in script.keep)
            if member.isfile() and kept and not path.endswith(".map") and ".." not in path.split("/"):
                file = target / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(bundle.extractfile(member).read())


def main() -> int:
    """Make the offline copy of the built book, pack it, and say where both are."""
    try:
        page = make_offline()
    except OfflineError as error:
        print(error, file=sys.stderr)
        return 1
    archive = shutil.make_archive(str(ROOT / "_build" / "lossbook-offline"), "zip", OFFLINE.parent, OFFLINE.name)
    print(f"The offline book is built, also as {os.path.relpath(archive)}. Open it in a browser:\n{page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
