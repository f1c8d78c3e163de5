"""A whole step of Double Sparsity: score by labels, select, attend."""

import torch
from torch import Tensor

from lossbook._validation import (
    check_choice,
    check_integer,
    check_non_negative,
    check_same_device,
    values_are_readable,
)
from lossbook.kernels.sparse_attention.arguments import (
    GROUP_REDUCTIONS,
    LABEL_BITS,
    attention_scale,
    check_cache,
    check_cache_scales,
    check_channels,
    check_layout,
    check_selection,
)
from lossbook.kernels.sparse_attention.engines import engine
from lossbook.kernels.sparse_attention.labels import LabelCache, build_labels
from lossbook.kernels.sparse_attention.paging import cache_tokens
from lossbook.kernels.sparse_attention.scores import approx_scores, check_labels


@torch.no_grad()
def double_sparse_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    channels: Tensor,
    *,
    budget: int,
    lengths: Tensor | None = None,
    labels: LabelCache | None = None,
    bits: int = 16,
    sink: int = 0,
    recent: int = 0,
    group_reduce: str = "max",
    impl: str = "auto",
    block_table: Tensor | None = None,
    scale: float | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    dense_below: int = 0,
) -> Tensor:
    r"""Attention of one query token over the tokens that a few channels of their keys point to.

    :func:`approx_scores` ranks all tokens by their labels, :func:`select_tokens` takes the best, and
    :func:`sparse_decode` attends to these with all channels, exactly. With the channels :math:`C` of a head,

    .. math::

        I = \operatorname*{top}_{k}\, \Big\{ \sum_{c \in C} q_c k_{tc} \Big\}_{t=1}^{S} , \qquad
        o = \sum_{t \in I} \frac{e^{q \cdot k_t / \sqrt{D}}}{\sum_{t' \in I} e^{q \cdot k_{t'} / \sqrt{D}}} v_t .

    Nothing is evicted: what one query does not need is there for the next. A budget of :math:`k \ge S` is dense
    attention.

    Args:
        q: Queries, shape ``(B, Hq, D)``; float16, bfloat16, float32 or float64.
        k: Keys, shape ``(B, Hkv, S, D)``, or with ``block_table`` ``(P, Hkv, page, D)``; dtype of ``q`` or
            float8_e4m3fn.
        v: Values, shape and dtype of ``k``.
        channels: Channels to find tokens by, int64, in ``[0, D)``, shape ``(Hq, r)``, or ``(Hkv, r)`` where a group of
            query heads shares labels and a list of tokens: then the labels cost ``Hq / Hkv`` times less.
        budget: Tokens :math:`k` to attend to, ``>= 1``.
        lengths: Tokens of each request, int32 or int64, shape ``(B,)``, in ``[1, S]``. Default: those of ``labels``, or
            ``S`` without labels. Keys and values behind them may hold anything.
        labels: Labels of the same tokens, made with ``channels``. Default None: built for this call from all keys,
            which costs more than dense attention and is for tests only.
        bits: Bits of labels built here, as in :func:`build_labels`. Default 16.
        sink: Tokens at the start that are always attended to. Default 0.
        recent: Tokens at the end that are always attended to. Default 0.
        group_reduce: How a group's scores become one, as in :func:`approx_scores`. Default ``"max"``.
        impl: As in :func:`build_labels`. Default ``"auto"``.
        block_table: Pages of each request, as in :func:`sparse_decode`. Default None.
        scale: Factor of the dot products in the attention. Default None: :math:`1 / \sqrt{D}`.
        k_scale: Factor of the stored keys. Default 1.
        v_scale: Factor of the stored values. Default 1.
        dense_below: Attend to all tokens if ``S`` is at most this. Default 0.

    Returns:
        Shape ``(B, Hq, D)``, dtype of ``q``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device or value does not fit, or ``labels`` are of other channels or tokens; the message
            names the argument, what was expected and what came. Values inside tensors are looked at on the CPU always,
            on a GPU only with ``LOSSBOOK_DEBUG=1``.
        ImplementationUnavailableError: If ``impl="triton"`` cannot run here.

    Examples:
        >>> k = torch.tensor([[3.0, 0.0], [0.0, 5.0], [2.0, 0.0]])[None, None]
        >>> v = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])[None, None]
        >>> labels = build_labels(k, torch.tensor([[0]]))
        >>> double_sparse_decode(torch.tensor([[[1.0, 1.0]]]), k, v, labels.channels, budget=1, labels=labels)
        tensor([[[1., 1.]]])

    Note:
        Inference only: runs without gradients. No stage waits for the device or has shapes that depend on data, so a
        step with labels can be captured in a CUDA graph. With ``group_reduce="sumsoftmax"`` and float8 keys the softmax
        of the scores is that of the stored numbers, without ``k_scale``; other rankings do not depend on it.

    References:
        Yang, Sheng, Gonzalez, Stoica and Zheng (2024), Post-Training Sparse Attention with Double Sparsity; its code
        has labels per query head. Chapter 18 (:doc:`/notebooks/18_double_sparsity`).
    """
    check_choice("group_reduce", group_reduce, GROUP_REDUCTIONS)
    check_choice("bits", bits, LABEL_BITS)
    check_selection(budget, sink, recent)
    check_integer("dense_below", dense_below)
    check_non_negative("dense_below", dense_below)
    check_cache_scales(k_scale, v_scale)
    check_cache(q, k, v, block_table)
    batch, heads, features = q.shape
    check_channels(channels, features, k.shape[1], heads)
    check_same_device("channels", channels, "q", q)
    scale = attention_scale(scale, features)
    if labels is not None:
        check_labels(labels, q)
        lengths = labels.lengths if lengths is None else lengths
    lengths, block_table = check_layout(k, lengths, block_table, batch)

    run = engine(impl, "q", q)
    tokens = cache_tokens(k, block_table)
    if tokens <= max(budget, dense_below):
        return run.dense_decode(q, k, v, lengths, scale, block_table, k_scale, v_scale)
    if labels is None:
        labels = build_labels(k, channels, bits, lengths=lengths, block_table=block_table, impl=impl)
    elif values_are_readable(lengths) and not torch.equal(labels.lengths, lengths):
        raise ValueError(
            f"labels must be of the tokens that lengths = {lengths.tolist()} count, got {labels.lengths.tolist()}"
        )
    scores = approx_scores(q, labels, channels, group_reduce, impl)
    index, count = run.select_tokens(scores, budget, lengths, sink, recent)
    return run.sparse_decode(q, k, v, index, count, scale, block_table, k_scale, v_scale)
