"""Kernels behind the losses: fast, memory-lean, each with a dense reference beside it.

Importing this package needs torch only.
"""

from lossbook.kernels.cross_entropy import (
    ImplementationUnavailableError,
    LinearCrossEntropy,
    VocabParallel,
    cut_cross_entropy,
    indexed_dot,
    linear_logsumexp,
    softmax_sparsity,
)

__all__ = [
    "ImplementationUnavailableError",
    "LinearCrossEntropy",
    "VocabParallel",
    "cut_cross_entropy",
    "indexed_dot",
    "linear_logsumexp",
    "softmax_sparsity",
]
