"""What losses of embeddings share: checks of their arguments, unit length, and similarities within the batch."""

import torch
from torch import Tensor
from torch.nn import functional

from lossbook._validation import check_floating, check_shape, check_tensor
from lossbook.losses._shared import widen


def check_embeddings(name: str, z: Tensor, *, at_least: int = 0) -> None:
    """Require floating-point embeddings of shape (N, D) with enough rows.

    Raises:
        TypeError: If they are no tensor or not floating point.
        ValueError: If they have another number of dimensions, or too few rows.
    """
    check_tensor(name, z)
    check_floating(name, z)
    check_shape(name, z, "(N, D)", (None, None))
    if z.shape[0] < at_least:
        raise ValueError(f"{name} must have shape (N, D) with N >= {at_least}, got {tuple(z.shape)}")


def unit(z: Tensor) -> Tensor:
    """Embeddings as rows of length one, half precision as float32; a zero stays zero."""
    return functional.normalize(widen(z), dim=-1)


def exclude_diagonal(x: Tensor) -> Tensor:
    """Square matrices with -inf on the diagonal, shape (..., N, N)."""
    return x.masked_fill(torch.eye(x.shape[-1], dtype=torch.bool, device=x.device), -torch.inf)


def similarities(z: Tensor, temperature: float) -> Tensor:
    """Cosines of all pairs of rows over the temperature, with the pairs of a row with itself excluded by -inf."""
    rows = unit(z)
    return exclude_diagonal(rows @ rows.T / temperature)
