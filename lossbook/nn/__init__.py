"""Modules that chapters share.

Importing this package needs torch only.
"""

from lossbook.kernels.sparse_attention.baselines import (
    HeavyHitterState,
    heavy_hitter,
    oracle,
    quest,
    random_channels,
    window,
)
from lossbook.nn.attention import SparseDecodeAttention

__all__ = [
    "HeavyHitterState",
    "SparseDecodeAttention",
    "heavy_hitter",
    "oracle",
    "quest",
    "random_channels",
    "window",
]
