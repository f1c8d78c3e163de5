"""A calibrator that predicts one temperature per example from how a classifier answers transformed copies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lossbook._validation import check_floating, check_integer, check_positive, check_shape, check_tensor

__all__ = ["TemperatureCalibrator", "transformed_features"]


def transformed_features(logits: Tensor, transformed_logits: Sequence[Tensor], *, k: int = 4) -> Tensor:
    r"""How sure a classifier is of its top answers when it sees transformed copies of the input.

    Let :math:`t_1, \dots, t_k` be the classes with the largest logits :math:`z_i` of the original, in that order. The
    features are the softmax probabilities :math:`p^{(v)}_{i t_j}` of the copies :math:`v` at these classes, copy by
    copy: features 1 to :math:`k` belong to the first copy. No label enters.

    Args:
        logits: Logits of the originals, shape ``(N, C)``, floating point.
        transformed_logits: Logits of one or more transformed copies, shape ``(N, C)`` each, floating point.
        k: Number of top classes, in ``[1, C]``. Default 4.

    Returns:
        Shape ``(N, k * len(transformed_logits))``, dtype of ``logits``.

    Raises:
        ValueError: If a shape or ``k`` is not as above, or there is no copy.
        TypeError: If a tensor is not floating point or ``k`` not an int.

    Examples:
        >>> original = torch.tensor([[0.0, 2.0, 1.0]])
        >>> copy = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> transformed_features(original, [copy, copy], k=2)
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])

    References:
        Liu et al. (2024), transformed images as input of the calibrator; chapter 5 (:doc:`/notebooks/05_calibration`).
    """
    check_tensor("logits", logits)
    check_floating("logits", logits)
    check_shape("logits", logits, "(N, C)", (None, None))
    check_integer("k", k)
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k must lie in [1, C] = [1, {logits.shape[1]}], got {k}")
    if len(transformed_logits) == 0:
        raise ValueError("transformed_logits must hold the logits of at least one copy, got none")
    for place, copy in enumerate(transformed_logits):
        check_tensor(f"transformed_logits[{place}]", copy)
        check_floating(f"transformed_logits[{place}]", copy)
        check_shape(f"transformed_logits[{place}]", copy, "(N, C)", tuple(logits.shape))
    top = logits.topk(k, dim=1).indices
    views = [copy.softmax(1, dtype=torch.promote_types(copy.dtype, torch.float32)) for copy in transformed_logits]
    return torch.cat([view.gather(1, top) for view in views], dim=1).to(logits.dtype)


class TemperatureCalibrator(nn.Module):
    r"""A small network that divides each example's logits by a temperature of its own.

    From features :math:`f`, such as those of :func:`transformed_features`,

    .. math::

        u = w \cdot \operatorname{relu}(A f + a) + b , \qquad
        T = \min\bigl(T_{\max}, \max(T_{\min}, \log(1 + e^{u + s}))\bigr) ,

    where the constant :math:`s` makes :math:`T = 1` at :math:`u = 0` (or the geometric mean of the bounds, where 1 is
    not between them): an untrained calibrator changes little, and starts where the bounds do not stop its gradient.
    Dividing by :math:`T > 0` keeps the order of the logits, hence every answer and the accuracy.

    Args:
        in_features: Number of features, ``>= 1``.
        hidden: Width of the hidden layer, ``>= 1``. Default 5.
        t_min: Lowest temperature, ``> 0``. Default 0.1.
        t_max: Highest temperature, above ``t_min``. Default 10.
        generator: Draws the initial weights, uniform in :math:`\pm 1 / \sqrt{n}` for :math:`n` inputs of a layer.
            Default: torch's global state, as for ``torch.nn.Linear``.

    Raises:
        ValueError: If a size is below 1, or not ``0 < t_min < t_max``.
        TypeError: If a size is not an int or a bound not a number.

    Examples:
        >>> calibrator = TemperatureCalibrator(12, generator=torch.Generator().manual_seed(0))
        >>> logits, features = torch.randn(3, 10), torch.rand(3, 12)
        >>> calibrator(logits, features).shape, calibrator.temperature(features).shape
        (torch.Size([3, 10]), torch.Size([3, 1]))

    Note:
        The public code bounds the output of the last layer directly, which stops the gradient wherever it starts below
        ``t_min``.

    References:
        Liu et al. (2024), calibrator; chapter 5 (:doc:`/notebooks/05_calibration`).
    """

    def __init__(
        self,
        in_features: int,
        *,
        hidden: int = 5,
        t_min: float = 0.1,
        t_max: float = 10.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("hidden", hidden)):
            check_integer(name, value)
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        check_positive("t_min", t_min)
        check_positive("t_max", t_max)
        if t_min >= t_max:
            raise ValueError(f"t_max must be > t_min = {t_min!r}, got {t_max!r}")
        self.t_min, self.t_max = t_min, t_max
        start = 1.0 if t_min < 1 < t_max else math.sqrt(t_min * t_max)
        self._offset = start + math.log(-math.expm1(-start))  # softplus of it is start
        self.first = nn.utils.skip_init(nn.Linear, in_features, hidden)
        self.last = nn.utils.skip_init(nn.Linear, hidden, 1)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights.

        Args:
            generator: As for the class.

        Returns:
            None.
        """
        for layer in (self.first, self.last):
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def temperature(self, features: Tensor) -> Tensor:
        """Each example's temperature.

        Args:
            features: Shape ``(N, in_features)``, floating point, dtype of the parameters.

        Returns:
            Shape ``(N, 1)``, in ``[t_min, t_max]``.

        Raises:
            ValueError: If the shape differs.
            TypeError: If ``features`` is not floating point.
        """
        check_tensor("features", features)
        check_floating("features", features)
        check_shape("features", features, "(N, in_features)", (None, self.first.in_features))
        output = self.last(F.relu(self.first(features)))
        return F.softplus(output + self._offset).clamp(self.t_min, self.t_max)

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """Logits divided by the temperatures of :meth:`temperature`.

        Args:
            logits: Shape ``(N, C)``, floating point.
            features: Shape ``(N, in_features)``, floating point.

        Returns:
            Shape ``(N, C)``.

        Raises:
            ValueError: If a shape differs, or the tensors hold different numbers of examples.
            TypeError: If a tensor is not floating point.
        """
        temperature = self.temperature(features)
        check_tensor("logits", logits)
        check_floating("logits", logits)
        check_shape("logits", logits, "(N, C)", (len(features), None))
        return logits / temperature
