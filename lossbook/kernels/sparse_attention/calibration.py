"""Which channels of a head's keys carry its scores: found offline, once for a model."""

import torch
from torch import Tensor

from lossbook._validation import (
    check_choice,
    check_floating,
    check_integer,
    check_shape,
    check_tensor,
    values_are_readable,
)
from lossbook.kernels.cross_entropy.library import result_dtype
from lossbook.kernels.sparse_attention.arguments import check_channel_count, check_prompt

IMPORTANCE_METHODS = ("q2vark", "qk", "q", "k")


@torch.no_grad()
def channel_importance(q: Tensor, k: Tensor, method: str = "q2vark", share_kv: bool = False) -> Tensor:
    r"""Importance of every channel of every head for the attention scores, from queries and keys of a sample of text.

    For the queries :math:`q_{btc}` of a head and the keys :math:`k_{btc}` it looks at, channel :math:`c` of the head
    has, by the default method,

    .. math::

        a_c = \frac{1}{B T} \sum_{b,t} q_{btc}^2 \;
        \frac{1}{B} \sum_b \frac{1}{T} \sum_t \Big(k_{btc} - \frac{1}{T} \sum_{t'} k_{bt'c}\Big)^2 .

    A constant added to one channel of all keys shifts all scores of a query alike and changes no attention weight, so
    the spread of a key channel counts and not its magnitude.

    Args:
        q: Queries after the rotary embedding, shape ``(B, Hq, T, D)``, floating point.
        k: Keys after the rotary embedding, shape ``(B, Hkv, T, D)``, dtype of ``q``; ``Hkv`` divides ``Hq``.
        method: ``"q2vark"`` (default) as above. The others are means over ``B`` and ``T``: ``"qk"`` of
            :math:`|q_{btc} k_{btc}|`, both of the same position; ``"q"`` of :math:`|q_{btc}|`; ``"k"`` of
            :math:`|k_{btc}|`.
        share_kv: Whether to add up the query heads of a group, for labels that they share. Default False.

    Returns:
        Importances, shape ``(Hq, D)``, with ``share_kv`` ``(Hkv, D)``; float32, or float64 for float64 operands.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape does not fit, ``Hkv`` does not divide ``Hq``, or ``method`` is unknown.

    Examples:
        >>> q = torch.ones(1, 1, 4, 3)
        >>> k = torch.tensor([[1.0, 9.0, 0.0], [-1.0, 9.0, 0.0], [1.0, 9.0, 2.0], [-1.0, 9.0, 2.0]])[None, None]
        >>> channel_importance(q, k)  # the large but constant channel decides nothing
        tensor([[1., 0., 1.]])
        >>> channel_importance(q, k, "k")
        tensor([[1., 9., 1.]])

    Note:
        Runs without gradients.

    References:
        Yang, Sheng, Gonzalez, Stoica and Zheng (2024), Post-Training Sparse Attention with Double Sparsity, offline
        calibration; ``"qk"``, ``"q"`` and ``"k"`` are what its code offers, ``"q2vark"`` is this package's own.
        Chapter 18 (:doc:`/notebooks/18_double_sparsity`).
    """
    check_choice("method", method, IMPORTANCE_METHODS)
    check_prompt(q, k)
    key_heads, group, features = k.shape[1], q.shape[1] // k.shape[1], k.shape[3]
    work = result_dtype(q.dtype)
    q, k = q.to(work).unflatten(1, (key_heads, -1)), k.to(work)[:, :, None]
    if method == "q2vark":
        importance = q.square().mean((0, 3)) * k.var(3, correction=0).mean(0)
    elif method == "qk":
        importance = (q * k).abs().mean((0, 3))
    elif method == "q":
        importance = q.abs().mean((0, 3))
    else:
        importance = k.abs().mean((0, 3)).expand(key_heads, group, features)
    return importance.sum(1) if share_kv else importance.flatten(0, 1)


@torch.no_grad()
def heavy_channels(importance: Tensor, r: int) -> Tensor:
    """The ``r`` most important channels of each head, the most important one first.

    Args:
        importance: Shape ``(H, D)``, as :func:`channel_importance` returns it, floating point.
        r: How many channels, in ``[1, D]``.

    Returns:
        Channels, int64, shape ``(H, r)``; of equal ones the lowest first.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If the shape or ``r`` does not fit, or an importance is NaN.

    Examples:
        >>> heavy_channels(torch.tensor([[0.1, 3.0, 2.0, 3.0]]), 3)
        tensor([[1, 3, 2]])

    References:
        Yang et al. (2024), Post-Training Sparse Attention with Double Sparsity, offline calibration; chapter 18
        (:doc:`/notebooks/18_double_sparsity`).
    """
    check_tensor("importance", importance)
    check_floating("importance", importance)
    check_shape("importance", importance, "(H, D)", (None, None))
    check_integer("r", r)
    check_channel_count("r", r, importance.shape[1])
    if values_are_readable(importance) and importance.isnan().any():
        raise ValueError("importance must not be NaN, got NaN")
    return importance.sort(dim=1, descending=True, stable=True).indices[:, :r].contiguous()
