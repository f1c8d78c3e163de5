"""The language model of the book: SmolLM2-135M-Instruct, its classifier head and its final hidden states."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lossbook.data import recipe as asset
from lossbook.data.assets import require
from lossbook.data.convert import WEIGHTS
from lossbook.data.download import require_packages

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

HEAD = "model.embed_tokens.weight"


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        model: The transformers model, in evaluation mode, without gradients.
        tokenizer: Its tokenizer; ``model`` and ``tokenizer`` are ordinary transformers objects.
        name: Name of the model.
        source: Where the weights come from.
        license: SPDX identifier of the weights' license.
    """

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    name: str
    source: str
    license: str

    @property
    def head(self) -> Tensor:
        """The classifier matrix, shape (V, D); tied to the input embedding."""
        return self.model.get_output_embeddings().weight


def smollm2(*, dtype: torch.dtype = torch.float32, cache: Path | str | None = None) -> LanguageModel:
    r"""Load SmolLM2-135M-Instruct from the cache, without network.

    30 layers, width :math:`D = 576`, vocabulary :math:`V = 49\,152`, input embedding tied to the output head. The
    weights come from a 4-bit (Q4_1) GGUF file whose values were expanded once and rounded to float16, a relative
    error of 1.9e-4 in Frobenius norm (bfloat16 would be 1.4e-3). Attention runs through torch's
    ``scaled_dot_product_attention``, so the same input gives the same output.

    Args:
        dtype: Floating-point type of the weights in memory; float32 takes 538 MB, bfloat16 and float16 269 MB.
        cache: Cache folder; default :func:`lossbook.data.cache_dir`.

    Returns:
        The model in evaluation mode on the CPU with gradients switched off, its tokenizer, source and license.

    Raises:
        TypeError: If ``dtype`` is not a floating-point ``torch.dtype``.
        DataError: If the model was not fetched or its files are damaged (``lossbook fetch smollm2`` mends it), or if
            transformers is not installed (``pip install "lossbook[models]"``).

    Examples:
        >>> lm = smollm2()  # doctest: +SKIP
        >>> lm.head.shape  # doctest: +SKIP
        torch.Size([49152, 576])

    References:
        Allal et al. (2025), "SmolLM2: When Smol Goes Big"; used in :doc:`/notebooks/17_cut_cross_entropy`.
    """
    check_floating_dtype(dtype)
    require_packages(asset.MODEL, "transformers")
    folder = require(asset.NAME, cache)
    with quiet_transformers():
        from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

        model = LlamaForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True, use_safetensors=True
        )
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    model.eval().requires_grad_(False)
    return LanguageModel(model, tokenizer, asset.MODEL, asset.SOURCE, asset.LICENSE)


def smollm2_head(dtype: torch.dtype = torch.float32, *, cache: Path | str | None = None) -> Tensor:
    """Load only the output head of SmolLM2-135M-Instruct, which is also its input embedding.

    transformers is not imported and need not be installed.

    Args:
        dtype: Floating-point type of the result; float32 takes 113 MB.
        cache: Cache folder; default :func:`lossbook.data.cache_dir`.

    Returns:
        The matrix C of the logits ``hidden @ C.T``, shape (V, D) = (49152, 576).

    Raises:
        TypeError: If ``dtype`` is not a floating-point ``torch.dtype``.
        DataError: If the model was not fetched or its files are damaged; the message names the mend.

    Examples:
        >>> smollm2_head().shape  # doctest: +SKIP
        torch.Size([49152, 576])

    References:
        Used in :doc:`/notebooks/17_cut_cross_entropy`.
    """
    from safetensors import safe_open

    check_floating_dtype(dtype)
    with safe_open(require(asset.NAME, cache) / WEIGHTS, framework="pt") as weights:
        # A copy even for float16: the result must not keep the mapped file open.
        return weights.get_tensor(HEAD).to(dtype, copy=True)


def final_hidden(lm: LanguageModel, token_ids: Tensor, *, batch: int = 1) -> Tensor:
    """Compute the states that the head multiplies: the model's output after its final norm.

    ``final_hidden(lm, ids) @ lm.head.T`` are the model's logits. Row ``t`` predicts token ``t + 1``.

    Args:
        lm: A model from :func:`smollm2`.
        token_ids: Tokens, int64, shape (contexts, length); every row is a context of its own.
        batch: Contexts per forward pass, >= 1. More use more memory; on a CPU more are not faster.

    Returns:
        Hidden states, shape (contexts, length, D), in the model's dtype and on its device, without gradient.

    Raises:
        ValueError: If ``token_ids`` is not 2-D, holds a token outside the vocabulary, or ``batch`` < 1.
        TypeError: If ``token_ids`` is not int64.

    Examples:
        >>> lm = smollm2()  # doctest: +SKIP
        >>> final_hidden(lm, torch.zeros(2, 8, dtype=torch.int64)).shape  # doctest: +SKIP
        torch.Size([2, 8, 576])

    References:
        Used in :doc:`/notebooks/17_cut_cross_entropy`.
    """
    _check_tokens(token_ids, lm.head.shape[0], batch)
    contexts, length = token_ids.shape
    states = lm.head.new_empty(contexts, length, lm.head.shape[1])
    if not states.numel():
        return states
    # no_grad, not inference_mode: the states are to serve as leaves of a later backward pass.
    with torch.no_grad():
        for start in range(0, contexts, batch):
            ids = token_ids[start : start + batch].to(lm.head.device)
            states[start : start + batch] = lm.model.model(input_ids=ids, use_cache=False).last_hidden_state
    return states


def token_blocks(text: str, tokenizer: Any, *, context: int = 1024, count: int | None = None) -> Tensor:
    """Cut a text into contexts of equal length, from its beginning, without overlap.

    Args:
        text: Any text; special-token strings in it are read as such by the tokenizer, none are added.
        tokenizer: A transformers tokenizer, for instance ``smollm2().tokenizer``.
        context: Tokens per block, >= 1.
        count: Number of blocks, >= 1; default as many whole blocks as the text holds.

    Returns:
        Token ids, int64, shape (count, context). A rest shorter than a block is dropped.

    Raises:
        ValueError: If ``context`` or ``count`` is < 1, or the text holds fewer than ``count`` blocks (or none).

    Examples:
        >>> token_blocks(text("python_docs"), smollm2().tokenizer, context=1024, count=2).shape  # doctest: +SKIP
        torch.Size([2, 1024])

    References:
        Used in :doc:`/notebooks/17_cut_cross_entropy`.
    """
    for name, value in (("context", context), ("count", count)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    # verbose=False: a text longer than the model's context is what this function is for.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    whole = len(ids) // context
    wanted = max(1, whole) if count is None else count
    if whole < wanted:
        limit = f"the text has {len(ids)} tokens, which is {whole} blocks of {context}"
        raise ValueError(f"count must be <= {whole} ({limit}), got {wanted}")
    return torch.tensor(ids[: wanted * context], dtype=torch.int64).reshape(wanted, context)


def check_floating_dtype(dtype: torch.dtype) -> None:
    """Raise TypeError unless ``dtype`` is a floating-point type."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")


def _check_tokens(token_ids: Tensor, vocabulary: int, batch: int) -> None:
    if token_ids.dtype != torch.int64:
        raise TypeError(f"token_ids must be int64, got {token_ids.dtype}")
    if token_ids.ndim != 2:
        raise ValueError(f"token_ids must have shape (contexts, length), got {tuple(token_ids.shape)}")
    if batch < 1:
        raise ValueError(f"batch must be >= 1, got {batch}")
    if token_ids.numel() and not 0 <= token_ids.min() <= token_ids.max() < vocabulary:
        low, high = int(token_ids.min()), int(token_ids.max())
        raise ValueError(f"token_ids must be in [0, {vocabulary}), got values from {low} to {high}")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing progress bars and advice; its settings are put back afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging as chatter

        level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
        chatter.set_verbosity(logging.ERROR)
        chatter.disable_progress_bar()
        try:
            yield
        finally:
            chatter.set_verbosity(level)
            if bars:
                chatter.enable_progress_bar()
