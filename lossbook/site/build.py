"""Build the HTML book (``make book``): every warning is an error, every cross-reference is checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"


def build(root: Path = ROOT) -> Path:
    """Build the book of a checkout with Jupyter Book.

    Args:
        root: The checkout.

    Returns:
        The path of ``index.html``.

    Raises:
        SystemExit: If the build fails; its messages have been printed.
    """
    target = root / "_build"
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", str(root), "-n", "-W", "--keep-going", "-q"]
    # autodoc has to import this checkout, whatever else is installed.
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    # Warnings and errors go to standard error; what Jupyter Book says besides is kept back.
    if subprocess.run(command, cwd=root, env=environ, stdout=subprocess.DEVNULL, check=False).returncode:
        # The next build must look at every page again, or it would pass without repeating the warnings of this one.
        shutil.rmtree(target / ".doctrees", ignore_errors=True)
        raise SystemExit("The book is not built: each warning above counts as an error.")
    return target / "html" / "index.html"


def main() -> None:
    """Build the book of this checkout and say where it is."""
    start = time.perf_counter()
    page = build()
    print(f"The book is built ({time.perf_counter() - start:.0f} s). Open it in a browser:\n{page}")


if __name__ == "__main__":
    main()
