"""Metrics of neural collapse, NC1 to NC4: how far features and classifier are from the geometry of the theorems."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lossbook._validation import (
    check_choice,
    check_dtype,
    check_floating,
    check_same_device,
    check_shape,
    check_tensor,
)

__all__ = ["nc1", "nc2", "nc3", "nc4"]

TARGETS = ("etf", "of", "gof")


def nc1(features: Tensor, labels: Tensor) -> float:
    r"""Variability within classes relative to that between classes; 0 when all features of a class coincide.

    With class means :math:`m_k` and their mean :math:`\bar m`,

    .. math::

        \mathrm{NC1} = \frac{1}{K} \operatorname{tr}(S_W S_B^{+}) , \quad
        S_W = \frac{1}{N} \sum_{i=1}^{N} (h_i - m_{y_i})(h_i - m_{y_i})^\top , \quad
        S_B = \frac{1}{K} \sum_{k=1}^{K} (m_k - \bar m)(m_k - \bar m)^\top .

    Args:
        features: Features :math:`h_i`, shape ``(N, d)``, floating point, taken to float64.
        labels: Classes 0 to K - 1, every one present, shape ``(N,)``, int64.

    Returns:
        The metric, dimensionless, ``>= 0``.

    Raises:
        TypeError: If ``features`` is not floating point or ``labels`` not int64.
        ValueError: If a shape is wrong, there are fewer than 2 classes, or one has no sample.

    Examples:
        >>> nc1(torch.tensor([[0.0], [2.0], [9.0], [11.0]]), torch.tensor([0, 0, 1, 1]))
        0.0246...

    Note:
        The pseudoinverse ignores directions in which the class means agree. Where several classes are erased their
        means coincide up to noise, so leave those classes out.

    References:
        Papyan et al. (2020) name the four properties; chapter 3 (:doc:`/notebooks/03_neural_collapse`).
    """
    features, labels, means = _by_class(features, labels)
    # S_B = A^T A / K for the centered means A, hence tr(S_W pinv(S_B)) / K = |X pinv(A)|^2 / N: nothing is squared
    # before the pseudoinverse, so small features lose no digits.
    spread = (features - means[labels]) @ torch.linalg.pinv(means - means.mean(0))
    return spread.square().sum().item() / len(features)


def nc2(vectors: Tensor, target: str = "etf", lengths_sq: Tensor | Sequence[float] | None = None) -> float:
    r"""Distance of a frame from its ideal shape, whatever its rotation and scale.

    For vectors in the rows of :math:`A` and the ideal Gram matrix :math:`T`,

    .. math::

        \mathrm{NC2} = \left\lVert \frac{A A^\top}{\lVert A A^\top \rVert_F}
        - \frac{T}{\lVert T \rVert_F} \right\rVert_F .

    Args:
        vectors: Class means or rows of a classifier, shape ``(K, d)``, floating point, taken to float64. Nothing is
            subtracted from them.
        target: ``"etf"`` (default), simplex ETF, :math:`T = I - \mathbf{1}\mathbf{1}^\top / K`; ``"of"``, orthogonal
            frame, :math:`T = I`; or ``"gof"``, general orthogonal frame, :math:`T = \mathrm{diag}(\ell_k^2)`.
        lengths_sq: Squared lengths :math:`\ell_k^2`, shape ``(K,)``, up to a common factor; for ``"gof"`` only.

    Returns:
        The distance, in [0, 2]; NaN if all vectors, or all lengths, are zero.

    Raises:
        TypeError: If ``vectors`` is not a floating-point tensor.
        ValueError: If a shape or ``target`` is wrong, there are fewer than 2 vectors, or ``lengths_sq`` is missing for
            ``"gof"`` or given for another target.

    Examples:
        >>> round(nc2(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), "of"), 12)
        0.0

    References:
        Dang et al. (2023), experiments; chapter 3 (:doc:`/notebooks/03_neural_collapse`).
    """
    vectors = _matrix("vectors", vectors)
    return _distance(vectors @ vectors.T, target, lengths_sq)


def nc3(
    weights: Tensor, means: Tensor, target: str = "etf", lengths_sq: Tensor | Sequence[float] | None = None
) -> float:
    r"""Distance from self-duality: how far the classifier's rows are from lining up with the class means.

    For rows :math:`w_k` of :math:`W`, means :math:`h_k` in the rows of :math:`A` and the ideal :math:`T`,

    .. math::

        \mathrm{NC3} = \left\lVert \frac{W A^\top}{\lVert W A^\top \rVert_F}
        - \frac{T}{\lVert T \rVert_F} \right\rVert_F .

    Args:
        weights: Classifier, or a product of the layers above the features, shape ``(K, d)``, floating point.
        means: Class means, shape ``(K, d)``, floating point.
        target: As for :func:`nc2`.
        lengths_sq: For ``"gof"`` the diagonal of :math:`T`, which here is :math:`\lVert w_k \rVert \lVert h_k \rVert`,
            shape ``(K,)``, up to a common factor.

    Returns:
        The distance, in [0, 2]; NaN if all products or all lengths are zero.

    Raises:
        TypeError: If a matrix is not a floating-point tensor.
        ValueError: As for :func:`nc2`, and if ``means`` has another shape or device than ``weights``.

    Examples:
        >>> round(nc3(2 * torch.eye(3), 5 * torch.eye(3), "of"), 12)
        0.0

    References:
        Dang et al. (2023), experiments; chapter 3 (:doc:`/notebooks/03_neural_collapse`).
    """
    check_tensor("weights", weights)
    check_tensor("means", means)
    check_same_device("means", means, "weights", weights)
    weights, means = _matrix("weights", weights), _matrix("means", means)
    check_shape("means", means, "(K, d)", weights.shape)
    return _distance(weights @ means.T, target, lengths_sq)


def nc4(features: Tensor, labels: Tensor, weights: Tensor, bias: Tensor | None = None) -> float:
    r"""Share of samples on which the classifier and the nearest class mean disagree.

    .. math::

        \mathrm{NC4} = \frac{1}{N} \sum_{i=1}^{N} \mathbb{1}\Bigl[ \arg\max_k \, (w_k \cdot h_i + b_k)
        \ne \arg\min_k \lVert h_i - m_k \rVert \Bigr]

    Args:
        features: Features :math:`h_i`, shape ``(N, d)``, floating point, taken to float64.
        labels: Classes 0 to K - 1, every one present, shape ``(N,)``, int64.
        weights: Classifier with rows :math:`w_k`, shape ``(K, d)``, floating point.
        bias: Its bias :math:`b_k`, shape ``(K,)``. Default None: zero.

    Returns:
        The share, in [0, 1]. Ties go to the first class on both sides.

    Raises:
        TypeError: If a tensor has the wrong dtype.
        ValueError: If a shape or device is wrong, there are fewer than 2 classes, or one has no sample.

    Examples:
        >>> nc4(torch.eye(2), torch.tensor([0, 1]), torch.eye(2))
        0.0

    References:
        Papyan et al. (2020); chapter 3 (:doc:`/notebooks/03_neural_collapse`).
    """
    check_tensor("weights", weights)
    for name, tensor in {"features": features, "labels": labels, "bias": bias}.items():
        if tensor is not None:
            check_tensor(name, tensor)
            check_same_device(name, tensor, "weights", weights)
    features, labels, means = _by_class(features, labels)
    weights = _matrix("weights", weights)
    check_shape("weights", weights, "(K, d)", means.shape)
    scores = features @ weights.T
    if bias is not None:
        check_shape("bias", bias, "(K,)", means.shape[:1])
        scores = scores + _double(bias)
    nearest = torch.cdist(features, means, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    return (scores.argmax(1) != nearest).double().mean().item()


def _double(tensor: Tensor) -> Tensor:
    """Float64 without a gradient, on the CPU if the device has no float64."""
    return tensor.detach().to("cpu" if tensor.device.type == "mps" else tensor.device, torch.float64)


def _matrix(name: str, value: Tensor) -> Tensor:
    """A detached float64 copy of a (K, d) tensor with K >= 2."""
    check_tensor(name, value)
    check_floating(name, value)
    check_shape(name, value, "(K, d)", (None, None))
    if len(value) < 2:
        raise ValueError(f"{name} must hold at least 2 classes, got {len(value)}")
    return _double(value)


def _by_class(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features in float64, their labels on the same device, and the mean of each class."""
    check_tensor("features", features)
    check_floating("features", features)
    check_shape("features", features, "(N, d)", (None, None))
    check_tensor("labels", labels)
    check_dtype("labels", labels, torch.int64)
    check_shape("labels", labels, "(N,)", features.shape[:1])
    check_same_device("labels", labels, "features", features)
    present = labels.unique()
    if len(present) < 2 or not torch.equal(present, torch.arange(len(present), device=labels.device)):
        raise ValueError(f"labels must hold every class 0 to K - 1 with K >= 2, got classes {present.tolist()}")
    features = _double(features)
    labels = labels.to(features.device)
    sums = features.new_zeros(len(present), features.shape[1]).index_add_(0, labels, features)
    return features, labels, sums / labels.bincount()[:, None]


def _distance(product: Tensor, target: str, lengths_sq: Tensor | Sequence[float] | None) -> float:
    """Frobenius distance of two matrices scaled to norm one."""
    check_choice("target", target, TARGETS)
    if (lengths_sq is not None) != (target == "gof"):
        expected = "given" if target == "gof" else "None"
        raise ValueError(f"lengths_sq must be {expected} for target={target!r}, got {lengths_sq!r}")
    ideal = torch.eye(len(product), dtype=product.dtype, device=product.device)
    if target == "etf":
        ideal = ideal - 1 / len(product)
    elif target == "gof":
        lengths_sq = torch.as_tensor(lengths_sq, dtype=product.dtype, device=product.device).detach()
        check_shape("lengths_sq", lengths_sq, "(K,)", product.shape[:1])
        ideal = lengths_sq.diag()
    return (product / product.norm() - ideal / ideal.norm()).norm().item()
