"""A layer of a key-value cache that keeps the labels of its keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from lossbook.kernels import LabelCache, build_labels

# Room for as many more tokens as a quarter of those there are, so that labels are copied seldom while a text grows.
_SPARE = 4
_LEAST_SPARE = 64


class LabeledLayer(DynamicLayer):
    """A :class:`DynamicLayer` with the labels of its keys, which follow whatever is done to the keys.

    Labels are brought up to date when they are asked for, so keys that were cached before, or by other attention
    implementations in between, get theirs as well.

    Attributes:
        labels: Labels of the first ``n_labeled`` keys but for the padding in front of each row, or None.
        n_labeled: How many of the keys the labels cover, padding included.
        starts: Length of the padding in front of each row, or None if there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._drop_labels()

    @classmethod
    def replacing(cls, layer: DynamicLayer) -> LabeledLayer:
        """A layer with the keys and values of ``layer``."""
        labeled = cls()
        labeled.__dict__.update(vars(layer))
        return labeled

    def labels_of(self, channels: Tensor, bits: int, starts: tuple[int, ...] | None, impl: str) -> LabelCache:
        """The labels of all keys, in each row from its first token after the padding on.

        Args:
            channels: Channels of each label head, shape ``(H, r)``; labels of another tensor are built anew.
            bits: Bits of a label.
            starts: Length of the padding in front of each row, or None if there is none.
            impl: Implementation, as in :func:`~lossbook.kernels.build_labels`.
        """
        tokens = self.keys.shape[2]
        labels = self.labels
        if labels is None or labels.channels is not channels or labels.bits != bits or self.starts != starts:
            self.labels = _build(self.keys, channels, bits, starts, impl)
        elif self.n_labeled < tokens:
            if tokens > labels.capacity:
                self.labels = _with_capacity(labels, _roomy(tokens))
            self.labels.append(self.keys[:, :, self.n_labeled :])
        self.n_labeled, self.starts = tokens, starts
        return self.labels

    def reset(self) -> None:
        """Forget keys, values and labels."""
        super().reset()
        self._drop_labels()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; ``tokens_to_remove`` is minus their number."""
        super().crop(tokens_to_remove)
        excess = self.n_labeled - self.get_seq_length()
        if self.labels is None or excess <= 0:
            return
        if self.starts is not None and self.get_seq_length() <= max(self.starts):
            self._drop_labels()
        else:
            self.labels = dataclasses.replace(self.labels, lengths=self.labels.lengths - excess)
            self.n_labeled -= excess

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows as a beam search continues them."""
        super().reorder_cache(beam_idx)
        self._take_rows(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)
        self._take_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows only."""
        super().batch_select_indices(indices)
        self._take_rows(lambda rows: rows[indices.to(rows.device)])

    def _take_rows(self, take: Callable[[Tensor], Tensor]) -> None:
        """Do to the labels what was done to the rows of the keys."""
        if self.labels is not None:
            self.labels = _map_rows(self.labels, take)
        if self.starts is not None:
            self.starts = tuple(take(torch.tensor(self.starts)).tolist())

    def _drop_labels(self) -> None:
        self.labels: LabelCache | None = None
        self.n_labeled = 0
        self.starts: tuple[int, ...] | None = None


def labeled_layer(cache: Cache | None, layer_idx: int) -> LabeledLayer | None:
    """The layer of a cache, made one with labels if need be; None where attention is to be dense.

    That is without a cache, before the layer's first token, and where the cache holds a window only.

    Raises:
        ValueError: If the cache is of a kind whose labels could not follow it.
    """
    if cache is None:
        return None
    if not isinstance(cache, DynamicCache) or cache.offloading:
        raise _unsupported_cache(f"{type(cache).__name__}{' with offloading' if cache.offloading else ''}")
    if layer_idx >= len(cache.layers):
        return None
    layer = cache.layers[layer_idx]
    if type(layer) is DynamicLayer:
        layer = cache.layers[layer_idx] = LabeledLayer.replacing(layer)
    if isinstance(layer, LabeledLayer):
        return layer
    if getattr(layer, "is_sliding", False):
        return None
    raise _unsupported_cache(f"a {type(layer).__name__} in it")


def _unsupported_cache(got: str) -> ValueError:
    return ValueError(
        f"past_key_values must be a DynamicCache of plain or sliding-window layers, without offloading, got {got}"
    )


def _build(keys: Tensor, channels: Tensor, bits: int, starts: tuple[int, ...] | None, impl: str) -> LabelCache:
    tokens, lengths = keys.shape[2], None
    if starts is not None:
        start = torch.tensor(starts, device=keys.device)
        lengths = tokens - start
        token = (torch.arange(tokens, device=keys.device) + start[:, None]).clamp(max=tokens - 1)
        keys = keys.take_along_dim(token[:, None, :, None], 2)
    return build_labels(keys, channels, bits, lengths=lengths, capacity=_roomy(tokens), impl=impl)


def _roomy(tokens: int) -> int:
    return tokens + max(tokens // _SPARE, _LEAST_SPARE)


def _with_capacity(labels: LabelCache, capacity: int) -> LabelCache:
    more = capacity - labels.capacity
    integers = {} if labels.bits == 16 else {"scale": pad(labels.scale, (0, more)), "zero": pad(labels.zero, (0, more))}
    return dataclasses.replace(labels, values=pad(labels.values, (0, 0, 0, more)), capacity=capacity, **integers)


def _map_rows(labels: LabelCache, take: Callable[[Tensor], Tensor]) -> LabelCache:
    per_row = {name: getattr(labels, name) for name in ("values", "scale", "zero", "lengths")}
    return dataclasses.replace(labels, **{name: take(rows) for name, rows in per_row.items() if rows is not None})
