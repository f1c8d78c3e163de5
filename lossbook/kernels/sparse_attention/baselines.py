"""Other ways to choose the tokens of a decode step, to compare with: all give what ``sparse_decode`` takes."""

import dataclasses

import torch
from torch import Tensor

from lossbook._validation import check_integer, check_positive
from lossbook.kernels.cross_entropy.library import no_autocast, result_dtype
from lossbook.kernels.sparse_attention.arguments import (
    check_channel_count,
    check_lengths,
    check_prompt,
    check_query_and_keys,
    check_selection,
)
from lossbook.kernels.sparse_attention.labels import build_labels
from lossbook.kernels.sparse_attention.paging import is_token, take_tokens
from lossbook.kernels.sparse_attention.scores import approx_scores
from lossbook.kernels.sparse_attention.selection import select_tokens
from lossbook.kernels.sparse_attention.torch_engine import select_best

# Queries of a prompt whose attention is held at once.
_PROMPT_BLOCK = 128


def window(q: Tensor, k: Tensor, *, budget: int, lengths: Tensor | None = None, sink: int = 4) -> tuple[Tensor, Tensor]:
    """The first tokens and the last: a sliding window with attention sinks.

    Args:
        q: Queries, shape ``(B, Hq, D)``; only the shape matters.
        k: Keys, shape ``(B, Hkv, S, D)``; only the shape matters.
        budget: Tokens to choose, ``>= 1``.
        lengths: Tokens of each request, int32 or int64, shape ``(B,)``, in ``[1, S]``. Default: ``S``.
        sink: How many of them at the start, at most ``budget``. Default 4.

    Returns:
        Ascending indices with -1 behind them, int32, shape ``(B, Hkv, budget)``, and their number, ``(B, Hkv)``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape or value does not fit.

    Examples:
        >>> window(torch.zeros(1, 1, 2), torch.zeros(1, 1, 9, 2), budget=5, sink=2)[0]
        tensor([[[0, 1, 6, 7, 8]]], dtype=torch.int32)

    References:
        Xiao, Tian, Chen, Han and Lewis (2024), Efficient Streaming Language Models with Attention Sinks; chapter 18
        (:doc:`/notebooks/18_double_sparsity`).
    """
    check_query_and_keys(q, k)
    check_selection(budget, sink, 0)
    return select_tokens(q.new_zeros(k.shape[:3]), budget, lengths, sink, budget - sink)


@torch.no_grad()
def oracle(
    q: Tensor, k: Tensor, *, budget: int, lengths: Tensor | None = None, sink: int = 0, recent: int = 0
) -> tuple[Tensor, Tensor]:
    """The tokens with the largest true scores: the best that any choice by score can do.

    Args:
        q: Queries, shape ``(B, Hq, D)``.
        k: Keys, shape ``(B, Hkv, S, D)``, dtype of ``q``.
        budget: Tokens to choose, ``>= 1``.
        lengths: Tokens of each request, int32 or int64, shape ``(B,)``, in ``[1, S]``. Default: ``S``.
        sink: Tokens at the start that are always chosen. Default 0.
        recent: Tokens at the end that are always chosen. Default 0.

    Returns:
        Ascending indices with -1 behind them, int32, shape ``(B, Hq, budget)``, and their number, ``(B, Hq)``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape or value does not fit.

    Examples:
        >>> k = torch.tensor([[1.0], [3.0], [-4.0], [2.0]])[None, None]
        >>> oracle(torch.ones(1, 1, 1), k, budget=2)[0]
        tensor([[[1, 3]]], dtype=torch.int32)

    References:
        Yang et al. (2024), Post-Training Sparse Attention with Double Sparsity; chapter 18
        (:doc:`/notebooks/18_double_sparsity`).
    """
    check_query_and_keys(q, k)
    return select_tokens(_by_group(q, k, k).flatten(1, 2), budget, lengths, sink, recent)


@torch.no_grad()
def random_channels(
    q: Tensor,
    k: Tensor,
    *,
    budget: int,
    r: int,
    lengths: Tensor | None = None,
    seed: int = 0,
    sink: int = 0,
    recent: int = 0,
) -> tuple[Tensor, Tensor]:
    """The tokens with the largest scores by channels drawn at random: Double Sparsity without its calibration.

    Args:
        q: Queries, shape ``(B, Hq, D)``.
        k: Keys, shape ``(B, Hkv, S, D)``, dtype of ``q``.
        budget: Tokens to choose, ``>= 1``.
        r: Channels of each query head, in ``[1, D]``.
        lengths: Tokens of each request, int32 or int64, shape ``(B,)``, in ``[1, S]``. Default: ``S``.
        seed: Seed of the channels: the same in every call with the same seed. Default 0.
        sink: Tokens at the start that are always chosen. Default 0.
        recent: Tokens at the end that are always chosen. Default 0.

    Returns:
        Ascending indices with -1 behind them, int32, shape ``(B, Hq, budget)``, and their number, ``(B, Hq)``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape or value does not fit.

    Examples:
        >>> k = torch.tensor([[1.0, 1.0], [3.0, 3.0], [-4.0, -4.0], [2.0, 2.0]])[None, None]
        >>> random_channels(torch.ones(1, 1, 2), k, budget=2, r=1)[0]
        tensor([[[1, 3]]], dtype=torch.int32)

    References:
        Yang et al. (2024), Post-Training Sparse Attention with Double Sparsity; chapter 18
        (:doc:`/notebooks/18_double_sparsity`).
    """
    check_query_and_keys(q, k)
    check_integer("r", r)
    check_channel_count("r", r, q.shape[2])
    check_integer("seed", seed)
    order = torch.rand(q.shape[1:], generator=torch.Generator().manual_seed(seed)).argsort(1)
    labels = build_labels(k, order[:, :r].to(k.device), lengths=lengths)
    return select_tokens(approx_scores(q, labels), budget, labels.lengths, sink, recent)


@torch.no_grad()
def quest(
    q: Tensor,
    k: Tensor,
    *,
    budget: int,
    lengths: Tensor | None = None,
    page: int = 16,
    recent_pages: int = 0,
) -> tuple[Tensor, Tensor]:
    """Whole pages of tokens, ranked by a bound on the scores in them.

    Of every page the least and the largest key are known for each channel; no token of it can score higher than the sum
    of the larger ones of their products with the query.

    Args:
        q: Queries, shape ``(B, Hq, D)``.
        k: Keys, shape ``(B, Hkv, S, D)``, dtype of ``q``.
        budget: Tokens to choose, ``>= page``; rounded down to whole pages. The last page of a request may be short.
        lengths: Tokens of each request, int32 or int64, shape ``(B,)``, in ``[1, S]``. Default: ``S``.
        page: Tokens of a page. Default 16.
        recent_pages: Pages at the end that are always chosen, within the budget; with 1 a query sees its own token.
            Default 0.

    Returns:
        Ascending indices with -1 behind them, int32, shape ``(B, Hq, budget)``, and their number, ``(B, Hq)``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape or value does not fit, or ``budget`` is less than a page or less than the recent pages.

    Examples:
        >>> k = torch.tensor([[1.0, 0.0], [0.0, 5.0], [2.0, 2.0], [2.0, 2.0]])[None, None]
        >>> quest(torch.ones(1, 1, 2), k, budget=3, page=2)  # bounds 1 + 5 and 2 + 2
        (tensor([[[ 0,  1, -1]]], dtype=torch.int32), tensor([[2]], dtype=torch.int32))

    References:
        Tang, Zhao, Zhu, Xiao, Kasikci and Han (2024), Quest: Query-Aware Sparsity for Efficient Long-Context LLM
        Inference; chapter 18 (:doc:`/notebooks/18_double_sparsity`).
    """
    check_query_and_keys(q, k)
    check_integer("page", page)
    check_positive("page", page)
    check_selection(budget, 0, 0)
    if budget < page:
        raise ValueError(f"budget must be >= page = {page}, got {budget}")
    check_integer("recent_pages", recent_pages)
    if not 0 <= recent_pages <= budget // page:
        raise ValueError(f"recent_pages must lie in [0, budget // page] = [0, {budget // page}], got {recent_pages}")
    batch, _, tokens, _ = k.shape
    lengths = check_lengths(lengths, batch, tokens, k.device)

    pages = -(-tokens // page)
    paged = torch.nn.functional.pad(k.to(result_dtype(q.dtype)), (0, 0, 0, pages * page - tokens))
    paged = paged.unflatten(2, (pages, page))
    real = is_token(lengths, pages * page).view(batch, 1, pages, page, 1)
    low = paged.masked_fill(~real, torch.inf).amin(3)
    high = paged.masked_fill(~real, -torch.inf).amax(3)
    positive, negative = q.clamp(min=0), q.clamp(max=0)
    used = -(-lengths // page)
    # The bounds of pages without tokens are infinite, and a zero of the query makes them NaN; they are not looked at.
    bound = _by_group(positive, high, k) + _by_group(negative, low, k)
    chosen, _ = select_tokens(bound.flatten(1, 2), budget // page, used, recent=recent_pages)

    index = chosen.long()[..., None] * page + torch.arange(page, device=k.device)
    listed = ((chosen[..., None] >= 0) & (index < lengths[:, None, None, None])).flatten(2)
    result = chosen.new_full((batch, q.shape[1], budget), -1)
    result[:, :, : listed.shape[2]] = torch.where(listed, index.flatten(2), -1)
    return result, listed.sum(2, dtype=torch.int32)


@dataclasses.dataclass(eq=False)
class HeavyHitterState:
    """What :func:`heavy_hitter` remembers of a batch of requests from one call to the next.

    A new state knows nothing: all tokens are there and none has been attended to.

    Args:
        mass: Attention that each token has had, shape ``(B, Hq, S)``. Default None: none yet.
        kept: Which tokens have not been evicted, bool, shape ``(B, Hq, S)``. Default None: all.

    Examples:
        >>> state = HeavyHitterState()
        >>> state.observe(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
        >>> state.mass  # the first query sees one token, the second two
        tensor([[[1.5000, 0.5000]]])

    References:
        Zhang et al. (2023), H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models;
        chapter 18 (:doc:`/notebooks/18_double_sparsity`).
    """

    mass: Tensor | None = None
    kept: Tensor | None = None

    @torch.no_grad()
    def observe(self, q: Tensor, k: Tensor, lengths: Tensor | None = None) -> None:
        """Add up the causal attention of the queries of a prompt.

        Args:
            q: Queries of the prompt, shape ``(B, Hq, T, D)``.
            k: Its keys, shape ``(B, Hkv, T, D)``, dtype of ``q``.
            lengths: Tokens of each prompt, int32 or int64, shape ``(B,)``, in ``[1, T]``. Default: ``T``.

        Raises:
            TypeError: If an argument has the wrong type or dtype.
            ValueError: If a shape or value does not fit.
        """
        check_prompt(q, k)
        (batch, heads, tokens, features), key_heads = q.shape, k.shape[1]
        lengths = check_lengths(lengths, batch, tokens, k.device)
        self.extend(batch, heads, tokens, q)

        work, token = result_dtype(q.dtype), torch.arange(tokens, device=k.device)
        keys = k.to(work)[:, :, None].transpose(3, 4)
        for start in range(0, tokens, _PROMPT_BLOCK):
            rows = token[start : start + _PROMPT_BLOCK]
            with no_autocast(q):
                logits = q[:, :, rows].to(work).unflatten(1, (key_heads, -1)) @ keys * features**-0.5
            weights = logits.masked_fill(token > rows[:, None], -torch.inf).softmax(4)
            # Queries behind the end of a prompt may hold anything.
            weights = weights.masked_fill(rows[:, None] >= lengths[:, None, None, None, None], 0)
            self.mass[:, :, :tokens] += weights.sum(3).flatten(1, 2)

    def extend(self, batch: int, heads: int, tokens: int, like: Tensor) -> None:
        """Make room for ``tokens`` tokens, of which the new ones are kept and have had no attention.

        Args:
            batch: Requests.
            heads: Query heads.
            tokens: Tokens of the cache.
            like: The queries.

        Raises:
            ValueError: If the state is of another batch, or of more tokens.
        """
        if self.mass is None:
            self.mass = like.new_zeros((batch, heads, 0), dtype=result_dtype(like.dtype))
            self.kept = self.mass.bool()
        have = self.mass.shape
        if have[:2] != (batch, heads) or have[2] > tokens:
            raise ValueError(
                f"state must be of B = {batch} requests, Hq = {heads} heads and at most S = {tokens} tokens, "
                f"got {tuple(have)}"
            )
        room = (0, tokens - have[2])
        self.mass = torch.nn.functional.pad(self.mass, room)
        self.kept = torch.nn.functional.pad(self.kept, room, value=True)


@torch.no_grad()
def heavy_hitter(
    q: Tensor,
    k: Tensor,
    state: HeavyHitterState,
    *,
    budget: int,
    lengths: Tensor | None = None,
    recent: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The last tokens and those that have had most attention so far; all others are evicted for good.

    Call it once per generated token: it changes the state.

    Args:
        q: Queries, shape ``(B, Hq, D)``.
        k: Keys, shape ``(B, Hkv, S, D)``, dtype of ``q``.
        state: What earlier calls left. Each query head evicts for itself, which favors the method: a cache can drop a
            key only if every head of its group does.
        budget: Tokens to keep, ``>= 1``.
        lengths: Tokens of each request, int32 or int64, shape ``(B,)``, in ``[1, S]``. Default: ``S``.
        recent: How many of them at the end, at most ``budget``. Default None: half of ``budget``.

    Returns:
        Ascending indices with -1 behind them, int32, shape ``(B, Hq, budget)``, and their number, ``(B, Hq)``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape or value does not fit, or ``state`` is of another batch.

    Examples:
        >>> q, k, state = torch.ones(1, 1, 1), torch.tensor([[9.0], [0.0], [0.0]])[None, None], HeavyHitterState()
        >>> heavy_hitter(q, k, state, budget=3)[0]
        tensor([[[0, 1, 2]]], dtype=torch.int32)
        >>> heavy_hitter(q, k, state, budget=2)[0]  # the first has had most attention, the last is recent
        tensor([[[0, 2]]], dtype=torch.int32)
        >>> state.kept
        tensor([[[ True, False,  True]]])

    References:
        Zhang et al. (2023), H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models;
        chapter 18 (:doc:`/notebooks/18_double_sparsity`).
    """
    check_query_and_keys(q, k)
    check_selection(budget, 0, 0)
    recent = budget // 2 if recent is None else recent
    check_selection(budget, 0, recent)
    batch, _, tokens, features = k.shape
    lengths = check_lengths(lengths, batch, tokens, k.device)
    state.extend(batch, q.shape[1], tokens, q)

    token, present = torch.arange(tokens, device=k.device), is_token(lengths, tokens)[:, None]
    forced = (token >= lengths[:, None] - recent)[:, None]
    index, count = select_best(state.mass, budget, state.kept & present, forced)
    listed = index >= 0
    place = torch.where(listed, index, 0).long()
    chosen = torch.zeros_like(state.mass).scatter_add_(2, place, listed.to(state.mass.dtype)) > 0
    state.kept &= chosen | ~present

    keys = take_tokens(k, place, None).to(state.mass.dtype)
    with no_autocast(q):
        logits = (keys @ q.to(keys.dtype)[..., None]).squeeze(3) * features**-0.5
    weights = logits.masked_fill(~listed, -torch.inf).softmax(2)
    state.mass.scatter_add_(2, place, weights)
    return index, count


def _by_group(q: Tensor, rows: Tensor, k: Tensor) -> Tensor:
    """Products of each query with the rows of its key head, ``(B, Hkv, G, n)``."""
    work = result_dtype(q.dtype)
    with no_autocast(q):
        return q.unflatten(1, (k.shape[1], -1)).to(work) @ rows.to(work).transpose(2, 3)
