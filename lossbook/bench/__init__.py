"""Side-by-side benchmarks in which every method runs in a fresh process of its own.

A measurement taken in a process that has already run something else is biased: memory the allocator kept, threads
already spinning, caches already warm.  :func:`cce` therefore starts one new Python for each method, measures there,
and collects the answers in a :class:`CCEReport`.

Importing this package loads neither PyTorch nor the command line; both are imported when they are needed.
"""

from typing import TYPE_CHECKING, Any

from lossbook.bench.cross_entropy import cce
from lossbook.bench.methods import METHODS
from lossbook.bench.process import BenchmarkError
from lossbook.bench.report import markdown_table
from lossbook.bench.results import CCEReport, CCERow

if TYPE_CHECKING:
    from lossbook.bench.cli import cli_app

__all__ = ["METHODS", "BenchmarkError", "CCEReport", "CCERow", "cce", "cli_app", "markdown_table"]


def __getattr__(name: str) -> Any:
    """Import the command line only when somebody asks for it: the workers never do."""
    if name == "cli_app":
        from lossbook.bench.cli import cli_app

        return cli_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
