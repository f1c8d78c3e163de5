r"""Metric learning with pairs that may be half alike: pair losses of labels in [0, 1], and mixed embeddings.

Every loss here is a sum over the pairs of an anchor, in which a pair with label :math:`y` counts :math:`y` times as a
positive and :math:`1 - y` times as a negative. Labels 0 and 1 give the usual losses.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from lossbook._validation import (
    check_choice,
    check_dtype,
    check_floating,
    check_non_negative,
    check_number,
    check_positive,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_target_range,
    check_tensor,
    values_are_readable,
)
from lossbook.losses._embeddings import check_embeddings, unit
from lossbook.losses._positives import reduce_anchors
from lossbook.losses._shared import widen

__all__ = ["metric_loss", "metrix_embed_loss", "mix_embeddings", "pair_loss", "positivity_threshold"]

KINDS = ("contrastive", "multi_similarity", "binomial_deviance")


def pair_loss(
    sim: Tensor,
    label: Tensor,
    *,
    kind: str = "multi_similarity",
    mask: Tensor | None = None,
    margin: float = 0.5,
    beta: float = 2.0,
    gamma: float = 50.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Loss of an anchor's pairs, each of which may be a positive, a negative or something in between.

    Anchor :math:`a` has the pairs :math:`v \in V_a` with similarity :math:`s_{av}` and label :math:`y_{av}`, 1 for a
    positive and 0 for a negative. With the margin :math:`m`, the multi-similarity loss is

    .. math::

        \ell_a = \frac{1}{\beta} \log \Bigl( 1 + \sum_{v \in V_a} y_{av} e^{-\beta (s_{av} - m)} \Bigr)
        + \frac{1}{\gamma} \log \Bigl( 1 + \sum_{v \in V_a} (1 - y_{av}) e^{\gamma (s_{av} - m)} \Bigr) ,

    the contrastive loss

    .. math:: \ell_a = \sum_{v \in V_a} \bigl[ -y_{av} s_{av} + (1 - y_{av}) \max(0, s_{av} - m) \bigr] ,

    and the binomial deviance

    .. math::

        \ell_a = \sum_{v \in V_a} \bigl[ y_{av} \log(1 + e^{-\beta (s_{av} - m)})
        + (1 - y_{av}) \log(1 + e^{\gamma (s_{av} - m)}) \bigr] .

    An anchor without pairs has loss zero and counts in the mean. If no anchor has one the loss is zero, connected to
    the graph, with a :class:`~lossbook.losses.NoPositivesWarning`.

    Args:
        sim: Similarities :math:`s`, shape ``(A, V)``, floating point: one row per anchor. Usually cosines, for which
            the defaults are made. float16 and bfloat16 are accumulated in float32.
        label: Labels :math:`y` in [0, 1], shape ``(A, V)``, of any real dtype; gradients flow to them too.
        kind: ``"multi_similarity"`` (default), ``"contrastive"`` or ``"binomial_deviance"``.
        mask: Which pairs exist, bool, shape ``(A, V)``; what stands elsewhere is ignored. Default all.
        margin: Similarity :math:`m`, in units of ``sim``. Default 0.5.
        beta: Sharpness :math:`\beta > 0` of the positive part, per unit of ``sim``. Default 2. Not for contrastive.
        gamma: Sharpness :math:`\gamma > 0` of the negative part, per unit of ``sim``. Default 50. Not for contrastive.
        reduction: ``"mean"`` (over all A anchors, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(A,)`` for ``"none"``; dtype of ``sim``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``kind``, a parameter or ``reduction`` is not as above, or (where values may be read) a
            label of an existing pair lies outside [0, 1].

    Examples:
        >>> sim = torch.tensor([[0.9, 0.2], [0.6, 0.6]])
        >>> pair_loss(sim, torch.tensor([[1.0, 0.0], [0.5, 0.5]]), kind="contrastive", reduction="none")
        tensor([-0.9000, -0.5000])
        >>> pair_loss(sim, torch.tensor([[1.0, 0.0], [0.5, 0.5]]), reduction="none")
        tensor([0.1856, 0.3992])

    Note:
        Finite, with finite gradients, for ``gamma * sim`` of any magnitude and for labels of exactly 0 and 1.

    References:
        Venkataramanan et al. (2022), Sections 3.2 to 3.4; chapter 10 (:doc:`/notebooks/10_metric_mix`). Wang et al.
        (2019) for the multi-similarity loss, without their mining of pairs; Yi et al. (2014) for the binomial deviance.
        The contrastive loss sums over pairs as the formula does, where libraries often average.
    """
    check_tensor("sim", sim)
    check_floating("sim", sim)
    check_shape("sim", sim, "(A, V)", (None, None))
    check_tensor("label", label)
    check_shape("label", label, "(A, V)", tuple(sim.shape))
    check_same_device("label", label, "sim", sim)
    _check_parameters(kind, margin, beta, gamma)
    if mask is None:
        mask = torch.ones_like(sim, dtype=torch.bool)
    else:
        check_tensor("mask", mask)
        check_dtype("mask", mask, torch.bool)
        check_shape("mask", mask, "(A, V)", tuple(sim.shape))
        check_same_device("mask", mask, "sim", sim)
    _check_labels(label, mask)
    s = widen(sim)
    losses = _pair_losses(s, label.to(s.dtype), mask, kind, margin, beta, gamma)
    return reduce_anchors(losses, mask.any(1), reduction, sim.dtype, count_all=True)


def metric_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    kind: str = "multi_similarity",
    margin: float = 0.5,
    beta: float = 2.0,
    gamma: float = 50.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Pair loss of a labeled batch: every example is an anchor, all others are its pairs.

    With the cosines :math:`s_{ij}` and classes :math:`c_i`, anchor :math:`i` has the multi-similarity loss

    .. math::

        \ell_i = \frac{1}{\beta} \log \Bigl( 1 + \sum_{j \ne i : c_j = c_i} e^{-\beta (s_{ij} - m)} \Bigr)
        + \frac{1}{\gamma} \log \Bigl( 1 + \sum_{j : c_j \ne c_i} e^{\gamma (s_{ij} - m)} \Bigr) ,
        \qquad s_{ij} = \frac{e_i \cdot e_j}{\lVert e_i \rVert \lVert e_j \rVert} ,

    or the one :func:`pair_loss` has for another ``kind``. An anchor without a positive keeps its negative part, one
    without a negative its positive part; all count in the mean.

    Args:
        embeddings: Embeddings :math:`e`, shape ``(N, D)``, floating point; scaled to unit length inside. float16 and
            bfloat16 are accumulated in float32.
        labels: Classes :math:`c`, shape ``(N,)``, int64; only equality counts.
        kind: ``"multi_similarity"`` (default), ``"contrastive"`` or ``"binomial_deviance"``.
        margin: Cosine :math:`m`. Default 0.5.
        beta: Sharpness :math:`\beta > 0` of the positive part. Default 2.
        gamma: Sharpness :math:`\gamma > 0` of the negative part. Default 50.
        reduction: ``"mean"`` (over N, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``embeddings``. A single example has loss zero, with a
        :class:`~lossbook.losses.NoPositivesWarning`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``kind``, a parameter or ``reduction`` is not as above.

    Examples:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> metric_loss(embeddings, torch.tensor([0, 0, 1]), reduction="none")
        tensor([0.2991, 0.5991, 0.3000])

    Note:
        With data parallelism gather embeddings and labels of all processes first, see
        :func:`lossbook.distributed.gather_with_gradient`.

    References:
        Venkataramanan et al. (2022), Section 3.2; Wang et al. (2019); chapter 10 (:doc:`/notebooks/10_metric_mix`).
    """
    _check_batch(embeddings, labels)
    _check_parameters(kind, margin, beta, gamma)
    losses, exists = _clean_losses(_gram(embeddings), labels, kind, margin, beta, gamma)
    return reduce_anchors(losses, exists.any(1), reduction, embeddings.dtype, count_all=True)


def metrix_embed_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    lam: float,
    partner: Tensor,
    kind: str = "multi_similarity",
    weight: float = 0.4,
    margin: float = 0.5,
    beta: float = 2.0,
    gamma: float = 50.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Metric loss of a batch plus that of mixed embeddings, which count in part as positives (Metrix).

    Anchor :math:`i`, of class :math:`c_i`, has a partner :math:`p_i` of its class. Its mixed examples are the partner
    mixed with each example of another class; they have the label :math:`\lambda`. With :math:`\ell^\text{clean}_i` of
    :func:`metric_loss` and cosines :math:`s_{ij}` to the mixed examples, the multi-similarity loss is

    .. math::

        \ell_i = \ell^\text{clean}_i + w \Bigl[
        \frac{1}{\beta} \log \Bigl( 1 + \sum_{j : c_j \ne c_i} \lambda e^{-\beta (s_{ij} - m)} \Bigr)
        + \frac{1}{\gamma} \log \Bigl( 1 + \sum_{j : c_j \ne c_i} (1 - \lambda) e^{\gamma (s_{ij} - m)} \Bigr) \Bigr] ,

    .. math::

        s_{ij} = \Bigl\langle u_i, \frac{\lambda u_{p_i} + (1 - \lambda) u_j}
        {\lVert \lambda u_{p_i} + (1 - \lambda) u_j \rVert} \Bigr\rangle , \qquad u_i = \frac{e_i}{\lVert e_i \rVert} ,

    and the bracket is that of :func:`pair_loss` for another ``kind``. A partner other than the anchor mixes a positive
    with the negatives; the anchor itself as its partner mixes anchor and negatives. An anchor without an example of
    another class has no mixed part.

    Args:
        embeddings: Embeddings :math:`e`, shape ``(N, D)``, floating point; scaled to unit length inside. float16 and
            bfloat16 are accumulated in float32.
        labels: Classes :math:`c`, shape ``(N,)``, int64; only equality counts.
        lam: Share :math:`\lambda` of the partner in each mixed example, and their label, in [0, 1]; one for the batch,
            drawn anew for each step, from Beta(2, 2) in the paper.
        partner: Row :math:`p_i` of each anchor's partner, shape ``(N,)``, int64, of the anchor's class;
            ``torch.arange(N)`` for the anchors themselves.
        kind: ``"multi_similarity"`` (default), ``"contrastive"`` or ``"binomial_deviance"``.
        weight: Weight :math:`w \ge 0` of the mixed part. Default 0.4.
        margin: Cosine :math:`m`. Default 0.5.
        beta: Sharpness :math:`\beta > 0` of the positive part. Default 2.
        gamma: Sharpness :math:`\gamma > 0` of the negative part. Default 50.
        reduction: ``"mean"`` (over N, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``embeddings``. A single example has loss zero, with a
        :class:`~lossbook.losses.NoPositivesWarning`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``lam``, ``kind``, a parameter or ``reduction`` is not as above, or (where values may be
            read) a partner is no row or of another class than its anchor.

    Examples:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> labels, partner = torch.tensor([0, 0, 1]), torch.tensor([1, 0, 2])
        >>> metrix_embed_loss(embeddings, labels, lam=0.5, partner=partner, reduction="none")
        tensor([0.4078, 0.8239, 0.5595])

    Note:
        The mixed examples are never formed: their cosines follow from those of the batch, so memory is that of a few
        N x N matrices whatever D is. Where the clean part is to be another loss, or inputs or features are to be mixed,
        add :func:`pair_loss` of the mixed examples to it, see :func:`mix_embeddings`.
        With data parallelism gather embeddings and labels first, see
        :func:`lossbook.distributed.gather_with_gradient`, and choose partners among the rows of the joined batch, the
        same in all processes.

    References:
        Venkataramanan et al. (2022), Sections 3.3 and 3.4, with the pairs and the weight of their public code;
        chapter 10 (:doc:`/notebooks/10_metric_mix`). Their code takes distances in place of cosines for contrastive.
    """
    _check_batch(embeddings, labels)
    _check_partner(partner, labels)
    _check_lam(lam)
    check_non_negative("weight", weight)
    _check_parameters(kind, margin, beta, gamma)
    gram = _gram(embeddings)
    clean, exists = _clean_losses(gram, labels, kind, margin, beta, gamma)
    negative = labels[:, None] != labels
    mixed = _mixed_cosines(gram, partner, lam)
    label = torch.full_like(mixed, lam)
    losses = clean + weight * _pair_losses(mixed, label, negative, kind, margin, beta, gamma)
    return reduce_anchors(losses, exists.any(1), reduction, embeddings.dtype, count_all=True)


def mix_embeddings(x: Tensor, y: Tensor, lam: float) -> Tensor:
    r"""Mix two sets of embeddings and scale the result to unit length.

    .. math:: v = \frac{\lambda x + (1 - \lambda) y}{\lVert \lambda x + (1 - \lambda) y \rVert} .

    ``x`` and ``y`` are taken as they are; give unit embeddings, or the longer one weighs more than its share.

    Args:
        x: Embeddings with the share ``lam``, shape ``(..., D)``, floating point.
        y: Embeddings with the rest, shape ``(..., D)`` that broadcasts with ``x``, dtype of ``x``.
        lam: Share :math:`\lambda` of ``x``, in [0, 1].

    Returns:
        Unit embeddings of the joint shape, dtype of ``x``; zero where the two cancel.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If the shapes do not fit or ``lam`` lies outside [0, 1].

    Examples:
        >>> mix_embeddings(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.5)
        tensor([[0.7071, 0.7071]])

        The mixed part alone, to be added to a clean loss of another library:

        >>> unit = functional.normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), dim=1)
        >>> labels, partner = torch.tensor([0, 0, 1]), torch.tensor([1, 0, 2])
        >>> sim = torch.einsum("ad,avd->av", unit, mix_embeddings(unit[partner][:, None], unit, 0.5))
        >>> pair_loss(sim, torch.full_like(sim, 0.5), mask=labels[:, None] != labels)
        tensor(0.4942)

    References:
        Venkataramanan et al. (2022), Section 3.3; chapter 10 (:doc:`/notebooks/10_metric_mix`).
    """
    for name, value in (("x", x), ("y", y)):
        check_tensor(name, value)
        check_floating(name, value)
        if value.ndim < 1:
            raise ValueError(f"{name} must have shape (..., D), got ()")
    check_same_dtype("y", y, "x", x)
    check_same_device("y", y, "x", x)
    sizes = zip(x.shape[-2::-1], y.shape[-2::-1], strict=False)
    if x.shape[-1] != y.shape[-1] or any(a != b and 1 not in (a, b) for a, b in sizes):
        raise ValueError(
            f"y must have shape (..., D) that broadcasts with that of x, {tuple(x.shape)}, got {tuple(y.shape)}"
        )
    _check_lam(lam)
    return unit(lam * widen(x) + (1 - lam) * widen(y)).to(x.dtype)


def positivity_threshold(lam: float, *, margin: float = 0.5, beta: float = 2.0, gamma: float = 50.0) -> float:
    r"""Similarity up to which a mixed example attracts its anchor, in the multi-similarity loss.

    If the anchor has one mixed example, of label :math:`\lambda`, the loss falls with their similarity :math:`s` if and
    only if

    .. math:: s \le m + \frac{1}{\beta + \gamma} \log \frac{\lambda}{1 - \lambda} .

    Below it acts as a positive, above as a negative. With several mixed examples the rule is approximate.

    Args:
        lam: Label :math:`\lambda` of the mixed example, in [0, 1].
        margin: Similarity :math:`m`. Default 0.5.
        beta: Sharpness :math:`\beta > 0` of the positive part. Default 2.
        gamma: Sharpness :math:`\gamma > 0` of the negative part. Default 50.

    Returns:
        The similarity on the right; ``-inf`` at ``lam=0``, a pure negative, and ``inf`` at ``lam=1``, a pure positive.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If ``lam`` lies outside [0, 1], or ``beta`` or ``gamma`` is not positive.

    Examples:
        >>> [round(positivity_threshold(lam), 4) for lam in (0, 0.1, 0.5, 0.9)]
        [-inf, 0.4577, 0.5, 0.5423]

    References:
        Venkataramanan et al. (2022), analysis of mixed embeddings and positivity; chapter 10
        (:doc:`/notebooks/10_metric_mix`).
    """
    _check_lam(lam)
    _check_parameters("multi_similarity", margin, beta, gamma)
    if lam in (0, 1):
        return math.inf if lam else -math.inf
    return margin + (math.log(lam) - math.log1p(-lam)) / (beta + gamma)


def _check_parameters(kind: str, margin: float, beta: float, gamma: float) -> None:
    check_choice("kind", kind, KINDS)
    check_number("margin", margin)
    check_positive("beta", beta)
    check_positive("gamma", gamma)


def _check_lam(lam: float) -> None:
    check_number("lam", lam)
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must lie in [0, 1], got {lam!r}")


def _check_labels(label: Tensor, mask: Tensor) -> None:
    """Require labels in [0, 1] where a pair exists and values may be read."""
    if not values_are_readable(label):
        return
    outside = mask & ~((label >= 0) & (label <= 1))
    if outside.any():
        raise ValueError(f"label must lie in [0, 1], got {label[outside][0].item()}")


def _check_batch(embeddings: Tensor, labels: Tensor) -> None:
    """Require embeddings (N, D) with N classes."""
    check_embeddings("embeddings", embeddings)
    check_tensor("labels", labels)
    check_shape("labels", labels, "(N,)", (embeddings.shape[0],))
    check_dtype("labels", labels, torch.int64)
    check_same_device("labels", labels, "embeddings", embeddings)


def _check_partner(partner: Tensor, labels: Tensor) -> None:
    """Require a row of the anchor's class for each anchor."""
    check_tensor("partner", partner)
    check_shape("partner", partner, "(N,)", tuple(labels.shape))
    check_dtype("partner", partner, torch.int64)
    check_same_device("partner", partner, "labels", labels)
    check_target_range("partner", partner, len(labels), symbol="N")
    if not values_are_readable(partner):
        return
    wrong = labels[partner] != labels
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"partner must be of the class of its anchor, {int(labels[row])} for row {row}, got row "
            f"{int(partner[row])} of class {int(labels[partner[row]])}"
        )


def _gram(embeddings: Tensor) -> Tensor:
    """Cosines of all pairs of rows."""
    rows = unit(embeddings)
    return rows @ rows.T


def _mixed_cosines(gram: Tensor, partner: Tensor, lam: float) -> Tensor:
    """Cosine of anchor i with its partner mixed with row j, for all i and j, from the cosines of the rows alone."""
    of_partner = gram[partner]
    dot = lam * gram.gather(1, partner[:, None]) + (1 - lam) * gram
    own = gram.diagonal()  # 1, but for rounding and for a row of zeros
    square = lam**2 * own[partner][:, None] + (1 - lam) ** 2 * own + 2 * lam * (1 - lam) * of_partner
    # Where the two cancel the squared length is rounding error, of either sign.
    return dot * square.clamp(min=torch.finfo(gram.dtype).eps).rsqrt()


def _clean_losses(
    gram: Tensor, labels: Tensor, kind: str, margin: float, beta: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """Losses of the anchors of a batch, and which pairs they have: all but those of a row with itself."""
    exists = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same = (labels[:, None] == labels).to(gram.dtype)
    return _pair_losses(gram, same, exists, kind, margin, beta, gamma), exists


def _pair_losses(s: Tensor, label: Tensor, mask: Tensor, kind: str, margin: float, beta: float, gamma: float) -> Tensor:
    """One loss per row; ``s`` and ``label`` of the same dtype, float32 or wider."""
    # Where there is no pair the weights are zero and the similarity harmless, so that NaN cannot come in.
    s = s.masked_fill(~mask, margin)
    u = s - margin
    positive, negative = label.masked_fill(~mask, 0), (1 - label).masked_fill(~mask, 0)
    if kind == "multi_similarity":
        return _log_one_plus(positive, -beta * u) / beta + _log_one_plus(negative, gamma * u) / gamma
    if kind == "contrastive":
        return (negative * u.relu() - positive * s).sum(1)
    attract, repel = -functional.logsigmoid(beta * u), -functional.logsigmoid(-gamma * u)
    return (positive * attract + negative * repel).sum(1)


def _log_one_plus(weight: Tensor, exponent: Tensor) -> Tensor:
    """``log(1 + sum_v weight_v exp(exponent_v))`` of each row, whatever the exponents; weights may be zero."""
    # The largest term, or the 1, is taken out. Its logarithm stays out of the graph: the value does not depend on it.
    logs = (exponent + weight.log()).detach()
    top = functional.pad(logs, (0, 1)).amax(1, keepdim=True)
    # Only a weight of (nearly) zero leaves an exponent above the limit, and the product must be zero, not NaN.
    limit = math.log(torch.finfo(exponent.dtype).max) - 1
    terms = weight * (exponent - top).clamp(max=limit).exp()
    return top[:, 0] + (torch.expm1(-top[:, 0]) + terms.sum(1)).log1p()
