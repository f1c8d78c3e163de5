"""How far confidences are from how often the answers are right.

Inputs are tensors or NumPy arrays of any device and dtype; all arithmetic is float64, and the metrics return floats.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lossbook._validation import check_dtype, check_floating, check_integer, check_same_device, check_shape
from lossbook.losses._shared import check_classification

__all__ = ["brier_confidence", "expected_calibration_error", "ks_calibration_error", "narrowly_wrong"]


def expected_calibration_error(
    confidence: Tensor | np.ndarray, correct: Tensor | np.ndarray, *, n_bins: int = 15
) -> float:
    r"""Average gap between confidence and accuracy over bins of equal width.

    With bins :math:`B_b`, where :math:`B_1` holds the confidences in :math:`[0, 1/n]` and :math:`B_b` those in
    :math:`((b-1)/n, b/n]`, and correctness :math:`c_i \in \{0, 1\}`,

    .. math:: \mathrm{ECE} = \sum_{b=1}^{n} \frac{1}{N} \Bigl| \sum_{i \in B_b} (\hat p_i - c_i) \Bigr| .

    Args:
        confidence: Confidence :math:`\hat p` in the answer given, in [0, 1], floating point, shape ``(N,)``.
        correct: Whether the answer is right, bool, shape ``(N,)``.
        n_bins: Number :math:`n` of bins, ``>= 1``. Default 15. Methods may change places with it: compare at one
            number, and look at :func:`ks_calibration_error`, which has none.

    Returns:
        A number in [0, 1]; 0 for perfect calibration within every bin, NaN if there is no example.

    Raises:
        ValueError: If a shape differs, a confidence lies outside [0, 1] or is NaN, or ``n_bins`` is below 1.
        TypeError: If ``confidence`` is not floating point, ``correct`` not bool or ``n_bins`` not an int.

    Examples:
        >>> confidence = torch.tensor([0.9, 0.9, 0.6, 0.6], dtype=torch.float64)
        >>> correct = torch.tensor([True, True, True, False])
        >>> round(expected_calibration_error(confidence, correct, n_bins=10), 4)
        0.1

    Note:
        A confidence on an edge belongs to the bin below, as in the code of Guo et al. (2017); torchmetrics puts it
        into the bin above. Noise never cancels between bins: the ECE of 2,000 perfectly
        calibrated confidences is about 0.02, not 0.

    References:
        Guo et al. (2017), Eq. 3; chapter 5 (:doc:`/notebooks/05_calibration`).
    """
    check_integer("n_bins", n_bins)
    if n_bins < 1:
        raise ValueError(f"n_bins must be >= 1, got {n_bins}")
    confidence, gap = _confidence_and_gap(confidence, correct)
    inner_edges = torch.arange(1, n_bins, dtype=torch.float64, device=gap.device) / n_bins
    bins = torch.bucketize(confidence, inner_edges)
    total = gap.new_zeros(n_bins).index_add_(0, bins, gap)
    return (total.abs().sum() / len(gap)).item()


def ks_calibration_error(confidence: Tensor | np.ndarray, correct: Tensor | np.ndarray) -> float:
    r"""Largest gap between confidence and accuracy accumulated from the least confident answer upward.

    .. math:: \mathrm{KS} = \max_{t} \frac{1}{N} \Bigl| \sum_{i : \hat p_i \le t} (\hat p_i - c_i) \Bigr| ,

    the Kolmogorov-Smirnov distance of two cumulative curves. It needs no bins and is never below the ECE of one bin.

    Args:
        confidence: Confidence :math:`\hat p` in the answer given, in [0, 1], floating point, shape ``(N,)``.
        correct: Whether the answer is right, :math:`c_i \in \{0, 1\}`, bool, shape ``(N,)``.

    Returns:
        A number in [0, 1]; NaN if there is no example.

    Raises:
        ValueError: If a shape differs, or a confidence lies outside [0, 1] or is NaN.
        TypeError: If ``confidence`` is not floating point or ``correct`` not bool.

    Examples:
        >>> confidence = torch.tensor([0.9, 0.9, 0.6, 0.6], dtype=torch.float64)
        >>> correct = torch.tensor([True, True, True, False])
        >>> round(ks_calibration_error(confidence, correct), 4)
        0.05

    Note:
        Examples of the same confidence enter together, so the value does not depend on their order.

    References:
        Gupta et al. (2021), KS error; chapter 5 (:doc:`/notebooks/05_calibration`).
    """
    confidence, gap = _confidence_and_gap(confidence, correct)
    if len(gap) == 0:
        return float("nan")
    levels, place = confidence.unique(return_inverse=True)
    total = gap.new_zeros(len(levels)).index_add_(0, place, gap)
    return (total.cumsum(0).abs().max() / len(gap)).item()


def brier_confidence(confidence: Tensor | np.ndarray, correct: Tensor | np.ndarray) -> float:
    r"""Brier score of the top answer: mean squared distance of confidence and correctness.

    .. math:: \mathrm{BS} = \frac{1}{N} \sum_{i=1}^{N} (\hat p_i - c_i)^2 .

    A proper score of confidence: its expectation is smallest if :math:`\hat p` is the probability of being right. It is
    not the Brier score over all classes.

    Args:
        confidence: Confidence :math:`\hat p` in the answer given, in [0, 1], floating point, shape ``(N,)``.
        correct: Whether the answer is right, :math:`c_i \in \{0, 1\}`, bool, shape ``(N,)``.

    Returns:
        A number in [0, 1]; NaN if there is no example.

    Raises:
        ValueError: If a shape differs, or a confidence lies outside [0, 1] or is NaN.
        TypeError: If ``confidence`` is not floating point or ``correct`` not bool.

    Examples:
        >>> confidence = torch.tensor([0.9, 0.6], dtype=torch.float64)
        >>> round(brier_confidence(confidence, torch.tensor([True, False])), 4)
        0.185

    Note:
        Equals the mean of :func:`lossbook.losses.correctness_aware_loss`.

    References:
        Liu et al. (2024), evaluation metrics; chapter 5 (:doc:`/notebooks/05_calibration`).
    """
    _, gap = _confidence_and_gap(confidence, correct)
    return gap.square().mean().item()


def narrowly_wrong(logits: Tensor, target: Tensor) -> Tensor:
    r"""Whether cross-entropy asks for more confidence in an answer that is wrong.

    With the softmax :math:`p_i` of logits :math:`z_i`, already divided by a temperature, and right class :math:`y_i`,

    .. math:: \arg\max_k z_{ik} \ne y_i \quad\text{and}\quad z_{i y_i} > \bar z_i , \qquad
        \bar z_i = \sum_k p_{ik} z_{ik} .

    The derivative of cross-entropy by the inverse temperature is :math:`\bar z_i - z_{i y_i}`: where it is negative, a
    lower temperature lowers the loss, and raises the confidence in whatever answer there is.

    Args:
        logits: Temperature-scaled scores, shape ``(N, C)``, floating point.
        target: Class indices in ``[0, C)``, shape ``(N,)``, int64.

    Returns:
        Bool, shape ``(N,)``, on the device of ``logits``.

    Raises:
        ValueError: If a shape or a class index is not as above.
        TypeError: If ``logits`` is not floating point or ``target`` not int64.

    Examples:
        >>> logits = torch.tensor([[0.0, 0.9, 1.0], [0.0, 0.1, 1.0]])
        >>> narrowly_wrong(logits, torch.tensor([1, 1]))
        tensor([ True, False])

    Note:
        Never true for two classes: the mean of two logits, however weighted, lies above the smaller one.

    References:
        Our exact form of an argument of Liu et al. (2024); chapter 5 (:doc:`/notebooks/05_calibration`).
    """
    check_classification(logits, target)
    if len(target) == 0:
        return torch.zeros_like(target, dtype=torch.bool)
    z = logits.detach().double()
    # Measured from the largest logit, equal logits are exactly equal to their mean.
    below = z - z.amax(1, keepdim=True)
    mean = (below.softmax(1) * below).sum(1)
    of_label = below.gather(1, target[:, None])[:, 0]
    return (z.argmax(1) != target) & (of_label > mean)


def _confidence_and_gap(confidence: Tensor | np.ndarray, correct: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    """Checked confidences, and by how much each exceeds the correctness of its answer, in float64."""
    confidence, correct = torch.as_tensor(confidence).detach(), torch.as_tensor(correct)
    check_floating("confidence", confidence)
    check_shape("confidence", confidence, "(N,)", (None,))
    check_shape("correct", correct, "(N,)", tuple(confidence.shape))
    check_dtype("correct", correct, torch.bool)
    check_same_device("correct", correct, "confidence", confidence)
    confidence = confidence.double()
    outside = ~((confidence >= 0) & (confidence <= 1))  # true for NaN as well
    if outside.any():
        raise ValueError(f"confidence must lie in [0, 1], got {confidence[outside][0].item()}")
    return confidence, confidence - correct.double()
