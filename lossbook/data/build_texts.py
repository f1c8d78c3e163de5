"""Make the frozen text excerpts anew: ``python -m lossbook.data.build_texts [FOLDER]``.

The result depends on the versions of Python and scikit-learn that run it. That is why the excerpts are shipped and
not read live: a chapter's numbers must not change with the reader's Python. Their versions stand in ``texts.json``.
"""

from __future__ import annotations

import ast
import datetime
import hashlib
import inspect
import json
import platform
import sys
import sysconfig
from dataclasses import asdict
from pathlib import Path

from lossbook.data.texts import FOLDER, TextInfo

LIMIT = 200_000
TOPICS_SHARE = 150_000

# These two repeat, in one piece, what other topics say.
REPEATING_TOPICS = {"compound", "specialnames"}

SOURCE_MODULES = (
    "textwrap heapq bisect functools statistics dataclasses fractions string json.decoder json.encoder shutil glob"
).split()
DOCSTRING_MODULES = (
    "argparse collections contextlib csv datetime decimal difflib doctest enum fileinput fnmatch inspect itertools"
    " pathlib pickle pprint random sched shelve subprocess tempfile threading timeit traceback typing unittest.case"
).split()


def stdlib_file(module: str) -> Path:
    """Return the source file of a standard-library module, or a path that does not exist for one written in C."""
    base = Path(sysconfig.get_paths()["stdlib"], *module.split("."))
    return base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"


def whole_pieces(pieces: list[str], limit: int) -> str:
    """Join pieces with an empty line between them, stopping before the first that would exceed ``limit`` bytes."""
    joined = b""
    for piece in pieces:
        longer = joined + (b"\n" if joined else b"") + piece.strip().encode() + b"\n"
        if len(longer) > limit:
            break
        joined = longer
    return joined.decode()


def docstrings(module: str) -> list[str]:
    """Return the longer docstrings of a module, each under the name of what it documents."""
    path = stdlib_file(module)
    if not path.exists():
        return []
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            doc = ast.get_docstring(node)
            name = getattr(node, "name", None)
            if doc and len(doc) >= 200:
                found.append(f"{module}.{name}\n\n{doc}" if name else f"{module}\n\n{doc}")
    return found


def python_docs() -> str:
    """Return topics of the language reference, then docstrings of the standard library."""
    from pydoc_data.topics import topics

    chosen = [topics[name] for name in sorted(topics) if name not in REPEATING_TOPICS]
    reference = whole_pieces(chosen, TOPICS_SHARE)
    documented = [doc for module in DOCSTRING_MODULES for doc in docstrings(module)]
    return reference + "\n" + whole_pieces(documented, LIMIT - len(reference.encode()) - 1)


def python_source() -> str:
    """Return whole source files of the standard library."""
    return whole_pieces([stdlib_file(name).read_text(encoding="utf-8") for name in SOURCE_MODULES], LIMIT)


def dataset_notes() -> str:
    """Return scikit-learn's descriptions of its data sets."""
    import sklearn.datasets

    folder = Path(inspect.getfile(sklearn.datasets)).parent / "descr"
    return whole_pieces([path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.rst"))], LIMIT)


def licenses() -> dict[str, str]:
    """Return the license texts that travel with the excerpts, by file name."""
    from importlib.metadata import files

    copying = next(path for path in files("scikit-learn") or [] if path.name == "COPYING")
    python = Path(sysconfig.get_paths()["stdlib"], "LICENSE.txt")
    return {"LICENSE-PSF.txt": python.read_text("utf-8"), "LICENSE-scikit-learn.txt": copying.read_text("utf-8")}


def build(folder: Path) -> list[TextInfo]:
    """Write all excerpts, their licenses and ``texts.json`` into a folder.

    Args:
        folder: Created where it does not exist.

    Returns:
        What was recorded about each text.
    """
    import sklearn

    python = f"Python {platform.python_version()}"
    psf = ("PSF-2.0", "LICENSE-PSF.txt")
    bsd = ("BSD-3-Clause", "LICENSE-scikit-learn.txt")
    plan = [
        (
            dataset_notes,
            "Descriptions of data sets",
            f"scikit-learn {sklearn.__version__}, sklearn/datasets/descr",
            bsd,
        ),
        (python_docs, "Python language reference and docstrings", f"{python}, pydoc_data.topics and docstrings", psf),
        (python_source, "Python standard library sources", f"{python}, {', '.join(SOURCE_MODULES)}", psf),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in licenses().items():
        (folder / name).write_text(content, encoding="utf-8", newline="\n")
    infos = [_write(folder, make, *rest) for make, *rest in plan]
    table = json.dumps([asdict(info) for info in infos], indent=2)
    (folder / "texts.json").write_text(table + "\n", encoding="utf-8", newline="\n")
    return infos


def _write(folder: Path, make, title: str, source: str, license: tuple[str, str]) -> TextInfo:
    content = make().encode()
    (folder / f"{make.__name__}.txt").write_bytes(content)
    return TextInfo(
        name=make.__name__,
        title=title,
        source=source,
        license=license[0],
        license_file=license[1],
        command="python -m lossbook.data.build_texts",
        date=datetime.date.today().isoformat(),
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


if __name__ == "__main__":
    for info in build(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER):
        print(f"{info.name}: {info.size:,} bytes, {info.source}")
