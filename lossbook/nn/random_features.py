"""Random features and their linear readout in closed form, and many two-layer networks trained as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lossbook._validation import (
    check_choice,
    check_floating,
    check_integer,
    check_non_negative,
    check_positive,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
    values_are_readable,
)

__all__ = [
    "RandomFeatures",
    "WidthSweepMLP",
    "condition_number",
    "descent_filter",
    "gd_readout",
    "preconditioned_gd_readout",
]

_ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}
_RANK_TOLERANCE = 1e-14  # below this share of the largest singular value a matrix counts as singular


class RandomFeatures(nn.Module):
    r"""A layer of random weights that is never trained.

    .. math:: z = \frac{1}{\sqrt{p}}\, \phi(W x + b) , \qquad W_{jk} \sim \mathcal{N}(0, \sigma_w^2) , \quad
        b_j \sim \mathcal{N}(0, \sigma_b^2) .

    The factor keeps :math:`\mathbb{E} \lVert z \rVert^2` the same for every number of features :math:`p`.

    Args:
        in_features: Length of the inputs :math:`D`, ``> 0``.
        num_features: Number of features :math:`p`, ``> 0``.
        activation: :math:`\phi`: ``"relu"`` (default) or ``"tanh"``.
        weight_std: Standard deviation :math:`\sigma_w` of the weights, ``> 0``. Default 1.
        bias_std: Standard deviation :math:`\sigma_b` of the biases, ``>= 0``. Default 0.1.
        seed: Seed of weights and biases, ``>= 0``. Default 0. The global random state stays as it is.

    Raises:
        TypeError: If a size or ``seed`` is not an int, or a standard deviation is not a number.
        ValueError: If an argument is out of its range.

    Examples:
        >>> features = RandomFeatures(64, 150)
        >>> features(torch.ones(3, 64)).shape
        torch.Size([3, 150])

    Note:
        Weights and biases are float64 buffers, not parameters: they move with the module and get no gradient.

    References:
        Rahimi and Recht (2007), Random Features for Large-Scale Kernel Machines. Chapter 4
        (:doc:`/notebooks/04_double_descent`).
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        in_features: int,
        num_features: int,
        *,
        activation: str = "relu",
        weight_std: float = 1.0,
        bias_std: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("num_features", num_features)):
            check_integer(name, value)
            check_positive(name, value)
        check_choice("activation", activation, tuple(_ACTIVATIONS))
        check_positive("weight_std", weight_std)
        check_non_negative("bias_std", bias_std)
        self.activation = activation
        generator = _seeded(seed)
        shape = (num_features, in_features)
        self.register_buffer("weight", weight_std * torch.randn(shape, generator=generator, dtype=torch.float64))
        self.register_buffer("bias", bias_std * torch.randn(num_features, generator=generator, dtype=torch.float64))

    def forward(self, X: Tensor) -> Tensor:
        """Compute the features.

        Args:
            X: Inputs, shape ``(n, D)``, floating point.

        Returns:
            Features, shape ``(n, p)``, dtype of ``X``.

        Raises:
            TypeError: If ``X`` is not a floating-point tensor.
            ValueError: If its shape does not fit.
        """
        check_tensor("X", X)
        check_floating("X", X)
        num_features, in_features = self.weight.shape
        check_shape("X", X, "(n, D)", (None, in_features))
        linear = nn.functional.linear(X, self.weight.to(X.dtype), self.bias.to(X.dtype))
        return _ACTIVATIONS[self.activation](linear) / math.sqrt(num_features)


def descent_filter(rates: Tensor, steps: float) -> Tensor:
    r"""The share of each direction of a least-squares problem that gradient descent from zero has learned.

    A direction whose error shrinks by the factor :math:`1 - r_i` in a step has been learned, after :math:`T` steps, to

    .. math:: f_i = 1 - (1 - r_i)^T ,

    computed without cancellation for :math:`r_i` down to the smallest numbers and :math:`T` up to the largest.
    With learning rate :math:`\eta` and eigenvalues :math:`\lambda_i` of the Hessian, :math:`r_i = \eta \lambda_i`.

    Args:
        rates: The rates :math:`r_i`, in [0, 2), any shape, floating point.
        steps: Number of steps :math:`T`, an int ``>= 0`` or ``math.inf``.

    Returns:
        The shares :math:`f_i`, shape and dtype of ``rates``. A rate of 0 gives 0 even for ``math.inf``.

    Raises:
        TypeError: If ``rates`` is not a floating-point tensor, or ``steps`` neither an int nor ``math.inf``.
        ValueError: If ``steps`` is negative, or a rate outside [0, 2).

    Examples:
        >>> descent_filter(torch.tensor([0.0, 0.5, 1.0]), 2)
        tensor([0.0000, 0.7500, 1.0000])

    References:
        Yao, Rosasco and Caponnetto (2007), On Early Stopping in Gradient Descent Learning. Chapter 4
        (:doc:`/notebooks/04_double_descent`).
    """
    check_tensor("rates", rates)
    check_floating("rates", rates)
    _check_steps(steps)
    if values_are_readable(rates) and (outside := (rates < 0) | (rates >= 2)).any():
        raise ValueError(f"rates must lie in [0, 2), got {rates[outside].flatten()[0].item():.6g}")
    if steps == 0:
        return torch.zeros_like(rates)
    if steps == math.inf:
        return (rates > 0).to(rates.dtype)
    log_remaining = torch.where(rates < 1, torch.log1p(-rates), torch.log((rates - 1).abs()))
    alternating = (rates > 1) & (steps % 2 == 1)  # overshooting flips the sign of the error at every step
    remaining_minus_one = torch.expm1(float(steps) * log_remaining)
    return torch.where(alternating, 2 + remaining_minus_one, -remaining_minus_one)


def gd_readout(Z: Tensor, Y: Tensor, *, steps: float, lr: float | None = None, init: Tensor | None = None) -> Tensor:
    r"""The linear readout after a number of steps of gradient descent, without taking them.

    For the loss :math:`\frac{1}{2n} \lVert Z A - Y \rVert_F^2`, with :math:`Z = U S V^\top` and
    :math:`\lambda_i = s_i^2 / n`, full-batch gradient descent from :math:`A_0` reaches

    .. math:: A_T = A_0 + V\, \mathrm{diag}\Big[ \frac{1 - (1 - \eta \lambda_i)^T}{s_i} \Big]\, U^\top (Y - Z A_0) .

    For :math:`T \to \infty` and :math:`A_0 = 0` this is the minimum-norm least-squares fit :math:`Z^+ Y`. What
    :math:`A_0` has outside the row space of :math:`Z` never changes.

    Args:
        Z: Features, shape ``(n, p)`` or with leading batch dimensions, float32 or float64; float64 is recommended.
        Y: Targets, shape ``(n, C)`` with the same leading dimensions, dtype of ``Z``.
        steps: Number of steps :math:`T`, an int ``>= 0`` or ``math.inf``.
        lr: Learning rate :math:`\eta`, in :math:`(0, 2 / \lambda_{\max})`. Default None: :math:`1 / \lambda_{\max}`,
            for each matrix of a batch its own.
        init: The readout :math:`A_0` to start from, shape ``(p, C)``, dtype of ``Z``. Default None: zeros.

    Returns:
        The readout :math:`A_T`, shape ``(p, C)`` with the leading dimensions of ``Z``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape does not fit, ``steps`` is negative, or ``lr`` is not positive or makes descent diverge.

    Examples:
        >>> Z, Y = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.ones(2, 1)
        >>> gd_readout(Z, Y, steps=1).T  # the first direction at once, the second to a quarter
        tensor([[0.5000, 0.2500]])
        >>> gd_readout(Z, Y, steps=math.inf).T
        tensor([[0.5000, 1.0000]])

    Note:
        Singular values below ``max(n, p)`` times the machine precision times the largest one count as zero, as in
        :func:`torch.linalg.pinv`. In float32 that can be enough to hide a peak of double descent.

    References:
        Liu and Flanigan (2023), Understanding the Role of Optimization in Double Descent, whose sweep over iterations
        this is in closed form. Chapter 4 (:doc:`/notebooks/04_double_descent`).
    """
    _check_least_squares(Z, Y)
    _check_steps(steps)
    start = torch.zeros((*Z.shape[:-2], Z.shape[-1], Y.shape[-1]), dtype=Z.dtype, device=Z.device)
    if init is not None:
        check_tensor("init", init)
        check_same_dtype("init", init, "Z", Z)
        check_shape("init", init, "(..., p, C)", start.shape)
        start = init
    U, s, Vh = torch.linalg.svd(Z, full_matrices=False)
    eigenvalues = _without_noise(s, Z.shape).square() / Z.shape[-2]
    largest = eigenvalues.amax(-1, keepdim=True)
    if lr is None:
        rates = _ratio(eigenvalues, largest)
    else:
        check_positive("lr", lr)
        if (lr * largest >= 2).any():
            limit = 2 / largest.max().item()
            raise ValueError(f"lr must be < 2 / lambda_max = {limit:.6g}, or descent diverges, got {lr!r}")
        rates = lr * eigenvalues
    shares = _ratio(descent_filter(rates, steps), s)
    return start + Vh.mT @ (shares.unsqueeze(-1) * (U.mT @ (Y - Z @ start)))


def preconditioned_gd_readout(Z: Tensor, Y: Tensor, *, steps: float, damping: float) -> Tensor:
    r"""The linear readout after gradient descent from zero with a damped inverse Hessian as preconditioner.

    With :math:`H = Z^\top Z / n`, its eigenvalues :math:`\lambda_i` and the gradient :math:`G` of the loss of
    :func:`gd_readout`, a step is :math:`A \leftarrow A - (1 + \epsilon)(H + \epsilon \lambda_{\max} I)^{-1} G`, and

    .. math:: A_T = V\, \mathrm{diag}\Big[ \frac{1 - (1 - r_i)^T}{s_i} \Big]\, U^\top Y , \qquad
        r_i = \frac{(1 + \epsilon) \lambda_i}{\lambda_i + \epsilon \lambda_{\max}} .

    The fastest direction always has :math:`r = 1`. Damping moves the slowest one from plain gradient descent
    (:math:`\epsilon = \infty`, :math:`r_i = \lambda_i / \lambda_{\max}`) to Newton's method (:math:`\epsilon = 0`,
    :math:`r_i = 1`), which is done in one step.

    Args:
        Z: Features, as for :func:`gd_readout`.
        Y: Targets, as for :func:`gd_readout`.
        steps: Number of steps :math:`T`, an int ``>= 0`` or ``math.inf``.
        damping: :math:`\epsilon`, ``>= 0`` or ``math.inf``, relative to the largest eigenvalue.

    Returns:
        The readout :math:`A_T`, shape ``(p, C)`` with the leading dimensions of ``Z``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape does not fit, or ``steps`` or ``damping`` is negative.

    Examples:
        >>> Z, Y = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.ones(2, 1)
        >>> preconditioned_gd_readout(Z, Y, steps=1, damping=0.0).T
        tensor([[0.5000, 1.0000]])

    References:
        This package's own; the argument it tests is that of Liu and Flanigan (2023), Understanding the Role of
        Optimization in Double Descent. Chapter 4 (:doc:`/notebooks/04_double_descent`).
    """
    _check_least_squares(Z, Y)
    _check_steps(steps)
    if damping != math.inf:
        check_non_negative("damping", damping)
    U, s, Vh = torch.linalg.svd(Z, full_matrices=False)
    relative = _ratio(_without_noise(s, Z.shape), s.amax(-1, keepdim=True)).square()
    rates = relative if damping == math.inf else _ratio((1 + damping) * relative, relative + damping)
    shares = _ratio(descent_filter(rates, steps), s)
    return Vh.mT @ (shares.unsqueeze(-1) * (U.mT @ Y))


def condition_number(Z: Tensor) -> float:
    r"""The ratio of the largest to the smallest singular value of a matrix.

    .. math:: \kappa(Z) = s_{\max} / s_{\min} , \qquad s_{\min} = s_{\min(n, p)} .

    Gradient descent on a least-squares problem with features :math:`Z` needs about :math:`\kappa^2` steps.

    Args:
        Z: Matrix, shape ``(n, p)``, at least one row and column, floating point; its SVD is taken in float64.

    Returns:
        The ratio, ``>= 1``; ``inf`` if the smallest singular value is at most 1e-14 times the largest.

    Raises:
        TypeError: If ``Z`` is not a floating-point tensor.
        ValueError: If it is not a matrix, or empty.

    Examples:
        >>> round(condition_number(torch.tensor([[3.0, 0.0], [0.0, 2.0]])), 6)
        1.5

    References:
        Poggio, Kur and Banburski (2019), Double Descent in the Condition Number. Chapter 4
        (:doc:`/notebooks/04_double_descent`).
    """
    check_tensor("Z", Z)
    check_floating("Z", Z)
    check_shape("Z", Z, "(n, p)", (None, None))
    if Z.numel() == 0:
        raise ValueError(f"Z must have at least one row and column, got shape {tuple(Z.shape)}")
    s = torch.linalg.svdvals(Z.double())
    largest, smallest = s[0].item(), s[-1].item()
    return math.inf if smallest <= _RANK_TOLERANCE * largest else largest / smallest


class WidthSweepMLP(nn.Module):
    r"""Two-layer networks of several widths, trained at once.

    .. math:: f_b(x) = W_2^{(b)}\, \mathrm{relu}(W_1^{(b)} x + b_1^{(b)}) + b_2^{(b)}

    for the widths :math:`h_1, \dots, h_B`. All are padded to the largest; the padding is masked, so it contributes
    nothing and its gradient is zero. With the gradient of a *sum* of their losses, an optimizer that works on each
    number alone (gradient descent, Adam) trains each network as if it were alone.

    At the start :math:`W_1 \sim \mathcal{N}(0, 2 c^2 / D)` with :math:`c` the ``init_scale``,
    :math:`W_2 \sim \mathcal{N}(0, 1 / h_b)`, and the biases are zero.

    Args:
        in_features: Length of the inputs :math:`D`, ``> 0``.
        widths: Hidden units of each network, ``> 0``.
        out_features: Length of the outputs :math:`C`, ``> 0``.
        init_scale: Factor :math:`c` on the first layer, ``> 0``. Default 1, which is He's initialization.
        seed: Seed of all weights, ``>= 0``. Default 0. A network's start depends on its width and the seed alone; the
            global random state stays as it is.

    Raises:
        TypeError: If a size or ``seed`` is not an int.
        ValueError: If an argument is out of its range, or ``widths`` is empty.

    Examples:
        >>> nets = WidthSweepMLP(64, [2, 8, 32], 10)
        >>> nets(torch.ones(5, 64)).shape
        torch.Size([3, 5, 10])

    References:
        The two-layer networks of Liu and Flanigan (2023), Understanding the Role of Optimization in Double Descent.
        Chapter 4 (:doc:`/notebooks/04_double_descent`).
    """

    mask: Tensor

    def __init__(
        self, in_features: int, widths: Sequence[int], out_features: int, *, init_scale: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        sizes = [("in_features", in_features), ("out_features", out_features)]
        for name, value in [*sizes, *((f"widths[{index}]", width) for index, width in enumerate(widths))]:
            check_integer(name, value)
            check_positive(name, value)
        if not widths:
            raise ValueError(f"widths must hold at least one width, got {widths!r}")
        check_positive("init_scale", init_scale)
        self.widths = tuple(widths)
        count, most = len(self.widths), max(self.widths)
        self.register_buffer("mask", torch.arange(most) < torch.tensor(self.widths)[:, None])
        self.weight1 = nn.Parameter(torch.zeros(count, most, in_features))
        self.bias1 = nn.Parameter(torch.zeros(count, most))
        self.weight2 = nn.Parameter(torch.zeros(count, out_features, most))
        self.bias2 = nn.Parameter(torch.zeros(count, out_features))
        with torch.no_grad():
            for row, width in enumerate(self.widths):
                generator = _seeded(seed)
                first = torch.randn(width, in_features, generator=generator)
                second = torch.randn(out_features, width, generator=generator)
                self.weight1[row, :width] = init_scale * math.sqrt(2 / in_features) * first
                self.weight2[row, :, :width] = second / math.sqrt(width)

    def forward(self, X: Tensor) -> Tensor:
        """Compute the outputs of all networks for the same inputs.

        Args:
            X: Inputs, shape ``(n, D)``, floating point; converted to the dtype of the weights.

        Returns:
            Outputs, shape ``(B, n, C)`` for B widths, dtype of the weights.

        Raises:
            TypeError: If ``X`` is not a floating-point tensor.
            ValueError: If its shape does not fit.
        """
        check_tensor("X", X)
        check_floating("X", X)
        count, most, in_features = self.weight1.shape
        check_shape("X", X, "(n, D)", (None, in_features))
        # One product serves the first layers of all networks, since they see the same inputs. Examples come last, in
        # the longest dimension, which makes the products of the small second layers fast.
        inputs = X.to(self.weight1.dtype).T
        hidden = torch.addmm(self.bias1.flatten()[:, None], self.weight1.flatten(0, 1), inputs).relu()
        # A unit that reaches no output gets no gradient either.
        weight2 = self.weight2 * self.mask[:, None]
        return torch.baddbmm(self.bias2[:, :, None], weight2, hidden.view(count, most, len(X))).mT


def _seeded(seed: int) -> torch.Generator:
    check_integer("seed", seed)
    check_non_negative("seed", seed)
    return torch.Generator().manual_seed(seed)


def _check_steps(steps: float) -> None:
    if steps == math.inf:
        return
    check_integer("steps", steps)
    check_non_negative("steps", steps)


def _check_least_squares(Z: Tensor, Y: Tensor) -> None:
    for name, value in (("Z", Z), ("Y", Y)):
        check_tensor(name, value)
    if Z.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"Z must have dtype torch.float32 or torch.float64, got {Z.dtype}")
    check_same_dtype("Y", Y, "Z", Z)
    check_same_device("Y", Y, "Z", Z)
    if Z.ndim < 2 or 0 in Z.shape[-2:]:
        raise ValueError(f"Z must have shape (..., n, p) with n, p >= 1, got {tuple(Z.shape)}")
    check_shape("Y", Y, "(..., n, C)", (*Z.shape[:-1], None))


def _without_noise(s: Tensor, shape: torch.Size) -> Tensor:
    """Singular values, those that are rounding errors of zero replaced by zero."""
    threshold = max(shape[-2:]) * torch.finfo(s.dtype).eps * s.amax(-1, keepdim=True)
    return torch.where(s > threshold, s, 0)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient with 0 / 0 = 0: a direction without signal learns nothing."""
    return torch.where(numerator == 0, 0, numerator / denominator)
