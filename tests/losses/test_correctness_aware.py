"""The correctness-aware loss by hand, its limits, and which way it pushes; the contract checks the rest."""

import pytest
import torch
from torch.nn import functional as F

from lossbook.losses import correctness_aware_loss
from lossbook.metrics import brier_confidence, narrowly_wrong

# Confidences 1/2, 1/2 and 0.8; the first is right, the others are wrong.
LOGITS = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], dtype=torch.float64).log()
TARGET = torch.tensor([0, 2, 1])


def test_values_by_hand():
    each = correctness_aware_loss(LOGITS, TARGET, reduction="none")
    assert each.tolist() == pytest.approx([0.25, 0.25, 0.64])
    assert correctness_aware_loss(LOGITS, TARGET, reduction="sum").item() == pytest.approx(1.14)
    assert correctness_aware_loss(LOGITS, TARGET).item() == pytest.approx(0.38)


def test_balanced_values_by_hand():
    """One right of three: its weight is 3/2, that of each wrong answer 3/4."""
    each = correctness_aware_loss(LOGITS, TARGET, balance=True, reduction="none")
    assert each.tolist() == pytest.approx([1.5 * 0.25, 0.75 * 0.25, 0.75 * 0.64])
    assert correctness_aware_loss(LOGITS, TARGET, balance=True).item() == pytest.approx(0.5 * 0.25 + 0.5 * 0.445)


def test_balance_is_the_public_codes_weighting(generator):
    """Weight 1 - a for right and a for wrong answers, divided by the sum of the weights."""
    logits = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(4, (50,), generator=generator)
    each, correct = correctness_aware_loss(logits, target, reduction="none"), logits.argmax(1) == target
    accuracy = correct.double().mean()
    weight = torch.where(correct, 1 - accuracy, accuracy)
    expected = (weight * each).sum() / weight.sum()
    torch.testing.assert_close(correctness_aware_loss(logits, target, balance=True), expected, rtol=1e-14, atol=0)
    halves = (each[correct].mean() + each[~correct].mean()) / 2
    torch.testing.assert_close(expected, halves, rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", ["all right", "all wrong"])
def test_balance_changes_nothing_where_a_kind_is_missing(kind, generator):
    logits = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    target = logits.argmax(1) if kind == "all right" else (logits.argmax(1) + 1) % 3
    values = [correctness_aware_loss(logits, target, balance=balance) for balance in (False, True)]
    torch.testing.assert_close(*values, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(values[1], logits)
    assert values[1].isfinite() and gradient.isfinite().all()


def test_plain_mean_is_the_brier_score_of_the_top_answer(generator):
    logits = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(5, (60,), generator=generator)
    confidence, answer = logits.softmax(1).max(1)
    loss = correctness_aware_loss(logits, target).item()
    assert loss == pytest.approx(brier_confidence(confidence, answer == target), rel=1e-14)


def test_limits_of_the_temperature():
    """Hot: confidence 1/C, so a wrong answer costs 1/C^2 at least; cold: confidence 1."""
    for temperature, confidence in ((1e6, 1 / 3), (1e-6, 1.0)):
        each = correctness_aware_loss(LOGITS / temperature, TARGET, reduction="none")
        expected = [(confidence - 1) ** 2, confidence**2, confidence**2]
        assert each.tolist() == pytest.approx(expected, abs=1e-5)


def inverse_temperature_slope(loss, logits, target):
    beta = torch.ones(len(logits), 1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(beta * logits, target).sum(), beta)
    return slope[:, 0]


def test_more_confidence_if_right_and_less_if_wrong(generator):
    """Slope by 1/T: 2 (conf - c) conf (z_max - zbar), negative for every right and positive for every wrong answer."""
    logits = torch.randn(500, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(5, (500,), generator=generator)
    slope = inverse_temperature_slope(lambda z, y: correctness_aware_loss(z, y, reduction="sum"), logits, target)
    correct, p = logits.argmax(1) == target, logits.softmax(1)
    conf, mean = p.amax(1), (p * logits).sum(1)
    expected = 2 * (conf - correct.double()) * conf * (logits.amax(1) - mean)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-14)
    assert (slope[correct] < 0).all() and (slope[~correct] > 0).all()


def test_cross_entropy_sharpens_exactly_the_narrowly_wrong(generator):
    logits = torch.randn(2000, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(5, (2000,), generator=generator)
    slope = inverse_temperature_slope(lambda z, y: F.cross_entropy(z, y, reduction="sum"), logits, target)
    wrong = logits.argmax(1) != target
    narrow = narrowly_wrong(logits, target)
    assert torch.equal(wrong & (slope < 0), narrow) and 0 < narrow.sum() < wrong.sum()


def test_correctness_is_a_constant():
    """The whole gradient is that of the confidence: adding the same to all logits of a row changes nothing."""
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(correctness_aware_loss(logits, TARGET), logits)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(3, dtype=torch.float64), atol=1e-16, rtol=0)
    assert gradient[0, 0] < 0 < gradient[1, 0]


def test_a_tie_belongs_to_the_first_answer():
    logits = torch.zeros(2, 4, requires_grad=True)
    each = correctness_aware_loss(logits, torch.tensor([0, 1]), reduction="none")
    assert each.tolist() == pytest.approx([0.5625, 0.0625])
    (gradient,) = torch.autograd.grad(each.sum(), logits)
    assert gradient[0, 0] < 0 < gradient[1, 0] and gradient[0, 1:].unique().numel() == 1


def test_one_class_is_always_right_and_certain():
    assert correctness_aware_loss(torch.randn(3, 1), torch.zeros(3, dtype=torch.int64)).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("balance", [False, True])
def test_half_precision_is_computed_in_float32(dtype, balance, generator):
    """Rounded once, at the end; 2,001 terms added in half precision would not reach their sum."""
    logits = 2 * torch.randn(2001, 10, generator=generator).to(dtype)
    target = torch.randint(10, (2001,), generator=generator)
    for reduction in ("mean", "sum", "none"):
        loss = correctness_aware_loss(logits, target, balance=balance, reduction=reduction)
        wide = correctness_aware_loss(logits.float(), target, balance=balance, reduction=reduction)
        assert loss.dtype == dtype and torch.equal(loss, wide.to(dtype))
