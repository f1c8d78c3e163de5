"""AUROC and AUPRC, their identities, atomic mistakes, and the two metrics of positives and negatives given apart."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from lossbook.data import scores_at_auroc
from lossbook.metrics import (
    atomic_mistakes,
    auprc,
    auprc_from_fpr,
    auroc,
    auroc_from_fpr,
    best_f1,
    fix_mistake,
    mann_whitney_auc,
)

AREAS = (auroc, auprc, auroc_from_fpr, auprc_from_fpr)
TAKES_LABELS = (*AREAS, atomic_mistakes, fix_mistake)
COUNTER_EXAMPLE = np.array([0] * 10 + [1, 1, 0, 1]), np.arange(14.0, 0.0, -1.0)

every_area = pytest.mark.parametrize("area", AREAS)


def problem(seed, n=None, decimals=None):
    """Labels of both classes and scores, rounded to ``decimals`` so that many tie."""
    rng = np.random.default_rng(seed)
    n = n or int(rng.integers(2, 200))
    y = (rng.uniform(size=n) < rng.uniform(0.005, 0.995)).astype(int)
    y[rng.permutation(n)[:2]] = 0, 1
    score = rng.normal(size=n) + rng.uniform(0, 2) * y
    return y, score if decimals is None else score.round(decimals)


def swapped(score, i, j):
    copy = score.copy()
    copy[[i, j]] = copy[[j, i]]
    return copy


@pytest.mark.parametrize("decimals", [None, 1, 0], ids=["distinct", "ties", "heavy ties"])
def test_identities_equal_scikit_learn(decimals):
    for seed in range(150):
        y, score = problem(seed, decimals=decimals)
        for area in (auroc, auroc_from_fpr):
            assert area(y, score) == pytest.approx(roc_auc_score(y, score), abs=1e-13)
        for area in (auprc, auprc_from_fpr):
            assert area(y, score) == pytest.approx(average_precision_score(y, score), abs=1e-13)


def test_areas_equal_torchmetrics():
    y, score = problem(3, n=120)
    y_tensor, score_tensor = torch.tensor(y), torch.tensor(score)
    # It squashes scores outside [0, 1] by a sigmoid in float32, so the peer gets probabilities it leaves alone.
    probability = score_tensor.sigmoid()
    assert auroc(y_tensor, probability) == pytest.approx(binary_auroc(probability, y_tensor).item(), abs=1e-6)
    assert auprc(y_tensor, probability) == pytest.approx(
        binary_average_precision(probability, y_tensor).item(), abs=1e-6
    )


@given(
    hnp.arrays(np.int64, st.integers(2, 30), elements=st.integers(0, 1)).filter(lambda y: 0 < y.sum() < len(y)),
    st.data(),
)
def test_identities_hold_for_any_ranking(y, data):
    score = data.draw(
        hnp.arrays(np.float64, len(y), elements=st.sampled_from([-np.inf, -1.0, 0.0, 5e-324, 2.0, np.inf]))
    )
    assert auroc_from_fpr(y, score) == pytest.approx(auroc(y, score), abs=1e-13)
    assert auprc_from_fpr(y, score) == pytest.approx(auprc(y, score), abs=1e-13)


def test_the_step_sum_is_not_the_trapezoid():
    y, score = [1] + [0] * 9, np.zeros(10)
    precision, recall, _ = precision_recall_curve(y, score)
    assert auprc(y, score) == pytest.approx(0.1)
    assert np.trapezoid(precision[::-1], recall[::-1]) == pytest.approx(0.55)


@every_area
def test_areas_ignore_order_of_examples_and_monotone_maps(area):
    y, score = problem(5, n=80, decimals=1)
    expected, shuffle = area(y, score), np.random.default_rng(0).permutation(80)
    assert area(y[shuffle], score[shuffle]) == pytest.approx(expected, abs=1e-15)
    assert area(y, np.exp(3 * score) - 7) == pytest.approx(expected, abs=1e-15)
    assert area(y, 1e4 * score) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("score", "roc", "pr"),
    [([1.0, 1, 1, 1, 1], 0.5, 0.4), ([5.0, 4, 3, 2, 1], 1.0, 1.0), ([1.0, 2, 3, 4, 5], 0.0, (1 / 4 + 2 / 5) / 2)],
    ids=["constant", "perfect", "reversed"],
)
def test_known_rankings(score, roc, pr):
    y = [1, 1, 0, 0, 0]
    assert auroc(y, score) == auroc_from_fpr(y, score) == roc
    assert auprc(y, score) == pytest.approx(pr, abs=1e-15)
    assert auprc_from_fpr(y, score) == pytest.approx(pr, abs=1e-15)


@every_area
def test_a_constant_score_gives_one_half_or_the_prevalence(area):
    y, _ = problem(11, n=300)
    expected = 0.5 if "auroc" in area.__name__ else y.mean()
    assert area(y, np.zeros(300)) == pytest.approx(expected, abs=1e-15)


@every_area
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64])
def test_tensors_of_any_dtype(area, dtype):
    y, score = problem(7, n=50)
    tensor = (8 * torch.tensor(score)).to(dtype)
    expected = area(y, tensor.double().numpy())
    for label in (torch.tensor(y), torch.tensor(y).bool(), y.astype(bool), y.astype(float)):
        assert area(label, tensor) == expected
    if dtype.is_floating_point:
        assert area(torch.tensor(y), tensor.requires_grad_()) == expected
    assert isinstance(area(y, tensor), float)


def test_mistakes_are_neighbors_in_the_wrong_order():
    for seed in range(30):
        y, score = problem(seed)
        found = atomic_mistakes(y, score)
        ranked = np.argsort(-score)
        pairs = [(r, i, j) for r, (i, j) in enumerate(pairwise(ranked), start=1) if (y[i], y[j]) == (0, 1)]
        assert list(zip(found.rank, found.upper, found.lower, strict=True)) == pairs
        assert {len(field) for field in found} == {len(pairs)}


def test_gains_are_those_of_really_swapping():
    checked = 0
    for seed in range(25):
        y, score = problem(seed)
        found = atomic_mistakes(y, score)
        for r, i, j, roc_gain, pr_gain in zip(*found, strict=True):
            fixed = swapped(score, i, j)
            assert roc_gain == pytest.approx(roc_auc_score(y, fixed) - roc_auc_score(y, score), abs=1e-12)
            assert pr_gain == pytest.approx(
                average_precision_score(y, fixed) - average_precision_score(y, score), abs=1e-12
            )
            k = int((y[score > score[i]]).sum())
            assert pr_gain == pytest.approx((k + 1) / (y.sum() * r * (r + 1)), rel=1e-14)
            checked += 1
    assert checked > 300


def test_the_lower_mistake_can_be_worth_more():
    found = atomic_mistakes(*COUNTER_EXAMPLE)
    assert found.rank.tolist() == [10, 13]
    np.testing.assert_allclose(found.auprc_gain * 3, [1 / 110, 3 / 182], rtol=1e-15)
    np.testing.assert_array_equal(found.auroc_gain, [1 / 33, 1 / 33])
    assert fix_mistake(*COUNTER_EXAMPLE)[12:].tolist() == [1.0, 2.0]


def test_the_gain_falls_where_precision_does():
    for seed in range(30):
        y, score = problem(seed)
        found = atomic_mistakes(y, score)
        precision = found.auprc_gain * y.sum() * found.rank
        falls = np.diff(precision) <= 0
        assert (np.diff(found.auprc_gain)[falls] < 0).all()


@pytest.mark.parametrize("metric", ["auprc", "auroc"])
def test_fixing_changes_one_pair_and_not_its_input(metric):
    y, score = problem(2, n=100)
    before = score.copy()
    fixed = fix_mistake(y, score, metric=metric, seed=4)
    assert np.array_equal(score, before) and fixed is not score
    assert (fixed != score).sum() == 2 and sorted(fixed) == sorted(score)
    found = atomic_mistakes(y, score)
    assert any(np.array_equal(fixed, swapped(score, i, j)) for i, j in zip(found.upper, found.lower, strict=True))


def test_auprc_fixes_the_most_valuable_mistake():
    y, score = problem(2, n=100)
    gains = [
        average_precision_score(y, swapped(score, i, j)) for i, j in zip(*atomic_mistakes(y, score)[1:3], strict=True)
    ]
    assert average_precision_score(y, fix_mistake(y, score)) == pytest.approx(max(gains), abs=1e-15)
    assert np.array_equal(fix_mistake(y, score, seed=1), fix_mistake(y, score, seed=2))


def test_auroc_fixes_a_mistake_drawn_uniformly():
    y, score = np.array([0, 1, 0, 1, 0, 1]), np.arange(6.0, 0.0, -1.0)
    first = [int((fix_mistake(y, score, metric="auroc", seed=s) != score).argmax()) for s in range(600)]
    assert np.bincount(first, minlength=6)[[0, 2, 4]] == pytest.approx([200] * 3, abs=60)  # 5 sd of a binomial count
    assert np.bincount(first, minlength=6)[[1, 3, 5]].sum() == 0
    once, again = (fix_mistake(y, score, metric="auroc", seed=9) for _ in range(2))
    assert np.array_equal(once, again)


@pytest.mark.parametrize("metric", ["auprc", "auroc"])
def test_nothing_to_fix(metric):
    y, score = np.array([1, 1, 0]), np.array([3.0, 2.0, 1.0])
    assert all(len(field) == 0 for field in atomic_mistakes(y, score))
    fixed = fix_mistake(y, score, metric=metric)
    assert np.array_equal(fixed, score) and not np.shares_memory(fixed, score)


def test_a_tensor_is_not_changed_either():
    score = torch.tensor([2.0, 1.0], dtype=torch.float64)
    assert fix_mistake(torch.tensor([0, 1]), score).tolist() == [1.0, 2.0]
    assert score.tolist() == [2.0, 1.0]


def test_repeated_fixing_ends_at_a_perfect_ranking():
    y, score = problem(1, n=12)
    for _ in range(40):
        score = fix_mistake(y, score)
    assert auroc(y, score) == auprc(y, score) == 1.0


def test_no_global_random_state_is_touched():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fix_mistake(*COUNTER_EXAMPLE, metric="auroc", seed=3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_auprc_fixes_widen_the_gap_between_groups():
    """The group with more positives gains, the other does not; AUROC's fixes favor neither."""
    gaps = {metric: np.mean([gap_after_fixes(metric, seed) for seed in range(10)]) for metric in ("auprc", "auroc")}
    assert gaps["auprc"] > 0.015
    assert abs(gaps["auroc"]) < 0.012


def gap_after_fixes(metric, seed, fixes=50):
    high = scores_at_auroc(200, auroc=0.85, prevalence=0.05, seed=2 * seed)
    low = scores_at_auroc(200, auroc=0.85, prevalence=0.01, seed=2 * seed + 1)
    y, score = (np.concatenate(parts) for parts in zip(high, low, strict=True))
    before = [auroc(y[part], score[part]) for part in (slice(200), slice(200, None))]
    for number in range(fixes):
        score = fix_mistake(y, score, metric=metric, seed=1000 * seed + number)
    gain_high, gain_low = (
        auroc(y[part], score[part]) - old for part, old in zip((slice(200), slice(200, None)), before, strict=True)
    )
    return gain_high - gain_low


@pytest.mark.parametrize("decimals", [None, 1])
def test_mann_whitney_auc_equals_its_peers(decimals):
    for seed in range(40):
        y, score = problem(seed, decimals=decimals)
        pos, neg = score[y == 1], score[y == 0]
        expected = mannwhitneyu(pos, neg).statistic / (len(pos) * len(neg))
        assert mann_whitney_auc(pos, neg) == pytest.approx(expected, abs=1e-14)
        assert mann_whitney_auc(pos, neg) == pytest.approx(roc_auc_score(y, score), abs=1e-13)
        assert mann_whitney_auc(pos, neg) == auroc(y, score)
        assert mann_whitney_auc(neg, pos) == pytest.approx(1 - mann_whitney_auc(pos, neg), abs=1e-14)


def test_single_scores():
    assert (mann_whitney_auc([1.0], [0.0]), mann_whitney_auc([0.0], [1.0]), mann_whitney_auc([1.0], [1.0])) == (
        1,
        0,
        0.5,
    )
    assert best_f1([1.0], [0.0]) == 1.0
    assert best_f1([0.0], [1.0]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("decimals", [None, 0])
def test_best_f1_is_the_best_of_all_thresholds(decimals):
    for seed in range(6):
        y, score = problem(seed, n=60, decimals=decimals)
        expected = max(f1_score(y, score >= threshold) for threshold in np.unique(score))
        assert best_f1(torch.tensor(score[y == 1]), score[y == 0]) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("metric", [mann_whitney_auc, best_f1])
@pytest.mark.parametrize(
    ("pos", "neg", "message"),
    [
        ([], [1.0], r"pos must have shape \(N,\) with N >= 1, got \(0,\)"),
        ([1.0], [], r"neg must have shape \(N,\) with N >= 1, got \(0,\)"),
        ([[1.0]], [1.0], r"pos must have shape .* got \(1, 1\)"),
        ([1.0], [np.nan, 2.0], r"neg must not hold NaN, got 1 of 2"),
    ],
)
def test_bad_scores_given_apart_are_refused(metric, pos, neg, message):
    with pytest.raises(ValueError, match=message):
        metric(pos, neg)


@pytest.mark.parametrize("function", TAKES_LABELS)
@pytest.mark.parametrize(
    ("y", "score", "message"),
    [
        ([0, 2], [1.0, 2.0], "y_true must hold only 0 and 1, got 2"),
        ([0.0, 0.5], [1.0, 2.0], "y_true must hold only 0 and 1, got 0.5"),
        ([0, np.nan], [1.0, 2.0], "y_true must hold only 0 and 1, got nan"),
        ([0, 0], [1.0, 2.0], "y_true must hold both classes, got only 0"),
        ([1, 1], [1.0, 2.0], "y_true must hold both classes, got only 1"),
        ([1], [1.0], "y_true must hold both classes, got only 1"),
        ([0, 1, 1], [1.0, 2.0], r"y_true must have the shape of score, \(2,\), got \(3,\)"),
        ([[0], [1]], [1.0, 2.0], r"y_true must have the shape of score, \(2,\), got \(2, 1\)"),
        ([0, 1], [[1.0], [2.0]], r"score must have shape \(N,\) with N >= 1, got \(2, 1\)"),
        ([], [], r"score must have shape \(N,\) with N >= 1, got \(0,\)"),
        ([0, 1], [np.nan, 2.0], "score must not hold NaN, got 1 of 2"),
    ],
)
def test_bad_labels_and_scores_are_refused(function, y, score, message):
    with pytest.raises(ValueError, match=message):
        function(y, score)


@pytest.mark.parametrize("function", [atomic_mistakes, fix_mistake])
def test_ties_have_no_neighbors(function):
    with pytest.raises(ValueError, match=r"score must hold distinct values, got 0\.5 more than once"):
        function([0, 1, 1], [0.5, 0.1, 0.5])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "f1"}, ValueError, "metric must be one of 'auprc', 'auroc', got 'f1'"),
        ({"seed": -1}, ValueError, "seed must be >= 0, got -1"),
        ({"seed": 0.5}, TypeError, "seed must be an int, got float 0.5"),
    ],
)
def test_bad_options_of_fix_mistake_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        fix_mistake([0, 1], [1.0, 2.0], **options)
