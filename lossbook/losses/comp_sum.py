r"""The comp-sum family: cross-entropy between the sum-exponential loss and the mean absolute error.

Every member is :math:`\Phi_\tau(u)` with :math:`u = \sum_{c \ne y} \exp(z_c - z_y) = 1 / p_y - 1`, so :math:`1 + u` is
the reciprocal of the softmax probability and :math:`\log(1 + u)` the cross-entropy.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lossbook._validation import (
    check_non_negative,
    check_positive,
    check_same_device,
    check_same_dtype,
    check_shape,
)
from lossbook.losses._shared import check_classification, check_logits, reduce, widen

__all__ = ["adversarial_comp_sum_loss", "class_margins", "comp_sum_loss", "comp_sum_rho_margin_loss"]


def comp_sum_loss(logits: Tensor, target: Tensor, *, tau: float = 1.0, reduction: str = "mean") -> Tensor:
    r"""One member of the comp-sum family, chosen by ``tau``.

    For example :math:`i` with logits :math:`z_i` and right class :math:`y_i`,

    .. math::

        \ell_i = \Phi_\tau(u_i), \qquad
        \Phi_\tau(u) = \frac{(1 + u)^{1 - \tau} - 1}{1 - \tau}, \qquad
        u_i = \sum_{c \ne y_i} \exp(z_{ic} - z_{i y_i}) ,

    and :math:`\Phi_1(u) = \log(1 + u)`, its limit. With :math:`p_i = 1 / (1 + u_i)`, the softmax probability of the
    right class, the loss is :math:`1 / p_i - 1` at ``tau=0`` (sum-exponential), :math:`-\log p_i` at ``tau=1``
    (cross-entropy, in nats), :math:`(1 - p_i^q) / q` with :math:`q = \tau - 1` between 1 and 2 (generalized
    cross-entropy), and :math:`1 - p_i` at ``tau=2`` (half the mean absolute error of the probabilities). The gradient
    by the logits is that of cross-entropy times :math:`p_i^{\tau - 1}`.

    Args:
        logits: Unnormalized scores :math:`z`, shape ``(N, C)``, floating point. float16/bfloat16 are accumulated in
            float32.
        target: Class indices :math:`y` in ``[0, C)``, shape ``(N,)``, int64.
        tau: Member of the family, ``>= 0`` (dimensionless).
        reduction: ``"mean"`` (over N), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``logits``. In ``[0, 1 / (tau - 1)]`` for ``tau > 1``.

    Raises:
        ValueError: If a shape, a class index, ``tau`` or ``reduction`` is not as above. The message names the argument.
        TypeError: If ``logits`` is not floating point, ``target`` not int64 or ``tau`` not a number.

    Examples:
        >>> logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> [round(comp_sum_loss(logits, torch.tensor([0]), tau=tau).item(), 4) for tau in (0, 1, 1.5, 2)]
        [1.0, 0.6931, 0.5858, 0.5]

    Note:
        Infinitely often differentiable. Finite for logits of any magnitude if ``tau >= 1``; for ``tau < 1`` the value
        itself is larger than the largest float once ``(1 - tau) * -log p`` exceeds 88 in float32 or 709 in float64, and
        infinity is returned.

    References:
        Mao, Mohri and Zhong (2023), definition of the comp-sum losses; :doc:`/notebooks/01_comp_sum`.
    """
    check_classification(logits, target)
    check_non_negative("tau", tau)
    surprise = cross_entropy(widen(logits), target, reduction="none")
    return reduce(_phi(surprise, tau), reduction, logits.dtype)


def comp_sum_rho_margin_loss(
    logits: Tensor, target: Tensor, *, tau: float = 1.0, rho: float = 1.0, reduction: str = "mean"
) -> Tensor:
    r"""A comp-sum loss of clipped margins: between the error and the smooth adversarial loss.

    With the margins :math:`z_{i y_i} - z_{ic}` of example :math:`i` and :math:`\Phi_\tau` of :func:`comp_sum_loss`,

    .. math::

        \ell_i = \Phi_\tau\Bigl( \sum_{c \ne y_i} \min\bigl(1, \max(0, 1 - (z_{i y_i} - z_{ic}) / \rho)\bigr) \Bigr) .

    It is 0 where every margin reaches :math:`\rho` and at least :math:`\Phi_\tau(1)` where one is not positive.

    Args:
        logits: Unnormalized scores :math:`z`, shape ``(N, C)``, floating point. float16/bfloat16 are accumulated in
            float32.
        target: Class indices :math:`y` in ``[0, C)``, shape ``(N,)``, int64.
        tau: Member of the family, ``>= 0`` (dimensionless).
        rho: Margin from which on a competing class costs nothing, ``> 0``, in units of the logits.
        reduction: ``"mean"`` (over N), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``logits``. In :math:`[0, \Phi_\tau(C - 1)]`.

    Raises:
        ValueError: If a shape, a class index, ``tau``, ``rho`` or ``reduction`` is not as above.
        TypeError: If ``logits`` is not floating point, ``target`` not int64, or ``tau`` or ``rho`` not a number.

    Examples:
        >>> logits = torch.tensor([[1.0, 0.5, -1.0]])  # margins 0.5 and 2
        >>> comp_sum_rho_margin_loss(logits, torch.tensor([0]), tau=0)
        tensor(0.5000)

    References:
        Mao, Mohri and Zhong (2023), section on adversarial robustness; :doc:`/notebooks/01_comp_sum`.
    """
    check_classification(logits, target)
    check_non_negative("tau", tau)
    check_positive("rho", rho)
    ramp = (1 - _margins(widen(logits), target) / rho).clamp(0, 1)
    return reduce(_phi(ramp.sum(1).log1p(), tau), reduction, logits.dtype)


def adversarial_comp_sum_loss(
    logits: Tensor,
    logits_adv: Tensor,
    target: Tensor,
    *,
    tau: float = 1.0,
    rho: float = 1.0,
    nu: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Smooth adversarial comp-sum loss: a comp-sum loss of the clean input plus what a perturbation moves.

    With the margins :math:`D_{ic} = z_{i y_i} - z_{ic}` of example :math:`i` at the clean input, :math:`D'_{ic}` at a
    perturbed one and :math:`\Phi_\tau` of :func:`comp_sum_loss`,

    .. math::

        \ell_i = \Phi_\tau\Bigl( \sum_{c \ne y_i} \exp(-D_{ic} / \rho) \Bigr)
        + \nu \sqrt{\textstyle\sum_{c \ne y_i} (D'_{ic} - D_{ic})^2} .

    If the perturbed input maximizes the second term over a ball, and :math:`\nu \ge \sqrt{C - 1} / \rho`, then the loss
    is at least the largest :func:`comp_sum_rho_margin_loss` in the ball. Find the input with
    :func:`lossbook.adversarial.pgd`, the objective being the norm of the differences of :func:`class_margins`.

    Args:
        logits: Unnormalized scores :math:`z` at the clean inputs, shape ``(N, C)``, floating point. float16/bfloat16
            are accumulated in float32.
        logits_adv: Scores at the perturbed inputs, shape and dtype of ``logits``. Gradients flow through both.
        target: Class indices :math:`y` in ``[0, C)``, shape ``(N,)``, int64.
        tau: Member of the family, ``>= 0`` (dimensionless).
        rho: Margin in whose units the first term measures, ``> 0``, in units of the logits.
        nu: Weight of the second term, ``>= 0``, in loss per unit of the logits.
        reduction: ``"mean"`` (over N), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``logits``.

    Raises:
        ValueError: If a shape, dtype, class index, ``tau``, ``rho``, ``nu`` or ``reduction`` is not as above.
        TypeError: If logits are not floating point, ``target`` not int64, or a parameter not a number.

    Examples:
        >>> logits, moved = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.0, 3.0, 4.0]])
        >>> adversarial_comp_sum_loss(logits, moved, torch.tensor([0]), tau=2, nu=0.1)  # 1 - 1/3 + 0.1 * 5
        tensor(1.1667)

    Note:
        The gradient of the second term is taken as 0 where nothing moved.

    References:
        Mao, Mohri and Zhong (2023), section on adversarial robustness; :doc:`/notebooks/01_comp_sum`.
    """
    check_classification(logits, target)
    check_logits("logits_adv", logits_adv)
    check_shape("logits_adv", logits_adv, "(N, C)", tuple(logits.shape))
    check_same_dtype("logits_adv", logits_adv, "logits", logits)
    check_same_device("logits_adv", logits_adv, "logits", logits)
    check_non_negative("tau", tau)
    check_positive("rho", rho)
    check_non_negative("nu", nu)
    clean, moved = widen(logits), widen(logits_adv)
    surprise = cross_entropy(clean / rho, target, reduction="none")
    # Margins are linear in the logits, so their differences are the margins of the difference.
    displacement = torch.linalg.vector_norm(_margins(moved - clean, target), dim=1)
    return reduce(_phi(surprise, tau) + nu * displacement, reduction, logits.dtype)


def class_margins(logits: Tensor, target: Tensor) -> Tensor:
    r"""Margins of the right class over every other one.

    For example :math:`i` with logits :math:`z_i` and right class :math:`y_i`, one number for each :math:`c \ne y_i`, in
    the order of the classes:

    .. math:: D_{ic} = z_{i y_i} - z_{ic} .

    Args:
        logits: Unnormalized scores :math:`z`, shape ``(N, C)``, floating point.
        target: Class indices :math:`y` in ``[0, C)``, shape ``(N,)``, int64.

    Returns:
        Shape ``(N, C - 1)``, dtype and unit of ``logits``. An example is classified rightly where all are positive.

    Raises:
        ValueError: If a shape or a class index is not as above.
        TypeError: If ``logits`` is not floating point or ``target`` not int64.

    Examples:
        >>> class_margins(torch.tensor([[3.0, 5.0, 1.0]]), torch.tensor([1]))
        tensor([[2., 4.]])

    References:
        Mao, Mohri and Zhong (2023), section on adversarial robustness; :doc:`/notebooks/01_comp_sum`.
    """
    check_classification(logits, target)
    return _margins(logits, target)


def _margins(logits: Tensor, target: Tensor) -> Tensor:
    column = target[:, None]
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = others + (others >= column)  # skips the right class
    return logits.gather(1, column) - logits.gather(1, others)


def _phi(surprise: Tensor, tau: float) -> Tensor:
    """Phi_tau(u) from ``surprise = log(1 + u) >= 0``: unlike p or 1 + u it neither underflows nor overflows."""
    if tau == 1:
        return surprise
    exponent = (1 - tau) * surprise
    power = exponent.expm1()
    if tau > 1:
        # Autograd multiplies by expm1(x) + 1, which has lost its digits where it is small; exp(x) has not.
        power = torch.where(exponent < -1, exponent.exp() - 1, power)
    return power / (1 - tau)
