"""Attention of a decode step by any of several methods, with what each has to remember."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from lossbook._validation import check_choice, values_are_readable
from lossbook.kernels import LabelCache, build_labels, dense_decode, double_sparse_decode, sparse_decode
from lossbook.kernels.sparse_attention.arguments import check_cache, check_lengths
from lossbook.kernels.sparse_attention.baselines import (
    HeavyHitterState,
    heavy_hitter,
    oracle,
    quest,
    random_channels,
    window,
)

_SELECTIONS = {
    "window": window,
    "heavy_hitter": heavy_hitter,
    "quest": quest,
    "random_channels": random_channels,
    "oracle": oracle,
}
_METHODS = {"dense": dense_decode, "double_sparsity": double_sparse_decode} | _SELECTIONS


class SparseDecodeAttention(nn.Module):
    """Attention of one layer while it generates: one query token a call, over the tokens that a method chooses.

    Args:
        method: ``"double_sparsity"`` (default), ``"dense"``, ``"window"``, ``"heavy_hitter"``, ``"quest"``,
            ``"random_channels"`` or ``"oracle"``.
        channels: Channels of ``"double_sparsity"``, int64, shape ``(Hq, r)`` or ``(Hkv, r)``, as
            :func:`~lossbook.kernels.heavy_channels` gives them; a buffer of the module. Default None.
        **options: Further arguments of the function of that name in this module, such as ``budget``; those of
            :func:`~lossbook.kernels.double_sparse_decode` and :func:`~lossbook.kernels.dense_decode` for the first two.

    Raises:
        TypeError: If the method needs an option that is missing, or has none of that name.
        ValueError: If there is no such method, or ``channels`` are missing or not used by it.

    Examples:
        >>> attention = SparseDecodeAttention("window", budget=2, sink=1)
        >>> q, k = torch.zeros(1, 1, 1), torch.zeros(1, 1, 3, 1)
        >>> attention(q, k, torch.tensor([[1.0], [2.0], [5.0]])[None, None])
        tensor([[[3.]]])

    Note:
        Inference only. The module keeps the labels of ``"double_sparsity"`` and the state of ``"heavy_hitter"`` between
        calls, so a layer needs a module of its own, and :meth:`reset` goes before each new batch of requests.

    References:
        Yang et al. (2024), Post-Training Sparse Attention with Double Sparsity; chapter 18
        (:doc:`/notebooks/18_double_sparsity`).
    """

    def __init__(self, method: str = "double_sparsity", channels: Tensor | None = None, **options: Any) -> None:
        super().__init__()
        check_choice("method", method, tuple(_METHODS))
        if (channels is not None) != (method == "double_sparsity"):
            wanted = "given" if method == "double_sparsity" else "None"
            raise ValueError(f"channels must be {wanted} for method={method!r}, got {type(channels).__name__}")
        _check_options(method, options)
        self.method, self.options = method, options
        self.register_buffer("channels", channels)
        self.reset()

    def reset(self) -> None:
        """Forget the requests seen so far.

        Examples:
            >>> SparseDecodeAttention("dense").reset()
        """
        self.labels: LabelCache | None = None
        self.state = HeavyHitterState()

    def observe(self, q: Tensor, k: Tensor, lengths: Tensor | None = None) -> None:
        """Take note of a prompt before its first generated token; only ``"heavy_hitter"`` has a use for it.

        Args:
            q: Queries of the prompt, shape ``(B, Hq, T, D)``.
            k: Its keys, shape ``(B, Hkv, T, D)``.
            lengths: Tokens of each prompt, shape ``(B,)``. Default: ``T``.

        Examples:
            >>> attention = SparseDecodeAttention("heavy_hitter", budget=2)
            >>> attention.observe(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
            >>> attention.state.mass
            tensor([[[1.5000, 0.5000]]])
        """
        if self.method == "heavy_hitter":
            self.state.observe(q, k, lengths)

    @torch.no_grad()
    def forward(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Attention of the newest token of each request.

        Args:
            q: Queries, shape ``(B, Hq, D)``.
            k: Keys with the newest token's, shape ``(B, Hkv, S, D)``; ``S`` may grow from call to call.
            v: Values, shape of ``k``.
            lengths: Tokens of each request with the newest one, shape ``(B,)``. Default: ``S``. With
                ``"double_sparsity"`` they grow by one a call.

        Returns:
            Shape ``(B, Hq, D)``.

        Raises:
            TypeError: If an argument has the wrong type or dtype.
            ValueError: If a shape or value does not fit, or the lengths did not grow by one.

        Examples:
            >>> attention = SparseDecodeAttention(channels=torch.tensor([[0]]), budget=1)
            >>> k = torch.tensor([[3.0, 0.0], [2.0, 0.0]])[None, None]
            >>> attention(torch.ones(1, 1, 2), k, k)
            tensor([[[3., 0.]]])
        """
        check_cache(q, k, v, None)
        lengths = check_lengths(lengths, k.shape[0], k.shape[2], k.device)
        if self.method == "dense":
            return dense_decode(q, k, v, lengths, **self.options)
        if self.method == "double_sparsity":
            self._label_newest(k, lengths)
            return double_sparse_decode(q, k, v, self.channels, lengths=lengths, labels=self.labels, **self.options)
        remembered = (self.state,) if self.method == "heavy_hitter" else ()
        index, count = _SELECTIONS[self.method](q, k, *remembered, lengths=lengths, **self.options)
        return sparse_decode(q, k, v, index, count)

    def _label_newest(self, k: Tensor, lengths: Tensor) -> None:
        """Label the tokens that have no label yet: all at first, and one of each request from then on."""
        labels, tokens = self.labels, k.shape[2]
        if labels is not None and values_are_readable(lengths) and not torch.equal(labels.lengths + 1, lengths):
            raise ValueError(
                f"lengths must be {(labels.lengths + 1).tolist()}, one more than in the last call, "
                f"got {lengths.tolist()}; reset() goes before new requests"
            )
        if labels is None or labels.capacity < tokens:
            chosen = {name: self.options[name] for name in ("bits", "impl") & self.options.keys()}
            # A cache that grows once will grow again: with twice the room all labels are rarely made anew.
            capacity = tokens if labels is None else 2 * tokens
            self.labels = build_labels(k, self.channels, lengths=lengths, capacity=capacity, **chosen)
        else:
            newest = k[torch.arange(k.shape[0], device=k.device), :, lengths.long() - 1]
            labels.append(newest[:, :, None])

    def extra_repr(self) -> str:
        """The method and its options.

        Returns:
            A line for ``repr``.

        Examples:
            >>> SparseDecodeAttention("quest", budget=64)
            SparseDecodeAttention('quest', budget=64)
        """
        return ", ".join([repr(self.method), *(f"{name}={value!r}" for name, value in self.options.items())])


def _check_options(method: str, options: dict[str, Any]) -> None:
    """Require the options that a method has, all those without a default, and none that the module passes itself."""
    passed = {"q", "k", "v", "channels", "labels", "lengths", "state", "block_table"}
    known = {
        name: option for name, option in inspect.signature(_METHODS[method]).parameters.items() if name not in passed
    }
    unknown = sorted(options.keys() - known.keys())
    missing = sorted(
        name for name, parameter in known.items() if parameter.default is parameter.empty and name not in options
    )
    if unknown or missing:
        wrong = f"unknown {', '.join(unknown)}" if unknown else f"no {', '.join(missing)}"
        raise TypeError(f"options of method={method!r} must be among {', '.join(known)}, got {wrong}")
