"""Execute notebooks with profile ``cpu`` and rewrite their committed outputs (``make reproduce``)."""

from __future__ import annotations

import sys

from lossbook.chapter import catalog
from lossbook.chapter.execute import rewrite


def main() -> int:
    """Rewrite the chapters and comparisons named on the command line, or every written one."""
    try:
        chosen = [catalog.find_notebook(word) for word in sys.argv[1:]]
    except catalog.ChapterNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    chosen = chosen or [info for info in catalog.notebooks() if info.written]
    failed = [info for info in chosen if not _reproduced(info)]
    return 1 if failed else 0


def _reproduced(info: catalog.NotebookInfo) -> bool:
    try:
        result = rewrite(info, on_progress=_progress(info) if sys.stdout.isatty() else None)
    except (FileNotFoundError, OSError) as error:
        print(error, file=sys.stderr)
        return False
    if result.failed:
        print(f"\n{info.label} stopped: {result.failed}\nits own notebook is unchanged; see {result.path}")
        return False
    claims = (result.card or {}).get("claims", [])
    verdicts = ", ".join(f"{claim['id']} {claim['verdict']}" for claim in claims) or "no claims"
    print(f"\r{info.label}: {result.cpu_seconds:.0f} CPU seconds; {verdicts}; wrote {result.path}", flush=True)
    return True


def _progress(info: catalog.NotebookInfo):
    return lambda done, total: print(f"\r{info.label}: cell {done} of {total}", end="", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
