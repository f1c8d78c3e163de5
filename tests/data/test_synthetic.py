"""Data drawn from a seed."""

import numpy as np
import pytest
import torch

from lossbook.data import scores_at_auroc
from lossbook.metrics import auroc


@pytest.mark.parametrize("prevalence", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("target", [0.5, 0.65, 0.85])
def test_the_mean_auroc_is_the_target(target, prevalence):
    # One problem of two positives has a standard deviation of up to 0.29, so only their mean is pinned to 0.02.
    seeds = range(60 if prevalence > 0.01 else 600)
    areas = [auroc(*scores_at_auroc(200, auroc=target, prevalence=prevalence, seed=seed)) for seed in seeds]
    assert np.mean(areas) == pytest.approx(target, abs=0.02)


@pytest.mark.parametrize(("target", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_ends_are_exact(target, expected):
    assert all(auroc(*scores_at_auroc(50, auroc=target, prevalence=0.2, seed=seed)) == expected for seed in range(5))


def test_shapes_dtypes_and_counts():
    label, score = scores_at_auroc(200, auroc=0.85, prevalence=0.05, seed=3)
    assert label.shape == score.shape == (200,)
    assert (label.dtype, score.dtype) == (np.int64, np.float64)
    assert label.sum() == 10 and len(np.unique(score)) == 200 and (score >= 0).all()
    assert not np.array_equal(label, np.sort(label)[::-1])


@pytest.mark.parametrize("prevalence", [0.01, 0.05, 0.5])
def test_the_mean_score_is_the_prevalence(prevalence):
    _, score = scores_at_auroc(200, auroc=0.7, prevalence=prevalence, seed=1)
    assert score.mean() == pytest.approx(prevalence, rel=1e-12)
    _, raw = scores_at_auroc(200, auroc=0.7, prevalence=prevalence, seed=1, normalize=False)
    assert raw.min() >= 0 and raw.max() <= 1
    np.testing.assert_array_equal(np.argsort(raw), np.argsort(score))


def test_negatives_fall_between_positives_as_the_binomial_says():
    """At three positives and AUROC 0.7 the numbers of positives below a negative are Binomial(3, 0.3)."""
    label, score = scores_at_auroc(20_003, auroc=0.7, prevalence=3 / 20_003, seed=0, normalize=False)
    below = np.searchsorted(np.sort(score[label == 1]), score[label == 0])
    share = np.bincount(below, minlength=4) / 20_000
    np.testing.assert_allclose(share, [0.343, 0.441, 0.189, 0.027], atol=0.015)


def test_the_seed_decides_and_the_global_state_does_not():
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (scores_at_auroc(40, auroc=0.8, prevalence=0.2, seed=5) for _ in range(2))
    other = scores_at_auroc(40, auroc=0.8, prevalence=0.2, seed=6)
    assert all(map(np.array_equal, first, again)) and not np.array_equal(first[1], other[1])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"auroc": 1.1}, ValueError, r"auroc must lie in \[0, 1\], got 1.1"),
        ({"auroc": -0.1}, ValueError, r"auroc must lie in \[0, 1\], got -0.1"),
        ({"auroc": float("nan")}, ValueError, "auroc must be finite, got nan"),
        ({"auroc": "0.5"}, TypeError, "auroc must be a number, got str '0.5'"),
        ({"prevalence": 0.0}, ValueError, r"prevalence must lie in \(0, 1\), got 0.0"),
        ({"prevalence": 1.0}, ValueError, r"prevalence must lie in \(0, 1\), got 1.0"),
        ({"prevalence": 0.01}, ValueError, "must leave examples of both classes, got 0.01: 0 of 20 positive"),
        ({"prevalence": 0.99}, ValueError, "must leave examples of both classes, got 0.99: 20 of 20 positive"),
        ({"n": 1}, ValueError, "n must be >= 2, got 1"),
        ({"n": 20.0}, TypeError, "n must be an int, got float 20.0"),
        ({"seed": -1}, ValueError, "seed must be >= 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        scores_at_auroc(**{"n": 20, "auroc": 0.8, "prevalence": 0.2} | options)
