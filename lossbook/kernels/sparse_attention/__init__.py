"""Double Sparsity: attention of a decode step over the tokens that a few channels of their keys point to."""

from lossbook.kernels.sparse_attention.attention import dense_decode, sparse_decode
from lossbook.kernels.sparse_attention.calibration import channel_importance, heavy_channels
from lossbook.kernels.sparse_attention.decode import double_sparse_decode
from lossbook.kernels.sparse_attention.labels import LabelCache, build_labels
from lossbook.kernels.sparse_attention.scores import approx_scores
from lossbook.kernels.sparse_attention.selection import select_tokens
from lossbook.kernels.sparse_attention.traffic import decode_bytes

__all__ = [
    "LabelCache",
    "approx_scores",
    "build_labels",
    "channel_importance",
    "decode_bytes",
    "dense_decode",
    "double_sparse_decode",
    "heavy_channels",
    "select_tokens",
    "sparse_decode",
]
