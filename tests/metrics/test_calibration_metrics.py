"""Calibration metrics by hand, at their edges, and against torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from lossbook.metrics import brier_confidence, expected_calibration_error, ks_calibration_error, narrowly_wrong

METRICS = (expected_calibration_error, ks_calibration_error, brier_confidence)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def answers(generator):
    confidence = torch.rand(500, generator=generator, dtype=torch.float64)
    return confidence, torch.rand(500, generator=generator) < confidence**2


def test_values_by_hand():
    """Bins (0.5, 0.6] and (0.8, 0.9]: gaps 0.2 and -0.2 in sum."""
    confidence, correct = numbers(0.9, 0.9, 0.6, 0.6), torch.tensor([True, True, True, False])
    assert expected_calibration_error(confidence, correct, n_bins=10) == pytest.approx(0.1)
    assert expected_calibration_error(confidence, correct, n_bins=1) == pytest.approx(0.0)
    assert ks_calibration_error(confidence, correct) == pytest.approx(0.05)
    assert brier_confidence(confidence, correct) == pytest.approx((0.01 + 0.01 + 0.16 + 0.36) / 4)


@pytest.mark.parametrize("n_bins", [1, 2, 10, 15, 25])
def test_ece_equals_a_loop_over_bins(answers, n_bins):
    confidence, correct = answers
    expected = 0.0
    for b in range(n_bins):
        inside = (confidence > b / n_bins) & (confidence <= (b + 1) / n_bins)
        if inside.any():
            gap = confidence[inside].mean() - correct[inside].double().mean()
            expected += inside.double().mean().item() * abs(gap.item())
    assert expected_calibration_error(confidence, correct, n_bins=n_bins) == pytest.approx(expected, rel=1e-12)


def test_default_is_fifteen_bins(answers):
    assert expected_calibration_error(*answers) == expected_calibration_error(*answers, n_bins=15)
    assert expected_calibration_error(*answers) != expected_calibration_error(*answers, n_bins=14)


def test_an_edge_belongs_to_the_bin_below():
    """0.5 shares a bin with 0.4, not with 0.6; in one bin the gaps of 0.5 and 0.6 would cancel."""
    correct = torch.tensor([True, False])
    assert expected_calibration_error(numbers(0.5, 0.4), correct, n_bins=2) == pytest.approx(0.05)
    assert expected_calibration_error(numbers(0.5, 0.6), correct, n_bins=2) == pytest.approx(0.55)


@pytest.mark.parametrize("n_bins", [7, 10, 49, 100])
def test_every_edge_is_exact(n_bins):
    """k/n lies in the bin that ends there, even where n * (k/n) is not k in floating point."""
    edges = torch.arange(1, n_bins + 1, dtype=torch.float64) / n_bins
    below = edges - 0.5 / n_bins
    confidence = torch.cat([edges, below])
    correct = torch.cat([torch.ones(n_bins), torch.zeros(n_bins)]).bool()
    together = (edges - 1 + below).abs().sum().item() / (2 * n_bins)
    assert expected_calibration_error(confidence, correct, n_bins=n_bins) == pytest.approx(together, rel=1e-12)


def test_zero_and_one_are_confidences():
    confidence, correct = numbers(0.0, 1.0), torch.tensor([False, True])
    assert [metric(confidence, correct) for metric in METRICS] == [0, 0, 0]
    assert [metric(confidence, ~correct) for metric in METRICS] == [1, 0.5, 1]


def test_more_bins_never_lower_the_error_and_ks_is_above_one_bin(answers):
    confidence, correct = answers
    errors = [expected_calibration_error(confidence, correct, n_bins=n) for n in (1, 2, 4, 8, 16)]
    assert errors == sorted(errors)
    assert errors[0] <= ks_calibration_error(confidence, correct)


def test_ks_equals_the_largest_partial_sum(answers):
    confidence, correct = answers
    order = confidence.argsort()
    partial = np.cumsum((confidence - correct.double())[order].numpy())
    assert ks_calibration_error(confidence, correct) == pytest.approx(np.abs(partial).max() / 500, rel=1e-12)


def test_the_order_of_examples_does_not_matter(generator):
    """Nor does that of equal confidences, of which a saturated softmax makes many."""
    confidence = torch.randint(3, (90,), generator=generator).double() / 2
    correct = torch.rand(90, generator=generator) < 0.5
    for metric in METRICS:
        value = metric(confidence, correct)
        for _ in range(3):
            order = torch.randperm(90, generator=generator)
            assert metric(confidence[order], correct[order]) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("n_bins", [10, 15, 25])
def test_ece_equals_torchmetrics_away_from_edges(answers, generator, n_bins):
    confidence, correct = answers
    theirs = binary_calibration_error(confidence, correct.long(), n_bins=n_bins, norm="l1")
    assert expected_calibration_error(confidence, correct, n_bins=n_bins) == pytest.approx(theirs.item(), rel=1e-6)
    probs = torch.randn(300, 4, generator=generator, dtype=torch.float64).softmax(1)
    target = torch.randint(4, (300,), generator=generator)
    theirs = multiclass_calibration_error(probs, target, num_classes=4, n_bins=n_bins, norm="l1")
    top, answer = probs.max(1)
    assert expected_calibration_error(top, answer == target, n_bins=n_bins) == pytest.approx(theirs.item(), rel=1e-6)


def test_torchmetrics_puts_an_edge_into_the_bin_above():
    confidence, correct = numbers(0.5, 0.4), torch.tensor([True, False])
    theirs = binary_calibration_error(confidence, correct.long(), n_bins=2, norm="l1").item()
    assert theirs == pytest.approx(0.45) != pytest.approx(expected_calibration_error(confidence, correct, n_bins=2))


@pytest.mark.parametrize("metric", METRICS)
def test_inputs_of_any_kind_give_the_same_float(metric, answers):
    confidence, correct = answers
    value = metric(confidence, correct)
    assert isinstance(value, float)
    assert metric(confidence.numpy(), correct.numpy()) == value
    assert metric(confidence.clone().requires_grad_(), correct) == value
    assert metric(confidence.float(), correct) == pytest.approx(value, rel=1e-5)
    rounded = confidence.bfloat16()
    assert metric(rounded, correct) == metric(rounded.double(), correct)


@pytest.mark.parametrize("metric", METRICS)
def test_one_example_and_none(metric):
    assert metric(numbers(0.7), torch.tensor([True])) == pytest.approx(0.09 if metric is brier_confidence else 0.3)
    assert np.isnan(metric(numbers(), torch.zeros(0, dtype=torch.bool)))


def test_a_calibrated_model_has_a_small_error_and_a_constant_one_its_gap(generator):
    confidence = torch.rand(20_000, generator=generator, dtype=torch.float64)
    calibrated = torch.rand(20_000, generator=generator) < confidence
    assert expected_calibration_error(confidence, calibrated) < 0.02
    assert ks_calibration_error(confidence, calibrated) < 0.01
    right = torch.arange(10) < 6
    for metric in METRICS[:2]:
        assert metric(torch.full((10,), 0.9, dtype=torch.float64), right) == pytest.approx(0.3)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("confidence", "correct", "message", "error"),
    [
        (numbers(0.5, 0.6), torch.tensor([True]), r"correct must have shape \(N,\) = \(2,\), got \(1,\)", ValueError),
        (numbers(0.5, 1.1), torch.tensor([True, True]), r"confidence must lie in \[0, 1\], got 1.1", ValueError),
        (numbers(-0.1, 1.0), torch.tensor([True, True]), r"confidence must lie in \[0, 1\], got -0.1", ValueError),
        (numbers(float("nan")), torch.tensor([True]), r"confidence must lie in \[0, 1\], got nan", ValueError),
        (numbers(0.5)[None], torch.tensor([[True]]), r"confidence must have shape \(N,\) .*, got \(1, 1\)", ValueError),
        (numbers(0.5), torch.tensor([1]), "correct must have dtype torch.bool, got torch.int64", TypeError),
        (torch.tensor([1]), torch.tensor([True]), "confidence must have a floating-point dtype", TypeError),
    ],
)
def test_bad_arguments_are_named(metric, confidence, correct, message, error):
    with pytest.raises(error, match=message):
        metric(confidence, correct)


@pytest.mark.parametrize(("n_bins", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_number_of_bins_is_named(n_bins, error):
    with pytest.raises(error, match=rf"n_bins must be .*{n_bins}"):
        expected_calibration_error(numbers(0.5), torch.tensor([True]), n_bins=n_bins)


def test_narrowly_wrong_by_hand():
    """p = (.15, .41, .45) for (0, 1, 1.1): the mean logit is 0.89."""
    logits = numbers(0, 1, 1.1).expand(4, 3)
    result = narrowly_wrong(logits, torch.tensor([0, 1, 2, 1]))
    assert result.tolist() == [False, True, False, True] and result.dtype == torch.bool


def test_narrowly_wrong_never_happens_with_two_classes(generator):
    logits = torch.randn(1000, 2, generator=generator, dtype=torch.float64)
    assert not narrowly_wrong(logits, torch.randint(2, (1000,), generator=generator)).any()


@pytest.mark.parametrize("offset", [0.0, 0.1, 1e4, -1e4])
def test_narrowly_wrong_at_ties_and_extremes(offset):
    for classes in range(2, 12):
        equal = torch.full((classes, classes), offset)
        assert not narrowly_wrong(equal, torch.arange(classes)).any(), "all logits equal their mean"
    second_of_two = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64) + offset
    assert narrowly_wrong(second_of_two, torch.tensor([1])).all(), "argmax answers with the first"
    far = torch.tensor([[1e4, 0.0, -1e4]])
    assert narrowly_wrong(far, torch.tensor([1])).tolist() == [False]


def test_narrowly_wrong_of_an_empty_batch_and_of_half_precision():
    assert narrowly_wrong(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0,)
    logits = torch.tensor([[0.0, 0.9, 1.0]])
    assert narrowly_wrong(logits.bfloat16(), torch.tensor([1])).all()


@pytest.mark.parametrize(
    ("logits", "target", "error"),
    [
        (torch.zeros(3), torch.tensor([0]), ValueError),
        (torch.zeros(2, 3), torch.tensor([0]), ValueError),
        (torch.zeros(1, 3), torch.tensor([3]), ValueError),
        (torch.zeros(1, 3).long(), torch.tensor([0]), TypeError),
    ],
)
def test_narrowly_wrong_names_bad_arguments(logits, target, error):
    with pytest.raises(error, match="must"):
        narrowly_wrong(logits, target)
