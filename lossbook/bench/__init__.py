"""Side-by-side benchmarks of the kernels and their peers.

On the CPU a measurement taken in a process that has already run something else is biased: memory the allocator kept,
threads already spinning, caches already warm.  :func:`cce` therefore starts one new Python for each method there.  On
a GPU, whose speed drifts with its temperature, the methods take turns in one process.  :func:`run_gpu` is the
unattended run for a short time on a GPU.

Importing this package loads neither PyTorch nor the command line; both are imported when they are needed.
"""

from typing import TYPE_CHECKING, Any

from lossbook.bench.cross_entropy import DENSITIES, cce
from lossbook.bench.gpu import GPURun, run_gpu
from lossbook.bench.methods import METHODS
from lossbook.bench.process import BenchmarkError
from lossbook.bench.report import floors_table, markdown_table
from lossbook.bench.results import CCEReport, CCERow, read_reports, write_reports
from lossbook.bench.roofline import Roofline, roofline
from lossbook.bench.shapes import SHAPES, Shape

if TYPE_CHECKING:
    from lossbook.bench.cli import cli_app

__all__ = [
    "DENSITIES",
    "METHODS",
    "SHAPES",
    "BenchmarkError",
    "CCEReport",
    "CCERow",
    "GPURun",
    "Roofline",
    "Shape",
    "cce",
    "cli_app",
    "floors_table",
    "markdown_table",
    "read_reports",
    "roofline",
    "run_gpu",
    "write_reports",
]


def __getattr__(name: str) -> Any:
    """Import the command line only when somebody asks for it: the workers never do."""
    if name == "cli_app":
        from lossbook.bench.cli import cli_app

        return cli_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
