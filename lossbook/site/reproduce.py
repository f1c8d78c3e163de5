"""Execute chapters with profile ``cpu`` and rewrite their committed notebooks (``make reproduce``)."""

from __future__ import annotations

import sys

from lossbook.chapter import catalog
from lossbook.chapter.execute import rewrite


def main() -> int:
    """Rewrite the chapters named on the command line, or every written one."""
    try:
        chosen = [catalog.find(word) for word in sys.argv[1:]]
    except catalog.ChapterNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    chosen = chosen or [chapter for chapter in catalog.chapters() if chapter.written]
    failed = [chapter for chapter in chosen if not _reproduced(chapter)]
    return 1 if failed else 0


def _reproduced(chapter: catalog.ChapterInfo) -> bool:
    try:
        result = rewrite(chapter, on_progress=_progress(chapter) if sys.stdout.isatty() else None)
    except (FileNotFoundError, OSError) as error:
        print(error, file=sys.stderr)
        return False
    if result.failed:
        print(f"\nchapter {chapter.number} stopped: {result.failed}\nits own notebook is unchanged; see {result.path}")
        return False
    verdicts = ", ".join(f"{claim['id']} {claim['verdict']}" for claim in (result.card or {}).get("claims", []))
    print(
        f"\rchapter {chapter.number}: {result.cpu_seconds:.0f} CPU seconds; {verdicts}; wrote {result.path}", flush=True
    )
    return True


def _progress(chapter: catalog.ChapterInfo):
    return lambda done, total: print(f"\rchapter {chapter.number}: cell {done} of {total}", end="", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
