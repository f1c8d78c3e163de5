"""The shapes of a decode step and the methods that the benchmark compares; imports no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class DecodeShape:
    """Sizes of the attention of one decode step.

    Attributes:
        batch: Requests B.
        query_heads: Query heads Hq.
        key_heads: Key heads Hkv, which divide the query heads.
        tokens: Tokens S of the cache.
        features: Size D of a head.
    """

    batch: int
    query_heads: int
    key_heads: int
    tokens: int
    features: int


DECODE_SHAPES: Mapping[str, DecodeShape] = MappingProxyType(
    {
        "llama2-7b-1x8k": DecodeShape(1, 32, 32, 8192, 128),
        "llama2-7b-32x2k": DecodeShape(32, 32, 32, 2048, 128),
        "llama2-7b-8x16k": DecodeShape(8, 32, 32, 16384, 128),
        "llama2-7b-32x16k": DecodeShape(32, 32, 32, 16384, 128),
        "llama3-8b-8x16k": DecodeShape(8, 32, 8, 16384, 128),
        "llama3-8b-16x32k": DecodeShape(16, 32, 8, 32768, 128),
        "llama3-8b-4x128k": DecodeShape(4, 32, 8, 131072, 128),
        "small-mha": DecodeShape(1, 8, 8, 4096, 64),
        "small-gqa": DecodeShape(1, 8, 2, 8192, 64),
    }
)
"""Shapes by name: model, requests and tokens; the small ones are for a CPU."""


@dataclass(frozen=True)
class Sparsity:
    """How a Double Sparsity step finds its tokens.

    Attributes:
        part: One token in ``part`` is attended to.
        r: Channels of a label.
        bits: Bits of a label.
        share_kv: Whether the query heads of a group share labels and selection.
    """

    part: int
    r: int
    bits: int
    share_kv: bool

    def bytes(self, shape: DecodeShape, item_bytes: int = 2) -> dict[str, int]:
        """Return what a step moves, counted by :func:`lossbook.kernels.decode_bytes`; imports PyTorch.

        Args:
            shape: Sizes.
            item_bytes: Bytes of a number in the cache.

        Returns:
            Bytes by name.
        """
        from lossbook.kernels import decode_bytes

        counted = decode_bytes(
            shape.batch,
            shape.query_heads,
            shape.key_heads,
            shape.tokens,
            shape.features,
            budget=self.budget(shape.tokens),
            r=min(self.r, shape.features),
            bits=self.bits,
            share_kv=self.share_kv,
            kv_bytes=item_bytes,
        )
        if self.bits == 16:  # such labels are numbers of the cache, whatever their size
            more = counted["labels"] * item_bytes // 2 - counted["labels"]
            counted |= {"labels": counted["labels"] + more, "total": counted["total"] + more}
        return counted

    def budget(self, tokens: int) -> int:
        """Return the tokens attended to.

        Args:
            tokens: Tokens of the cache.

        Returns:
            At least one.
        """
        return max(1, tokens // self.part)


@dataclass(frozen=True)
class DecodeMethod:
    """One way to compute the attention of a decode step.

    Attributes:
        name: Name used on the command line and in the report.
        description: One line for ``lossbook bench list``.
        backend: Name in :class:`torch.nn.attention.SDPBackend` that is forced; None for this package's kernels.
        sparsity: How tokens are found; None for dense attention, and for a baseline.
        baseline: Function of :mod:`lossbook.nn` that chooses one token in 16; None for other methods.
    """

    name: str
    description: str
    backend: str | None = None
    sparsity: Sparsity | None = None
    baseline: str | None = None

    @property
    def dense(self) -> bool:
        """Whether all tokens are attended to."""
        return self.sparsity is None and self.baseline is None


BASELINE_PART = 16
_ALL = (
    DecodeMethod("dense_decode", "dense_decode: all tokens, split over the processors"),
    DecodeMethod("sdpa_flash", "torch's attention, flash backend", backend="FLASH_ATTENTION"),
    DecodeMethod("sdpa_cudnn", "torch's attention, cuDNN backend", backend="CUDNN_ATTENTION"),
    DecodeMethod("sdpa_efficient", "torch's attention, memory-efficient backend", backend="EFFICIENT_ATTENTION"),
    DecodeMethod("sdpa_math", "torch's attention, plain operations", backend="MATH"),
    DecodeMethod(
        "per_head_r8", "Double Sparsity, S/16 tokens, 8 channels per query head", sparsity=Sparsity(16, 8, 16, False)
    ),
    DecodeMethod(
        "per_head_r16", "Double Sparsity, S/16 tokens, 16 channels per query head", sparsity=Sparsity(16, 16, 16, False)
    ),
    DecodeMethod(
        "shared_r16_int4",
        "Double Sparsity, S/16 tokens, 16 channels of 4 bits per key head",
        sparsity=Sparsity(16, 16, 4, True),
    ),
    DecodeMethod(
        "shared_r16_int4_32nd",
        "Double Sparsity, S/32 tokens, 16 channels of 4 bits per key head",
        sparsity=Sparsity(32, 16, 4, True),
    ),
    DecodeMethod("window", "the first 4 and the last tokens, S/16 in all", baseline="window"),
    DecodeMethod("quest", "whole pages, S/16 tokens; the pages' bounds are made anew at every call", baseline="quest"),
)

DECODE_METHODS: Mapping[str, DecodeMethod] = MappingProxyType({method.name: method for method in _ALL})
"""Every method by name, in the order in which reports show them."""
