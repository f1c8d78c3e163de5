"""The heads of well-known language models, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Shape:
    """Sizes of one training step of a linear head.

    Attributes:
        rows: Tokens N.
        vocab: Vocabulary size V.
        features: Width D of the hidden states.
    """

    rows: int
    vocab: int
    features: int


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "gemma2-2b": Shape(8192, 256000, 2304),
        "llama3-8b": Shape(8192, 128256, 4096),
        "liger": Shape(4096, 128256, 4096),
        "qwen2.5-7b": Shape(8192, 152064, 3584),
        "qwen2.5-0.5b": Shape(8192, 151936, 896),
        "smollm2": Shape(8192, 49152, 576),
    }
)
"""Shapes by name; ``liger`` is the one in the documentation of Liger's Hopper kernel."""
