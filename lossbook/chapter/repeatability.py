"""Seeds and threads: what has to be fixed for a chapter to print the same numbers twice."""

from __future__ import annotations

import os
import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy's legacy state and torch (every device) with one number.

    Library code never relies on these global states; a notebook's own calls may.

    Args:
        seed: The seed, ``>= 0``.

    Returns:
        None.

    Raises:
        ValueError: If ``seed`` is negative.
    """
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - notebooks and scikit-learn read the legacy state
    torch.manual_seed(seed)


def limit_threads(count: int | None = None) -> int:
    """Set the number of threads torch uses inside one operation.

    The order in which threads add up a sum is what makes floating-point results differ between machines.

    Args:
        count: Number of threads, ``>= 1``; default: the environment variable ``LOSSBOOK_THREADS`` if set,
            otherwise torch's own choice.

    Returns:
        The number of threads now in use.

    Raises:
        ValueError: If the count, or what ``LOSSBOOK_THREADS`` holds, is not a whole number ``>= 1``.
    """
    text = str(count) if count is not None else os.environ.get("LOSSBOOK_THREADS", "")
    if text:
        if not text.isdigit() or int(text) < 1:
            name = "count" if count is not None else "LOSSBOOK_THREADS"
            raise ValueError(f"{name} must be a whole number >= 1, got {text!r}")
        torch.set_num_threads(int(text))
    return torch.get_num_threads()
