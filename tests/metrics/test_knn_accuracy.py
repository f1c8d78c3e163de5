"""Weighted nearest neighbors: against scikit-learn, a loop, and cases worked by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from lossbook.metrics import knn_accuracy, retrieval


@pytest.fixture
def sets(generator):
    centers = torch.randn(4, 6, generator=generator)
    train_y, test_y = torch.arange(60) % 4, torch.arange(33) % 4
    train = centers[train_y] + torch.randn(60, 6, generator=generator)
    return train, train_y, centers[test_y] + torch.randn(33, 6, generator=generator), test_y


@pytest.mark.parametrize("temperature", [0.02, 0.1, 5.0])
@pytest.mark.parametrize("k", [1, 10, 60])
def test_it_equals_scikit_learn(sets, k, temperature):
    train, train_y, test, test_y = (part.double().numpy() for part in sets)
    peer = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    expected = peer.fit(train, train_y).score(test, test_y)
    assert knn_accuracy(*sets, k=k, temperature=temperature) == pytest.approx(expected, abs=1e-12)


def test_defaults_are_ten_neighbors_at_a_tenth(sets):
    assert knn_accuracy(*sets) == knn_accuracy(*sets, k=10, temperature=0.1)
    assert isinstance(knn_accuracy(*sets), float)


def test_one_near_neighbor_outvotes_two_far_ones_if_the_temperature_is_low():
    train = [[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]]
    gap = 1 - 0.6
    for temperature, expected in ((0.5 * gap / math.log(2), 1.0), (2 * gap / math.log(2), 0.0)):
        assert knn_accuracy(train, [7, 3, 3], [[2.0, 0.0]], [7], k=3, temperature=temperature) == expected


def test_equal_votes_go_to_the_smallest_class():
    train = [[1.0, 1.0], [1.0, -1.0]]
    assert knn_accuracy(train, [5, 2], [[1.0, 0.0]], [2], k=2) == 1.0


def test_classes_may_be_unknown_or_not_consecutive(sets):
    train, train_y, test, test_y = sets
    assert knn_accuracy(train, 10 * train_y - 7, test, 10 * test_y - 7) == knn_accuracy(*sets)
    assert knn_accuracy(train, train_y, test, test_y + 100) == 0.0


def test_lengths_containers_and_blocks_do_not_matter(sets, monkeypatch):
    train, train_y, test, test_y = sets
    expected = knn_accuracy(*sets)
    assert 0.3 < expected < 1
    assert knn_accuracy(1e30 * train.double(), train_y, 1e-30 * test.double(), test_y) == expected
    assert knn_accuracy(train.numpy(), train_y.tolist(), test.tolist(), test_y.numpy()) == expected
    monkeypatch.setattr(retrieval, "_BLOCK", 100)
    assert knn_accuracy(*sets) == expected


def test_a_tiny_temperature_does_not_overflow(sets):
    assert knn_accuracy(*sets, temperature=1e-6) == knn_accuracy(*sets, k=1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, ValueError, r"k must lie in \[1, N\] = \[1, 60\], got 0"),
        ({"k": 61}, ValueError, r"k must lie in \[1, N\] = \[1, 60\], got 61"),
        ({"k": 2.0}, TypeError, "k must be an int, got float 2.0"),
        ({"temperature": 0}, ValueError, "temperature must be > 0, got 0"),
        ({"train_z": torch.zeros(60)}, ValueError, r"train_z must have shape \(N, D\) with N >= 1, got \(60,\)"),
        ({"test_z": torch.zeros(0, 6)}, ValueError, r"test_z must have shape \(N, D\) with N >= 1, got \(0, 6\)"),
        ({"test_z": torch.ones(33, 5)}, ValueError, r"test_z must have shape \(N, D\) = \(\*, 6\), got \(33, 5\)"),
        ({"train_y": torch.zeros(59)}, ValueError, r"train_y must have shape \(N,\) = \(60,\), got \(59,\)"),
        ({"test_y": torch.zeros(59)}, ValueError, r"test_y must have shape \(N,\) = \(33,\), got \(59,\)"),
        ({"test_z": torch.full((33, 6), torch.nan)}, ValueError, "test_z must be finite, got nan"),
    ],
)
def test_bad_arguments_are_named(sets, change, error, message):
    arguments = dict(zip(("train_z", "train_y", "test_z", "test_y"), sets, strict=True))
    with pytest.raises(error, match=message):
        knn_accuracy(**arguments | change)
