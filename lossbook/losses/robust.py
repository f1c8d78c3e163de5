"""Label-distributionally robust losses: the worst case over label weights, with one temperature or one per example."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lossbook._validation import (
    check_choice,
    check_dtype,
    check_floating,
    check_integer,
    check_non_negative,
    check_number,
    check_positive,
    check_same_device,
    check_shape,
    check_target_range,
    check_tensor,
    values_are_readable,
)
from lossbook.losses._shared import REDUCTIONS, check_classification, check_logits, reduce, widen

__all__ = ["ALDRKLLoss", "aldr_kl_lambda", "aldr_kl_loss", "ldr_kl_loss", "normalize_scores"]


def ldr_kl_loss(
    logits: Tensor, target: Tensor, *, lam: float = 1.0, margin: float = 0.0, reduction: str = "mean"
) -> Tensor:
    r"""Worst case of the class margins over label weights that pay KL divergence for leaving the uniform ones.

    With :math:`K` classes and the uniform weights :math:`u`, the loss of example :math:`i` with logits :math:`z_i` is

    .. math::

        \ell_i = \max_{p \in \Delta_K} \sum_{k=1}^{K} p_k \delta_{ik} - \lambda\, \mathrm{KL}(p \Vert u)
        = \lambda \log \frac{1}{K} \sum_{k=1}^{K} e^{\delta_{ik} / \lambda} , \qquad
        \delta_{ik} = z_{ik} - z_{i y_i} + c\, [k \ne y_i] ,

    attained at :math:`p = \mathrm{softmax}(\delta_i / \lambda)`. ``lam=1`` without a margin is cross-entropy minus
    :math:`\log K`. ``lam=0`` is :math:`\max_k \delta_{ik}`, the hinge of Crammer and Singer; ``lam=math.inf`` is
    :math:`\frac{1}{K} \sum_k \delta_{ik}`, a symmetric loss: summed over all labels it is :math:`c (K - 1)` whatever
    the logits. The value is in units of the logits, falls as ``lam`` grows, and may be as low as
    :math:`-\lambda \log K`.

    Args:
        logits: Scores :math:`z`, shape ``(N, C)`` with ``C = K >= 1``, floating point. float16 and bfloat16 are
            accumulated in float32.
        target: Class indices :math:`y` in ``[0, C)``, shape ``(N,)``, int64.
        lam: Price :math:`\lambda` of a nat of divergence, in ``[0, inf]`` with both ends included. Default 1.
        margin: Margin :math:`c >= 0` demanded of every wrong class, in units of the logits. Default 0.
        reduction: ``"mean"`` (over N, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``logits``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, class index, ``lam``, ``margin`` or ``reduction`` is not as above.

    Examples:
        >>> logits, target = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
        >>> ldr_kl_loss(logits, target) + math.log(2)
        tensor(0.3133)
        >>> ldr_kl_loss(logits, target, lam=0.0), ldr_kl_loss(logits, target, lam=math.inf)
        (tensor(0.), tensor(-0.5000))

    Note:
        Accurate over the whole range of ``lam``: a large one does not cancel digits. For ``0 < lam < inf`` the loss is
        convex and smooth; at 0, equal maxima share the gradient evenly. From about ``lam=10`` on, logits should be
        normalized first, see :func:`normalize_scores`: the loss hardly tells large logits from larger ones.

    References:
        Zhu, Ying and Yang (2023), Label Distributionally Robust Losses for Multi-class Classification; chapter 2
        (:doc:`/notebooks/02_label_distributional_robustness`).
    """
    check_classification(logits, target)
    _check_classes(logits, 1)
    _check_lam(lam)
    check_non_negative("margin", margin)
    delta = _margins(widen(logits), target, margin)
    info = torch.finfo(delta.dtype)
    # Beyond these the limits are exact to rounding, and a division by lam would leave the range of the dtype.
    if lam < info.tiny / info.eps:
        losses = delta.amax(1)
    elif lam > info.eps / info.tiny:
        losses = delta.mean(1)
    else:
        losses = _soft_maximum(delta, lam)
    return reduce(losses, reduction, logits.dtype)


def normalize_scores(logits: Tensor) -> Tensor:
    r"""Scores of any size as positive ones with mean 1, in the same order.

    .. math:: s_{ik} = \frac{\mathrm{softplus}(z_{ik})}{\frac{1}{K} \sum_{j=1}^{K} \mathrm{softplus}(z_{ij})} ,
        \qquad \mathrm{softplus}(x) = \log(1 + e^x) .

    A network can undo any temperature by larger logits. On scores of fixed size a temperature has a meaning: all lie in
    :math:`(0, K)`, so that a ``lam`` of 10 is mild for 10 classes and not for 100. No loss of this package applies it
    by itself.

    Args:
        logits: Scores :math:`z`, shape ``(N, C)`` with ``C = K >= 1``, floating point.

    Returns:
        Shape and dtype of ``logits``.

    Raises:
        TypeError: If ``logits`` is no floating-point tensor.
        ValueError: If it has another shape.

    Examples:
        >>> normalize_scores(torch.tensor([[0.0, 0.0, 3.0]]))
        tensor([[0.4689, 0.4689, 2.0622]])

    Note:
        Rows of very negative logits, whose softplus underflows, are handled; logits of magnitude 1e4 are safe.

    References:
        Zhu, Ying and Yang (2023), public code of the experiments; chapter 2
        (:doc:`/notebooks/02_label_distributional_robustness`).
    """
    check_logits("logits", logits)
    _check_classes(logits, 1)
    z = widen(logits)
    cut = math.log(torch.finfo(z.dtype).eps)
    top = z.detach().amax(1, keepdim=True)
    # Where all of a row lies below the cut, softplus is the exponential to rounding, and ratios survive a shift.
    scores = torch.where(top < cut, (z - top).exp(), functional.softplus(z, threshold=-cut))
    return (scores / scores.mean(1, keepdim=True)).to(logits.dtype)


@torch.no_grad()
def aldr_kl_lambda(logits: Tensor, lam: Tensor, *, lam0: float = 1.0, alpha: float = 2.0, n_iter: int = 1) -> Tensor:
    r"""Next temperatures of ALDR-KL: low for examples with decided scores, near ``lam0`` for undecided ones.

    Each iteration takes the worst-case weights at the present :math:`\lambda_i`, then the best :math:`\lambda_i` for
    these weights. With :math:`K` classes and the uniform weights :math:`u`,

    .. math::

        \lambda_i \leftarrow \lambda_0 \Big(1 - \frac{\mathrm{KL}(p_i \Vert u)}{\alpha \log K}\Big) , \qquad
        p_i = \mathrm{softmax}(z_i / \lambda_i) .

    The result lies in :math:`[\lambda_0 (1 - 1/\alpha), \lambda_0]`. Neither label nor margin takes part.

    Args:
        logits: Scores :math:`z`, shape ``(N, C)`` with ``C = K >= 2``, floating point, as given to
            :func:`aldr_kl_loss`; usually from :func:`normalize_scores`.
        lam: Present temperatures, shape ``(N,)``, floating point, ``> 0``.
        lam0: Largest temperature :math:`\lambda_0 > 0`. Default 1.
        alpha: Stiffness :math:`\alpha > 1`: the larger, the closer to ``lam0``. Default 2.
        n_iter: Number of iterations, ``>= 0``. Default 1, as in training.

    Returns:
        Shape ``(N,)``, without a gradient, in the wider dtype of ``lam`` and ``logits`` and at least float32.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape or value is not as above.

    Examples:
        >>> scores = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
        >>> aldr_kl_lambda(scores, torch.ones(2))
        tensor([1.0000, 0.7635])

    References:
        Zhu, Ying and Yang (2023), section on adaptive LDR losses; chapter 2
        (:doc:`/notebooks/02_label_distributional_robustness`).
    """
    check_logits("logits", logits)
    _check_classes(logits, 2)
    _check_lam_tensor(lam, logits)
    _check_adaptive(lam0, alpha)
    check_integer("n_iter", n_iter)
    check_non_negative("n_iter", n_iter)
    dtype = torch.promote_types(widen(logits).dtype, lam.dtype)
    z, lam = logits.to(dtype), lam.to(dtype)
    z = z - z.amax(1, keepdim=True)
    most = math.log(logits.shape[1])
    for _ in range(n_iter):
        entropy = torch.special.entr(torch.softmax(z / lam[:, None], 1)).sum(1)
        lam = lam0 * (1 - (most - entropy).clamp(0, most) / (alpha * most))
    return lam


def aldr_kl_loss(
    logits: Tensor,
    target: Tensor,
    lam: Tensor,
    *,
    lam0: float = 1.0,
    alpha: float = 2.0,
    margin: float = 0.1,
    reduction: str = "mean",
) -> Tensor:
    r"""LDR-KL with a temperature of its own for each example, which pays for leaving ``lam0``.

    .. math::

        \ell_i = \lambda_i \log \frac{1}{K} \sum_{k=1}^{K} e^{\delta_{ik} / \lambda_i}
        - \frac{\alpha \log K}{2 \lambda_0} (\lambda_i - \lambda_0)^2 , \qquad
        \delta_{ik} = z_{ik} - z_{i y_i} + c\, [k \ne y_i] .

    The adversary chooses :math:`\lambda_i` too: it comes from :func:`aldr_kl_lambda` and is a constant here. At that
    function's fixed point and without a margin this is the whole gradient, because the loss is stationary in
    :math:`\lambda_i`.

    Args:
        logits: Scores :math:`z`, shape ``(N, C)`` with ``C = K >= 2``, floating point; usually from
            :func:`normalize_scores`. float16 and bfloat16 are accumulated in float32.
        target: Class indices :math:`y` in ``[0, C)``, shape ``(N,)``, int64.
        lam: Temperatures :math:`\lambda`, shape ``(N,)``, floating point, ``> 0``; gets no gradient.
        lam0: As in :func:`aldr_kl_lambda`, ``> 0``. Default 1.
        alpha: As in :func:`aldr_kl_lambda`, ``> 1``. Default 2.
        margin: Margin :math:`c >= 0` demanded of every wrong class, in units of the logits. Default 0.1.
        reduction: ``"mean"`` (over N, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``logits``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape or value is not as above.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> lam = aldr_kl_lambda(logits, torch.ones(1), n_iter=50)
        >>> aldr_kl_loss(logits, target, lam, margin=0.0)
        tensor(-0.5057)

    References:
        Zhu, Ying and Yang (2023), section on adaptive LDR losses; chapter 2
        (:doc:`/notebooks/02_label_distributional_robustness`).
    """
    check_classification(logits, target)
    _check_classes(logits, 2)
    _check_lam_tensor(lam, logits)
    _check_adaptive(lam0, alpha)
    check_non_negative("margin", margin)
    z = widen(logits)
    lam = lam.detach().to(z.dtype)
    stiffness = alpha * math.log(logits.shape[1]) / (2 * lam0)
    losses = _soft_maximum(_margins(z, target, margin), lam[:, None]) - stiffness * (lam - lam0).square()
    return reduce(losses, reduction, logits.dtype)


class ALDRKLLoss(nn.Module):
    r"""ALDR-KL that remembers the temperature of every training example.

    In training mode each call first takes one step of :func:`aldr_kl_lambda` for the examples of the batch, then
    returns :func:`aldr_kl_loss` at the new temperatures:

    .. math::

        \ell_i = \lambda_i \log \frac{1}{K} \sum_{k=1}^{K} e^{\delta_{ik} / \lambda_i}
        - \frac{\alpha \log K}{2 \lambda_0} (\lambda_i - \lambda_0)^2 .

    Args:
        num_samples: Number of training examples, ``>= 1``.
        lam0: Largest and first temperature :math:`\lambda_0 > 0`. Default 1.
        alpha: Stiffness :math:`\alpha > 1`. Default 2.
        margin: Margin :math:`c >= 0`, in units of the logits. Default 0.1.
        reduction: ``"mean"`` (over N, default), ``"sum"`` or ``"none"``.

    Attributes:
        lam: Buffer of the temperatures, float32, shape ``(num_samples,)``; part of ``state_dict``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of its range.

    Examples:
        >>> loss = ALDRKLLoss(100, lam0=10.0)
        >>> logits, target, index = torch.randn(2, 5), torch.tensor([3, 0]), torch.tensor([17, 42])
        >>> loss(normalize_scores(logits), target, index).shape
        torch.Size([])
        >>> int((loss.lam != 10.0).sum())
        2

    Note:
        An example must keep its index from epoch to epoch, whatever the order of the batches. Scores that are not
        finite, as after an overflow in float16, leave the stored temperature as it was.

    References:
        Zhu, Ying and Yang (2023), section on adaptive LDR losses; chapter 2
        (:doc:`/notebooks/02_label_distributional_robustness`).
    """

    lam: Tensor

    def __init__(
        self,
        num_samples: int,
        *,
        lam0: float = 1.0,
        alpha: float = 2.0,
        margin: float = 0.1,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_integer("num_samples", num_samples)
        if num_samples < 1:
            raise ValueError(f"num_samples must be >= 1, got {num_samples}")
        _check_adaptive(lam0, alpha)
        check_non_negative("margin", margin)
        check_choice("reduction", reduction, REDUCTIONS)
        self.lam0, self.alpha, self.margin, self.reduction = lam0, alpha, margin, reduction
        self.register_buffer("lam", torch.full((num_samples,), float(lam0), dtype=torch.float32))

    def forward(self, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """Update the temperatures of a batch, then compute its loss.

        Args:
            logits: Scores, shape ``(N, C)`` with ``C >= 2``, floating point.
            target: Class indices in ``[0, C)``, shape ``(N,)``, int64.
            index: Which training examples these are, in ``[0, num_samples)``, each at most once, shape ``(N,)``,
                int64.

        Returns:
            Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``logits``.

        Raises:
            TypeError: If an argument has the wrong type or dtype.
            ValueError: If a shape or value is not as above.
        """
        check_classification(logits, target)
        check_tensor("index", index)
        check_shape("index", index, "(N,)", (logits.shape[0],))
        check_dtype("index", index, torch.int64)
        check_same_device("index", index, "logits", logits)
        check_target_range("index", index, len(self.lam), symbol="num_samples")
        lam = self.lam[index]
        if self.training:
            new = aldr_kl_lambda(logits, lam, lam0=self.lam0, alpha=self.alpha).to(lam.dtype)
            lam = torch.where(new.isfinite(), new, lam)
            self.lam[index] = lam
        options = {"lam0": self.lam0, "alpha": self.alpha, "margin": self.margin, "reduction": self.reduction}
        return aldr_kl_loss(logits, target, lam, **options)

    def extra_repr(self) -> str:
        """The settings.

        Returns:
            A line for ``repr``.

        Examples:
            >>> ALDRKLLoss(100, lam0=10.0)
            ALDRKLLoss(100, lam0=10.0, alpha=2.0, margin=0.1, reduction='mean')
        """
        return (
            f"{len(self.lam)}, lam0={self.lam0}, alpha={self.alpha}, margin={self.margin}, reduction={self.reduction!r}"
        )


def _margins(z: Tensor, target: Tensor, margin: float) -> Tensor:
    """How far each class is ahead of the right one, which is ahead of itself by exactly zero."""
    label = target[:, None]
    return (z - z.gather(1, label) + margin).scatter(1, label, 0.0)


def _soft_maximum(delta: Tensor, lam: float | Tensor) -> Tensor:
    """``lam * log(mean(exp(delta / lam)))`` of each row, for ``lam`` a number or of shape (N, 1)."""
    top = delta.detach().amax(1, keepdim=True)
    scaled = (delta - top) / lam
    # Two forms of log-mean-exp. Of nearly equal values the first keeps the digits that a large lam magnifies; the
    # second is the accurate one for values far apart. The clamp keeps gradients finite where it is not chosen.
    near = scaled.clamp(min=-1.0).expm1().mean(1, keepdim=True).log1p()
    far = scaled.logsumexp(1, keepdim=True) - math.log(delta.shape[1])
    log_mean_exp = torch.where(scaled.detach().amin(1, keepdim=True) > -1.0, near, far)
    return (top + lam * log_mean_exp).squeeze(1)


def _check_lam(lam: Any) -> None:
    if isinstance(lam, bool) or not isinstance(lam, int | float):
        raise TypeError(f"lam must be a number, got {type(lam).__name__} {lam!r}")
    if not lam >= 0:  # written so that NaN is refused too
        raise ValueError(f"lam must lie in [0, inf], got {lam!r}")


def _check_lam_tensor(lam: Any, logits: Tensor) -> None:
    check_tensor("lam", lam)
    check_shape("lam", lam, "(N,)", (logits.shape[0],))
    check_floating("lam", lam)
    check_same_device("lam", lam, "logits", logits)
    if values_are_readable(lam):
        wrong = ~((lam > 0) & lam.isfinite())
        if wrong.any():
            raise ValueError(f"lam must be > 0 and finite, got {float(lam[wrong][0])!r}")


def _check_adaptive(lam0: Any, alpha: Any) -> None:
    check_positive("lam0", lam0)
    check_number("alpha", alpha)
    if alpha <= 1:
        raise ValueError(f"alpha must be > 1, got {alpha!r}")


def _check_classes(logits: Tensor, least: int) -> None:
    if logits.shape[1] < least:
        raise ValueError(f"logits must have shape (N, C) with C >= {least}, got {tuple(logits.shape)}")
