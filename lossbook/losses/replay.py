"""Losses of a classifier that learns from a stream and replays a small buffer of what it saw."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from lossbook._validation import (
    check_dtype,
    check_floating,
    check_non_negative,
    check_positive,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_target_range,
    check_tensor,
)
from lossbook.losses._embeddings import check_embeddings, similarities, unit
from lossbook.losses._positives import reduce_rows
from lossbook.losses._shared import check_logits, reduce, widen

__all__ = ["hpcr_scale", "pcr", "pcr_with_pairs", "proxy_distillation", "relation_distillation"]


def pcr(
    features: Tensor, proxies: Tensor, target: Tensor, *, temperature: float = 0.09, reduction: str = "mean"
) -> Tensor:
    r"""Proxy-based contrastive replay: a cosine classifier that contrasts an example with the classes of the batch.

    With the cosine :math:`s_{ic}` of feature :math:`z_i` and proxy :math:`w_c`, the row of the classifier for class
    :math:`c`,

    .. math::

        \ell_i = -\log \frac{e^{s_{i y_i} / \tau}}{\sum_{j=1}^{N} e^{s_{i y_j} / \tau}} , \qquad
        s_{ic} = \frac{z_i \cdot w_c}{\lVert z_i \rVert \lVert w_c \rVert} .

    The sum runs over the examples of the batch, :math:`j = i` included: a class counts as often as it occurs, say
    :math:`n_c` times, and one that does not occur gets no gradient. The loss is the cross-entropy of the logits
    :math:`s_{ic} / \tau + \log n_c`, plus the constant :math:`\log n_{y_i}`: softmax with its logits adjusted to the
    counts of the batch, so that many new examples and few replayed ones do not pull the boundary towards the old class.
    Do not compare its value with that of cross-entropy. The value is in nats, ``>= 0``, and does not depend on lengths.

    Args:
        features: Features :math:`z` of the joint batch of new and replayed examples, shape ``(N, D)``, floating point.
            float16 and bfloat16 are accumulated in float32.
        proxies: One proxy :math:`w_c` per class, seen or not, shape ``(C, D)``, dtype of ``features``.
        target: Classes :math:`y` in ``[0, C)``, shape ``(N,)``, int64.
        temperature: Temperature :math:`\tau > 0` (dimensionless). Default 0.09.
        reduction: ``"mean"`` (over N, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``features``. At least :math:`\log n_{y_i}`, which it is
        where the batch holds one class only. No anchor is without a positive, its own proxy; a batch without anchors
        gives zero, with a :class:`~lossbook.losses.NoPositivesWarning`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, a class, ``temperature`` or ``reduction`` is not as above.

    Examples:
        >>> features, proxies = torch.eye(3), torch.eye(3)
        >>> pcr(features, proxies, torch.tensor([0, 0, 1]), temperature=1.0, reduction="none")
        tensor([0.8620, 1.5514, 1.0986])

    Note:
        Finite for temperatures down to 1e-4. Classify by the largest cosine over the classes seen so far. With data
        parallelism gather features and targets of all processes first, see
        :func:`lossbook.distributed.gather_with_gradient`: the counts are those of the joined batch.

    References:
        Lin et al. (2023), definition of the loss; Menon et al. (2021) for adjusted logits; chapter 11
        (:doc:`/notebooks/11_contrastive_replay`). The public code adds 1e-6 to the lengths.
    """
    _check_proxies(features, proxies, target)
    check_positive("temperature", temperature)
    logits, log_count = _counted_logits(features, proxies, target, temperature)
    losses = functional.cross_entropy(logits, target, reduction="none") + log_count[target]
    return reduce_rows(losses, reduction, features.dtype)


def pcr_with_pairs(
    features: Tensor, proxies: Tensor, target: Tensor, *, temperature: float = 0.09, reduction: str = "mean"
) -> Tensor:
    r"""PCR with the other examples of the batch beside the proxies as partners to contrast with.

    With the cosines :math:`s_{ic}` of feature :math:`z_i` and proxy :math:`w_c` and :math:`r_{ij}` of two features, the
    other examples of the same class :math:`P_i = \{ p \ne i : y_p = y_i \}`, and :math:`n_i = |P_i| + 1`,

    .. math::

        \ell_i = -\frac{1}{2 n_i - 1} \Bigl( n_i \log \frac{e^{s_{i y_i} / \tau}}{Z_i}
        + \sum_{p \in P_i} \log \frac{e^{r_{ip} / \tau}}{Z_i} \Bigr) , \qquad
        Z_i = \sum_{j=1}^{N} e^{s_{i y_j} / \tau} + \sum_{j \ne i} e^{r_{ij} / \tau} .

    The proxy of the own class is a positive as often as the class occurs, so no anchor is without one. The value is in
    nats, and does not depend on lengths.

    Args:
        features: Features :math:`z` of the joint batch, shape ``(N, D)`` with ``N >= 2``, floating point; views of the
            same example are rows of their own. float16 and bfloat16 are accumulated in float32.
        proxies: One proxy :math:`w_c` per class, shape ``(C, D)``, dtype of ``features``.
        target: Classes :math:`y` in ``[0, C)``, shape ``(N,)``, int64.
        temperature: Temperature :math:`\tau > 0` (dimensionless). Default 0.09.
        reduction: ``"mean"`` (over N, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``features``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, a class, ``temperature`` or ``reduction`` is not as above.

    Examples:
        >>> features, proxies = torch.eye(3), torch.eye(3)
        >>> pcr_with_pairs(features, proxies, torch.tensor([0, 0, 1]), temperature=1.0, reduction="none")
        tensor([1.4659, 1.9048, 1.6094])

    Note:
        Finite for temperatures down to 1e-4. With data parallelism gather features and targets of all processes first,
        see :func:`lossbook.distributed.gather_with_gradient`.

    References:
        Lin et al. (2025), whose text adds these pairs under a condition; the public code has none, and this form, with
        all pairs always, is ours. Chapter 11 (:doc:`/notebooks/11_contrastive_replay`).
    """
    _check_proxies(features, proxies, target, at_least=2)
    check_positive("temperature", temperature)
    logits, log_count = _counted_logits(features, proxies, target, temperature)
    surprise = -torch.cat([logits, similarities(features, temperature)], dim=1).log_softmax(1)
    to_proxies, to_examples = surprise.split([len(proxies), len(target)], dim=1)
    own = log_count[target]
    # The surprise of all copies of the own proxy together, turned into that of one.
    to_proxy = to_proxies.gather(1, target[:, None]).squeeze(1) + own
    same = (target[:, None] == target) & ~torch.eye(len(target), dtype=torch.bool, device=target.device)
    count = 1 + same.sum(1)
    losses = (count * to_proxy + to_examples.masked_fill(~same, 0).sum(1)) / (2 * count - 1)
    return reduce(losses, reduction, features.dtype)


def hpcr_scale(
    step: float, *, temperature: float = 0.09, low: float = 0.05, high: float = 0.16, period: float = 500
) -> float:
    r"""Factor of the PCR loss that swings its gradients between those of two temperatures.

    With :math:`t` the step within the task, the period :math:`P`, the static temperature :math:`\tau` and the bounds
    :math:`\tau_{\min} < \tau_{\max}`,

    .. math::

        k(t) = \frac{\tau}{\tau_{\max}} + \Bigl( \frac{\tau}{\tau_{\min}} - \frac{\tau}{\tau_{\max}} \Bigr)
        \frac{1 - \cos(2 \pi t / P)}{2} .

    The probabilities inside the loss keep the temperature :math:`\tau`, while the gradient by the cosines, which has
    the factor :math:`1 / \tau`, gets :math:`k(t) / \tau`, from :math:`1 / \tau_{\max}` to :math:`1 / \tau_{\min}`
    and back.

    Args:
        step: Step :math:`t \ge 0` since the task began.
        temperature: Temperature :math:`\tau > 0` of the loss. Default 0.09.
        low: Lowest temperature :math:`\tau_{\min} > 0` of the swing, reached after half a period. Default 0.05.
        high: Highest temperature :math:`\tau_{\max}`, above ``low``, at the start of each period. Default 0.16.
        period: Steps :math:`P > 0` of one swing. Default 500; a task shorter than half of it never gets to ``low``.

    Returns:
        The factor :math:`k(t)`, in ``[temperature / high, temperature / low]``.

    Raises:
        TypeError: If an argument is no number.
        ValueError: If ``step`` is negative, ``low`` is not below ``high``, or another argument is not above zero.

    Examples:
        >>> [round(hpcr_scale(step), 4) for step in (0, 125, 250, 500)]
        [0.5625, 1.1812, 1.8, 0.5625]

    References:
        Lin et al. (2025), temperature component, as in the public code; chapter 11
        (:doc:`/notebooks/11_contrastive_replay`).
    """
    check_non_negative("step", step)
    for name, value in (("temperature", temperature), ("low", low), ("high", high), ("period", period)):
        check_positive(name, value)
    if low >= high:
        raise ValueError(f"low must be < high = {high!r}, got {low!r}")
    start, end = temperature / high, temperature / low
    return start + (end - start) * (1 - math.cos(2 * math.pi * step / period)) / 2


def proxy_distillation(new_logits: Tensor, old_logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    r"""Squared change of the logits of replayed examples since they were stored, at the classes of the batch.

    With :math:`M` class indices :math:`y_m`, those of the joint batch, and logits :math:`z` now and :math:`z'` then,

    .. math:: \ell_i = \frac{1}{M} \sum_{m=1}^{M} (z_{i y_m} - z'_{i y_m})^2 .

    A class counts as often as it occurs among the indices, and one that does not occur may change freely. The value is
    in squared units of the logits.

    Args:
        new_logits: Logits of the replayed examples, shape ``(N, C)``, floating point. float16 and bfloat16 are
            accumulated in float32.
        old_logits: Logits stored with them, like ``new_logits``; no gradient flows into them.
        target: Class indices :math:`y_m` in ``[0, C)``, shape ``(M,)`` with ``M >= 1``, int64; any number of them.
        reduction: ``"mean"`` (over N, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``new_logits``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, a class index or ``reduction`` is not as above.

    Examples:
        >>> new, old = torch.tensor([[1.0, 2.0, 9.0]]), torch.zeros(1, 3)
        >>> proxy_distillation(new, old, torch.tensor([0, 1, 1]))  # (1 + 4 + 4) / 3
        tensor(3.)

    Note:
        Where a replayed example has two views, pass its stored logits twice. It needs no gathering under data
        parallelism, except of the class indices.

    References:
        Lin et al. (2025), proxy-wise distillation, as in the public code; chapter 11
        (:doc:`/notebooks/11_contrastive_replay`).
    """
    check_logits("new_logits", new_logits)
    check_logits("old_logits", old_logits)
    check_shape("old_logits", old_logits, "new_logits.shape", new_logits.shape)
    check_same_dtype("old_logits", old_logits, "new_logits", new_logits)
    check_same_device("old_logits", old_logits, "new_logits", new_logits)
    check_tensor("target", target)
    check_shape("target", target, "(M,)", (None,))
    check_dtype("target", target, torch.int64)
    check_same_device("target", target, "new_logits", new_logits)
    if len(target) == 0:
        raise ValueError("target must have shape (M,) with M >= 1, got (0,)")
    check_target_range("target", target, new_logits.shape[1])
    change = widen(new_logits)[:, target] - widen(old_logits.detach())[:, target]
    return reduce(change.square().mean(1), reduction, new_logits.dtype)


def relation_distillation(
    new_features: Tensor, old_features: Tensor, *, temperature: float = 0.09, reduction: str = "mean"
) -> Tensor:
    r"""Keep who is similar to whom among replayed examples as it was when they were stored.

    With the cosine :math:`s_{ij}` of two features now, and probabilities :math:`q` made in the same way of the stored
    features,

    .. math::

        \ell_i = -\sum_{j \ne i} q_{ij} \log p_{ij} , \qquad
        p_{ij} = \frac{e^{s_{ij} / \tau}}{\sum_{k \ne i} e^{s_{ik} / \tau}} .

    It is smallest where :math:`p = q`, and there it is the entropy of :math:`q`, not zero. The value is in nats, and
    does not depend on the lengths of the features; nor does it change if all new features are rotated together.

    Args:
        new_features: Features of the replayed examples, shape ``(N, D)`` with ``N >= 3``, floating point. float16 and
            bfloat16 are accumulated in float32.
        old_features: Features stored with them, like ``new_features``; no gradient flows into them.
        temperature: Temperature :math:`\tau > 0` of both (dimensionless). Default 0.09.
        reduction: ``"mean"`` (over N, default), ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; dtype of ``new_features``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``temperature`` or ``reduction`` is not as above.

    Examples:
        >>> features = torch.eye(3)
        >>> relation_distillation(features, features)  # two others, equally far: log 2
        tensor(0.6931)

    Note:
        Finite for temperatures down to 1e-4. Where a replayed example has two views, pass its stored features twice.
        With data parallelism gather both, see :func:`lossbook.distributed.gather_with_gradient`.

    References:
        Lin et al. (2025), sample-wise distillation, as in the public code; chapter 11
        (:doc:`/notebooks/11_contrastive_replay`).
    """
    check_embeddings("new_features", new_features, at_least=3)
    check_embeddings("old_features", old_features)
    check_shape("old_features", old_features, "new_features.shape", new_features.shape)
    check_same_dtype("old_features", old_features, "new_features", new_features)
    check_same_device("old_features", old_features, "new_features", new_features)
    check_positive("temperature", temperature)
    surprise = -similarities(new_features, temperature).log_softmax(1)
    old = similarities(old_features.detach(), temperature).softmax(1)
    itself = torch.eye(len(old), dtype=torch.bool, device=old.device)
    # Infinite surprise at itself times probability zero would be NaN.
    losses = (old * surprise.masked_fill(itself, 0)).sum(1)
    return reduce(losses, reduction, new_features.dtype)


def _check_proxies(features: Tensor, proxies: Tensor, target: Tensor, *, at_least: int = 0) -> None:
    """Require features (N, D), proxies (C, D) and N class indices of one device, features and proxies of one dtype.

    Raises:
        TypeError: If an argument is no tensor or has another type of number.
        ValueError: If a shape, dtype or device differs, or (where values may be read) a class lies outside [0, C).
    """
    check_embeddings("features", features, at_least=at_least)
    rows, size = features.shape
    check_tensor("proxies", proxies)
    check_floating("proxies", proxies)
    check_shape("proxies", proxies, "(C, D)", (None, size))
    check_same_dtype("proxies", proxies, "features", features)
    check_same_device("proxies", proxies, "features", features)
    check_tensor("target", target)
    check_shape("target", target, "(N,)", (rows,))
    check_dtype("target", target, torch.int64)
    check_same_device("target", target, "features", features)
    check_target_range("target", target, len(proxies))


def _counted_logits(features: Tensor, proxies: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cosine logits plus the logarithm of how often each class occurs in the batch, and that logarithm.

    The first has shape (N, C), the second (C,); both are -inf for a class that does not occur.
    """
    logits = unit(features) @ unit(proxies).T / temperature
    count = torch.zeros(len(proxies), dtype=torch.int64, device=target.device)
    log_count = count.scatter_add(0, target, torch.ones_like(target)).to(logits.dtype).log()
    return logits + log_count, log_count
