"""Losses that pull embeddings of the same thing together and push others apart."""

import torch
from torch import Tensor
from torch.nn import functional

from lossbook._validation import (
    check_dtype,
    check_floating,
    check_positive,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
)
from lossbook.losses._positives import reduce_anchors
from lossbook.losses._shared import reduce, widen

__all__ = ["nt_xent", "sup_con"]


def nt_xent(z_a: Tensor, z_b: Tensor, *, temperature: float = 0.5, reduction: str = "mean") -> Tensor:
    r"""Cross-entropy of finding an example's other view among all views of the batch (the loss of SimCLR).

    Row :math:`i` of ``z_a`` and of ``z_b`` are two views of example :math:`i`. Stacked, they are :math:`2B` anchors
    :math:`z_1, \ldots, z_{2B}`, the other view of anchor :math:`i` being :math:`i' = i \pm B`. With the cosine
    :math:`s_{ij}` of two anchors,

    .. math::

        \ell_i = -\log \frac{e^{s_{ii'} / \tau}}{\sum_{j \ne i} e^{s_{ij} / \tau}} , \qquad
        s_{ij} = \frac{z_i \cdot z_j}{\lVert z_i \rVert \lVert z_j \rVert} .

    The value is in nats, and does not depend on the lengths of the embeddings.

    Args:
        z_a: Embeddings of the first views, shape ``(B, D)`` with ``B >= 2``, floating point. float16 and bfloat16 are
            accumulated in float32.
        z_b: Embeddings of the second views, like ``z_a``.
        temperature: Temperature :math:`\tau > 0` (dimensionless). Default 0.5.
        reduction: ``"mean"`` (over the 2B anchors, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(2B,)`` for ``"none"``, the anchors of ``z_a`` first; dtype of ``z_a``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``temperature`` or ``reduction`` is not as above.

    Examples:
        >>> z = torch.eye(2)
        >>> nt_xent(z, z, temperature=0.5)
        tensor(0.2395)

    Note:
        Finite for temperatures down to 1e-4. With data parallelism gather the embeddings of all processes first, see
        :func:`lossbook.distributed.gather_with_gradient`.

    References:
        Chen et al. (2020), Eq. 1; chapter 9 (:doc:`/notebooks/09_multi_head_contrastive`).
    """
    _check_embeddings("z_a", z_a)
    _check_embeddings("z_b", z_b)
    check_shape("z_b", z_b, "z_a.shape", z_a.shape)
    check_same_dtype("z_b", z_b, "z_a", z_a)
    check_same_device("z_b", z_b, "z_a", z_a)
    if z_a.shape[0] < 2:
        raise ValueError(f"z_a must have shape (B, D) with B >= 2, got {tuple(z_a.shape)}")
    check_positive("temperature", temperature)
    logits = _similarities(torch.cat([z_a, z_b]), temperature)
    other_view = torch.arange(len(logits), device=logits.device).roll(z_a.shape[0])
    losses = functional.cross_entropy(logits, other_view, reduction="none")
    return reduce(losses, reduction, z_a.dtype)


def sup_con(features: Tensor, target: Tensor, *, temperature: float = 0.09, reduction: str = "mean") -> Tensor:
    r"""Supervised contrastive loss: every other example of the same class is a positive.

    With the cosine :math:`s_{ij}` of two features and the positives
    :math:`P_i = \{ p \ne i : y_p = y_i \}` of anchor :math:`i`,

    .. math::

        \ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log \frac{e^{s_{ip} / \tau}}{\sum_{j \ne i} e^{s_{ij} / \tau}} ,
        \qquad s_{ij} = \frac{z_i \cdot z_j}{\lVert z_i \rVert \lVert z_j \rVert} .

    An anchor without a positive has loss zero and is left out of the mean. If no anchor has one the loss is zero,
    connected to the graph, with a :class:`~lossbook.losses.NoPositivesWarning`. The value is in nats.

    Args:
        features: Embeddings :math:`z`, shape ``(N, D)`` with ``N >= 2``, floating point; views of the same example
            are rows of their own. float16 and bfloat16 are accumulated in float32.
        target: Classes :math:`y`, shape ``(N,)``, int64; only equality counts.
        temperature: Temperature :math:`\tau > 0` (dimensionless). Default 0.09.
        reduction: ``"mean"`` (over the anchors with a positive, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``features``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``temperature`` or ``reduction`` is not as above.

    Examples:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> sup_con(features, torch.tensor([0, 0, 1]), temperature=1.0, reduction="none")
        tensor([0.3133, 0.3133, 0.0000])

    Note:
        Finite for temperatures down to 1e-4. With data parallelism gather features and targets of all processes
        first, see :func:`lossbook.distributed.gather_with_gradient`.

    References:
        Khosla et al. (2020), Eq. 2; the default temperature is that of Lin et al. (2023), chapter 11
        (:doc:`/notebooks/11_contrastive_replay`). Without the factor of two temperatures in the public code of Khosla
        et al.
    """
    _check_embeddings("features", features)
    rows = features.shape[0]
    if rows < 2:
        raise ValueError(f"features must have shape (N, D) with N >= 2, got {tuple(features.shape)}")
    check_tensor("target", target)
    check_shape("target", target, "(N,)", (rows,))
    check_dtype("target", target, torch.int64)
    check_same_device("target", target, "features", features)
    check_positive("temperature", temperature)
    surprise = -_similarities(features, temperature).log_softmax(1)
    positive = target[:, None] == target
    positive = positive & ~torch.eye(rows, dtype=torch.bool, device=target.device)
    count = positive.sum(1)
    losses = surprise.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    return reduce_anchors(losses, count > 0, reduction, features.dtype)


def _check_embeddings(name: str, z: Tensor) -> None:
    """Require floating-point embeddings of shape (N, D)."""
    check_tensor(name, z)
    check_floating(name, z)
    check_shape(name, z, "(N, D)", (None, None))


def _similarities(z: Tensor, temperature: float) -> Tensor:
    """Cosines of all pairs of rows over the temperature, with the pairs of a row with itself excluded by -inf."""
    unit = functional.normalize(widen(z), dim=1)
    return (unit @ unit.T / temperature).fill_diagonal_(-torch.inf)
