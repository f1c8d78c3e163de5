"""Kernels behind the losses: fast, memory-lean, each with a dense reference beside it.

Importing this package needs torch only.
"""

from lossbook.kernels._implementations import ImplementationUnavailableError
from lossbook.kernels.cross_entropy import (
    HeadAdvice,
    LinearCrossEntropy,
    ScheduleCost,
    VocabParallel,
    cut_cross_entropy,
    head_advice,
    indexed_dot,
    linear_logsumexp,
    softmax_sparsity,
)
from lossbook.kernels.sparse_attention import (
    LabelCache,
    approx_scores,
    build_labels,
    channel_importance,
    decode_bytes,
    dense_decode,
    double_sparse_decode,
    heavy_channels,
    select_tokens,
    sparse_decode,
)

__all__ = [
    "HeadAdvice",
    "ImplementationUnavailableError",
    "LabelCache",
    "LinearCrossEntropy",
    "ScheduleCost",
    "VocabParallel",
    "approx_scores",
    "build_labels",
    "channel_importance",
    "cut_cross_entropy",
    "decode_bytes",
    "dense_decode",
    "double_sparse_decode",
    "head_advice",
    "heavy_channels",
    "indexed_dot",
    "linear_logsumexp",
    "select_tokens",
    "softmax_sparsity",
    "sparse_decode",
]
