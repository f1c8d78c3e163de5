"""Attention of one query token over a cache: of listed tokens, or of all."""

import torch
from torch import Tensor

from lossbook.kernels.sparse_attention.arguments import (
    attention_scale,
    check_block_table,
    check_cache,
    check_cache_scales,
    check_index,
    check_layout,
)
from lossbook.kernels.sparse_attention.engines import engine


@torch.no_grad()
def sparse_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    count: Tensor,
    *,
    scale: float | None = None,
    block_table: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    impl: str = "auto",
) -> Tensor:
    r"""Exact attention of one query token over the listed tokens of a cache.

    With the set :math:`I` of tokens listed for a query head and all :math:`D` channels,

    .. math:: o = \sum_{t \in I} \frac{e^{q \cdot k_t / \sqrt{D}}}{\sum_{t' \in I} e^{q \cdot k_{t'} / \sqrt{D}}} v_t .

    Args:
        q: Queries, shape ``(B, Hq, D)``; float16, bfloat16, float32 or float64.
        k: Keys, shape ``(B, Hkv, S, D)``, or with ``block_table`` ``(P, Hkv, page, D)``; dtype of ``q`` or
            float8_e4m3fn. Query head ``h`` reads the key head ``h // (Hq / Hkv)``.
        v: Values, shape and dtype of ``k``.
        index: Tokens, int32, shape ``(B, H, budget)``, in ``[0, S)`` up to ``count``; ``H`` is ``Hq``, or ``Hkv`` where
            a group of query heads shares a list.
        count: Length of each list, int32, shape ``(B, H)``. The output is zero where it is 0.
        scale: Factor of :math:`q \cdot k_t` in place of :math:`1 / \sqrt{D}`. Default None.
        block_table: Pages of each request in order, int32, shape ``(B, pages)``. Default None: one row of ``k`` and
            ``v`` per request.
        k_scale: Factor by which stored keys are multiplied. Default 1.
        v_scale: Factor by which stored values are multiplied. Default 1.
        impl: As in :func:`build_labels`. Default ``"auto"``.

    Returns:
        Shape ``(B, Hq, D)``, dtype of ``q``. The softmax is computed in float32, or float64 for float64 queries.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device or value does not fit. Lists are looked at on the CPU always, on a GPU only with
            ``LOSSBOOK_DEBUG=1``.
        ImplementationUnavailableError: If ``impl="triton"`` cannot run here.

    Examples:
        >>> q, k = torch.zeros(1, 1, 2), torch.zeros(1, 1, 3, 2)
        >>> v = torch.tensor([[1.0, 1.0], [2.0, 3.0], [4.0, 5.0]])[None, None]
        >>> index, count = torch.tensor([[[1, 2, -1]]], dtype=torch.int32), torch.tensor([[2]], dtype=torch.int32)
        >>> sparse_decode(q, k, v, index, count)
        tensor([[[3., 4.]]])

    Note:
        Inference only: runs without gradients.

    References:
        Yang et al. (2024), Post-Training Sparse Attention with Double Sparsity, attention over the selected tokens;
        chapter 18 (:doc:`/notebooks/18_double_sparsity`).
    """
    check_cache(q, k, v, block_table)
    block_table = check_block_table(block_table, k, q.shape[0])
    check_index(index, count, q, k, block_table)
    check_cache_scales(k_scale, v_scale)
    scale = attention_scale(scale, q.shape[2])
    return engine(impl, "q", q).sparse_decode(q, k, v, index, count, scale, block_table, k_scale, v_scale)


@torch.no_grad()
def dense_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None = None,
    *,
    scale: float | None = None,
    block_table: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    impl: str = "auto",
) -> Tensor:
    r"""Attention of one query token over all tokens of a cache: what a sparse step is to be compared with.

    .. math:: o = \sum_{t=1}^{S} \frac{e^{q \cdot k_t / \sqrt{D}}}{\sum_{t'=1}^{S} e^{q \cdot k_{t'} / \sqrt{D}}} v_t .

    Args:
        q: Queries, as in :func:`sparse_decode`, like all that follow but ``lengths``.
        k: Keys.
        v: Values.
        lengths: Tokens of each request, int32 or int64, shape ``(B,)``, in ``[1, S]``. Default: ``S``. Keys and values
            behind them may hold anything.
        scale: Factor of the dot products. Default None: :math:`1 / \sqrt{D}`.
        block_table: Pages of each request. Default None.
        k_scale: Factor of the stored keys. Default 1.
        v_scale: Factor of the stored values. Default 1.
        impl: Implementation. Default ``"auto"``.

    Returns:
        Shape ``(B, Hq, D)``, dtype of ``q``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device or value does not fit.
        ImplementationUnavailableError: If ``impl="triton"`` cannot run here.

    Examples:
        >>> q, k = torch.zeros(1, 1, 2), torch.zeros(1, 1, 3, 2)
        >>> v = torch.tensor([[2.0, 3.0], [4.0, 5.0], [9.0, 9.0]])[None, None]
        >>> dense_decode(q, k, v, torch.tensor([2]))
        tensor([[[3., 4.]]])

    Note:
        Inference only: runs without gradients. ``impl="triton"`` splits the tokens over the processors of a GPU.

    References:
        Dao, Haziza, Massa and Sizov (2023), Flash-Decoding for long-context inference, for the split over tokens;
        chapter 18 (:doc:`/notebooks/18_double_sparsity`).
    """
    check_cache(q, k, v, block_table)
    lengths, block_table = check_layout(k, lengths, block_table, q.shape[0])
    check_cache_scales(k_scale, v_scale)
    scale = attention_scale(scale, q.shape[2])
    return engine(impl, "q", q).dense_decode(q, k, v, lengths, scale, block_table, k_scale, v_scale)
