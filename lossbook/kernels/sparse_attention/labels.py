"""The label cache: a few channels of every cached key, by which tokens are found."""

import dataclasses

import torch
from torch import Tensor

from lossbook._validation import (
    check_choice,
    check_integer,
    check_same_device,
    check_same_dtype,
    check_shape,
    values_are_readable,
)
from lossbook.kernels.sparse_attention.arguments import LABEL_BITS, check_channels, check_keys, check_layout
from lossbook.kernels.sparse_attention.engines import engine
from lossbook.kernels.sparse_attention.paging import cache_tokens, gather_pages, is_token
from lossbook.kernels.sparse_attention.quantization import dequantize, stored_width


@dataclasses.dataclass(eq=False)
class LabelCache:
    r"""Labels of the tokens of a batch of requests, which :func:`build_labels` makes.

    :meth:`append` adds those of new tokens. With 16 bits a label is the key's own numbers. With :math:`b = 8` or 4 the
    :math:`r` channels :math:`x_c` of a token become integers, counted in steps from a zero. Zero and step are the
    token's own, and rounded to float16 before the integers are found:

    .. math::

        z = \min_c x_c , \qquad s = \frac{\max_c x_c - z}{2^b - 1} , \qquad
        u_c = \Big\lfloor \frac{x_c - z}{s} + \frac{1}{2} \Big\rfloor , \qquad x_c \approx s u_c + z ,

    with :math:`u_c` clamped to :math:`[0, 2^b - 1]`. The error is at most the larger one of :math:`s / 2` and
    :math:`|\min_c x_c| / 2048`, where steps are not below the least normal number of float16.

    Args:
        channels: Channels of each label head, int64, shape ``(H, r)``.
        bits: Bits of a label: 16, 8 or 4.
        values: Labels, shape ``(B, H, capacity, r)``, in the dtype of the keys for 16 bits and uint8 for 8; for 4 uint8
            of shape ``(B, H, capacity, ceil(r / 2))`` with two labels to a byte, the earlier one in the low half.
        scale: Steps :math:`s`, float16, shape ``(B, H, capacity)``; None for 16 bits.
        zero: Zeros :math:`z`, as ``scale``.
        lengths: Tokens that each request has, int32, shape ``(B,)``; changed in place by :meth:`append`.
        capacity: Tokens that a request has room for.
        key_heads: Heads ``Hkv`` of the keys. Label head ``h`` labels the key head ``h // (H / Hkv)``.
        head_dim: Size ``D`` of a head of the keys.
        impl: Implementation that :meth:`append` uses.

    Examples:
        >>> k = torch.tensor([[1.0, 5.0, 2.0], [3.0, 7.0, 4.0]])[None, None]
        >>> labels = build_labels(k, torch.tensor([[2, 0]]), capacity=4)
        >>> labels.append(-k[:, :, :1])
        >>> labels.dequantize()
        tensor([[[[ 2.,  1.],
                  [ 4.,  3.],
                  [-2., -1.]]]])

    References:
        Yang et al. (2024), Post-Training Sparse Attention with Double Sparsity, label cache; chapter 18
        (:doc:`/notebooks/18_double_sparsity`).
    """

    channels: Tensor
    bits: int
    values: Tensor
    scale: Tensor | None
    zero: Tensor | None
    lengths: Tensor
    capacity: int
    key_heads: int
    head_dim: int
    impl: str = "auto"

    @torch.no_grad()
    def append(self, k_new: Tensor) -> None:
        """Label new tokens, each request's behind those it has, and lengthen every request by their number.

        Waits for no device and has fixed shapes, so it can be captured in a CUDA graph.

        Args:
            k_new: Keys of ``T`` new tokens of every request, shape ``(B, Hkv, T, D)``; with 16 bits in the dtype of the
                labels.

        Raises:
            TypeError: If ``k_new`` has the wrong type or dtype.
            ValueError: If a shape does not fit, or a request has no room for the tokens. This is looked at on the CPU
                always, on a GPU only with ``LOSSBOOK_DEBUG=1`` set; without it labels past the capacity are undefined.

        Examples:
            >>> labels = build_labels(torch.ones(1, 2, 3, 4), torch.tensor([[0], [1]]), capacity=8)
            >>> labels.append(torch.ones(1, 2, 1, 4))
            >>> labels.lengths
            tensor([4], dtype=torch.int32)
        """
        check_keys("k_new", k_new, "(B, Hkv, T, D)")
        new = k_new.shape[2]
        shape = (self.lengths.shape[0], self.key_heads, new, self.head_dim)
        check_shape("k_new", k_new, "(B, Hkv, T, D)", shape)
        if self.bits == 16:
            check_same_dtype("k_new", k_new, "labels", self.values)
        check_same_device("k_new", k_new, "labels", self.values)
        if values_are_readable(self.lengths) and (longest := int(self.lengths.max())) + new > self.capacity:
            raise ValueError(
                f"k_new must fit the capacity of {self.capacity} tokens, got {new} tokens for a request of {longest}"
            )
        engine(self.impl, "k_new", k_new).append_labels(self, k_new)
        self.lengths += new

    @torch.no_grad()
    def dequantize(self) -> Tensor:
        """The numbers that the labels stand for.

        Returns:
            Shape ``(B, H, S, r)`` with the longest request's length ``S``, zero from each request's own length on; in
            the dtype of the keys for 16 bits, float32 otherwise. Waits for the device.

        Examples:
            >>> k = torch.tensor([[0.0, 1.0, 15.0]])[None, None]
            >>> build_labels(k, torch.tensor([[0, 1, 2]]), bits=4).dequantize()
            tensor([[[[ 0.,  1., 15.]]]])
        """
        tokens = int(self.lengths.max())
        x = self.values[:, :, :tokens]
        if self.bits != 16:
            step, zero = self.scale[:, :, :tokens], self.zero[:, :, :tokens]
            x = dequantize(x, step, zero, self.bits, self.channels.shape[1], torch.float32)
        return torch.where(is_token(self.lengths, tokens)[:, None, :, None], x, torch.zeros((), dtype=x.dtype))

    @property
    def nbytes(self) -> int:
        """Bytes of the labels up to the longest request's length, with scales and zeros. Waits for the device.

        Returns:
            The number of bytes.

        Examples:
            >>> build_labels(torch.ones(1, 2, 3, 8), torch.tensor([[0, 1, 2, 3]] * 2), bits=4).nbytes  # 2 * 3 * (2 + 4)
            36
        """
        parts = [part for part in (self.values, self.scale, self.zero) if part is not None]
        return int(self.lengths.max()) * sum(part.nbytes for part in parts) // self.capacity

    def to(self, device: torch.device | str) -> "LabelCache":
        """The cache on another device.

        Args:
            device: Where to.

        Returns:
            A cache of its own. As with :meth:`torch.Tensor.to`, what is there already is not copied but shared.

        Examples:
            >>> build_labels(torch.ones(1, 2, 3, 4), torch.tensor([[0], [1]])).to("cpu").lengths
            tensor([3], dtype=torch.int32)
        """
        tensors = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)


@torch.no_grad()
def build_labels(
    k: Tensor,
    channels: Tensor,
    bits: int = 16,
    *,
    lengths: Tensor | None = None,
    capacity: int | None = None,
    block_table: Tensor | None = None,
    impl: str = "auto",
) -> LabelCache:
    """Labels of the keys of a cache: what is done once, after the prompt.

    Args:
        k: Keys after the rotary embedding, shape ``(B, Hkv, S, D)``, or with ``block_table`` ``(P, Hkv, page, D)``;
            float16, bfloat16, float32, float64 or float8_e4m3fn, whose stored numbers are labelled as they are.
        channels: Channels of each label head, int64, shape ``(H, r)``, in ``[0, D)``. ``H`` is ``Hkv`` where a group of
            query heads shares its labels, or the number ``Hq`` of query heads.
        bits: Bits of a label: 16 (default) keeps the dtype of ``k``; 8 and 4 add 4 bytes per token and label head, and
            need keys of magnitude up to 65504.
        lengths: Tokens of each request, int32 or int64, shape ``(B,)``, in ``[1, S]``. Default: ``S``. Keys behind
            them may hold anything.
        capacity: Tokens to have room for, at least ``S``. Default: ``S``.
        block_table: Pages of each request in order, int32, shape ``(B, pages)``; then ``S`` is ``pages * page``.
            Default None: one row of ``k`` per request.
        impl: ``"auto"`` (default) chooses ``"triton"`` on a GPU where that can run, else ``"torch"``. ``"triton"`` runs
            on a GPU or in Triton's interpreter (``TRITON_INTERPRET=1``), and takes no float64.

    Returns:
        The labels.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device or value does not fit; the message names the argument, what was expected and what
            came. Channels, lengths and pages are looked at on the CPU always, on a GPU only with ``LOSSBOOK_DEBUG=1``.
        ImplementationUnavailableError: If ``impl="triton"`` cannot run here.

    Examples:
        >>> from lossbook.kernels import channel_importance, heavy_channels
        >>> k = torch.randn(2, 3, 10, 64)
        >>> channels = heavy_channels(channel_importance(k, k), 8)
        >>> build_labels(k, channels).values.shape
        torch.Size([2, 3, 10, 8])

    References:
        Yang et al. (2024), Post-Training Sparse Attention with Double Sparsity, label cache; chapter 18
        (:doc:`/notebooks/18_double_sparsity`).
    """
    check_choice("bits", bits, LABEL_BITS)
    check_keys("k", k, "(B, Hkv, S, D)" if block_table is None else "(P, Hkv, page, D)")
    _, key_heads, _, features = k.shape
    check_channels(channels, features, key_heads)
    check_same_device("channels", channels, "k", k)
    lengths, block_table = check_layout(k, lengths, block_table, None)
    tokens = cache_tokens(k, block_table)
    if capacity is None:
        capacity = tokens
    check_integer("capacity", capacity)
    if capacity < tokens:
        raise ValueError(f"capacity must be >= S = {tokens}, got {capacity}")

    heads, r = channels.shape
    room = (lengths.shape[0], heads, capacity)
    integers = bits != 16
    cache = LabelCache(
        channels=channels.contiguous(),
        bits=bits,
        values=k.new_zeros((*room, stored_width(r, bits)), dtype=torch.uint8 if integers else k.dtype),
        scale=k.new_zeros(room, dtype=torch.float16) if integers else None,
        zero=k.new_zeros(room, dtype=torch.float16) if integers else None,
        lengths=torch.zeros_like(lengths),
        capacity=capacity,
        key_heads=key_heads,
        head_dim=features,
        impl=impl,
    )
    # Places behind a request's length get labels of whatever is there; nothing reads them before they are written anew.
    engine(impl, "k", k).append_labels(cache, gather_pages(k, block_table, lengths))
    cache.lengths += lengths
    return cache
