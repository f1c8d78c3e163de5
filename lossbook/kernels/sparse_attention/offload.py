"""Keys and values in host memory, labels on the device: a decode step fetches the tokens it selects."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lossbook._validation import (
    check_choice,
    check_dtype,
    check_integer,
    check_positive,
    check_same_device,
    check_shape,
    check_tensor,
)
from lossbook.kernels.sparse_attention.arguments import (
    GROUP_REDUCTIONS,
    LABEL_BITS,
    check_channels,
    check_group,
    check_lengths,
    check_selection,
)
from lossbook.kernels.sparse_attention.attention import sparse_decode
from lossbook.kernels.sparse_attention.engines import check_impl
from lossbook.kernels.sparse_attention.labels import LabelCache, build_labels
from lossbook.kernels.sparse_attention.paging import is_token
from lossbook.kernels.sparse_attention.scores import approx_scores
from lossbook.kernels.sparse_attention.selection import select_tokens

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass
class TransferCounts:
    """What an :class:`OffloadedCache` has fetched.

    Attributes:
        hits: Selected tokens, counted per list, that had been fetched ahead.
        misses: Selected tokens that were fetched when they were needed.
        fetched_ahead: Tokens fetched ahead, needed or not.
        bytes: Bytes of keys and values copied from host to device.
    """

    hits: int = 0
    misses: int = 0
    fetched_ahead: int = 0
    bytes: int = 0

    @property
    def hit_rate(self) -> float:
        """The part of the selected tokens that had been fetched ahead; 0 if none was selected yet.

        Returns:
            A number in [0, 1].
        """
        return self.hits / max(self.hits + self.misses, 1)


class OffloadedCache:
    """A key-value cache in host memory whose labels are on the device, for sparse decode steps of a whole model.

    A step of a layer selects tokens by labels on the device and needs only those from the host. To hide the way they
    take, the tokens of the next layer are selected ahead by a guess of its query, and fetched on a stream of their own
    while this layer and what lies between runs: one buffer is read while the other is filled. The next layer then
    selects with its own query and fetches what the guess has missed, so its result is that of the same selection from a
    cache on the device, whatever the guess was. The newest token of a layer is never fetched ahead, since it does not
    exist yet at that time.

    A good guess is what the next layer's normalization, query projection and rotary embedding make of the input of
    *this* layer, which differs little from its own input. The query of this layer is a bad one: heads of the same
    number in two layers have nothing to do with each other.

    On a GPU host memory is pinned, and a thread of the cache's own gathers the guessed tokens. On the CPU the same is
    done in turns, which serves for tests.

    Args:
        channels: Channels of each label head of each layer, int64, shape ``(layers, H, r)``, in ``[0, D)``; ``H`` is
            the number of key heads ``Hkv`` or of query heads ``Hq``.
        batch: Requests ``B``.
        key_heads: Number of key heads.
        head_dim: Size ``D`` of a head.
        capacity: Tokens that a request has room for.
        budget: Tokens that a list selects.
        dtype: Type of keys and values: float16, bfloat16 or float32 (default).
        device: Where labels are and attention runs. Default: the CPU.
        bits: Bits of a label, as in :func:`~lossbook.kernels.build_labels`. Default 16.
        sink: Tokens at the start that are always selected. Default 0.
        recent: Tokens at the end that are always selected. Default 0.
        group_reduce: As in :func:`~lossbook.kernels.approx_scores`. Default ``"max"``.
        impl: As in :func:`~lossbook.kernels.build_labels`. Default ``"auto"``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If an argument is out of range.

    Examples:
        >>> cache = OffloadedCache(torch.zeros(2, 1, 1, dtype=torch.int64), 1, 1, 2, capacity=4, budget=1)
        >>> k = torch.tensor([[3.0, 0.0], [0.0, 5.0], [2.0, 0.0]])[None, None]
        >>> for layer in range(2):
        ...     cache.fill(layer, k, k)
        >>> cache.attend(0, torch.tensor([[[1.0, 1.0]]]), q_next=torch.tensor([[[1.0, 2.0]]]))
        tensor([[[3., 0.]]])
        >>> cache.attend(1, torch.tensor([[[2.0, 2.0]]]))
        tensor([[[3., 0.]]])
        >>> cache.counts
        TransferCounts(hits=1, misses=1, fetched_ahead=1, bytes=32)

    Note:
        Inference only: runs without gradients. A step waits for the device, to learn which tokens are missing.
        Host memory takes ``2 * layers * B * Hkv * capacity * D`` numbers; the device holds the labels and two buffers
        of ``2 * B * H * budget * D``.

    References:
        Yang et al. (2024), Post-Training Sparse Attention with Double Sparsity, offloading; chapter 18
        (:doc:`/notebooks/18_double_sparsity`).
    """

    def __init__(
        self,
        channels: Tensor,
        batch: int,
        key_heads: int,
        head_dim: int,
        *,
        capacity: int,
        budget: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        bits: int = 16,
        sink: int = 0,
        recent: int = 0,
        group_reduce: str = "max",
        impl: str = "auto",
    ) -> None:
        sizes = {"batch": batch, "key_heads": key_heads, "head_dim": head_dim, "capacity": capacity}
        for name, size in sizes.items():
            check_integer(name, size)
            check_positive(name, size)
        check_tensor("channels", channels)
        check_shape("channels", channels, "(layers, H, r)", (None, None, None))
        check_channels(channels.flatten(0, 1), head_dim, key_heads)
        check_group("H", channels.shape[1], key_heads)
        check_selection(budget, sink, recent)
        check_choice("dtype", dtype, _DTYPES)
        check_choice("bits", bits, LABEL_BITS)
        check_choice("group_reduce", group_reduce, GROUP_REDUCTIONS)
        check_impl(impl)
        self.device = torch.device(device)
        self.counts = TransferCounts()
        self._channels = channels.to(self.device)
        self._shape = batch, key_heads, capacity, head_dim
        self._budget, self._bits, self._sink, self._recent = budget, bits, sink, recent
        self._group_reduce, self._impl = group_reduce, impl
        pinned = self.device.type == "cuda"
        layers, heads, _ = channels.shape
        host = (layers, 2, *self._shape)
        self._host = torch.zeros(host, dtype=dtype, pin_memory=pinned)
        self._labels: list[LabelCache | None] = [None] * layers
        self._lengths = torch.zeros(layers, batch, dtype=torch.int64)
        # The thread that fetches ahead and the one that fetches what is missing have a stage each.
        self._stages = [Stage(batch * heads * budget, head_dim, dtype, pinned) for _ in range(2)]
        self._stream = torch.cuda.Stream(self.device) if pinned else None
        self._thread = ThreadPoolExecutor(1, "lossbook-offload") if pinned else None
        self._guess: tuple[int, Callable[[], Buffer]] | None = None

    @torch.no_grad()
    def fill(self, layer: int, k: Tensor, v: Tensor, lengths: Tensor | None = None) -> None:
        """Store the keys and values of the prompts of a layer in place of what it holds.

        Args:
            layer: Index of the layer.
            k: Keys after the rotary embedding, shape ``(B, Hkv, S, D)``, ``S`` at most the capacity.
            v: Values, likewise.
            lengths: Tokens of each request, shape ``(B,)``, in ``[1, S]``. Default: ``S``.

        Raises:
            TypeError: If an argument has the wrong type or dtype.
            ValueError: If a shape, device or value does not fit.

        Examples:
            >>> cache = OffloadedCache(torch.tensor([[[0]]]), 1, 1, 2, capacity=4, budget=1)
            >>> cache.fill(0, torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
            >>> cache.lengths(0)
            tensor([3])
        """
        self._check_layer(layer)
        self._check_tokens(k, v)
        tokens = k.shape[2]
        lengths = check_lengths(lengths, k.shape[0], tokens, self.device)
        capacity = self._shape[2]
        if tokens > capacity:
            raise ValueError(f"k must have S <= capacity = {capacity} tokens, got {tokens}")
        self._finish_guess(layer)
        self._guess = None
        options = {"lengths": lengths, "capacity": capacity, "impl": self._impl}
        self._labels[layer] = build_labels(k, self._channels[layer], self._bits, **options)
        self._host[layer, 0, :, :, :tokens] = k.cpu()
        self._host[layer, 1, :, :, :tokens] = v.cpu()
        self._lengths[layer] = lengths.cpu()

    @torch.no_grad()
    def append(self, layer: int, k_new: Tensor, v_new: Tensor) -> None:
        """Store new tokens of a layer, each request's behind those it has.

        Args:
            layer: Index of the layer, filled before.
            k_new: Keys of ``T`` new tokens of every request, shape ``(B, Hkv, T, D)``.
            v_new: Values, likewise.

        Raises:
            TypeError: If an argument has the wrong type or dtype.
            ValueError: If a shape or device does not fit, the layer was never filled, or a request has no room left.

        Examples:
            >>> cache = OffloadedCache(torch.tensor([[[0]]]), 1, 1, 2, capacity=4, budget=1)
            >>> cache.fill(0, torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
            >>> cache.append(0, torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
            >>> cache.lengths(0)
            tensor([4])
        """
        labels = self._filled(layer)
        self._check_tokens(k_new, v_new)
        new, capacity = k_new.shape[2], self._shape[2]
        longest = int(self._lengths[layer].max())
        if longest + new > capacity:
            raise ValueError(
                f"k_new must fit the capacity of {capacity} tokens, got {new} tokens for a request of {longest}"
            )
        # The guess reads the labels and the memory that are written here.
        self._finish_guess(layer)
        labels.append(k_new)
        row = torch.arange(len(k_new))[:, None]
        place = self._lengths[layer, :, None] + torch.arange(new)
        for part, values in enumerate((k_new, v_new)):
            self._host[layer, part][row, :, place] = values.cpu().transpose(1, 2)
        self._lengths[layer] += new

    @torch.no_grad()
    def attend(self, layer: int, q: Tensor, *, q_next: Tensor | None = None, scale: float | None = None) -> Tensor:
        """A sparse decode step of a layer, and the start of fetching for the next one.

        Args:
            layer: Index of the layer, filled before.
            q: Queries, shape ``(B, Hq, D)``; ``H`` of the channels is ``Hkv`` or ``Hq``.
            q_next: Guess of the query of layer ``layer + 1``, shape of ``q``, by which its tokens are fetched ahead.
                Default None: nothing is.
            scale: Factor of the dot products. Default None: one over the root of ``D``.

        Returns:
            Shape ``(B, Hq, D)``: attention over the tokens that the labels select, bit for bit that of
            :func:`~lossbook.kernels.double_sparse_decode` on the CPU where ``S`` exceeds the budget.

        Raises:
            TypeError: If ``q`` has the wrong type or dtype.
            ValueError: If ``q`` or ``q_next`` does not fit the cache, or a layer does not exist or was never filled.

        Examples:
            >>> cache = OffloadedCache(torch.tensor([[[0]]]), 1, 1, 2, capacity=4, budget=2)
            >>> cache.fill(0, torch.zeros(1, 1, 2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None])
            >>> cache.attend(0, torch.ones(1, 1, 2))
            tensor([[[2., 3.]]])
        """
        self._filled(layer)
        for name, query in (("q", q), ("q_next", q_next)):
            if query is not None:
                self._check_query(name, query)
        if q_next is not None:
            self._filled(layer + 1)
        guess = self._finish_guess(layer)
        index, count = self._select(layer, q)
        buffer = self._fetch(layer, index, count, guess)
        if q_next is not None:
            self._start_guess(layer + 1, q_next)
        place = torch.arange(index.shape[2], dtype=torch.int32, device=self.device).expand_as(index).contiguous()
        return sparse_decode(q, buffer.k, buffer.v, place, count, scale=scale, impl=self._impl)

    def lengths(self, layer: int) -> Tensor:
        """Tokens that each request has in a layer.

        Args:
            layer: Index of the layer.

        Returns:
            int64, shape ``(B,)``, on the CPU; zero before the layer is filled.

        Raises:
            ValueError: If there is no such layer.
        """
        self._check_layer(layer)
        return self._lengths[layer].clone()

    def _select(self, layer: int, q: Tensor) -> tuple[Tensor, Tensor]:
        labels = self._labels[layer]
        scores = approx_scores(q, labels, labels.channels, self._group_reduce, impl=self._impl)
        return select_tokens(scores, self._budget, labels.lengths, self._sink, self._recent, impl=self._impl)

    def _fetch(self, layer: int, index: Tensor, count: Tensor, guess: "Buffer | None") -> "Buffer":
        """The listed tokens, out of the guess where it has them."""
        wanted = is_token(count.flatten(), index.shape[2]).view_as(index)
        if guess is None:
            buffer, missing = self._empty_buffer(index), wanted
        else:
            slot = torch.searchsorted(guess.index, index).clamp(max=index.shape[2] - 1)
            missing = wanted & (guess.index.gather(2, slot) != index)
            slot = slot[..., None].expand_as(guess.k)
            buffer = Buffer(index, guess.k.gather(2, slot), guess.v.gather(2, slot))
        late = self._load(layer, buffer, missing, self._stages[0])
        selected = int(count.sum())
        self.counts.misses += late
        self.counts.hits += selected - late
        return buffer

    def _load(self, layer: int, buffer: "Buffer", missing: Tensor, stage: "Stage") -> int:
        """Copy the tokens of ``buffer`` marked in ``missing`` from the host; returns their number."""
        _, key_heads, capacity, _ = self._shape
        batch, head, place = missing.nonzero(as_tuple=True)
        key_head = head // (missing.shape[1] // key_heads)
        row = (batch * key_heads + key_head) * capacity + buffer.index[batch, head, place]
        keys, values = self._host[layer].flatten(1, 3)
        buffer.k[batch, head, place], buffer.v[batch, head, place] = stage.load(keys, values, row.cpu(), self.device)
        self.counts.bytes += 2 * len(row) * keys[0].nbytes
        return len(row)

    def _empty_buffer(self, index: Tensor) -> "Buffer":
        shape = *index.shape, self._shape[3]
        return Buffer(index, *torch.zeros((2, *shape), dtype=self._host.dtype, device=self.device))

    def _start_guess(self, layer: int, q: Tensor) -> None:
        """Begin to fetch what ``q`` selects in ``layer``."""
        ready = None
        if self._stream is not None:
            q.record_stream(self._stream)
            ready = torch.cuda.current_stream(self.device).record_event()
        if self._thread is None:
            buffer = self._guessed(layer, q, ready)
            self._guess = layer, lambda: buffer
        else:
            self._guess = layer, self._thread.submit(self._guessed, layer, q, ready).result

    @torch.no_grad()  # of this thread
    def _guessed(self, layer: int, q: Tensor, ready: torch.cuda.Event | None) -> "Buffer":
        with self._on_own_stream(ready):
            index, count = self._select(layer, q)
            listed = is_token(count.flatten(), index.shape[2]).view_as(index)
            # Ascending to the end, to be searched.
            buffer = self._empty_buffer(index.masked_fill(~listed, torch.iinfo(index.dtype).max))
            self.counts.fetched_ahead += self._load(layer, buffer, listed, self._stages[1])
            if self._stream is not None:
                buffer.ready = self._stream.record_event()
        return buffer

    @contextmanager
    def _on_own_stream(self, ready: torch.cuda.Event | None) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            yield

    def _finish_guess(self, layer: int) -> "Buffer | None":
        """Wait for what is being fetched, and return it if it is for ``layer``."""
        if self._guess is None:
            return None
        guessed_layer, result = self._guess
        buffer = result()
        if buffer.ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(buffer.ready)
            for tensor in (buffer.index, buffer.k, buffer.v):
                tensor.record_stream(stream)
        return buffer if guessed_layer == layer else None

    def _check_layer(self, layer: int) -> None:
        check_integer("layer", layer)
        if not 0 <= layer < len(self._labels):
            raise ValueError(f"layer must lie in [0, layers) = [0, {len(self._labels)}), got {layer}")

    def _filled(self, layer: int) -> LabelCache:
        self._check_layer(layer)
        labels = self._labels[layer]
        if labels is None:
            raise ValueError(f"layer must have been filled before, got {layer}")
        return labels

    def _check_query(self, name: str, q: Tensor) -> None:
        batch, key_heads, _, head_dim = self._shape
        check_tensor(name, q)
        check_dtype(name, q, self._host.dtype)
        check_shape(name, q, "(B, Hq, D)", (batch, None, head_dim))
        check_group("Hq", q.shape[1], key_heads)
        check_same_device(name, q, "labels", self._channels)

    def _check_tokens(self, k: Tensor, v: Tensor) -> None:
        batch, key_heads, _, head_dim = self._shape
        for name, value in (("k", k), ("v", v)):
            check_tensor(name, value)
            check_dtype(name, value, self._host.dtype)
            check_shape(name, value, "(B, Hkv, S, D)", (batch, key_heads, None, head_dim))
            check_same_device(name, value, "labels", self._channels)
        check_shape("v", v, "k.shape", k.shape)


@dataclass
class Buffer:
    """Fetched tokens on the device.

    Attributes:
        index: Tokens in ascending order, int32, shape ``(B, H, budget)``.
        k: Their keys, shape ``(B, H, budget, D)``.
        v: Their values.
        ready: When a GPU has them, or None where nothing has to be waited for.
    """

    index: Tensor
    k: Tensor
    v: Tensor
    ready: torch.cuda.Event | None = None


class Stage:
    """Memory of the host through which scattered tokens go to the device in one copy each for keys and values."""

    def __init__(self, tokens: int, head_dim: int, dtype: torch.dtype, pinned: bool) -> None:
        self._memory = torch.empty((2, tokens, head_dim), dtype=dtype, pin_memory=pinned)
        self._copied: torch.cuda.Event | None = None

    def load(self, keys: Tensor, values: Tensor, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The given rows of ``keys`` and ``values``, on the device."""
        if self._copied is not None:
            self._copied.synchronize()
        staged = self._memory[:, : len(rows)]
        for source, target in zip((keys, values), staged, strict=True):
            torch.index_select(source, 0, rows, out=target)
        k, v = (part.to(device, non_blocking=True, copy=True) for part in staged)
        if device.type == "cuda":
            self._copied = torch.cuda.current_stream(device).record_event()
        return k, v
