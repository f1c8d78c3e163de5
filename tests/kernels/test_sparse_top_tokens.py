"""Exact, repeatable selection of tokens."""

import math

import pytest
import torch
from sparse_reference import ranking

from lossbook.kernels import select_tokens


def expected(scores, budget, lengths, sink=0, recent=0):
    """Lists and counts by Python's own sort."""
    batch, heads, _ = scores.shape
    index = torch.full((batch, heads, budget), -1, dtype=torch.int32)
    count = torch.zeros(batch, heads, dtype=torch.int32)
    for b in range(batch):
        for h in range(heads):
            best = sorted(ranking(scores[b, h].tolist(), lengths[b], sink, recent)[:budget])
            index[b, h, : len(best)] = torch.tensor(best, dtype=torch.int32)
            count[b, h] = len(best)
    return index, count


def assert_selected(scores, budget, lengths=None, sink=0, recent=0):
    given = None if lengths is None else torch.tensor(lengths)
    lengths = [scores.shape[2]] * scores.shape[0] if lengths is None else lengths
    for got, want in zip(
        select_tokens(scores, budget, given, sink, recent),
        expected(scores, budget, lengths, sink, recent),
        strict=True,
    ):
        assert got.dtype == torch.int32 and got.is_contiguous()
        assert torch.equal(got, want)


@pytest.mark.parametrize("budget", [1, 5, 19, 20, 33])
@pytest.mark.parametrize("lengths", [None, [20, 7], [1, 13]])
@pytest.mark.parametrize(("sink", "recent"), [(0, 0), (1, 0), (0, 1)])
def test_selection_is_a_sort(budget, lengths, sink, recent, generator):
    scores = torch.randn(2, 3, 20, generator=generator)
    assert_selected(scores, budget, lengths, sink, recent)


@pytest.mark.parametrize(("sink", "recent"), [(0, 0), (4, 0), (0, 4), (2, 3), (5, 5)])
@pytest.mark.parametrize("lengths", [[20, 20], [20, 3], [6, 9], [1, 2]])
def test_ends_are_always_kept(sink, recent, lengths, generator):
    scores = torch.randn(2, 2, 20, generator=generator)
    scores[:, :, [0, 1, 18, 19]] = -math.inf
    scores[:, :, 10] = math.inf
    assert_selected(scores, 10, lengths, sink, recent)


@pytest.mark.parametrize("budget", [1, 4, 9])
def test_ties_go_to_the_lowest_index(budget, generator):
    scores = torch.randint(3, (2, 4, 30), generator=generator).float()
    assert_selected(scores, budget)
    assert_selected(torch.zeros(1, 1, 30), budget)


def test_order_of_numbers_that_are_not_finite():
    zero = torch.tensor([-0.0, 0.0, -1.0, math.nan, -math.inf, math.inf, -math.nan, 5e-39, -5e-39])
    for budget in range(1, 10):
        assert_selected(zero.view(1, 1, -1), budget)
    assert select_tokens(zero.view(1, 1, -1), 7)[0].flatten().tolist() == [0, 1, 2, 4, 5, 7, 8]


def test_tokens_behind_the_length_are_not_read():
    scores = torch.tensor([[[1.0, 2.0, math.inf, math.nan]]])
    assert select_tokens(scores, 3, torch.tensor([2]))[0].tolist() == [[[0, 1, -1]]]


def test_equal_calls_give_equal_lists(generator):
    scores = torch.randn(4, 4, 300, generator=generator).round(decimals=1)
    first = select_tokens(scores, 40)
    assert all(torch.equal(select_tokens(scores, 40)[0], first[0]) for _ in range(3))


def test_a_row_does_not_depend_on_the_others(generator):
    scores = torch.randn(3, 2, 25, generator=generator)
    lengths = torch.tensor([25, 11, 3])
    index, count = select_tokens(scores, 6, lengths, 1, 2)
    for b in range(3):
        alone = select_tokens(scores[b : b + 1], 6, lengths[b : b + 1], 1, 2)
        assert torch.equal(index[b : b + 1], alone[0]) and torch.equal(count[b : b + 1], alone[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype, generator):
    assert_selected(torch.randn(2, 2, 50, generator=generator).to(dtype), 9)


def test_permuted_scores_give_permuted_tokens(generator):
    scores, order = torch.randn(1, 1, 30, generator=generator), torch.randperm(30, generator=generator)
    index = select_tokens(scores[:, :, order], 8)[0].flatten().long()
    assert order[index].sort().values.tolist() == select_tokens(scores, 8)[0].flatten().tolist()
