"""The builds of the sparse attention kernels for :mod:`lossbook.bench.compiled`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lossbook.bench.compiled import Build

_CHANNELS = 16
# Sizes of a head: those of small and of most large models, and the largest one in use.
_FEATURES = (64, 128, 256)
_WARPS, _STAGES = 4, 3
# One query token cannot fill the widest instructions, which multiply 64 or 128 rows.
_MATRIX = {"sm_90": "HMMA", "sm_100": "HMMA"}


def sparse_attention_builds(architecture: str, dtype: str) -> Iterator[Build]:
    """The builds of the kernels of a sparse decode step.

    Args:
        architecture: One of :data:`lossbook.bench.compiled.ARCHITECTURES`.
        dtype: ``"bf16"`` or ``"fp32"``.

    Yields:
        Builds as the engine launches them, with 16 channels.
    """
    from lossbook.kernels.sparse_attention.triton import attention, engine, labels, selection

    item_bytes = 4 if dtype == "fp32" else 2

    def build(kernel: Any, variant: str, absent: str = "", **constants: Any) -> Build:
        constants |= dict.fromkeys(absent.split())
        warps = engine.decode_warps(item_bytes) if kernel is attention.decode_kernel else _WARPS
        return Build(kernel, architecture, variant, dtype, constants, warps, _STAGES, _MATRIX.get(architecture, ""))

    for bits in (16, 8, 4):
        form = {"LEVELS": 0 if bits == 16 else 2**bits - 1, "PACKED": bits == 4, "BLOCK_CHANNELS": _CHANNELS}
        absent = "token_scale token_zero" if bits == 16 else ""
        yield build(labels.append_kernel, f"{bits} bits", absent, BLOCK_TOKENS=engine._LABEL_TOKENS, **form)
        for merge in ("max", "mean", "maxnorm", "none"):
            tokens = engine._SCORE_ENTRIES // _CHANNELS
            yield build(labels.score_kernel, f"{bits} bits, {merge}", absent, MERGE=merge, BLOCK_TOKENS=tokens, **form)

    tokens = {"BLOCK_TOKENS": engine._SELECT_TOKENS}
    yield build(selection.select_kernel, "short", BLOCK_BUDGET=engine._SELECT_TOKENS, **tokens)
    for step in range(4):
        yield build(selection.histogram_kernel, f"long, pass {step}", PASS=step, **tokens)
        yield build(selection.narrow_kernel, f"long, pass {step}", PASS=step)
    yield build(selection.count_kernel, "long", **tokens)
    yield build(selection.write_kernel, "long", **tokens)

    absent = {"listed": "lengths", "dense": "index count"}
    for features in _FEATURES:
        tile = {"BLOCK_FEATURES": features, "BLOCK_QUERIES": 16, "PRECISION": "ieee"}
        for kind, names in absent.items():
            for layout, table in (("", " block_table"), (", paged", "")):
                tile["BLOCK_TOKENS"] = engine.key_tile(features, item_bytes, paged=bool(layout))
                yield build(attention.decode_kernel, f"{kind}{layout}, in parts", names + table, N_PARTS=4, **tile)
            names += " block_table top_parts total_parts"
            tile["BLOCK_TOKENS"] = engine.key_tile(features, item_bytes, paged=False)
            yield build(attention.decode_kernel, kind, names, N_PARTS=1, **tile)
        yield build(attention.join_kernel, "joined", N_PARTS=4, BLOCK_PARTS=4, BLOCK_FEATURES=features)
