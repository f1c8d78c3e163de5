"""Phase ``device``: what the device is, and its two ceilings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lossbook.bench.environment import device_facts
from lossbook.bench.measure import copy_bandwidth, matrix_ceiling, use_device


def records(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure the device.

    Args:
        spec: ``device`` and ``dtype``.

    Yields:
        The facts; then the ceilings, in 10^12 operations and 10^12 bytes per second.
    """
    device = spec["device"]
    use_device(device)
    yield {"facts": device_facts(device)}
    yield {"copy_terabytes": copy_bandwidth(device) / 1e12}
    yield {"matrix_tflops": matrix_ceiling(getattr(torch, spec["dtype"]), device) / 1e12, "dtype": spec["dtype"]}
