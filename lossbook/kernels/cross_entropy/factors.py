"""How the statistics of a row's logits become its loss."""

from typing import NamedTuple

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.problem import take


class Factors(NamedTuple):
    r"""Factors of each row in the loss, all of shape ``(n,)``; None where a term is absent.

    .. math:: \ell = a (\mathrm{lse} - z_x) + s \sum_v w_v (\mathrm{lse} - z_v) + q\, \mathrm{lse}^2

    Attributes:
        nll: :math:`a`, zero at ignored rows like the others.
        smoothing: :math:`s`.
        z: :math:`q`.
    """

    nll: Tensor
    smoothing: Tensor | None
    z: Tensor | None

    @classmethod
    def of(cls, valid: Tensor, token_weight: Tensor, *, label_smoothing: float, z_loss: float, size: int) -> "Factors":
        """Factors from the public options; ``token_weight`` is the weight of each row's target, ``size`` is V."""
        ones = valid.to(token_weight.dtype)
        return cls(
            (1 - label_smoothing) * token_weight,
            label_smoothing / size * ones if label_smoothing > 0 else None,
            z_loss * ones if z_loss > 0 else None,
        )

    def take(self, rows: Tensor | slice | None) -> "Factors":
        """The factors of some rows."""
        return Factors(*(take(value, rows) for value in self))

    def times(self, scale: Tensor | float) -> "Factors":
        """All factors multiplied by a scalar."""
        return Factors(*(None if value is None else value * scale for value in self))

    def over(self, denominator: Tensor) -> "Factors":
        """All factors divided by a scalar; zero where that is zero."""
        return self.times(torch.where(denominator == 0, 0, 1 / denominator))

    def loss(
        self, lse: Tensor, target_logit: Tensor, logit_sum: Tensor | None, total_weight: Tensor | float | None
    ) -> Tensor:
        """Each row's loss; ``logit_sum`` is :math:`sum_v w_v z_v` and ``total_weight`` is :math:`sum_v w_v`."""
        loss = self.nll * (lse - target_logit)
        if self.smoothing is not None:
            loss = loss + self.smoothing * (total_weight * lse - logit_sum)
        if self.z is not None:
            loss = loss + self.z * lse.square()
        return loss

    def d_lse(self, lse: Tensor, total_weight: Tensor | float | None) -> Tensor:
        """Derivative of :meth:`loss` by ``lse``."""
        slope = self.nll
        if self.smoothing is not None:
            slope = slope + self.smoothing * total_weight
        if self.z is not None:
            slope = slope + 2 * self.z * lse
        return slope
