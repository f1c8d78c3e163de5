"""How sparse the softmax of the inputs is, and what each gradient filter keeps of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lossbook.bench.inputs import ENTRY_EPS, Inputs
from lossbook.bench.methods import Filter
from lossbook.kernels import softmax_sparsity


def describe_inputs(inputs: Inputs, filters: Iterable[Filter]) -> dict[str, Any]:
    """Measure density and kept fractions over all rows.

    Args:
        inputs: The inputs.
        filters: Filters of the methods that will run.

    Returns:
        ``entry_density``: fraction of softmax entries that reach :data:`~lossbook.bench.inputs.ENTRY_EPS`.
        ``columns`` and ``tiles``: fractions kept in blocks of 128 rows, by threshold; the key is the threshold as text.
        ``scale``: that of the inputs.
    """
    e, c, target = inputs.e.detach(), inputs.c.detach(), inputs.target
    thresholds = {eps for which in filters for eps in (which.eps_e, which.eps_c) if eps is not None} | {ENTRY_EPS}
    measured = {eps: softmax_sparsity(e, c, target, eps=eps) for eps in sorted(thresholds)}
    fractions = {unit: {str(eps): result[unit] for eps, result in measured.items()} for unit in ("columns", "tiles")}
    return {"scale": inputs.scale, "entry_density": measured[ENTRY_EPS]["entries"]} | fractions
