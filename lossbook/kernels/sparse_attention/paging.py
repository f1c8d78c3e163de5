"""Where the tokens of a key-value cache lie: in one row per request, or in pages that a table lists."""

import torch
from torch import Tensor


def cache_tokens(k: Tensor, block_table: Tensor | None) -> int:
    """Tokens that a request has room for: ``S``."""
    return k.shape[2] if block_table is None else k.shape[2] * block_table.shape[1]


def take_tokens(cache: Tensor, index: Tensor, block_table: Tensor | None) -> Tensor:
    """The listed tokens of each list, ``(B, H, n, D)``, from a cache of ``Hkv`` heads, of which ``Hkv`` divides ``H``.

    ``index`` is int64, ``(B, H, n)``, every entry a token of the cache.
    """
    batch, heads, _ = index.shape
    head = torch.arange(heads, device=index.device)[:, None] // (heads // cache.shape[1])
    row = torch.arange(batch, device=index.device)[:, None, None]
    if block_table is None:
        return cache[row, head, index]
    page = cache.shape[2]
    return cache[block_table[row, index // page].long(), head, index % page]


def gather_pages(cache: Tensor, block_table: Tensor | None, lengths: Tensor) -> Tensor:
    """The cache with one row per request, ``(B, Hkv, S, D)``; a copy if it is paged.

    Entries of the table behind a request's last token are not used: a page of its own stands in for theirs.
    """
    if block_table is None:
        return cache
    used = used_pages(block_table, cache.shape[2], lengths)
    table = torch.where(used, block_table, block_table[:, :1]).long()
    return cache[table].movedim(2, 1).flatten(2, 3)


def is_token(lengths: Tensor, tokens: int) -> Tensor:
    """Which of ``tokens`` places each request has filled, bool, ``(B, tokens)``."""
    return torch.arange(tokens, device=lengths.device) < lengths[:, None]


def used_pages(block_table: Tensor, page: int, lengths: Tensor) -> Tensor:
    """Which entries of the table hold tokens of their request, bool, of its shape."""
    return torch.arange(block_table.shape[1], device=lengths.device) * page < lengths[:, None]
