"""Streams of tasks and the reservoir: every example once, every example as likely as any other."""

import pytest
import torch
from scipy import stats

from lossbook.data import ReservoirBuffer, class_incremental


@pytest.mark.parametrize(("num_tasks", "sizes"), [(1, [10]), (5, [2] * 5), (3, [4, 3, 3]), (10, [1] * 10)])
def test_tasks_share_no_class_and_hold_every_example_once(num_tasks, sizes):
    y = torch.arange(205) % 10 + 3
    tasks = class_incremental(torch.zeros(205, 2), y, num_tasks=num_tasks, seed=0)
    assert [len(y[task].unique()) for task in tasks] == sizes
    assert torch.cat(tasks).sort().values.tolist() == list(range(205))
    assert len(torch.cat([y[task].unique() for task in tasks]).unique()) == 10
    assert all(task.dtype == torch.int64 and task.tolist() != sorted(task.tolist()) for task in tasks)


def test_the_seed_decides_the_order_and_the_global_state_does_not():
    x = y = torch.arange(200) % 10
    before = torch.get_rng_state()
    first, again, other = (class_incremental(x, y, num_tasks=5, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first, again)) and not torch.equal(first[0], other[0])
    starts = {tuple(y[class_incremental(x, y, num_tasks=5, seed=seed)[0]].unique().tolist()) for seed in range(40)}
    assert len(starts) > 20, "which classes come first depends on the seed"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_tasks": 0}, ValueError, r"num_tasks must lie in \[1, number of classes\] = \[1, 3\], got 0"),
        ({"num_tasks": 4}, ValueError, r"num_tasks must lie in .* = \[1, 3\], got 4"),
        ({"num_tasks": 2.0}, TypeError, "num_tasks must be an int, got float 2.0"),
        ({"seed": -1}, ValueError, "seed must be >= 0, got -1"),
        ({"seed": None}, TypeError, "seed must be an int, got NoneType None"),
        ({"x": torch.zeros(5)}, ValueError, r"x must have shape \(N, ...\) = \(6, ...\), got \(5,\)"),
        ({"y": torch.zeros(6)}, TypeError, "y must have dtype torch.int64, got torch.float32"),
        ({"y": torch.zeros(6, 1).long()}, ValueError, r"y must have shape \(N,\) = \(\*,\), got \(6, 1\)"),
    ],
)
def test_bad_streams_are_named(options, error, message):
    with pytest.raises(error, match=message):
        class_incremental(**{"x": torch.zeros(6, 2), "y": torch.arange(6) % 3, "num_tasks": 2, "seed": 0} | options)


@pytest.mark.parametrize("chunk", [1, 7, 60])
def test_every_example_stays_with_the_same_probability(chunk):
    """Chi-square over hundreds of reservoirs of 10 out of 60, however the stream is cut."""
    counts = torch.zeros(60)
    for seed in range(1000 if chunk == 60 else 300):
        buffer = ReservoirBuffer(10, seed=seed)
        for part in torch.arange(60).split(chunk):
            buffer.add(item=part)
        kept = buffer.sample(10)["item"]
        assert len(kept.unique()) == 10
        counts[kept] += 1
    # Draws without replacement vary less than those the chi-square is made for, by (1 - 1/6).
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum() / (1 - 1 / 6)
    assert 0.001 < stats.chi2.sf(statistic.item(), df=59) < 0.999


def test_even_the_smallest_reservoir_is_fair():
    """One place and a stream of three: a draw that is off by one would never keep the first."""
    counts = torch.zeros(3)
    for seed in range(900):
        buffer = ReservoirBuffer(1, seed=seed)
        buffer.add(item=torch.arange(3))
        counts[buffer.sample(1)["item"]] += 1
    assert stats.chisquare(counts.numpy()).pvalue > 0.001


def test_it_fills_up_first_and_then_stays_full():
    buffer = ReservoirBuffer(5)
    assert len(buffer) == 0
    buffer.add(x=torch.arange(3.0))
    assert len(buffer) == 3 and sorted(buffer.sample(10)["x"].tolist()) == [0.0, 1.0, 2.0]
    buffer.add(x=torch.arange(3.0, 40.0))
    assert len(buffer) == 5
    buffer.add(x=torch.zeros(0))
    assert len(buffer) == 5


def test_what_belongs_together_stays_together():
    buffer = ReservoirBuffer(20, seed=1)
    for part in torch.arange(300).split(11):
        buffer.add(x=part[:, None].float() * torch.ones(3), y=part, logits=part.double()[:, None, None])
    got = buffer.sample(8)
    assert got["x"].shape == (8, 3) and got["logits"].shape == (8, 1, 1) and got["logits"].dtype == torch.float64
    assert torch.equal(got["x"][:, 0].long(), got["y"]) and torch.equal(got["logits"][:, 0, 0].long(), got["y"])
    assert len(got["y"].unique()) == 8


def test_what_is_stored_is_a_copy_without_a_gradient():
    buffer = ReservoirBuffer(4)
    x = torch.ones(4, requires_grad=True)
    buffer.add(x=2 * x)
    got = buffer.sample(4)["x"]
    assert not got.requires_grad
    got.zero_()
    with torch.no_grad():
        x.zero_()
    assert buffer.sample(4)["x"].tolist() == [2.0] * 4


def test_the_seed_decides_and_the_global_state_stays():
    before = torch.get_rng_state()

    def trace(seed):
        buffer = ReservoirBuffer(10, seed=seed)
        buffer.add(x=torch.arange(100))
        return [buffer.sample(5)["x"].tolist() for _ in range(3)]

    assert trace(2) == trace(2) != trace(3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({}, ValueError, "tensors must name at least one tensor, got none"),
        ({"x": torch.zeros(2, 3)}, ValueError, "tensors must be named x, y as before, got x"),
        ({"x": torch.zeros(2, 3), "z": torch.zeros(2)}, ValueError, "tensors must be named x, y as before, got x, z"),
        (
            {"x": torch.zeros(2, 3), "y": torch.zeros(1)},
            ValueError,
            r"y must have shape \(B, ...\) = \(2,\), got \(1,\)",
        ),
        ({"x": torch.zeros(2, 4), "y": torch.zeros(2)}, ValueError, r"x must have shape .* = \(2, 3\), got \(2, 4\)"),
        ({"x": torch.zeros(2, 3), "y": torch.zeros(2).long()}, TypeError, "y must have dtype torch.float32, got"),
        ({"x": torch.tensor(0.0), "y": torch.zeros(1)}, ValueError, r"x must have shape \(B, ...\), got \(\)"),
        ({"x": [0.0], "y": torch.zeros(1)}, TypeError, "x must be a torch.Tensor, got list"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(tensors, error, message):
    buffer = ReservoirBuffer(3)
    buffer.add(x=torch.ones(2, 3), y=torch.ones(2))
    with pytest.raises(error, match=message):
        buffer.add(**tensors)
    assert len(buffer) == 2 and (buffer.sample(3)["x"] == 1).all()


def test_bad_buffers_and_samples_are_named():
    for capacity, error, message in (
        (0, ValueError, "capacity must be >= 1, got 0"),
        (2.5, TypeError, "got float 2.5"),
    ):
        with pytest.raises(error, match=message):
            ReservoirBuffer(capacity)
    with pytest.raises(ValueError, match="seed must be >= 0, got -2"):
        ReservoirBuffer(3, seed=-2)
    buffer = ReservoirBuffer(3)
    with pytest.raises(ValueError, match="the buffer must hold an example to sample from, got an empty one"):
        buffer.sample(1)
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        buffer.sample(0)
    with pytest.raises(TypeError, match="n must be an int, got float"):
        buffer.sample(1.0)
