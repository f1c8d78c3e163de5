"""The unattended run for a short time on a GPU: facts, correctness, tuning, tables and a training step."""

from lossbook.bench.gpu.driver import PHASES, run_gpu
from lossbook.bench.gpu.results import GPURun

__all__ = ["PHASES", "GPURun", "run_gpu"]
