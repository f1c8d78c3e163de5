"""What sparse decoding costs a real language model: the loss of the tokens it predicts one at a time.

The model reads a passage densely and then takes the rest of it token by token, each step by the attention of a method,
with the right tokens before it.  What is lost is the difference to dense attention, in nats per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lossbook.bench.environment import describe
from lossbook.nn import SparseDecodeAttention

if TYPE_CHECKING:
    from rich.table import Table

    from lossbook.data import LanguageModel
    from lossbook.integrations.transformers import Calibration

__all__ = ["QUALITY_METHODS", "QualityMethod", "decode_quality", "lost_by_methods", "quality_table"]

KIND = "decode-quality"
_ATTENTION = "lossbook_decode_quality"
# Dense in every method, as in the code of Double Sparsity.
DENSE_LAYERS = (0, 1)
_CALIBRATION_TEXT, _TEXT = "dataset_notes", "python_docs"


@dataclass(frozen=True)
class QualityMethod:
    """One way to attend in a decode step.

    Attributes:
        method: As in :class:`~lossbook.nn.SparseDecodeAttention`.
        part: One over the share of the tokens that a query attends to.
        r: Channels of a label; None for a method without labels.
        share_kv: Whether the query heads of a group share labels and selection.
        options: Further options of the method, by name.
    """

    method: str
    part: int
    r: int | None = None
    share_kv: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    def layer(self, tokens: int, calibration: Calibration, index: int) -> SparseDecodeAttention:
        """The attention of one layer.

        Args:
            tokens: Length of a passage, of which the budget is a part.
            calibration: Where channels come from.
            index: Number of the layer.

        Returns:
            A module without memory of earlier requests.
        """
        options = dict(self.options) | {"budget": tokens // self.part}
        if self.method == "random_channels":
            return SparseDecodeAttention(self.method, r=self.r, seed=index, **options)
        if self.method != "double_sparsity":
            return SparseDecodeAttention(self.method, **options)
        channels = calibration.channels(self.r, share_kv=self.share_kv)[index]
        return SparseDecodeAttention(self.method, channels, **options)


def _sparse(part: int, r: int, share_kv: bool = False, **options: Any) -> QualityMethod:
    return QualityMethod("double_sparsity", part, r, share_kv, tuple(options.items()))


_KEPT = {"sink": 4, "recent": 8}
QUALITY_METHODS = {
    "window, 1/8": QualityMethod("window", 8),
    "Quest, 1/8": QualityMethod("quest", 8, options=(("recent_pages", 1),)),
    "heavy hitters, 1/8": QualityMethod("heavy_hitter", 8),
    "random channels, 1/8, 8": QualityMethod("random_channels", 8, 8),
    **{f"Double Sparsity, 1/{part}, {r}": _sparse(part, r) for part in (8, 16) for r in (4, 8, 16)},
    "Double Sparsity, 1/8, 8, first and last kept": _sparse(8, 8, **_KEPT),
    "Double Sparsity, 1/16, 16, first and last kept": _sparse(16, 16, **_KEPT),
    "Double Sparsity, 1/8, 8, 4 bits": _sparse(8, 8, bits=4),
    "Double Sparsity, 1/8, 16, 4 bits": _sparse(8, 16, bits=4),
    "Double Sparsity, 1/8, 16, 4 bits, shared": _sparse(8, 16, share_kv=True, bits=4),
    "oracle, 1/8": QualityMethod("oracle", 8),
    "oracle, 1/16": QualityMethod("oracle", 16),
}


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    layers: Sequence[SparseDecodeAttention] | None = None,
    prompts: list[tuple[Tensor, Tensor]] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention function of Transformers: dense, or one token by the module that ``layers`` holds for the layer."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if prompts is not None:
        prompts.append((query, key))
    if layers is None or module.layer_idx in DENSE_LAYERS:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    return layers[module.layer_idx](query[:, :, 0], key, value)[:, None], None


@contextmanager
def _attention_of_this_module(model: Any) -> Iterator[None]:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_ATTENTION, attend)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def lost_by_methods(
    model: Any,
    passages: Tensor,
    calibration: Calibration,
    methods: Sequence[str],
    *,
    new: int,
    on_method: Callable[[str], None] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Predict the last tokens of passages by several methods.

    Args:
        model: A causal language model of Transformers.
        passages: Tokens, int64, shape ``(P, context + new + 1)``.
        calibration: Of this model.
        methods: Names from :data:`QUALITY_METHODS`.
        new: Tokens to predict, ``>= 1``; what is before them is read densely.
        on_method: Called with a method's name whenever it starts.

    Returns:
        The loss with dense attention in nats per token, shape ``(P,)``; and for each method what it loses to that.
    """
    tokens = passages.shape[1] - 1
    cut, right = tokens - new, passages[:, -new:]
    prompts: list[tuple[Tensor, Tensor]] = []
    with _attention_of_this_module(model):
        cache = model.base_model(passages[:, :cut], use_cache=True, prompts=prompts).past_key_values

        def loss(layers: Sequence[SparseDecodeAttention] | None) -> Tensor:
            logits = [
                model(passages[:, place : place + 1], past_key_values=cache, layers=layers).logits
                for place in range(cut, tokens)
            ]
            cache.crop(-new)
            return cross_entropy(torch.cat(logits, 1).mT, right, reduction="none").mean(1).cpu()

        dense, lost = loss(None), {}
        for name in methods:
            if on_method is not None:
                on_method(name)
            chosen = QUALITY_METHODS[name]
            layers = [chosen.layer(tokens, calibration, index).to(passages.device) for index in range(len(prompts))]
            for layer, prompt in zip(layers, prompts, strict=True):
                layer.observe(*prompt)
            lost[name] = loss(layers) - dense
    return dense, lost


def decode_quality(
    lm: LanguageModel,
    methods: Sequence[str] = tuple(QUALITY_METHODS),
    *,
    calibration: Calibration | None = None,
    passages: int = 12,
    context: int = 512,
    new: int = 128,
    device: str = "cpu",
    on_method: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure what sparse decoding costs SmolLM2 on Python's documentation, with channels found on another text.

    Args:
        lm: From :func:`lossbook.data.smollm2`.
        methods: Names from :data:`QUALITY_METHODS`. Default: all.
        calibration: Of this model. Default None: made on 512 tokens of the notes on data sets.
        passages: How many, taken at even distances from the whole text.
        context: Tokens read densely.
        new: Tokens predicted after them.
        device: Where to compute.
        on_method: Called with a method's name whenever it starts.

    Returns:
        The report, ready for JSON: settings, environment, numbers of the passages, the dense loss and what each method
        loses, both in nats per token, one number a passage.

    Raises:
        ValueError: If a method is unknown, or the text has fewer passages.
    """
    from lossbook.data import text, token_blocks
    from lossbook.integrations.transformers import calibrate

    unknown = [name for name in methods if name not in QUALITY_METHODS]
    if unknown:
        raise ValueError(f"methods must be names out of {list(QUALITY_METHODS)}, got {unknown}")
    blocks = token_blocks(text(_TEXT), lm.tokenizer, context=context + new + 1)
    if not 1 <= passages <= len(blocks):
        raise ValueError(f"passages must lie in [1, {len(blocks)}], the passages of the text, got {passages}")
    chosen = torch.linspace(0, len(blocks) - 1, passages).long()
    lm.model.to(device)
    if calibration is None:
        sample = token_blocks(text(_CALIBRATION_TEXT), lm.tokenizer, context=512, count=1)
        calibration = calibrate(lm.model, sample)
    dense, lost = lost_by_methods(
        lm.model, blocks[chosen].to(device), calibration, methods, new=new, on_method=on_method
    )
    return {
        "benchmark": KIND,
        "settings": {
            "model": lm.name,
            "text": _TEXT,
            "calibration_text": _CALIBRATION_TEXT,
            "context": context,
            "new": new,
            "dense_layers": list(DENSE_LAYERS),
        },
        "environment": describe(),
        "date": datetime.now(UTC).date().isoformat(),
        "passages": chosen.tolist(),
        "dense": dense.tolist(),
        "lost": {name: values.tolist() for name, values in lost.items()},
    }


def quality_table(report: dict[str, Any]) -> Table:
    """Return a report as a table to print with rich.

    Args:
        report: From :func:`decode_quality`.

    Returns:
        One line for each method: the mean over passages and its standard error.
    """
    from rich import box
    from rich.table import Table

    settings, dense = report["settings"], torch.tensor(report["dense"])
    table = Table(
        title="{model}: {new} tokens after {context}, {count} passages".format(**settings, count=len(dense)),
        caption=f"dense {dense.mean():.3f} nats per token",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("method")
    for heading in ("nats lost", "+-"):
        table.add_column(heading, justify="right")
    for name, values in report["lost"].items():
        lost = torch.tensor(values)
        error = f"{lost.std() / len(lost) ** 0.5:.3f}" if len(lost) > 1 else "–"
        table.add_row(name, f"{lost.mean():+.3f}", error)
    return table
