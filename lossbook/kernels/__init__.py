"""Kernels behind the losses: fast, memory-lean, each with a dense reference beside it.

Importing this package needs torch only.
"""

from lossbook.kernels.cross_entropy import (
    HeadAdvice,
    ImplementationUnavailableError,
    LinearCrossEntropy,
    ScheduleCost,
    VocabParallel,
    cut_cross_entropy,
    head_advice,
    indexed_dot,
    linear_logsumexp,
    softmax_sparsity,
)

__all__ = [
    "HeadAdvice",
    "ImplementationUnavailableError",
    "LinearCrossEntropy",
    "ScheduleCost",
    "VocabParallel",
    "cut_cross_entropy",
    "head_advice",
    "indexed_dot",
    "linear_logsumexp",
    "softmax_sparsity",
]
