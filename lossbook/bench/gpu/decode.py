"""Phase ``decode``: the decode step of a whole language model, dense and by Double Sparsity."""

from __future__ import annotations

import gc
import importlib
import statistics
from collections.abc import Iterator
from typing import Any

import torch

from lossbook.bench.environment import device_facts
from lossbook.bench.gpu.train import make_model
from lossbook.bench.measure import timed_calls, use_device
from lossbook.bench.methods import failure

_INTEGRATION = "lossbook.integrations.transformers"
_VARIANTS = ("sdpa", "double_sparsity")
_WARM_UP = 3
_MOST_TOKENS = 64


def records(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Time the model's step for one token behind a prompt.

    Args:
        spec: As for :func:`lossbook.bench.gpu.train.records`; ``context`` is the length of the prompt.

    Yields:
        The facts of the device; then for both variants ``{"variant", "samples"}``, the seconds of a step in every turn,
        or ``{"variant", "not_available"}``.
    """
    torch.manual_seed(spec["seed"])
    use_device(spec["device"])
    yield {"facts": device_facts(spec["device"])}
    for variant in _VARIANTS:
        try:
            yield {"variant": variant, "samples": _measure(variant, spec)}
        except Exception as error:
            yield {"variant": variant, "not_available": failure(error)}
        gc.collect()


@torch.no_grad()
def _measure(variant: str, spec: dict[str, Any]) -> list[float]:
    model, tokens = make_model(spec)
    model.eval()
    if variant == "double_sparsity":
        integration = importlib.import_module(_INTEGRATION)
        calibration = integration.calibrate(model, tokens[:1])
        # A trial has few layers and a short prompt, which would stay dense.
        dense_layers, r = ((), 4) if spec["small"] else ((0, 1), 16)
        config = integration.DoubleSparsityConfig(
            budget=1 / 16, r=r, share_kv=True, sink=0, recent=0, dense_layers=dense_layers, dense_below=0
        )
        integration.attach_calibration(model, calibration, config)
    model.set_attn_implementation(variant)
    cache = model(input_ids=tokens, use_cache=True, logits_to_keep=1).past_key_values

    def step() -> None:
        model(input_ids=tokens[:, -1:], past_key_values=cache, use_cache=True)

    for _ in range(_WARM_UP):
        step()
    turn = {"seconds": spec["seconds"], "most": _MOST_TOKENS}
    return [statistics.median(timed_calls(step, spec["device"], **turn)) for _ in range(spec["repeats"])]
