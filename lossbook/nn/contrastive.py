"""Several projection heads, and a temperature for each pair in each of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lossbook._validation import (
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_shape,
    check_tensor,
)

__all__ = ["AdaptiveTemperature", "MultiHeadProjector"]


class MultiHeadProjector(nn.Module):
    r"""Several small networks that project the same features, each its own opinion of what is similar.

    Head :math:`c` of :math:`C` maps features :math:`h` to

    .. math::

        z^c = \frac{v^c}{\lVert v^c \rVert} , \qquad v^c = B^c \operatorname{relu}(A^c h + a^c) + b^c .

    Args:
        in_dim: Number of features :math:`h`, ``>= 1``.
        out_dim: Size of an embedding, ``>= 1``.
        num_heads: Number of heads :math:`C`, ``>= 1``. Default 3.
        hidden_dim: Width of the hidden layer of each head, ``>= 1``. Default ``in_dim``.
        generator: Draws the initial weights, uniform in :math:`\pm 1 / \sqrt{n}` for :math:`n` inputs of a layer.
            Default: torch's global state, as for ``torch.nn.Linear``.

    Raises:
        TypeError: If a size is not an int.
        ValueError: If a size is below 1.

    Examples:
        >>> projector = MultiHeadProjector(64, 16, num_heads=3)
        >>> projector(torch.randn(5, 64)).shape
        torch.Size([3, 5, 16])

    References:
        Wang et al. (2024), multiple projection heads; chapter 9 (:doc:`/notebooks/09_multi_head_contrastive`).
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        num_heads: int = 3,
        hidden_dim: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        hidden_dim = in_dim if hidden_dim is None else hidden_dim
        _check_sizes(in_dim=in_dim, out_dim=out_dim, num_heads=num_heads, hidden_dim=hidden_dim)
        # Parameters of all heads are stacked, so that one batched product serves them all.
        self.hidden = _head_parameters(num_heads, in_dim, hidden_dim)
        self.output = _head_parameters(num_heads, hidden_dim, out_dim)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights.

        Args:
            generator: As for the class.

        Returns:
            None.
        """
        for layer in (self.hidden, self.output):
            bound = layer["weight"].shape[1] ** -0.5
            for parameter in (layer["weight"], layer["bias"]):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        """Project features by every head.

        Args:
            features: Shape ``(B, in_dim)``, floating point, dtype of the parameters.

        Returns:
            Embeddings of unit length, shape ``(C, B, out_dim)``.

        Raises:
            TypeError: If ``features`` is not floating point.
            ValueError: If the shape differs.
        """
        check_tensor("features", features)
        check_floating("features", features)
        check_shape("features", features, "(B, in_dim)", (None, self.hidden["weight"].shape[1]))
        hidden = F.relu(features @ self.hidden["weight"] + self.hidden["bias"])
        return F.normalize(hidden @ self.output["weight"] + self.output["bias"], dim=2)


class AdaptiveTemperature(nn.Module):
    r"""A temperature for every pair of embeddings in every head, between two bounds.

    One linear map :math:`\phi`, shared by the heads, and a bias :math:`b_c` for each give the pair of the embeddings
    :math:`a^c_i` and :math:`b^c_j` in head :math:`c`

    .. math:: \tau^c_{ij} = l + (h - l) \, \sigma\bigl( \phi(a^c_i) \cdot \phi(b^c_j) + b_c \bigr) .

    The bounds are part of the method: the contrastive term of a pair that is alike falls without limit as its
    temperature does, see :func:`lossbook.losses.optimal_temperature`.

    Args:
        dim: Size of an embedding, ``>= 1``.
        num_heads: Number of heads :math:`C`, ``>= 1``.
        low: Lower bound :math:`l > 0`. Default 0.05.
        high: Upper bound :math:`h`. Default 1.
        init: Temperature of a pair before training, but for the random :math:`\phi`; between the bounds. Default 0.2.
        hidden_dim: Number of outputs of :math:`\phi`, ``>= 1``. Default 16.
        generator: Draws the initial weights of :math:`\phi`, normal with mean 0 and standard deviation 0.1. Default:
            torch's global state.

    Raises:
        TypeError: If a size is not an int or a temperature not a number.
        ValueError: If a size is below 1, or not ``0 < low < init < high``.

    Examples:
        >>> temperature = AdaptiveTemperature(16, num_heads=3)
        >>> z = F.normalize(torch.randn(3, 5, 16), dim=2)
        >>> temperature(z, z).shape
        torch.Size([3, 5, 5])

    Note:
        Exchanging the arguments transposes the temperatures. The bounds are not reached, except by rounding where
        training has made the sigmoid saturate.

    References:
        Wang et al. (2024), adaptive temperature. The paper asks for a shared network on the projected features; the
        product of two outputs, which serves all pairs at once, is our reading. Its public code bounds temperatures by
        1e-5 and 2. Chapter 9 (:doc:`/notebooks/09_multi_head_contrastive`).
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        low: float = 0.05,
        high: float = 1.0,
        init: float = 0.2,
        hidden_dim: int = 16,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(dim=dim, num_heads=num_heads, hidden_dim=hidden_dim)
        for name, value in (("low", low), ("high", high), ("init", init)):
            check_positive(name, value)
        if not low < init < high:
            raise ValueError(f"init must lie in (low, high) = ({low!r}, {high!r}), got {init!r}")
        self.low, self.high, self.init = low, high, init
        self.phi = nn.utils.skip_init(nn.Linear, dim, hidden_dim, bias=False)
        self.bias = nn.Parameter(torch.empty(num_heads))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights, and set the biases so that temperatures are near ``init``.

        Args:
            generator: As for the class.

        Returns:
            None.
        """
        nn.init.normal_(self.phi.weight, std=0.1, generator=generator)
        nn.init.constant_(self.bias, math.log((self.init - self.low) / (self.high - self.init)))

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Temperatures of all pairs.

        Args:
            z_a: Embeddings of the first views, shape ``(C, B, dim)``, floating point, dtype of the parameters.
            z_b: Embeddings of the second views, like ``z_a``.

        Returns:
            Temperatures, shape ``(C, B, B)``: entry ``[c, i, j]`` for ``z_a[c, i]`` and ``z_b[c, j]``.

        Raises:
            TypeError: If a tensor is not floating point.
            ValueError: If a shape or dtype differs.
        """
        for name, z in (("z_a", z_a), ("z_b", z_b)):
            check_tensor(name, z)
            check_floating(name, z)
            check_shape(name, z, "(C, B, dim)", (len(self.bias), None, self.phi.in_features))
        check_shape("z_b", z_b, "z_a.shape", z_a.shape)
        check_same_dtype("z_b", z_b, "z_a", z_a)
        logits = self.phi(z_a) @ self.phi(z_b).mT + self.bias[:, None, None]
        return self.low + (self.high - self.low) * logits.sigmoid()


def _check_sizes(**sizes: int) -> None:
    """Require sizes of at least one.

    Raises:
        TypeError: If one is no int.
        ValueError: If one is below 1.
    """
    for name, value in sizes.items():
        check_integer(name, value)
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")


def _head_parameters(heads: int, inputs: int, outputs: int) -> nn.ParameterDict:
    """Weights (C, inputs, outputs) and biases (C, 1, outputs) of one layer of every head, not yet set."""
    shapes = {"weight": (heads, inputs, outputs), "bias": (heads, 1, outputs)}
    return nn.ParameterDict({name: nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()})
