"""Losses that pull embeddings of the same thing together and push others apart."""

import torch
from torch import Tensor
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
    check_same_dtype,
    check_shape,
    check_tensor,
    values_are_readable,
)
from lossbook.losses._embeddings import check_embeddings, exclude_diagonal, similarities, unit
from lossbook.losses._positives import reduce_anchors
from lossbook.losses._shared import reduce, widen

# A family of their own, found under contrast too.
from lossbook.losses.replay import hpcr_scale as hpcr_scale
from lossbook.losses.replay import pcr as pcr
from lossbook.losses.replay import pcr_with_pairs as pcr_with_pairs
from lossbook.losses.replay import proxy_distillation as proxy_distillation
from lossbook.losses.replay import relation_distillation as relation_distillation

__all__ = ["amcl", "nt_xent", "nt_xent_decoupled", "optimal_temperature", "sup_con", "temperature_penalty"]


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
    _check_views(z_a, z_b, "(B, D)")
    check_positive("temperature", temperature)
    logits = similarities(torch.cat([z_a, z_b]), temperature)
    other_view = torch.arange(len(logits), device=logits.device).roll(z_a.shape[0])
    losses = functional.cross_entropy(logits, other_view, reduction="none")
    return reduce(losses, reduction, z_a.dtype)


def nt_xent_decoupled(z_a: Tensor, z_b: Tensor, *, temperature: float = 0.5, reduction: str = "mean") -> Tensor:
    r"""Cross-entropy of finding an example's second view, with the positive left out of the denominator.

    Row :math:`i` of ``z_a`` and of ``z_b``, :math:`a_i` and :math:`b_i`, are two views of example :math:`i`. The second
    views of the other examples are the negatives:

    .. math::

        \ell_i = -\frac{s_{ii}}{\tau} + \log \sum_{j \ne i} e^{s_{ij} / \tau} , \qquad
        s_{ij} = \frac{a_i \cdot b_j}{\lVert a_i \rVert \lVert b_j \rVert} .

    The anchors are ``z_a`` alone; average with the views exchanged for a symmetric loss. The value is in nats, does not
    depend on the lengths of the embeddings, and falls below zero once the positive beats all negatives together. It is
    one head of :func:`amcl` at a constant temperature.

    Args:
        z_a: Embeddings of the first views, shape ``(B, D)`` with ``B >= 2``, floating point. float16 and bfloat16 are
            accumulated in float32.
        z_b: Embeddings of the second views, like ``z_a``.
        temperature: Temperature :math:`\tau > 0` (dimensionless). Default 0.5.
        reduction: ``"mean"`` (over B, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(B,)`` for ``"none"``; dtype of ``z_a``. At most :math:`2 / \tau` from
        :math:`\log(B - 1)`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``temperature`` or ``reduction`` is not as above.

    Examples:
        >>> z = torch.eye(3)
        >>> nt_xent_decoupled(z, z, temperature=0.5)  # log 2 - 1 / 0.5
        tensor(-1.3069)

    Note:
        Finite for temperatures down to 1e-4. With data parallelism gather the embeddings of all processes first, see
        :func:`lossbook.distributed.gather_with_gradient`.

    References:
        Wang et al. (2024), NT-Xent as their table of losses prints it; chapter 9
        (:doc:`/notebooks/09_multi_head_contrastive`).
    """
    _check_views(z_a, z_b, "(B, D)")
    check_positive("temperature", temperature)
    logits = unit(z_a) @ unit(z_b).T / temperature
    return reduce(exclude_diagonal(logits).logsumexp(1) - logits.diagonal(), reduction, z_a.dtype)


def temperature_penalty(tau: Tensor | float, dim: int) -> Tensor:
    r"""What keeps a temperature that is learned for each pair from running away.

    .. math:: \Omega(\tau) = \frac{d}{2} \log \tau + \frac{1}{\tau} .

    If the embeddings of a positive pair differ by Gaussian noise of variance :math:`\tau` in each of :math:`d`
    directions, the negative log-likelihood of one given the other is
    :math:`\frac{d}{2} \log \tau + \lVert z - z^{+} \rVert^2 / (2 \tau)` but for a constant. For unit vectors with
    cosine :math:`s` this equals :math:`\Omega(\tau) - s / \tau`: the contrastive term with its penalty is that
    likelihood, and the temperature is the variance.

    Args:
        tau: Temperatures, any shape, floating point, ``> 0``; or a number. float16 and bfloat16 are computed in
            float32.
        dim: Dimension :math:`d` of the embeddings, ``>= 1``.

    Returns:
        The penalty of each temperature in nats, shape and dtype of ``tau`` (float64 for a number). Its minimum is at
        :math:`\tau = 2 / d`; it may be negative.

    Raises:
        TypeError: If ``tau`` is neither a floating-point tensor nor a number, or ``dim`` no int.
        ValueError: If ``dim`` is below 1, or (where values may be read) a temperature is not above zero.

    Examples:
        >>> temperature_penalty(torch.tensor([0.125, 1.0]), 16)
        tensor([-8.6355,  1.0000])

    References:
        Wang et al. (2024), regularization of the temperatures, with the constants of their public code; chapter 9
        (:doc:`/notebooks/09_multi_head_contrastive`).
    """
    values = _numbers("tau", tau)
    _check_temperatures(values)
    _check_dim(dim)
    return _penalty(widen(values), dim).to(values.dtype)


def optimal_temperature(sim: Tensor | float, *, beta: float, dim: int) -> Tensor:
    r"""Temperature at which a positive pair's term of :func:`amcl` is smallest, in closed form.

    The term :math:`-s / \tau + \beta \Omega(\tau)`, with :math:`\Omega` of :func:`temperature_penalty`, has its minimum
    at

    .. math:: \tau^{*} = \frac{2 (\beta - s)}{\beta d} ,

    provided that :math:`s < \beta`: the less alike a pair, the higher its temperature. For :math:`s \ge \beta` the term
    falls without bound as :math:`\tau \to 0`, which is why temperatures need a lower bound.

    Args:
        sim: Cosines :math:`s` of positive pairs, any shape, floating point, each below ``beta``; or a number.
        beta: Weight :math:`\beta > 0` of the penalty (dimensionless).
        dim: Dimension :math:`d` of the embeddings, ``>= 1``.

    Returns:
        The temperatures, shape and dtype of ``sim`` (float64 for a number).

    Raises:
        TypeError: If ``sim`` is neither a floating-point tensor nor a number, ``beta`` no number, or ``dim`` no int.
        ValueError: If ``beta`` is not above zero, ``dim`` is below 1, or (where values may be read) a similarity is not
            below ``beta``.

    Examples:
        >>> optimal_temperature(torch.tensor([0.0, -0.5]), beta=0.1, dim=16)
        tensor([0.1250, 0.7500])

    References:
        This package's closed form of the regularized term of Wang et al. (2024); chapter 9
        (:doc:`/notebooks/09_multi_head_contrastive`).
    """
    values = _numbers("sim", sim)
    check_positive("beta", beta)
    _check_dim(dim)
    if values_are_readable(values) and (values >= beta).any():
        highest = values[values >= beta].max()
        raise ValueError(f"sim must be < beta = {beta!r}, or the term has no minimum, got {highest:.6g}")
    return (2 * (beta - widen(values)) / (beta * dim)).to(values.dtype)


def amcl(
    z_a: Tensor,
    z_b: Tensor,
    tau: Tensor | float,
    *,
    beta: float = 0.1,
    negatives: str = "logsumexp",
    dim: int | None = None,
    symmetric: bool = False,
    reduction: str = "mean",
) -> Tensor:
    r"""Adaptive multi-head contrastive loss: several heads, and a temperature for each pair in each of them.

    With the cosine :math:`s^c_{ij}` of :math:`a^c_i` and :math:`b^c_j`, the embeddings that head :math:`c` gives to a
    first and to a second view, their temperature :math:`\tau^c_{ij}`, and :math:`\Omega` of
    :func:`temperature_penalty`,

    .. math::

        \ell_i = \sum_{c=1}^{C} \Bigl( \log \sum_{j \ne i} e^{u^c_{ij}} - u^c_{ii} \Bigr) , \qquad
        u^c_{ij} = \frac{s^c_{ij}}{\tau^c_{ij}} - \beta \, \Omega(\tau^c_{ij}) .

    ``negatives="max"`` is the loss as printed in the paper: instead of the log-sum-exp it takes :math:`u^c_{ij}` of the
    negative :math:`j` with the largest *cosine*, and lies below ours, by at most :math:`\log(B - 1)` for each head if
    the temperatures are equal. Where they are equal :math:`\beta` cancels, and ours is the sum over heads of
    :func:`nt_xent_decoupled`. The value is in nats, may be negative, and does not depend on the lengths of the
    embeddings.

    Args:
        z_a: Embeddings of the first views, shape ``(C, B, D)`` with ``B >= 2``: one slice for each head. Floating
            point; float16 and bfloat16 are accumulated in float32.
        z_b: Embeddings of the second views, like ``z_a``.
        tau: Temperatures, ``> 0``, broadcastable to ``(C, B, B)``: ``tau[c, i, j]`` for the pair of ``z_a[c, i]`` and
            ``z_b[c, j]``, positives on the diagonal; such as :class:`lossbook.nn.AdaptiveTemperature` gives. Floating
            point, or one number for all.
        beta: Weight of the penalty, ``>= 0`` (dimensionless). Default 0.1.
        negatives: ``"logsumexp"`` (default) or ``"max"``.
        dim: Dimension :math:`d` in the penalty, ``>= 1``. Default D.
        symmetric: Take the embeddings of both views as anchors: those of ``z_a`` against ``z_b``, and those of ``z_b``
            against ``z_a`` with ``tau`` transposed. Default: those of ``z_a`` alone.
        reduction: ``"mean"`` (over the B anchors, or 2B if ``symmetric``; default), ``"sum"`` or ``"none"``. Heads are
            added up.

    Returns:
        Scalar, or for ``"none"`` shape ``(B,)``, and ``(2B,)`` if ``symmetric``, the anchors of ``z_a`` first; dtype of
        ``z_a``. Gradients flow through ``tau`` too.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``beta``, ``negatives``, ``dim`` or ``reduction`` is not as above, or (where values may
            be read) a temperature is not above zero.

    Examples:
        >>> z = torch.eye(3).expand(2, 3, 3)
        >>> amcl(z, z, 0.5)  # two heads of log 2 - 1 / 0.5
        tensor(-2.6137)

    Note:
        ``symmetric=True`` is the mean of ``amcl(z_a, z_b, tau)`` and ``amcl(z_b, z_a, tau.mT)``; both share the scores
        of the pairs, which are computed once. The term of a positive is unbounded below as its temperature falls, see
        :func:`optimal_temperature`: bound the temperatures. Finite for temperatures down to 1e-4. With data parallelism
        gather the embeddings of all processes first, as ``(B, C, D)``, and compute ``tau`` from what was gathered, see
        :func:`lossbook.distributed.gather_with_gradient`.

    References:
        Wang et al. (2024), Eq. 2.1 for ``"max"``; chapter 9 (:doc:`/notebooks/09_multi_head_contrastive`). Differs from
        the public code, which contrasts no negatives of the batch.
    """
    _check_views(z_a, z_b, "(C, B, D)")
    heads, rows, features = z_a.shape
    temperatures = _numbers("tau", tau)
    _check_broadcastable("tau", temperatures, "(C, B, B)", (heads, rows, rows))
    if temperatures.ndim:
        check_same_device("tau", temperatures, "z_a", z_a)
    _check_temperatures(temperatures)
    check_non_negative("beta", beta)
    check_choice("negatives", negatives, ("logsumexp", "max"))
    dim = features if dim is None else dim
    _check_dim(dim)
    wide = widen(temperatures)
    if wide.ndim:
        cosine = unit(z_a) @ unit(z_b).mT
        # s / tau - beta Omega(tau) with its two quotients joined: most of the time goes into passes over all pairs.
        score = (cosine - beta) * wide.reciprocal() - beta * dim / 2 * wide.log()
    else:
        # The penalty of the positive cancels that of its negatives.
        score = cosine = (unit(z_a) / wide) @ unit(z_b).mT
    own = exclude_diagonal(torch.zeros(rows, rows, dtype=score.dtype, device=score.device))
    axes = (2, 1) if symmetric else (2,)  # rows for the anchors of z_a, columns for those of z_b
    if negatives == "max":
        others = cosine + own
        negative = [score.gather(axis, others.argmax(axis, keepdim=True)).squeeze(axis) for axis in axes]
    else:
        others = score + own
        negative = [others.logsumexp(axis) for axis in axes]
    positive = score.diagonal(dim1=1, dim2=2)
    losses = torch.cat([each - positive for each in negative], dim=1).sum(0)
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
    check_embeddings("features", features, at_least=2)
    rows = features.shape[0]
    check_tensor("target", target)
    check_shape("target", target, "(N,)", (rows,))
    check_dtype("target", target, torch.int64)
    check_same_device("target", target, "features", features)
    check_positive("temperature", temperature)
    surprise = -similarities(features, temperature).log_softmax(1)
    positive = target[:, None] == target
    positive = positive & ~torch.eye(rows, dtype=torch.bool, device=target.device)
    count = positive.sum(1)
    losses = surprise.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    return reduce_anchors(losses, count > 0, reduction, features.dtype)


def _check_views(z_a: Tensor, z_b: Tensor, symbols: str) -> None:
    """Require two views of at least two examples, the examples in the last dimension but one.

    Raises:
        TypeError: If a view is no tensor or not floating point.
        ValueError: If a shape, dtype or device is not as it should be.
    """
    for name, z in (("z_a", z_a), ("z_b", z_b)):
        check_tensor(name, z)
        check_floating(name, z)
        check_shape(name, z, symbols, [None] * len(symbols.split(",")))
    check_shape("z_b", z_b, "z_a.shape", z_a.shape)
    check_same_dtype("z_b", z_b, "z_a", z_a)
    check_same_device("z_b", z_b, "z_a", z_a)
    if z_a.shape[-2] < 2:
        raise ValueError(f"z_a must have shape {symbols} with B >= 2, got {tuple(z_a.shape)}")


def _numbers(name: str, value: Tensor | float) -> Tensor:
    """A floating-point tensor as it is, and a number as one without dimensions, which leaves other dtypes alone.

    Raises:
        TypeError: If it is neither.
        ValueError: If a number is not finite.
    """
    if isinstance(value, Tensor):
        check_tensor(name, value)
        check_floating(name, value)
        return value
    check_number(name, value)
    return torch.tensor(value, dtype=torch.float64)


def _check_temperatures(tau: Tensor) -> None:
    if values_are_readable(tau) and (tau <= 0).any():
        raise ValueError(f"tau must be > 0, got {tau.min():.6g}")


def _check_dim(dim: int) -> None:
    check_integer("dim", dim)
    if dim < 1:
        raise ValueError(f"dim must be >= 1, got {dim}")


def _check_broadcastable(name: str, tensor: Tensor, symbols: str, shape: tuple[int, ...]) -> None:
    sizes = zip(reversed(tensor.shape), reversed(shape), strict=False)
    if tensor.ndim > len(shape) or any(own not in (1, size) for own, size in sizes):
        raise ValueError(f"{name} must be broadcastable to {symbols} = {shape}, got shape {tuple(tensor.shape)}")


def _penalty(tau: Tensor, dim: int) -> Tensor:
    return dim / 2 * tau.log() + 1 / tau
