"""The model of Transformers inside what a user passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """The Transformers model, out of PEFT's wrapper if need be.

    Raises:
        TypeError: If there is none.
    """
    from transformers import PreTrainedModel

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(
            f"model must be a PreTrainedModel of Transformers or a PEFT model around one, got {type(model).__name__}"
        )
    return inner
