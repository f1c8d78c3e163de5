"""The height of a double-descent peak and what a learner of many tasks keeps, on curves drawn by hand."""

import numpy as np
import pytest
import torch

from lossbook.metrics import continual_summary, peak_height

SIZES = [10, 50, 60, 100, 170, 200, 400]


def test_a_peak_stands_above_the_higher_side():
    assert peak_height(SIZES, [2.0, 1.0, 3.0, 8.0, 3.0, 4.0, 2.0], 100) == 4.0
    assert peak_height(SIZES, [8.0, 4.0, 3.0, 8.0, 3.0, 4.0, 2.0], 100) == 2.0


def test_falling_and_rising_curves_have_no_peak():
    assert peak_height(SIZES, [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 100) == pytest.approx(5 / 6)
    assert peak_height(SIZES, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 100) == pytest.approx(5 / 6)


def test_bounds_belong_to_the_window():
    """60 and 170 are 0.6 and 1.7 of 100: inside, although neither is exact in binary."""
    assert peak_height(SIZES, [1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0], 100) == 9.0
    assert peak_height(SIZES, [1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0], 100) == 9.0
    assert peak_height(SIZES, [1.0, 1.0, 9.0, 2.0, 9.0, 1.0, 1.0], 100, window=(0.7, 1.5)) == 2.0


def test_order_scale_and_container_do_not_matter():
    losses = [2.0, 1.0, 3.0, 8.0, 3.0, 4.0, 2.0]
    turned = [list(reversed(part)) for part in (SIZES, losses)]
    assert peak_height(*turned, 100) == 4.0
    assert peak_height(np.array(SIZES), 5 * np.array(losses), 100) == 4.0
    assert peak_height(torch.tensor(SIZES), torch.tensor(losses), 100) == 4.0
    assert isinstance(peak_height(SIZES, losses, 100), float)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        (([100, 400], [1.0, 1.0], 100), {}, r"sizes must hold one below the window \[60, 170\]"),
        (([10, 400], [1.0, 1.0], 100), {}, "sizes must hold one in the window"),
        (([10, 100], [1.0, 1.0], 100), {}, "sizes must hold one above the window"),
        (([10, 100], [1.0], 100), {}, r"test_losses must have shape \(P,\) = \(2,\), got \(1,\)"),
        (([[10]], [1.0], 100), {}, r"sizes must have shape \(P,\), got \(1, 1\)"),
        ((SIZES, [1.0] * 7, 0), {}, "threshold must be > 0, got 0"),
        ((SIZES, [1.0] * 7, 100), {"window": (1.7, 0.6)}, "window must be an increasing pair"),
        ((SIZES, [1.0] * 7, 100), {"window": (0.0, 0.6)}, "window must be an increasing pair"),
    ],
)
def test_bad_arguments_are_named(arguments, keywords, message):
    with pytest.raises(ValueError, match=message):
        peak_height(*arguments, **keywords)


def test_a_learner_of_three_tasks_worked_by_hand():
    """Forgotten: 90 - 50 points of the first task and 75 - 70 of the second."""
    summary = continual_summary([[90, 0, 0], [60, 75, 0], [50, 70, 99]])
    assert summary == {"accuracy": pytest.approx(73.0), "forgetting": pytest.approx((40 + 5) / 2)}
    assert all(isinstance(value, float) for value in summary.values())


def test_what_is_learned_later_is_not_forgotten():
    assert continual_summary([[0.2, 0.0], [0.9, 0.8]]) == {"accuracy": pytest.approx(0.85), "forgetting": 0.0}
    assert continual_summary([[0.7]]) == {"accuracy": 0.7, "forgetting": 0.0}


def test_tasks_not_yet_learned_do_not_count(generator):
    acc = torch.rand(6, 6, generator=generator, dtype=torch.float64)
    lower, unknown = acc.tril(), torch.where(torch.ones(6, 6).tril() == 1, acc, torch.nan)
    expected = continual_summary(lower)
    assert continual_summary(unknown) == continual_summary(acc.numpy()) == expected
    drops = [max(acc[t, u] for t in range(u, 6)) - acc[5, u] for u in range(5)]
    assert expected["forgetting"] == pytest.approx(sum(drops).item() / 5)
    assert expected["accuracy"] == pytest.approx(acc[5].mean().item())


@pytest.mark.parametrize(
    ("acc", "message"),
    [
        ([0.5, 0.6], r"acc must have shape \(T, T\) with T >= 1, got \(2,\)"),
        ([[0.5, 0.6]], r"acc must have shape \(T, T\) with T >= 1, got \(1, 2\)"),
        (np.zeros((0, 0)), r"acc must have shape \(T, T\) with T >= 1, got \(0, 0\)"),
        ([[0.5, 0.0], [np.nan, 0.5]], "acc must be finite on and below the diagonal, got nan"),
    ],
)
def test_bad_accuracies_are_named(acc, message):
    with pytest.raises(ValueError, match=message):
        continual_summary(acc)
