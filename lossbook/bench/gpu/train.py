"""Phase ``train``: a training step of a whole language model, with its own loss and with the cut one."""

from __future__ import annotations

import gc
import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from lossbook.bench.environment import device_facts
from lossbook.bench.measure import gauge_for, median_passes, timed_passes, use_device
from lossbook.bench.methods import failure

_INTEGRATION = "lossbook.integrations.transformers"
_WARM_UP = 3
#: The architecture of SmolLM2-135M; the weights are random, because time and memory of a step do not depend on them
#: as long as no filter is used.
_SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}


def records(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Time forward and backward of the model, unpatched and patched.

    Args:
        spec: ``device``, ``dtype``, ``seed``, ``small`` (a tiny model instead of SmolLM2's size), ``batch``,
            ``context``, ``repeats`` and ``seconds`` of a turn.

    Yields:
        The facts of the device; then for both variants ``{"variant", "samples", "extra_bytes", "loss"}``, or
        ``{"variant", "not_available"}``.
    """
    torch.manual_seed(spec["seed"])
    use_device(spec["device"])
    yield {"facts": device_facts(spec["device"])}
    variants = {"unpatched": lambda model: None, "patched": _patch}
    for variant, prepare in variants.items():
        try:
            model, tokens = make_model(spec)
            prepare(model)
            yield {"variant": variant} | _measure(model, tokens, spec)
        except Exception as error:
            yield {"variant": variant, "not_available": failure(error)}
        model = tokens = None
        gc.collect()


def _patch(model: torch.nn.Module) -> None:
    importlib.import_module(_INTEGRATION).patch(model)


def make_model(spec: dict[str, Any]) -> tuple[torch.nn.Module, torch.Tensor]:
    """Make the model with random weights, in training mode, and random tokens.

    Args:
        spec: As for :func:`records`.

    Returns:
        Model and tokens.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**_SMALL if spec["small"] else _SMOLLM2)
    model = LlamaForCausalLM(config).to(spec["device"], getattr(torch, spec["dtype"])).train()
    generator = torch.Generator().manual_seed(spec["seed"])
    tokens = torch.randint(config.vocab_size, (spec["batch"], spec["context"]), generator=generator)
    return model, tokens.to(spec["device"])


def _measure(model: torch.nn.Module, tokens: torch.Tensor, spec: dict[str, Any]) -> dict[str, Any]:
    def loss() -> torch.Tensor:
        return model(input_ids=tokens, labels=tokens).loss

    def clear() -> None:
        model.zero_grad(set_to_none=True)

    def steps() -> Iterator[tuple[Callable[[], torch.Tensor], Callable[[], None]]]:
        return itertools.repeat((loss, clear))

    device = spec["device"]
    for _ in range(_WARM_UP if device != "cpu" else 1):
        loss().backward()
        clear()
    gauge = gauge_for(device)
    gauge.start()
    value = loss()
    value.backward()
    extra_bytes = gauge.extra_bytes()
    clear()
    turns = [timed_passes(steps(), device, seconds=spec["seconds"], most=50) for _ in range(spec["repeats"])]
    samples = [asdict(median_passes(passes)) | {"count": len(passes)} for passes in turns]
    return {"samples": samples, "extra_bytes": extra_bytes, "loss": value.item()}
