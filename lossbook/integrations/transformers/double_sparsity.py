"""Double Sparsity in a Transformers model: its options, and what ties a calibration to a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from lossbook._validation import check_choice, check_integer, check_non_negative, check_number, check_positive
from lossbook.integrations.transformers.models import transformers_model
from lossbook.kernels.sparse_attention.arguments import GROUP_REDUCTIONS, LABEL_BITS
from lossbook.kernels.sparse_attention.engines import check_impl

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from lossbook.integrations.transformers.calibration import Calibration

Model = TypeVar("Model", bound=nn.Module)

# Attribute of a backbone that holds the handles of its hooks.
_HANDLES = "_double_sparsity_hooks"


@dataclass(frozen=True)
class DoubleSparsityConfig:
    r"""Options of sparse decode steps.

    The defaults keep 1/8 of the tokens and 16 channels in the precision of the keys. What a step reads is counted by
    :func:`~lossbook.kernels.decode_bytes`.

    Attributes:
        budget: Tokens that a head attends to: their number (int), or their part of the cached tokens (float in
            ``(0, 1]``), rounded up and at least ``sink + recent``.
        r: Channels of a label, in ``[1, D]``.
        bits: Bits of a label: 16, 8 or 4.
        share_kv: Whether the query heads of a group share labels and selection, which divides their cost by the size of
            the group.
        sink: Tokens at the start of each row that are always attended to, padding not counted.
        recent: Tokens at its end that are always attended to.
        group_reduce: How the scores of a group become one where ``share_kv``, as in
            :func:`~lossbook.kernels.approx_scores`.
        dense_layers: Layers that stay dense; those that the model does not have are ignored.
        dense_below: Number of cached tokens up to which all layers are dense, padding included.
        impl: Implementation of the kernels: ``"auto"``, ``"triton"`` or ``"torch"``.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of range.
    """

    budget: int | float = 0.125
    r: int = 16
    bits: int = 16
    share_kv: bool = False
    sink: int = 4
    recent: int = 16
    group_reduce: str = "max"
    dense_layers: tuple[int, ...] = (0, 1)
    dense_below: int = 4096
    impl: str = "auto"

    def __post_init__(self) -> None:
        check_number("budget", self.budget)
        check_positive("budget", self.budget)
        if isinstance(self.budget, float) and self.budget > 1:
            raise ValueError(f"budget must be an int, or a part in (0, 1], got {self.budget!r}")
        for name in ("r", "sink", "recent", "dense_below"):
            check_integer(name, getattr(self, name))
            check_non_negative(name, getattr(self, name))
        check_positive("r", self.r)
        if isinstance(self.budget, int) and self.sink + self.recent > self.budget:
            total = f"{self.sink} + {self.recent} = {self.sink + self.recent}"
            raise ValueError(f"sink + recent must be <= budget = {self.budget}, got {total}")
        check_choice("bits", self.bits, LABEL_BITS)
        check_choice("share_kv", self.share_kv, (False, True))
        check_choice("group_reduce", self.group_reduce, GROUP_REDUCTIONS)
        check_impl(self.impl)
        for layer in self.dense_layers:
            check_integer("dense_layers", layer)
            check_non_negative("dense_layers", layer)

    def budget_of(self, tokens: int) -> int:
        """Tokens to attend to.

        Args:
            tokens: Number of cached tokens.

        Returns:
            Their number, which may exceed ``tokens``.
        """
        if isinstance(self.budget, int):
            return self.budget
        return max(math.ceil(self.budget * tokens), self.sink + self.recent, 1)


def register_double_sparsity() -> None:
    """Make Transformers accept ``attn_implementation="double_sparsity"``.

    :func:`calibrate` and :func:`attach_calibration` do so themselves; it is needed before a model is loaded with this
    implementation, by ``from_pretrained(..., attn_implementation="double_sparsity")``. Such a model runs once it has a
    calibration.
    """
    from lossbook.integrations.transformers.attention import register

    register()


def attach_calibration(model: Model, calibration: Calibration, config: DoubleSparsityConfig | None = None) -> Model:
    """Tell a model how to decode sparsely, when its attention implementation is ``"double_sparsity"``.

    ``model.set_attn_implementation("double_sparsity")`` switches it on and any other name off, also within a text. Then
    a forward call with one new token behind a cache attends to the tokens that the labels of their keys point to; calls
    with more tokens, such as the prompt's, are dense. Labels are kept with the keys, in the layers of the cache, and
    follow beam search, cropping and resetting. Parameters, state dict and configuration are not touched.

    Args:
        model: The calibrated model or a descendant with the same heads and positions, or one of these wrapped by PEFT.
        calibration: From :func:`calibrate` or :meth:`Calibration.load`.
        config: Options. Default None: those of :class:`DoubleSparsityConfig`. Calling again replaces both.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: If ``model`` is no model of Transformers.
        ValueError: If the calibration is of a model with other heads or positions, or has fewer than ``r`` channels.
            ``model`` is then as it was.
    """
    from lossbook.integrations.transformers.attention import LayerDecoder, LeftPadding, register

    inner = transformers_model(model)
    calibration.check_model(inner)
    config = DoubleSparsityConfig() if config is None else config
    channels = calibration.channels(config.r, share_kv=config.share_kv)
    backbone, padding = inner.base_model, LeftPadding()
    modules = [backbone.get_submodule(name) for name in calibration.layers]
    register()
    detach_calibration(model)
    handles: list[RemovableHandle] = [
        module.register_forward_pre_hook(LayerDecoder(config, layer_channels, padding), with_kwargs=True)
        for module, layer_channels in zip(modules, channels, strict=True)
    ]
    setattr(backbone, _HANDLES, handles)
    return model


def detach_calibration(model: Model) -> Model:
    """Undo :func:`attach_calibration`; a model without a calibration is left alone.

    The attention implementation stays what it is, and ``"double_sparsity"`` no longer runs.

    Args:
        model: A model that :func:`attach_calibration` accepts.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: If ``model`` is no model of Transformers.
    """
    backbone: Any = transformers_model(model).base_model
    for handle in vars(backbone).pop(_HANDLES, ()):
        handle.remove()
    return model
