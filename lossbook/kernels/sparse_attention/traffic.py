"""Bytes that a decode step moves."""

from lossbook._validation import check_choice, check_integer, check_positive
from lossbook.kernels.sparse_attention.arguments import LABEL_BITS, check_channel_count, check_group
from lossbook.kernels.sparse_attention.quantization import stored_width


def decode_bytes(
    B: int,
    Hq: int,
    Hkv: int,
    S: int,
    D: int,
    *,
    budget: int,
    r: int,
    bits: int,
    share_kv: bool,
    kv_bytes: int = 2,
) -> dict[str, int]:
    r"""Bytes that one decode step has to read or write, dense and by Double Sparsity: the floor of its time.

    With :math:`H` label heads (``Hkv`` if shared in the group, else ``Hq``), :math:`\beta` bytes per number of the
    cache, :math:`k` selected tokens, and :math:`w` bytes per label of :math:`r` channels of :math:`b` bits,

    .. math::

        \mathrm{dense} = 2 \beta B H_{kv} S D , \qquad
        \mathrm{total} = B H S w + 4 B H S + 2 \beta B H \min(k, S) D , \qquad
        w = \lceil r b / 8 \rceil + 4\, [b < 16] .

    Args:
        B: Requests.
        Hq: Query heads.
        Hkv: Key heads, which divide ``Hq``.
        S: Tokens of the cache.
        D: Size of a head.
        budget: Tokens selected.
        r: Channels of a label, in ``[1, D]``.
        bits: Bits of a label: 16, 8 or 4; 8 and 4 add a scale and a zero of 2 bytes each per token and head.
        share_kv: Whether the query heads of a group share labels and selection.
        kv_bytes: Bytes per number of keys and values. Default 2.

    Returns:
        Bytes under ``"dense"``, for dense attention; ``"labels"``, ``"scores"`` (float32, written) and ``"kv"`` (the
        selected keys and values), and their sum ``"total"``, for Double Sparsity.

    Raises:
        TypeError: If a size is not an int.
        ValueError: If a size is out of range.

    Examples:
        >>> llama = decode_bytes(8, 32, 8, 16384, 128, budget=1024, r=8, bits=16, share_kv=False)
        >>> round(llama["dense"] / llama["total"], 2)  # eight key heads, labels for each of the 32 query heads
        2.46

    References:
        Yang et al. (2024), Post-Training Sparse Attention with Double Sparsity, memory traffic of a step; chapter 18
        (:doc:`/notebooks/18_double_sparsity`).
    """
    sizes = {"B": B, "Hq": Hq, "Hkv": Hkv, "S": S, "D": D, "budget": budget, "r": r, "kv_bytes": kv_bytes}
    for name, size in sizes.items():
        check_integer(name, size)
        check_positive(name, size)
    check_group("Hq", Hq, Hkv)
    check_channel_count("r", r, D)
    check_choice("bits", bits, LABEL_BITS)

    heads = Hkv if share_kv else Hq
    label = 2 * r if bits == 16 else stored_width(r, bits) + 4
    parts = {
        "labels": B * heads * S * label,
        "scores": 4 * B * heads * S,
        "kv": 2 * kv_bytes * B * heads * min(budget, S) * D,
    }
    return {"dense": 2 * kv_bytes * B * Hkv * S * D, **parts, "total": sum(parts.values())}
