"""Every option, alone and with others, equals the dense reference under random upstream gradients."""

import itertools

import pytest
import torch
from cce_reference import IGNORED
from triton_cases import EVERYTHING, Head, assert_equals_dense, head, outcome

EXTRAS = [{}, {"return_lse": True}, {"return_entropy": True}, {"return_argmax": True}, EVERYTHING]


def class_weight(vocab):
    weight = torch.linspace(0.0, 2.0, vocab)
    return weight[torch.randperm(vocab, generator=torch.Generator().manual_seed(2))]


@pytest.mark.parametrize("extras", [{}, EVERYTHING], ids=["loss", "everything"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_combinations(softcap, reduction, extras):
    # Cycles of 3 and 5 meet every pair of the others.
    temperatures = itertools.cycle([1.0, 0.6, 1.7])
    filters = itertools.cycle([None, 2.0**-5, (2.0**-8, 2.0**-4), (2.0**-4, 2.0**-7), "auto"])
    for bias, smoothing, z_loss, weighted in itertools.product([False, True], [0.0, 0.1], [0.0, 0.05], [False, True]):
        heads = head(140, 70, 8, bias=bias)
        assert_equals_dense(
            heads,
            softcap=softcap,
            reduction=reduction,
            label_smoothing=smoothing,
            z_loss=z_loss,
            weight=class_weight(70) if weighted else None,
            temperature=next(temperatures),
            filter_eps=next(filters),
            **extras,
        )


@pytest.mark.parametrize("extras", EXTRAS, ids=lambda extras: "+".join(extras) or "loss")
@pytest.mark.parametrize("filter_eps", [None, 2.0**-6])
def test_what_is_returned(extras, filter_eps):
    for temperature in (0.5, 2.0):
        assert_equals_dense(head(), filter_eps=filter_eps, temperature=temperature, **extras)


def test_argmax_of_equal_logits_is_the_first():
    """Equal within a tile, in different tiles, in different shares of the vocabulary, and all of them."""
    heads = head(130, 1030, 8, bias=False)
    # Sums of such products are exact: equal columns have equal logits, in whatever order a processor adds.
    heads = Head(*(x.detach().mul(16).round().div(16).requires_grad_() for x in (heads.e, heads.c)), None, heads.target)
    first = outcome(heads, impl="triton", **EVERYTHING).argmax[0]
    valid = heads.target != IGNORED
    assert len(first[valid].unique()) > 20
    order = torch.arange(1030)
    for copies in (torch.cat([order, order]), order.repeat_interleave(2), torch.cat([order, order.flip(0)])):
        doubled = Head(heads.e, heads.c.detach()[copies], None, heads.target)
        places = torch.stack([(copies == column).nonzero()[0, 0] for column in first[valid]])
        argmax = outcome(doubled, impl="triton", return_argmax=True).argmax[0]
        assert torch.equal(argmax[valid], places) and (argmax[~valid] == -1).all()
    flat = Head(heads.e, torch.zeros_like(heads.c), None, heads.target)
    assert (outcome(flat, impl="triton", return_argmax=True).argmax[0][valid] == 0).all()


def test_another_ignore_index():
    heads = head(200, 90, ignored=0)
    heads.target[::4] = 7
    assert_equals_dense(heads, ignore_index=7, reduction="none", filter_eps=2.0**-5)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_smoothing_stays_outside_the_filter(softcap):
    """Even where the filter drops every column but the targets'; with a cap the filter is off."""
    heads = head(vocab=300)
    smoothed = assert_equals_dense(heads, label_smoothing=0.2, softcap=softcap, filter_eps=1.0, reduction="sum")
    assert (smoothed.gradients[1].norm(dim=1) > 0).all()


@pytest.mark.parametrize("softcap", [0.3, 300.0])
def test_caps_far_below_and_above_the_logits(softcap):
    assert_equals_dense(head(), softcap=softcap, reduction="none", return_lse=True, return_entropy=True)
