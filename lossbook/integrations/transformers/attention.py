"""The attention function ``"double_sparsity"`` of Transformers, and what it does while calibrating and decoding."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lossbook.integrations.transformers.label_layer import LabeledLayer, labeled_layer
from lossbook.kernels import approx_scores, channel_importance, select_tokens, sparse_decode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lossbook.integrations.transformers.double_sparsity import DoubleSparsityConfig

NAME = "double_sparsity"
# Keyword under which a model's layers hand a Handler to the attention function.
KEYWORD = "double_sparsity"
# Terms that some models add to the scores, and that labels know nothing of.
_SCORE_TERMS = ("softcap", "s_aux", "position_bias")


class Handler(Protocol):
    """What computes the attention of a layer in one forward call."""

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        """The output, ``(B, T, Hq, D)``, with the arguments of the library's attention functions."""


def register() -> None:
    """Make the name of the attention function known to the library, with the masks of ``"sdpa"``."""
    AttentionInterface.register(NAME, double_sparsity_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def double_sparsity_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    double_sparsity: Handler | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function: the layer's handler does the work, and ``"sdpa"`` all that is dense."""
    if double_sparsity is None:
        raise ValueError(
            f"model must be calibrated before it runs with attn_implementation={NAME!r}, got {type(module).__name__} "
            "without a calibration; call attach_calibration(model, calibration)"
        )
    return double_sparsity(module, query, key, value, attention_mask, **options)


@contextmanager
def switched(model: PreTrainedModel) -> Iterator[None]:
    """Run ``model`` with the attention function of this module for a while.

    Raises:
        ValueError: If the model cannot.
    """
    if model.config.is_encoder_decoder:
        raise unsupported(model, "it is an encoder-decoder model")
    if "input_ids" not in inspect.signature(model.base_model.forward).parameters:
        raise unsupported(model, "its forward takes no input_ids")
    if model.config.get_text_config() is not model.config:
        raise unsupported(model, "its language model is one part of several; pass that part")
    register()
    before = model.config._attn_implementation
    if model._can_set_attn_implementation():
        model.set_attn_implementation(NAME)
    else:
        raise unsupported(model, "its attention does not go through the attention interface of Transformers")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@dataclass
class LayerImportance:
    """Sum of the importances of the channels of a layer over passages.

    Attributes:
        key_heads: Number of key heads.
        total: The sum, float32, shape ``(Hq, D)``.
    """

    key_heads: int
    total: Tensor


class Recorder:
    """Handler that adds up importances of channels while attention is dense."""

    def __init__(self, method: str) -> None:
        self.method = method
        self._layers: dict[nn.Module, LayerImportance] = {}

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        """Dense attention, and its queries and keys measured."""
        check_attention(module, query, key, value, options)
        for q, k in zip(query.split(1), key.split(1), strict=True):
            importance = channel_importance(q, k, self.method).float()
            if module in self._layers:
                self._layers[module].total += importance
            else:
                self._layers[module] = LayerImportance(key.shape[1], importance)
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    def layers(self, model: PreTrainedModel) -> dict[nn.Module, LayerImportance]:
        """What was recorded, in the order in which ``model`` runs its layers.

        Raises:
            ValueError: If nothing was, or the layers differ in their heads.
        """
        if not self._layers:
            raise unsupported(model, "its layers do not pass keywords on to the attention function")
        for module in self._layers:
            has_cache = "past_key_values" in inspect.signature(module.forward).parameters
            if not has_cache or not hasattr(module, "layer_idx"):
                raise unsupported(model, f"its {type(module).__name__} takes no past_key_values or has no layer_idx")
        shapes = {(layer.key_heads, *layer.total.shape) for layer in self._layers.values()}
        if len(shapes) > 1:
            raise unsupported(model, f"its layers differ in (Hkv, Hq, D): {sorted(shapes)}")
        return self._layers


class LayerDecoder:
    """What a calibrated layer attends by: hook of its attention module, and maker of the handlers of its calls.

    Args:
        config: Options of the sparse steps.
        channels: Channels of the layer, int64, shape ``(H, r)``.
        padding: Reads the masks of a forward call, once for all layers.
    """

    def __init__(self, config: DoubleSparsityConfig, channels: Tensor, padding: LeftPadding) -> None:
        self.config, self.channels, self.padding = config, channels.contiguous(), padding

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Forward pre-hook of the attention module: hand it a handler that knows the layer's cache."""
        if module.config._attn_implementation != NAME or KEYWORD in kwargs:
            return None
        layer = labeled_layer(kwargs.get("past_key_values"), module.layer_idx)
        return args, {**kwargs, KEYWORD: DecodeStep(self, layer)}

    def channels_on(self, device: torch.device) -> Tensor:
        """The channels on a device, the same tensor in each call there."""
        if self.channels.device != device:
            self.channels = self.channels.to(device)
        return self.channels


@dataclass(frozen=True, eq=False)
class DecodeStep:
    """Handler of a layer of a calibrated model: sparse for one token behind a cache, dense otherwise.

    Attributes:
        decoder: The layer's.
        layer: The layer of the cache, or None where attention has to be dense.
    """

    decoder: LayerDecoder
    layer: LabeledLayer | None

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        """Attention of the layer."""
        check_attention(module, query, key, value, options)
        if self._is_sparse(module, query, key, options):
            out = self._attend(module, query, key, value, mask, **options)
            return out[:, None], None
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    def _is_sparse(self, module: nn.Module, query: Tensor, key: Tensor, options: dict[str, Any]) -> bool:
        return (
            self.layer is not None
            and query.shape[2] == 1
            and not self._covers(key.shape[2])
            and module.layer_idx not in self.decoder.config.dense_layers
            # Such a layer may stand on a cache that keeps all tokens.
            and options.get("sliding_window") is None
        )

    def _covers(self, tokens: int) -> bool:
        """Whether nothing would be left out of so many tokens."""
        config = self.decoder.config
        return tokens <= max(config.dense_below, config.budget_of(tokens))

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        **_: Any,
    ) -> Tensor:
        if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
            raise RuntimeError("a sparse decode step has no gradient; run the model under torch.no_grad()")
        if dropout:
            raise ValueError(f"dropout must be 0 in a sparse decode step, got {dropout}; call model.eval()")
        if key is not self.layer.keys:
            _refuse(module, "it does not attend to the keys that its own layer of the cache holds")
        config, (batch, _, tokens, _) = self.decoder.config, key.shape
        starts = self.decoder.padding.starts(mask, batch, tokens)
        channels = self.decoder.channels_on(key.device)
        labels = self.layer.labels_of(channels, config.bits, starts, config.impl)
        q = query[:, :, 0]
        scores = approx_scores(q, labels, channels, config.group_reduce, impl=config.impl)
        budget = config.budget_of(tokens)
        index, count = select_tokens(scores, budget, labels.lengths, config.sink, config.recent, impl=config.impl)
        if starts is not None:
            # Labels begin behind the padding, the cache begins with it.
            start = (tokens - labels.lengths)[:, None, None]
            index = torch.where(index < 0, index, index + start)
        return sparse_decode(q, key, value, index, count, scale=scaling, impl=config.impl)


class LeftPadding:
    """Where the rows of a batch begin, read from the mask of a forward call once for all layers."""

    def __init__(self) -> None:
        self._last: tuple[weakref.ref[Tensor], tuple[int, ...] | None] | None = None

    def starts(self, mask: Tensor | None, batch: int, tokens: int) -> tuple[int, ...] | None:
        """Length of the padding in front of each row, or None if there is none.

        Raises:
            ValueError: If the mask hides anything but tokens in front of a row.
        """
        if mask is None:
            return None
        last = self._last
        if last is None or last[0]() is not mask or mask.shape[-1] != tokens:
            last = self._last = weakref.ref(mask), _starts(mask, batch, tokens)
        return last[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> LeftPadding:
        return LeftPadding()

    def __reduce__(self) -> tuple[type, tuple]:
        return LeftPadding, ()


def _starts(mask: Tensor, batch: int, tokens: int) -> tuple[int, ...] | None:
    """Read a mask as the library makes it for one query token: bool, ``(B or 1, 1, 1, S)``."""
    if mask.dtype != torch.bool or mask.shape not in ((batch, 1, 1, tokens), (1, 1, 1, tokens)):
        raise ValueError(
            f"attention_mask must hide padding only, bool of shape (B, 1, 1, S) = ({batch}, 1, 1, {tokens}), "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    visible = mask[:, 0, 0]
    start = visible.int().argmax(1)
    if not torch.equal(visible, torch.arange(tokens, device=mask.device) >= start[:, None]):
        raise ValueError(
            "attention_mask must hide tokens in front of a row only (left padding), got a mask that hides others; "
            "set padding_side='left' in the tokenizer"
        )
    starts = tuple(start.expand(batch).tolist())
    return starts if any(starts) else None


def check_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> None:
    """Require attention whose scores are scaled dot products of queries and keys, and nothing else."""
    for name in _SCORE_TERMS:
        if options.get(name) is not None:
            _refuse(module, f"its scores have a term of their own ({name})")
    if not getattr(module, "is_causal", True):
        _refuse(module, "it is not causal")
    if key.shape != value.shape or query.shape[3] != key.shape[3]:
        shapes = f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        _refuse(module, f"queries, keys and values must have heads of one size, got {shapes}")


def _refuse(module: nn.Module, reason: str) -> NoReturn:
    raise ValueError(f"model must have attention that labels can stand for, got {type(module).__name__}: {reason}")


def unsupported(model: PreTrainedModel, reason: str) -> ValueError:
    """An error that names the architecture."""
    return ValueError(
        f"model must be a causal language model that can be calibrated, got {type(model).__name__}: {reason}"
    )
