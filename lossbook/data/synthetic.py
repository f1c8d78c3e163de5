"""Synthetic data with known properties, drawn from a seed."""

from __future__ import annotations

import numpy as np

from lossbook._validation import check_integer, check_number


def scores_at_auroc(
    n: int, *, auroc: float, prevalence: float, seed: int = 0, normalize: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    r"""Draw labels and scores whose AUROC has a given expectation.

    The :math:`N_+ = \mathrm{round}(n \cdot \mathrm{prevalence})` positives score uniformly in [0, 1]. Each negative
    draws from :math:`\mathrm{Binomial}(N_+, 1 - \mathrm{AUROC})` how many positives lie below it, and then a uniform
    place in the gap there. With many positives all negatives crowd into one narrow band, so this is a generator for
    few positives.

    Args:
        n: Number of examples, ``>= 2``.
        auroc: Expected AUROC, in [0, 1].
        prevalence: Share of positives, in (0, 1); at least one example must be of each class.
        seed: Seed of the draw, ``>= 0``, default 0.
        normalize: Multiply the scores so that their mean is the share of positives, a crude calibration, after which
            they may exceed 1. Default True.

    Returns:
        Labels, int64, and distinct scores, float64, both of shape ``(n,)``, in random order.

    Raises:
        TypeError: If ``n`` or ``seed`` is not an int, or ``auroc`` or ``prevalence`` not a number.
        ValueError: If an argument is outside its range, or all examples would be of one class.

    Examples:
        >>> label, score = scores_at_auroc(200, auroc=0.85, prevalence=0.05)
        >>> int(label.sum()), round(float(score.mean()), 6)
        (10, 0.05)

    References:
        McDermott et al. (2024), Section 3 and the generator of their public code; chapter 6
        (:doc:`/notebooks/06_auroc_auprc`).
    """
    check_integer("n", n)
    check_integer("seed", seed)
    check_number("auroc", auroc)
    check_number("prevalence", prevalence)
    if n < 2:
        raise ValueError(f"n must be >= 2, got {n}")
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    if not 0 <= auroc <= 1:
        raise ValueError(f"auroc must lie in [0, 1], got {auroc!r}")
    if not 0 < prevalence < 1:
        raise ValueError(f"prevalence must lie in (0, 1), got {prevalence!r}")
    count = round(n * prevalence)
    if not 0 < count < n:
        raise ValueError(f"prevalence must leave examples of both classes, got {prevalence!r}: {count} of {n} positive")
    rng = np.random.default_rng(seed)
    positive = np.sort(rng.uniform(size=count))
    edges = np.concatenate([[0.0], positive, [1.0]])
    below = rng.binomial(count, 1 - auroc, size=n - count)
    negative = rng.uniform(edges[below], edges[below + 1])
    label = np.repeat(np.array([1, 0]), [count, n - count])
    score = np.concatenate([positive, negative])
    if normalize:
        score *= count / n / score.mean()
    order = rng.permutation(n)
    return label[order], score[order]
