"""Which channels of a model's keys find its tokens: measured once, kept in a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lossbook._validation import check_choice, check_dtype, check_integer, check_positive, check_shape, check_tensor
from lossbook.integrations.transformers.models import transformers_model
from lossbook.kernels import heavy_channels
from lossbook.kernels.sparse_attention.calibration import IMPORTANCE_METHODS

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

FORMAT, VERSION = "lossbook.double_sparsity", "1"

# What decides the shapes of queries and keys and how positions rotate them. Weights may differ: channels found for a
# model serve its fine-tuned descendants.
_GEOMETRY = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rope_parameters",
)


@dataclass(frozen=True, eq=False)
class Calibration:
    """How much each channel of each query head contributes to a model's attention scores.

    Made by :func:`calibrate`. It holds importances and not channels, so labels of any size can be taken from one file.

    Attributes:
        importance: Importance of every channel, float32, shape ``(layers, Hq, D)``.
        layers: Attention modules in the order of ``importance``, by their names in the model's backbone.
        key_heads: Number of key heads ``Hkv``.
        method: Criterion, as in :func:`~lossbook.kernels.channel_importance`.
        model: Name of the model.
        geometry: What the model's configuration says of its heads and positions, compared when a model uses the file.
        passages: Number of passages that importances are averages over.
        passage_tokens: Tokens of each passage.
    """

    importance: Tensor
    layers: tuple[str, ...]
    key_heads: int
    method: str
    model: str
    geometry: dict[str, Any]
    passages: int
    passage_tokens: int

    def channels(self, r: int, *, share_kv: bool = False) -> Tensor:
        """The most important channels of every head.

        Args:
            r: How many, in ``[1, D]``.
            share_kv: Whether the query heads of a group share their channels; their importances are added.

        Returns:
            Channels by falling importance, int64, shape ``(layers, Hq, r)``, or ``(layers, Hkv, r)`` if shared.

        Raises:
            ValueError: If ``r`` is out of range.
        """
        importance = self.importance
        if share_kv:
            importance = importance.unflatten(1, (self.key_heads, -1)).sum(2)
        return heavy_channels(importance.flatten(0, 1), r).unflatten(0, importance.shape[:2])

    def save(self, path: Path | str) -> None:
        """Write the calibration to a file of safetensors.

        Args:
            path: The file; an existing one is replaced.
        """
        from safetensors.torch import save_file

        facts = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "importance"}
        metadata = {"format": FORMAT, "version": VERSION, "facts": json.dumps(facts)}
        save_file({"importance": self.importance.contiguous().cpu()}, path, metadata)

    @classmethod
    def load(cls, path: Path | str) -> Calibration:
        """Read what :meth:`save` has written.

        Args:
            path: The file.

        Returns:
            The calibration, on the CPU.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds something else, or was written by a later version of the format.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                importance = file.get_tensor("importance") if metadata.get("format") == FORMAT else None
        except SafetensorError as error:
            raise ValueError(f"path must be a file written by Calibration.save, got {path}: {error}") from error
        if importance is None:
            raise ValueError(f"path must be a file written by Calibration.save, got {path} without the format {FORMAT}")
        if metadata["version"] != VERSION:
            raise ValueError(
                f"path must be of version {VERSION} of {FORMAT}, got version {metadata['version']} in {path}"
            )
        facts = json.loads(metadata["facts"])
        return cls(importance=importance, **facts | {"layers": tuple(facts["layers"])})

    def check_model(self, model: PreTrainedModel) -> None:
        """Require a model with the heads and positions of the calibrated one.

        Args:
            model: The model that is to use the calibration.

        Raises:
            ValueError: If they differ; the message shows in what.
        """
        geometry = model_geometry(model)
        different = [name for name in _GEOMETRY if geometry[name] != self.geometry[name]]
        if different:
            ours = ", ".join(f"{name} = {self.geometry[name]}" for name in different)
            theirs = ", ".join(f"{name} = {geometry[name]}" for name in different)
            raise ValueError(f"calibration must be of this model: it is of {self.model} with {ours}, got {theirs}")


def calibrate(
    model: nn.Module, input_ids: Tensor, *, method: str = "q2vark", batch_size: int = 1, name: str | None = None
) -> Calibration:
    """Measure, on a sample of text, which channels of a model's queries and keys decide its attention.

    Runs the backbone of the model once over the text, through the library's attention interface, and reads queries and
    keys where attention does: after the rotary embedding. Which channels matter is a property of the model and hardly
    of the text, so a few passages of any text do.

    Args:
        model: A causal language model of Transformers 5 in evaluation mode, or one wrapped by PEFT. Its attention must
            go through the library's attention interface, and be the softmax of scaled dot products of all its heads'
            queries and keys: no softcap, no sinks, no position bias, no latent attention.
        input_ids: Passages without padding, int64, shape ``(passages, tokens)``, at least 2 tokens each.
        method: Criterion, as in :func:`~lossbook.kernels.channel_importance`: ``"q2vark"`` (default), ``"qk"``,
            ``"q"`` or ``"k"``.
        batch_size: Passages in a forward call; results depend on it by rounding only. Default 1.
        name: Name of the model to keep with the result. Default: that of its configuration, or of its folder.

    Returns:
        Importances per query head, averages over all passages.

    Raises:
        TypeError: If ``model`` or ``input_ids`` is of the wrong type.
        ValueError: If the model is not supported or in training mode, or another argument is out of range. The model's
            attention implementation is put back in every case.
    """
    from lossbook.integrations.transformers.attention import Recorder, switched

    inner = transformers_model(model)
    check_tensor("input_ids", input_ids)
    check_dtype("input_ids", input_ids, torch.int64)
    check_shape("input_ids", input_ids, "(passages, tokens)", (None, None))
    passages, tokens = input_ids.shape
    if passages < 1 or tokens < 2:
        raise ValueError(f"input_ids must hold at least 1 passage of at least 2 tokens, got {passages} of {tokens}")
    check_choice("method", method, IMPORTANCE_METHODS)
    check_integer("batch_size", batch_size)
    check_positive("batch_size", batch_size)
    if inner.training:
        raise ValueError("model must be in evaluation mode, got training mode; call model.eval()")

    recorder = Recorder(method)
    backbone = inner.base_model
    with switched(inner), torch.no_grad():
        for batch in input_ids.to(inner.device).split(batch_size):
            backbone(input_ids=batch, use_cache=False, double_sparsity=recorder)
    layers = recorder.layers(inner)
    names = {module: name for name, module in backbone.named_modules()}
    return Calibration(
        importance=torch.stack([layer.total for layer in layers.values()]).cpu() / passages,
        layers=tuple(names[module] for module in layers),
        key_heads=next(iter(layers.values())).key_heads,
        method=method,
        model=name or _model_name(inner),
        geometry=model_geometry(inner),
        passages=passages,
        passage_tokens=tokens,
    )


def overlap(a: Calibration, b: Calibration, r: int, *, share_kv: bool = False) -> float:
    """How far two calibrations of a model agree on the most important channels.

    Args:
        a: A calibration.
        b: One of the same model, on another text or by another method.
        r: Channels to take of each head.
        share_kv: Whether the query heads of a group share their channels.

    Returns:
        The part of the ``r`` channels that both have, as a mean over all heads of all layers: 1 if they agree, about
        ``r / D`` by chance.

    Raises:
        ValueError: If ``r`` is out of range, or the shapes of the calibrations differ.
    """
    check_shape("b", b.importance, "a's (layers, Hq, D)", a.importance.shape)
    ours, theirs = (each.channels(r, share_kv=share_kv) for each in (a, b))
    return (ours[..., None] == theirs[..., None, :]).any(-1).float().mean().item()


def _model_name(model: PreTrainedModel) -> str:
    """The name on the hub, or of the folder it was loaded from without the way there, or of its class."""
    name = model.config.name_or_path
    if not name:
        return type(model).__name__
    return Path(name).name if Path(name).is_dir() else name


def model_geometry(model: PreTrainedModel) -> dict[str, Any]:
    """The part of a model's configuration that a calibration depends on, as JSON would give it back."""
    config = model.config.to_dict()
    return json.loads(json.dumps({name: config.get(name) for name in _GEOMETRY}))
