"""nt_xent and sup_con: peers, identities, limits, and batches in which nothing is alike."""

import math
import subprocess
import sys
import warnings

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

from lossbook.losses import NoPositivesWarning, nt_xent, sup_con
from lossbook.losses._positives import reduce_anchors

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def views(generator):
    return torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)


@pytest.fixture
def labeled(generator):
    target = torch.tensor([0, 1, 2, 0, 1, 0, 7, 2])  # 7 is alone
    return torch.randn(8, 4, generator=generator, dtype=torch.float64), target


@pytest.mark.parametrize("temperature", [0.07, 0.5, 3.0])
def test_nt_xent_equals_pytorch_metric_learning(views, temperature):
    peer = NTXentLoss(temperature=temperature)(views.flatten(0, 1), torch.arange(6).repeat(2))
    torch.testing.assert_close(nt_xent(*views, temperature=temperature), peer, rtol=1e-9, atol=0)


@pytest.mark.parametrize("temperature", [0.05, 0.09, 1.0])
def test_sup_con_equals_pytorch_metric_learning(labeled, temperature):
    """Theirs also leaves out of its mean what is zero: here the anchor alone in its class."""
    peer = SupConLoss(temperature=temperature)(*labeled)
    torch.testing.assert_close(sup_con(*labeled, temperature=temperature), peer, rtol=1e-9, atol=0)


def test_two_views_make_sup_con_nt_xent(views):
    both = sup_con(views.flatten(0, 1), torch.arange(6).repeat(2), temperature=0.3)
    torch.testing.assert_close(both, nt_xent(*views, temperature=0.3), **EXACT)


def test_views_may_be_exchanged(views):
    first, second = (nt_xent(*order, reduction="none") for order in (views, views.flip(0)))
    torch.testing.assert_close(first, second.roll(6), **EXACT)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_lengths_do_not_matter(views, labeled, scale):
    torch.testing.assert_close(nt_xent(scale * views[0], views[1]), nt_xent(*views), **EXACT)
    torch.testing.assert_close(sup_con(scale * labeled[0], labeled[1]), sup_con(*labeled), **EXACT)


def test_order_and_names_of_classes_do_not_matter(labeled, generator):
    features, target = labeled
    order = torch.randperm(8, generator=generator)
    shuffled = sup_con(features[order], 100 - target[order], reduction="none")
    torch.testing.assert_close(shuffled, sup_con(features, target, reduction="none")[order], **EXACT)


def test_values_by_hand():
    """Orthogonal pairs of equal views, and all the same: log(1 + 2 e^-1/t) and log(2B - 1)."""
    pairs = torch.eye(2, dtype=torch.float64)
    assert nt_xent(pairs, pairs, temperature=0.5).item() == pytest.approx(math.log1p(2 * math.exp(-2)))
    same = torch.ones(4, 3, dtype=torch.float64)
    assert nt_xent(same, same).item() == pytest.approx(math.log(7))
    assert sup_con(same, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(math.log(3))


def test_second_derivatives(views, labeled):
    for loss in (lambda z: nt_xent(z, views[1]), lambda z: sup_con(z, torch.tensor([0, 1, 0, 1, 2, 1]))):
        torch.autograd.gradgradcheck(loss, views[0].clone().requires_grad_(), fast_mode=True)


def test_an_anchor_alone_in_its_class_is_zero_and_left_out_of_the_mean(labeled):
    features, target = labeled
    each = sup_con(features, target, reduction="none")
    assert each[6] == 0 and (each[target != 7] > 0).all()
    torch.testing.assert_close(sup_con(features, target), each.sum() / 7, **EXACT)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_any_positive_it_is_zero_connected_and_warned_of(labeled, reduction):
    leaf = labeled[0].clone().requires_grad_()
    with pytest.warns(NoPositivesWarning, match="none of the 8 anchors of the batch has a positive") as caught:
        loss = sup_con(leaf, torch.arange(8), reduction=reduction)
    assert (loss == 0).all() and caught[0].filename == __file__, "the warning points to the line of the call"
    loss.sum().backward()
    assert (leaf.grad == 0).all()


def test_the_warning_comes_once_for_each_line_that_calls():
    code = """
import torch
from lossbook.losses import sup_con
z, y = torch.eye(3), torch.arange(3)
for _ in range(3):
    sup_con(z, y)
sup_con(z, y)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("NoPositivesWarning") == 2


def test_the_warning_can_be_made_an_error_and_is_silent_under_compilation():
    z, y = torch.eye(3), torch.arange(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoPositivesWarning)
        with pytest.raises(NoPositivesWarning):
            sup_con(z, y)
        assert torch.compile(sup_con, backend="eager", fullgraph=True)(z, y) == 0


def test_the_policy_counts_all_anchors_where_a_loss_says_so():
    losses = torch.tensor([3.0, 5.0, 4.0], requires_grad=True)
    has = torch.tensor([True, False, True])
    assert reduce_anchors(losses, has, "mean", torch.float32) == 3.5
    assert reduce_anchors(losses, has, "mean", torch.float32, count_all=True).item() == pytest.approx(7 / 3)
    assert reduce_anchors(losses, has, "none", torch.float16).tolist() == [3, 0, 4]
    assert reduce_anchors(losses[:0], has[:0], "mean", torch.float32) == 0
    with pytest.warns(NoPositivesWarning):
        assert reduce_anchors(losses, ~has & has, "mean", torch.float32, count_all=True) == 0


def test_broken_features_stay_visible():
    broken = torch.eye(3)
    broken[0, 0] = torch.nan
    assert sup_con(broken, torch.tensor([0, 1, 1])).isnan()
