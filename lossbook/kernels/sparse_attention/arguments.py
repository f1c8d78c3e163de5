"""Checks of the arguments that the functions of a decode step share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lossbook._validation import (
    check_dtype,
    check_floating,
    check_integer,
    check_non_negative,
    check_positive,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_target_range,
    check_tensor,
    values_are_readable,
)
from lossbook.kernels.sparse_attention.paging import cache_tokens, is_token, used_pages

GROUP_REDUCTIONS = ("max", "mean", "maxnorm", "sumsoftmax")
LABEL_BITS = (16, 8, 4)
_QUERY_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CACHE_DTYPES = (*_QUERY_DTYPES, torch.float8_e4m3fn)
_INDEX_DTYPES = (torch.int32, torch.int64)


def check_query(q: Tensor) -> None:
    """Require one query token per request."""
    check_tensor("q", q)
    _check_one_dtype("q", q, _QUERY_DTYPES)
    check_shape("q", q, "(B, Hq, D)", (None, None, None))
    _check_not_empty("q", q)


def check_keys(name: str, k: Tensor, symbols: str = "(B, Hkv, S, D)") -> None:
    """Require the keys of some tokens."""
    check_tensor(name, k)
    _check_one_dtype(name, k, _CACHE_DTYPES)
    check_shape(name, k, symbols, (None, None, None, None))
    _check_not_empty(name, k)


def check_query_and_keys(q: Tensor, k: Tensor, block_table: Tensor | None = None) -> None:
    """Check queries and keys against each other."""
    check_query(q)
    symbols = "(B, Hkv, S, D)" if block_table is None else "(P, Hkv, page, D)"
    check_keys("k", k, symbols)
    (batch, heads, features), (_, key_heads, tokens, _) = q.shape, k.shape
    check_shape("k", k, symbols, (batch if block_table is None else None, key_heads, tokens, features))
    if k.dtype != torch.float8_e4m3fn:
        check_same_dtype("k", k, "q", q)
    check_same_device("k", k, "q", q)
    check_group("Hq", heads, key_heads)


def check_cache(q: Tensor, k: Tensor, v: Tensor, block_table: Tensor | None) -> None:
    """Check queries, keys and values against each other."""
    check_query_and_keys(q, k, block_table)
    check_tensor("v", v)
    check_shape("v", v, "k.shape", k.shape)
    check_same_dtype("v", v, "k", k)
    check_same_device("v", v, "q", q)


def check_group(name: str, heads: int, key_heads: int) -> None:
    """Require a whole number of heads per key head."""
    if heads % key_heads:
        raise ValueError(f"{name} must be a multiple of Hkv = {key_heads}, got {heads}")


def check_prompt(q: Tensor, k: Tensor) -> None:
    """Check the queries and keys of whole sequences against each other."""
    for name, value, symbols in (("q", q, "(B, Hq, T, D)"), ("k", k, "(B, Hkv, T, D)")):
        check_tensor(name, value)
        check_floating(name, value)
        check_shape(name, value, symbols, (None, None, None, None))
        _check_not_empty(name, value)
    (batch, heads, tokens, features), key_heads = q.shape, k.shape[1]
    check_shape("k", k, "(B, Hkv, T, D)", (batch, key_heads, tokens, features))
    check_same_dtype("k", k, "q", q)
    check_same_device("k", k, "q", q)
    check_group("Hq", heads, key_heads)


def check_block_table(block_table: Tensor | None, k: Tensor, batch: int | None) -> Tensor | None:
    """The table of pages, contiguous; which of its entries are used depends on the lengths, see :func:`check_pages`."""
    if block_table is None:
        return None
    check_tensor("block_table", block_table)
    check_dtype("block_table", block_table, torch.int32)
    check_shape("block_table", block_table, "(B, pages)", (batch, None))
    _check_not_empty("block_table", block_table)
    check_same_device("block_table", block_table, "k", k)
    return block_table.contiguous()


def check_pages(block_table: Tensor | None, k: Tensor, lengths: Tensor) -> None:
    """Require pages that exist for the tokens that exist."""
    if block_table is None:
        return
    used = used_pages(block_table, k.shape[2], lengths)
    check_target_range("block_table", torch.where(used, block_table, 0), k.shape[0], symbol="P")


def check_lengths(lengths: Tensor | None, batch: int, tokens: int, device: torch.device) -> Tensor:
    """The lengths as contiguous int32 of shape ``(batch,)``: those given, or ``tokens`` for every request."""
    if lengths is None:
        return torch.full((batch,), tokens, dtype=torch.int32, device=device)
    check_tensor("lengths", lengths)
    _check_one_dtype("lengths", lengths, _INDEX_DTYPES)
    check_shape("lengths", lengths, "(B,)", (batch,))
    if lengths.device != device:
        raise ValueError(f"lengths must be on the device of the cache, {device}, got {lengths.device}")
    if values_are_readable(lengths):
        outside = (lengths < 1) | (lengths > tokens)
        if outside.any():
            raise ValueError(f"lengths must lie in [1, S] = [1, {tokens}], got {int(lengths[outside][0])}")
    return lengths.to(torch.int32).contiguous()


def check_layout(
    k: Tensor, lengths: Tensor | None, block_table: Tensor | None, batch: int | None
) -> tuple[Tensor, Tensor | None]:
    """Check where the tokens of a cache lie; returns the lengths and the table as the engines take them.

    Without ``batch`` the table says how many requests there are.
    """
    block_table = check_block_table(block_table, k, batch)
    if batch is None:
        batch = k.shape[0] if block_table is None else block_table.shape[0]
    lengths = check_lengths(lengths, batch, cache_tokens(k, block_table), k.device)
    check_pages(block_table, k, lengths)
    return lengths, block_table


def check_channels(channels: Tensor, features: int, key_heads: int, heads: int | None = None) -> None:
    """Require channels of each key head or of each query head; of any multiple of the key heads without ``heads``."""
    check_tensor("channels", channels)
    check_dtype("channels", channels, torch.int64)
    check_shape("channels", channels, "(H, r)", (None, None))
    rows, r = channels.shape
    if heads is None:
        if rows < 1 or rows % key_heads:
            raise ValueError(f"channels must have shape (H, r) with H a multiple of Hkv = {key_heads}, got H = {rows}")
    elif rows not in (key_heads, heads):
        raise ValueError(f"channels must have Hkv = {key_heads} or Hq = {heads} rows, got {rows}")
    check_channel_count("r = channels.shape[1]", r, features)
    check_target_range("channels", channels, features, symbol="D")


def check_channel_count(name: str, r: int, features: int) -> None:
    """Require between one and all channels of a head."""
    if not 1 <= r <= features:
        raise ValueError(f"{name} must lie in [1, D] = [1, {features}], got {r}")


def check_selection(budget: int, sink: int, recent: int) -> None:
    """Check how many tokens to select, and how many of them without a choice."""
    check_integer("budget", budget)
    if budget < 1:
        raise ValueError(f"budget must be >= 1, got {budget}")
    for name, value in (("sink", sink), ("recent", recent)):
        check_integer(name, value)
        check_non_negative(name, value)
    if sink + recent > budget:
        raise ValueError(f"sink + recent must be <= budget = {budget}, got {sink} + {recent} = {sink + recent}")


def check_index(index: Tensor, count: Tensor, q: Tensor, k: Tensor, block_table: Tensor | None) -> None:
    """Check lists of tokens."""
    for name, value in (("index", index), ("count", count)):
        check_tensor(name, value)
        check_dtype(name, value, torch.int32)
        check_same_device(name, value, "q", q)
    (batch, heads, _), (pages, key_heads, page, _) = q.shape, k.shape
    check_shape("index", index, "(B, H, budget)", (batch, None, None))
    if index.shape[1] not in (key_heads, heads):
        raise ValueError(f"index must have Hkv = {key_heads} or Hq = {heads} heads, got {index.shape[1]}")
    check_shape("count", count, "(B, H)", index.shape[:2])
    check_target_range("count", count, index.shape[2] + 1, symbol="budget + 1")
    listed = is_token(count.flatten(), index.shape[2]).view_as(index)
    check_target_range("index", torch.where(listed, index, 0), cache_tokens(k, block_table), symbol="S")
    if block_table is not None and values_are_readable(block_table):
        used = block_table.gather(1, torch.where(listed, index // page, 0).flatten(1).long())
        check_target_range("block_table", torch.where(listed.flatten(1), used, 0), pages, symbol="P")


def attention_scale(scale: float | None, features: int) -> float:
    """The factor of the logits: what the user wrote, or one over the root of the head size."""
    if scale is None:
        return features**-0.5
    check_positive("scale", scale)
    return scale


def check_cache_scales(k_scale: float, v_scale: float) -> None:
    """Check the factors of the stored keys and values."""
    check_positive("k_scale", k_scale)
    check_positive("v_scale", v_scale)


def _check_one_dtype(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    if tensor.dtype not in dtypes:
        listed = ", ".join(map(str, dtypes))
        raise TypeError(f"{name} must have one of the dtypes {listed}, got {tensor.dtype}")


def _check_not_empty(name: str, tensor: Tensor) -> None:
    if tensor.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(tensor.shape)}")
