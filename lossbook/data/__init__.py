"""Data and models of the chapters, offline first: each states its source, license, size and checksum.

The functions that need torch are imported when they are first used, so that ``lossbook fetch`` starts quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lossbook.data.assets import AssetStatus, fetch, status
from lossbook.data.cache import cache_dir
from lossbook.data.errors import DataError
from lossbook.data.recordings import recorded
from lossbook.data.texts import TextInfo, text, text_info, text_names

if TYPE_CHECKING:
    from lossbook.data.continual import ReservoirBuffer, class_incremental
    from lossbook.data.digit_images import Digits, digits, noisy_digits, two_digit_images
    from lossbook.data.images import glyphs, random_warp
    from lossbook.data.mnist1d import Signals, mnist1d_samples
    from lossbook.data.models import LanguageModel, final_hidden, smollm2, smollm2_head, token_blocks
    from lossbook.data.sentences import SentenceEncoder, minilm
    from lossbook.data.synthetic import LatentWorld, latent_world, scores_at_auroc
    from lossbook.data.wordnet import WordNetLabels, wordnet_pairs, wordnet_retrieval, wordnet_xmc

__all__ = [
    "AssetStatus",
    "DataError",
    "Digits",
    "LanguageModel",
    "LatentWorld",
    "ReservoirBuffer",
    "SentenceEncoder",
    "Signals",
    "TextInfo",
    "WordNetLabels",
    "cache_dir",
    "class_incremental",
    "digits",
    "fetch",
    "final_hidden",
    "glyphs",
    "latent_world",
    "minilm",
    "mnist1d_samples",
    "noisy_digits",
    "random_warp",
    "recorded",
    "scores_at_auroc",
    "smollm2",
    "smollm2_head",
    "status",
    "text",
    "text_info",
    "text_names",
    "token_blocks",
    "two_digit_images",
    "wordnet_pairs",
    "wordnet_retrieval",
    "wordnet_xmc",
]

_LAZY = {
    "ReservoirBuffer": "continual",
    "class_incremental": "continual",
    "Digits": "digit_images",
    "digits": "digit_images",
    "noisy_digits": "digit_images",
    "two_digit_images": "digit_images",
    "glyphs": "images",
    "random_warp": "images",
    "Signals": "mnist1d",
    "mnist1d_samples": "mnist1d",
    "LanguageModel": "models",
    "final_hidden": "models",
    "LatentWorld": "synthetic",
    "latent_world": "synthetic",
    "scores_at_auroc": "synthetic",
    "smollm2": "models",
    "smollm2_head": "models",
    "token_blocks": "models",
    "SentenceEncoder": "sentences",
    "minilm": "sentences",
    "WordNetLabels": "wordnet",
    "wordnet_pairs": "wordnet",
    "wordnet_retrieval": "wordnet",
    "wordnet_xmc": "wordnet",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
