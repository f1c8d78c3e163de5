"""Time the candidates of every kernel on one head, for the table in :mod:`config`."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.op import cut_cross_entropy
from lossbook.kernels.cross_entropy.triton import config

# One call for each schedule: exact, both gradients listed, one of them exact.
_CALLS = ({}, {"filter_eps": "auto"}, {"filter_eps": "auto", "filter_c": False})


def tune(e: Tensor, c: Tensor, target: Tensor, **options: Any) -> list[dict[str, Any]]:
    """Time all candidates in a training step on these operands.

    Args:
        e: Hidden states, shape ``(N, D)``, on a GPU.
        c: Classifier, shape ``(V, D)``.
        target: Class indices, shape ``(N,)``.
        **options: Further options of the loss, such as ``softcap``.

    Returns:
        One entry for each kernel and shape: its name, the winner, and every candidate with its time in milliseconds.
        A candidate that does not run on this device has an infinite time.
    """
    e, c = e.detach().requires_grad_(), c.detach().requires_grad_()
    with _autotuning():
        for call in _CALLS:
            loss = cut_cross_entropy(e, c, target, impl="triton", reduction="none", **call, **options)
            torch.autograd.grad(loss.sum(), (e, c))
    return config.timings()


@contextlib.contextmanager
def _autotuning() -> Iterator[None]:
    before = os.environ.get("LOSSBOOK_AUTOTUNE")
    os.environ["LOSSBOOK_AUTOTUNE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOSSBOOK_AUTOTUNE"]
        else:
            os.environ["LOSSBOOK_AUTOTUNE"] = before
