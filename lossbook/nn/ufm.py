"""The unconstrained feature model of neural collapse, and its global minimizers in closed form."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from lossbook._validation import check_choice, check_integer, check_positive

__all__ = ["UFMGeometry", "UnconstrainedFeatureModel", "collapse_threshold", "ufm_ce_margin", "ufm_mse_geometry"]

LOSSES = ("mse", "ce")
_ROOT = {"xtol": 1e-300, "rtol": 8.9e-16}  # to the last bit: the default stops at 2e-12


@dataclass(frozen=True, eq=False)
class UFMGeometry:
    r"""A global minimizer of the unconstrained feature model, up to rotation.

    Attributes:
        singular_values: Strength :math:`z_k` of each class in the end-to-end map from samples to outputs, float64,
            shape ``(K,)``.
        weight_sq_norms: Squared length of each row of the classifier :math:`W_M`, float64, shape ``(K,)``.
        feature_sq_norms: Squared length of each class's features, float64, shape ``(K,)``.
        collapsed: Whether the class is erased: its row and its features are zero, bool, shape ``(K,)``.
        objective: The least value of the objective.

    Examples:
        >>> geometry = ufm_mse_geometry([90, 10], lambda_w=[0.05], lambda_h=0.05)
        >>> geometry.collapsed.tolist()
        [False, True]

    References:
        Dang et al. (2023), Sec. 3 and 4; chapter 3 (:doc:`/notebooks/03_neural_collapse`).
    """

    singular_values: np.ndarray
    weight_sq_norms: np.ndarray
    feature_sq_norms: np.ndarray
    collapsed: np.ndarray
    objective: float


def collapse_threshold(depth: int) -> float:
    r"""Threshold of minority collapse for a given number of linear layers.

    Under squared error, class :math:`k` is erased from every global minimizer if and only if
    :math:`b / n_k \ge \tau_M`, with :math:`b = (N^{M+1} \lambda_{W_1} \cdots \lambda_{W_M} \lambda_H)^{1/M}` and

    .. math:: \tau_M = \frac{(M - 1)^{(M - 1)/M}}{M^2} , \qquad \tau_1 = 1 .

    Args:
        depth: Number of linear layers :math:`M \ge 1` above the features.

    Returns:
        The threshold, dimensionless, in (0, 1].

    Raises:
        TypeError: If ``depth`` is not an int.
        ValueError: If ``depth`` is below 1.

    Examples:
        >>> [round(collapse_threshold(depth), 5) for depth in (1, 2, 3, 4)]
        [1.0, 0.25, 0.17638, 0.14247]

    References:
        Dang et al. (2023), Sec. 4; chapter 3 (:doc:`/notebooks/03_neural_collapse`).
    """
    check_integer("depth", depth)
    if depth < 1:
        raise ValueError(f"depth must be >= 1, got {depth}")
    return float((depth - 1) ** ((depth - 1) / depth) / depth**2)


def ufm_mse_geometry(
    class_counts: Sequence[int], lambda_w: Sequence[float], lambda_h: float, *, bias: bool = False
) -> UFMGeometry:
    r"""Global minimizer of the unconstrained feature model under squared error.

    With :math:`N = \sum_k n_k` samples, :math:`M` layers and
    :math:`\Lambda = (\lambda_{W_1} \cdots \lambda_{W_M} \lambda_H)^{1/(M+1)}`, each class solves a problem of its own,

    .. math::

        z_k = \arg\min_{z \ge 0} \; \frac{(z - \sqrt{n_k})^2}{2 N} + \frac{M + 1}{2} \Lambda z^{2/(M+1)} ,

    where a tie goes to zero, and the lengths follow from the strengths:

    .. math::

        \lVert w_k \rVert^2 = \frac{\Lambda z_k^{2/(M+1)}}{\lambda_{W_M}} , \qquad
        \lVert h_k \rVert^2 = \frac{\Lambda z_k^{2/(M+1)}}{\lambda_H n_k} .

    Without a bias, features of a class coincide, and class means and classifier rows are orthogonal: a general
    orthogonal frame. With an unregularized bias and equal counts they form a simplex ETF, of which one of the K
    strengths is zero, and the lengths are those of its vertices. All widths must be at least K.

    Args:
        class_counts: Samples of each class :math:`n_k \ge 1`, K entries.
        lambda_w: Weight decay of each layer, ``> 0``, M entries from the features to the classifier.
        lambda_h: Decay of the features, ``> 0``.
        bias: Whether the last layer has an unregularized bias. Default False. Needs K >= 2 equal counts.

    Returns:
        The geometry; classes in the order of ``class_counts``.

    Raises:
        TypeError: If a count is not an integer, or a decay not a number.
        ValueError: If there is no class or no layer, a count is below 1, a decay is not ``> 0``, or ``bias=True`` with
            one class or unequal counts.

    Examples:
        >>> geometry = ufm_mse_geometry([64, 4], lambda_w=[0.01], lambda_h=0.01)
        >>> geometry.singular_values.round(2).tolist()
        [7.32, 1.32]

    Note:
        The objective is that of :class:`UnconstrainedFeatureModel`: squared errors are summed over classes and divided
        by 2N. :func:`torch.nn.functional.mse_loss` divides by N K instead, which moves every threshold.

    References:
        Dang et al. (2023), theorems of Sec. 3 and 4; chapter 3 (:doc:`/notebooks/03_neural_collapse`).
    """
    counts = _checked_counts(class_counts)
    decays = _checked_decays(lambda_w, lambda_h)
    if bias and (len(counts) < 2 or counts.min() != counts.max()):
        raise ValueError(f"class_counts must hold at least 2 equal counts for bias=True, got {counts.tolist()}")
    classes, samples, depth = len(counts), counts.sum(), len(decays) - 1
    mean_decay = np.exp(np.log(decays).mean())

    singular_values = np.sqrt(counts) * _shrinkage(counts, samples, decays)
    if bias:
        singular_values[-1] = 0.0  # the bias fits the mean of Y, and with it one of the K directions
    spectral = mean_decay * singular_values ** (2 / (depth + 1))  # what each of the M + 1 factors pays for a direction
    fitted = np.sqrt(counts)[: classes - bias] - singular_values[: classes - bias]
    paid = np.full(classes, spectral.sum() / classes) if bias else spectral
    return UFMGeometry(
        singular_values=singular_values,
        weight_sq_norms=paid / decays[-2],
        feature_sq_norms=paid / (decays[-1] * counts),
        collapsed=paid == 0,
        objective=float((fitted**2).sum() / (2 * samples) + (depth + 1) / 2 * spectral.sum()),
    )


def _shrinkage(counts: np.ndarray, samples: float, decays: np.ndarray) -> np.ndarray:
    """Strength over full strength of each class, z / sqrt(n): in ((M - 1) / M, 1), or zero beyond the threshold."""
    depth = len(decays) - 1
    ratios = np.exp(((depth + 1) * np.log(samples) + np.log(decays).sum()) / depth) / counts  # b / n_k

    def shrinkage(ratio: float) -> float:
        if ratio >= collapse_threshold(depth):
            return 0.0
        if depth == 1:
            return 1 - ratio**0.5
        price = ratio ** (depth / (depth + 1))
        return brentq(lambda u: (1 - u) * u ** ((depth - 1) / (depth + 1)) - price, (depth - 1) / depth, 1.0, **_ROOT)

    return np.array([shrinkage(ratio) for ratio in ratios])


def ufm_ce_margin(num_classes: int, per_class: int, lambda_w: Sequence[float], lambda_h: float) -> float:
    r"""Margin between logits of the best simplex ETF under cross-entropy, with balanced classes and a bias.

    Each sample has the logits :math:`c\,(I - \mathbf{1}\mathbf{1}^\top / K)` of its class. With :math:`n` samples of
    each class and :math:`\Lambda = (\lambda_{W_1} \cdots \lambda_{W_M} \lambda_H)^{1/(M+1)}`

    .. math::

        c = \arg\min_{c \ge 0} \; \log\bigl(1 + (K - 1) e^{-c}\bigr)
        + \frac{M + 1}{2} \Lambda (K - 1) (c \sqrt{n})^{2/(M+1)} .

    Args:
        num_classes: Number of classes :math:`K \ge 2`.
        per_class: Samples of each class :math:`n \ge 1`.
        lambda_w: Weight decay of each layer, ``> 0``, M entries from the features to the classifier.
        lambda_h: Decay of the features, ``> 0``.

    Returns:
        Logit of the right class minus any other, in nats; 0 if the regularizers erase all classes.

    Raises:
        TypeError: If a size is not an int, or a decay not a number.
        ValueError: If a size or the number of layers is too small, or a decay is not ``> 0``.

    Note:
        With one layer this is the global minimizer. With more it need not be: solutions of lower rank, which are no
        ETF, can have a lower objective.

    Examples:
        >>> round(ufm_ce_margin(5, 10, lambda_w=[0.002], lambda_h=0.002), 5)
        5.03769

    References:
        Dang et al. (2023), Sec. 3, states the simplex ETF for any number of layers, and Garrod and Keating (2025) show
        where it is not optimal; chapter 3 (:doc:`/notebooks/03_neural_collapse`) derives the problem in one unknown.
    """
    for name, value, least in (("num_classes", num_classes, 2), ("per_class", per_class, 1)):
        check_integer(name, value)
        if value < least:
            raise ValueError(f"{name} must be >= {least}, got {value}")
    decays = _checked_decays(lambda_w, lambda_h)
    others, power = num_classes - 1, 2 / len(decays)
    price = np.exp(np.log(decays).mean()) * others * per_class ** (power / 2) / power

    def objective(c: float) -> float:
        return float(np.log1p(others * np.exp(-c)) + price * c**power)

    # Where the slope is zero, c^(1 - power) (K - 1) / (e^c + K - 1) = price * power. The logarithm of the left side
    # rises to one peak and falls, so the minimum is where it falls through the right side, and the origin the rival.
    def falls_at(c: float) -> float:
        return (1 - power) / c - 1 / (1 + others * np.exp(-c))

    def excess(c: float) -> float:
        gain = (1 - power) * np.log(c) + np.log(others) - np.logaddexp(c, np.log(others))
        return float(gain - np.log(price * power))

    high = 2 + np.log(others)
    peak = brentq(falls_at, 1e-12, high, **_ROOT) if power < 1 else 1e-300
    if excess(peak) <= 0:
        return 0.0
    while excess(high) > 0:
        high *= 2
    margin = brentq(excess, peak, high, **_ROOT)
    return margin if objective(margin) < np.log(num_classes) else 0.0


class UnconstrainedFeatureModel(nn.Module):
    r"""Free features under M linear layers, all with weight decay: the model that neural collapse is proved for.

    With logits :math:`Z = W_M \cdots W_1 H + b \mathbf{1}^\top` and one-hot labels :math:`Y`, both of shape (K, N), the
    objective under squared error is

    .. math::

        \frac{1}{2N} \lVert Z - Y \rVert_F^2 + \sum_{m=1}^{M} \frac{\lambda_{W_m}}{2} \lVert W_m \rVert_F^2
        + \frac{\lambda_H}{2} \lVert H \rVert_F^2 ,

    and under cross-entropy its first term is the mean over samples of the cross-entropy in nats.

    Args:
        class_counts: Samples of each class :math:`n_k \ge 1`, K entries.
        feature_dim: Width d of features and hidden layers, ``>= K``.
        lambda_w: Weight decay of each layer, ``> 0``, M entries from the features to the classifier.
        lambda_h: Decay of the features, ``> 0``.
        loss: ``"mse"`` (default) or ``"ce"``.
        bias: Whether the last layer has a bias, which is not regularized. Default False.
        init_scale: Standard deviation of the random start of features and weights, ``> 0``, default 0.35. With M >= 2 a
            small one leads to a local minimum with classes erased.
        dtype: Floating dtype of the parameters, default float64.
        seed: Seed of the random start, default 0; the global random state is not used.

    Attributes:
        features: Parameter, shape (N, d), sorted by class.
        weights: Parameters :math:`W_1, \dots, W_M` of shape (d, d), the last one (K, d).
        bias: Parameter of shape (K,), zero at the start, or None.
        decays: Weight decay of each layer and, last, of the features, shape (M + 1,).
        labels: Class of each sample, int64, shape (N,).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no class or no layer, a count is below 1, a decay or ``init_scale`` is not ``> 0``,
            ``feature_dim < K``, or ``loss`` is unknown.

    Examples:
        >>> model = UnconstrainedFeatureModel([8, 2], 4, lambda_w=[0.01], lambda_h=0.01)
        >>> history = model.fit(1000)
        >>> abs(model.objective().item() - ufm_mse_geometry([8, 2], [0.01], 0.01).objective) < 1e-6
        True

    References:
        Dang et al. (2023), Sec. 2; chapter 3 (:doc:`/notebooks/03_neural_collapse`).
    """

    decays: Tensor
    labels: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        feature_dim: int,
        *,
        lambda_w: Sequence[float],
        lambda_h: float,
        loss: str = "mse",
        bias: bool = False,
        init_scale: float = 0.35,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = torch.from_numpy(_checked_counts(class_counts).astype(np.int64))
        decays = torch.from_numpy(_checked_decays(lambda_w, lambda_h)).to(dtype)
        classes, depth = len(counts), len(decays) - 1
        check_integer("feature_dim", feature_dim)
        if feature_dim < classes:
            raise ValueError(f"feature_dim must be >= the number of classes, {classes}, got {feature_dim}")
        check_choice("loss", loss, LOSSES)
        check_positive("init_scale", init_scale)
        self.loss = loss
        generator = torch.Generator().manual_seed(seed)

        def start(*shape: int) -> nn.Parameter:
            # Drawn in float64, so that all dtypes start at the same point.
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return nn.Parameter((init_scale * values).to(dtype))

        self.register_buffer("decays", decays)
        self.register_buffer("labels", torch.repeat_interleave(torch.arange(classes), counts))
        self.features = start(len(self.labels), feature_dim)
        rows = [feature_dim] * (depth - 1) + [classes]
        self.weights = nn.ParameterList(start(row, feature_dim) for row in rows)
        self.register_parameter("bias", nn.Parameter(torch.zeros(classes, dtype=dtype)) if bias else None)

    def forward(self) -> Tensor:
        """Logits of all samples.

        Returns:
            Shape (N, K).
        """
        *inner, product = self.weights  # a slice of a ParameterList would detach what torch.func puts in its place
        for weight in reversed(inner):
            product = product @ weight  # K rows at a time instead of N
        logits = self.features @ product.mT
        return logits if self.bias is None else logits + self.bias[..., None, :]

    def objective(self) -> Tensor:
        """The regularized loss that :meth:`fit` minimizes.

        Parameters may have a leading dimension of B models, as those of :attr:`lossbook.nn.Ensemble.stacked` have.

        Returns:
            Scalar, or shape (B,).
        """
        logits = self()
        if self.loss == "ce":
            right = logits.log_softmax(-1).gather(-1, self.labels[..., None])
            misfit = -right.mean((-2, -1))
        else:
            onehot = self.labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
            misfit = (logits - onehot.to(logits.dtype)).square().sum((-2, -1)) / (2 * logits.shape[-2])
        squares = torch.stack([factor.square().sum((-2, -1)) for factor in (*self.weights, self.features)], -1)
        return misfit + (self.decays * squares).sum(-1) / 2

    @torch.no_grad()
    def differentiate(self) -> None:
        """Put the gradient of :meth:`objective` by every parameter in its ``grad``, in place of what was there.

        The chain rule by hand. The matrices are small, so that :func:`torch.autograd.backward` would take several times
        as long. Parameters may have a leading dimension of B models, as for :meth:`objective`.

        Returns:
            None.
        """
        above = [self.weights[-1]]  # products from the classifier down: that of all layers comes last
        for weight in reversed(list(self.weights)[:-1]):
            above.append(above[-1] @ weight)
        logits = self()
        output = logits.softmax(-1) if self.loss == "ce" else logits
        onehot = self.labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
        error = (output - onehot.to(output.dtype)) / output.shape[-2]
        decays = self.decays[..., None, None].unbind(-3)
        self.features.grad = error @ above[-1] + decays[-1] * self.features
        if self.bias is not None:
            self.bias.grad = error.sum(-2)
        below = error.mT @ self.features  # slope by the product of all layers, times the layers below this one
        for weight, decay, product in zip(self.weights, decays[:-1], (*reversed(above[:-1]), None), strict=True):
            weight.grad = (below if product is None else product.mT @ below) + decay * weight
            below = below @ weight.mT

    def fit(self, steps: int = 2000, lr: float = 0.02) -> list[float]:
        """Minimize the objective by Adam under a cosine schedule.

        Args:
            steps: Number of full-batch steps, ``>= 1``, default 2000.
            lr: Learning rate of the first step, ``> 0``, default 0.02; it falls to 0.

        Returns:
            The objective before each step.

        Raises:
            TypeError: If ``steps`` is not an int.
            ValueError: If an argument is out of its range.
        """
        check_integer("steps", steps)
        if steps < 1:
            raise ValueError(f"steps must be >= 1, got {steps}")
        check_positive("lr", lr)
        optimizer = torch.optim.Adam(self.parameters(), lr=lr, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        history = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = self.objective()
            loss.backward()
            optimizer.step()
            schedule.step()
            history.append(loss.detach())  # read at the end: a number a step would wait for the device
        return torch.stack(history).tolist()

    @torch.no_grad()
    def class_means(self) -> Tensor:
        """Mean of the features of each class, without a gradient.

        Returns:
            Shape (K, d).
        """
        counts = torch.bincount(self.labels)[:, None]
        sums = self.features.new_zeros(len(counts), self.features.shape[1])
        return sums.index_add_(0, self.labels, self.features) / counts


def _checked_counts(class_counts: Sequence[int]) -> np.ndarray:
    try:
        counts = [operator.index(count) for count in class_counts]
    except TypeError as error:
        raise TypeError(f"class_counts must be a sequence of ints, got {class_counts!r}") from error
    if not counts or min(counts) < 1:
        raise ValueError(f"class_counts must hold at least one count, all >= 1, got {counts}")
    return np.array(counts, dtype=np.float64)


def _checked_decays(lambda_w: Sequence[float], lambda_h: float) -> np.ndarray:
    """The M + 1 decays, that of the features last."""
    if not isinstance(lambda_w, Sequence | np.ndarray):
        raise TypeError(f"lambda_w must be a sequence of one number for each layer, got {lambda_w!r}")
    if len(lambda_w) == 0:
        raise ValueError(f"lambda_w must hold at least one number, got {lambda_w!r}")
    for place, decay in enumerate(lambda_w):
        check_positive(f"lambda_w[{place}]", decay)
    check_positive("lambda_h", lambda_h)
    return np.array([*lambda_w, lambda_h], dtype=np.float64)
