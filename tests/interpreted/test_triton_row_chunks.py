"""Gradients in the forward pass, by chunks of whole rows of logits."""

import itertools

import pytest
import torch
from cce_reference import IGNORED
from triton_cases import Head, assert_equals_dense, assert_identical, head, outcome

from lossbook.kernels.cross_entropy import advice
from lossbook.kernels.cross_entropy.triton import engine, row_chunks


@pytest.fixture
def heights(monkeypatch):
    """Heights of the chunks that were computed."""
    seen = []
    compute = row_chunks.loss_and_gradients

    def spy(problem, factors, height, **needs):
        seen.append(height)
        return compute(problem, factors, height, **needs)

    monkeypatch.setattr(row_chunks, "loss_and_gradients", spy)
    return seen


@pytest.fixture(params=[8, 1000], ids=["several chunks", "one chunk"])
def chunked(request, monkeypatch, heights):
    """Take chunks of a given height whatever they cost."""
    monkeypatch.setattr(engine, "row_chunks_win", lambda *arguments: request.param)
    return heights


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_options(softcap, reduction, chunked):
    weight = torch.linspace(0, 2, 90)
    temperatures = itertools.cycle([1.0, 0.6, 1.7])
    cases = [*itertools.product([False, True], [0.0, 0.1], [0.0, 0.05], [None, weight])]
    for bias, smoothing, z_loss, weighted in cases:
        assert_equals_dense(
            head(20, 90, 12, bias=bias),
            softcap=softcap,
            reduction=reduction,
            label_smoothing=smoothing,
            z_loss=z_loss,
            weight=weighted,
            temperature=next(temperatures),
        )
    assert len(chunked) == len(cases)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 33, 3), (9, 4100, 8), (30, 1030, 5)], ids=str)
def test_ragged_shapes(shape, chunked):
    """More columns than one sweep of a row takes, too."""
    assert_equals_dense(head(*shape, ignored=0), reduction="sum", softcap=9.0)
    assert chunked


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_overwrites_the_front_of_every_row(dtype, chunked):
    heads = head(30, 333, 24, dtype=dtype)
    for options in ({}, {"label_smoothing": 0.1, "z_loss": 0.01}, {"softcap": 5.0, "label_smoothing": 0.1}):
        got = assert_equals_dense(heads, reduction="sum", **options)
        assert all(gradient.dtype == dtype for gradient in got.gradients)
    assert chunked


def test_strides(chunked):
    plain = head(30, ignored=5)
    e, c = (value.detach().t().contiguous().t().requires_grad_() for value in plain[:2])
    assert_equals_dense(Head(e, c, plain.bias, plain.target))
    assert chunked


def test_masked_words_and_large_logits(chunked):
    heads = head(30, vocab=300)
    words = torch.ones(300, dtype=torch.bool)
    words[heads.target[heads.target != IGNORED]] = False
    with torch.no_grad():
        heads.bias[words] = -torch.inf
    got = assert_equals_dense(heads, reduction="sum")
    assert not got.gradients[1][words].any()
    with torch.no_grad():
        heads.bias[~words] += 1e4
    got = outcome(heads, impl="triton")
    assert all(value.isfinite().all() for value in got.values + got.gradients)


def test_nothing_uninitialized_is_read_and_runs_repeat(chunked, nan_empty):
    heads = head(30, 90)
    for options in ({}, {"softcap": 5.0, "label_smoothing": 0.1}):
        got = assert_equals_dense(heads, **options)
        assert_identical(got, outcome(heads, impl="triton", **options))
    assert chunked


@pytest.mark.parametrize("wanted", ["e", "c", "bias", "e+c", "c+bias"])
def test_only_wanted_gradients(wanted, chunked):
    heads = head(30, 90)
    for name, leaf in zip(("e", "c", "bias"), heads[:3], strict=True):
        leaf.requires_grad_(name in wanted.split("+"))
    assert_equals_dense(heads, label_smoothing=0.1)
    assert chunked


@pytest.mark.parametrize("shape", [(16, 64, 1200), (140, 64, 1200), (140, 300, 20), (128, 90, 40)], ids=str)
def test_chosen_where_the_model_of_costs_says_so(shape, heights):
    for chunk_bytes in (1, 1 << 16, 64 << 20):
        heights.clear()
        assert_equals_dense(head(*shape, ignored=0), chunk_bytes=chunk_bytes)
        height = advice.row_chunks_win(*shape, torch.float32, chunk_bytes)
        assert heights == ([height] if height else [])


def test_never_chosen_for_more_than_the_loss(chunked):
    for options in ({"reduction": "none"}, {"return_lse": True}, {"filter_eps": "auto"}):
        assert_equals_dense(head(30), **options)
    assert not chunked


def test_the_mean_over_no_row(chunked):
    heads = head(30, 90)
    heads.target.fill_(IGNORED)
    got = outcome(heads, impl="triton")
    assert got.values[0].isnan() and not any(gradient.any() for gradient in got.gradients)
