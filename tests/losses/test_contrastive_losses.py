"""nt_xent, its relatives with several heads, and sup_con: peers, identities, limits, and batches without positives."""

import math
import subprocess
import sys
import warnings

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

from lossbook.losses import (
    NoPositivesWarning,
    amcl,
    nt_xent,
    nt_xent_decoupled,
    optimal_temperature,
    sup_con,
    temperature_penalty,
)
from lossbook.losses._positives import reduce_anchors

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def views(generator):
    return torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)


@pytest.fixture
def heads(generator):
    """Two views of five examples in three heads, and a temperature for each pair."""
    first = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    second = first + torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    return first, second, 0.1 + torch.rand(3, 5, 5, generator=generator, dtype=torch.float64)


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
    for count_all in (False, True):
        with pytest.warns(NoPositivesWarning, match="none of the 0 anchors"):
            assert reduce_anchors(losses[:0], has[:0], "mean", torch.float32, count_all=count_all) == 0
    with pytest.warns(NoPositivesWarning):
        assert reduce_anchors(losses, ~has & has, "mean", torch.float32, count_all=True) == 0


def test_broken_features_stay_visible():
    broken = torch.eye(3)
    broken[0, 0] = torch.nan
    assert sup_con(broken, torch.tensor([0, 1, 1])).isnan()


def test_leaving_out_the_positive_is_undone_by_putting_it_back(views):
    """log(1 + e^l) of the decoupled loss is the softmax over one positive and the negatives."""
    decoupled = nt_xent_decoupled(*views, temperature=0.4, reduction="none")
    first, second = (torch.nn.functional.normalize(view, dim=1) for view in views)
    with_positive = torch.nn.functional.cross_entropy(first @ second.T / 0.4, torch.arange(6), reduction="none")
    torch.testing.assert_close(decoupled.exp().log1p(), with_positive, **EXACT)
    assert nt_xent_decoupled(torch.eye(3), torch.eye(3), temperature=0.1) < 0


def test_the_positive_term_is_a_gaussian_likelihood(generator):
    """Claim of the derivation: the temperature is the variance of unit embeddings that belong together."""
    z, other = torch.nn.functional.normalize(torch.randn(2, 40, 7, generator=generator, dtype=torch.float64), dim=2)
    tau = 0.05 + torch.rand(40, generator=generator, dtype=torch.float64)
    term = temperature_penalty(tau, 7) - (z * other).sum(1) / tau
    expected = 3.5 * tau.log() + (z - other).square().sum(1) / (2 * tau)
    torch.testing.assert_close(term, expected, **EXACT)
    normal = torch.distributions.MultivariateNormal(z[0], tau[0] * torch.eye(7, dtype=torch.float64))
    constant = 3.5 * math.log(2 * math.pi)
    assert (term[0] + constant).item() == pytest.approx(-normal.log_prob(other[0]).item(), rel=1e-12)


@pytest.mark.parametrize(("sim", "beta", "dim"), [(-0.5, 0.1, 16), (0.05, 0.1, 16), (0.7, 1.0, 4), (-1.0, 2.0, 3)])
def test_the_optimal_temperature_is_where_a_grid_search_finds_it(sim, beta, dim):
    grid = torch.logspace(-4, 2, 200_001, dtype=torch.float64)
    found = grid[(beta * temperature_penalty(grid, dim) - sim / grid).argmin()].item()
    assert optimal_temperature(sim, beta=beta, dim=dim).item() == pytest.approx(found, rel=1e-3)


def test_without_an_optimum_the_term_falls_without_bound():
    tau = torch.logspace(0, -3, 4, dtype=torch.float64)
    values = (0.1 * temperature_penalty(tau, 16) - 0.5 / tau).tolist()
    assert values == sorted(values, reverse=True) and values[-1] < -100
    with pytest.raises(ValueError, match=r"sim must be < beta = 0\.1, or the term has no minimum, got 0\.5"):
        optimal_temperature(torch.tensor([-0.2, 0.5]), beta=0.1, dim=16)


def test_less_alike_pairs_want_higher_temperatures():
    tau = optimal_temperature(torch.linspace(-1, 0.09, 20), beta=0.1, dim=16)
    assert (tau.diff() < 0).all() and (tau > 0).all()


def test_numbers_are_taken_in_double_precision(heads):
    first, second, _ = heads
    penalty, optimum = temperature_penalty(0.2, 16), optimal_temperature(0, beta=0.1, dim=16)
    assert penalty.dtype == optimum.dtype == torch.float64 and optimum == 0.125
    assert penalty.item() == pytest.approx(8 * math.log(0.2) + 5)
    every = torch.full((3, 5, 5), 0.3, dtype=torch.float64)
    torch.testing.assert_close(amcl(first, second, 0.3), amcl(first, second, every), **EXACT)
    assert amcl(first.float(), second.float(), 0.3).dtype == torch.float32


@pytest.mark.parametrize("beta", [0.0, 0.1, 3.0])
def test_a_constant_temperature_makes_amcl_a_sum_of_heads(heads, beta):
    """And beta cancels."""
    first, second, _ = heads
    one_by_one = sum(
        nt_xent_decoupled(a, b, temperature=0.3, reduction="none") for a, b in zip(first, second, strict=True)
    )
    torch.testing.assert_close(amcl(first, second, 0.3, beta=beta, reduction="none"), one_by_one, **EXACT)


def test_the_printed_loss_lies_below_by_at_most_the_logarithm_of_the_negatives(heads):
    first, second, _ = heads
    smooth, hard = (amcl(first, second, 0.3, negatives=kind, reduction="none") for kind in ("logsumexp", "max"))
    gap = smooth - hard
    assert (gap >= 0).all() and (gap <= 3 * math.log(4)).all()
    colder = amcl(first, second, 1e-3, reduction="none") - amcl(first, second, 1e-3, negatives="max", reduction="none")
    assert (colder < gap).all(), "the gap closes as the temperature falls"


def test_the_hardest_negative_is_chosen_by_cosine_not_by_its_score():
    """The likelier negative is the one with the lower temperature, the nearer one has a high temperature."""
    a = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]], dtype=torch.float64)
    b = torch.tensor([[[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]]], dtype=torch.float64)
    tau = torch.ones(1, 3, 3, dtype=torch.float64)
    tau[0, 0, 1] = 10.0
    first = amcl(a, b, tau, beta=0.0, negatives="max", reduction="none")[0].item()
    assert first == pytest.approx(0.08 - 1.0)


def test_heads_are_added_and_their_order_does_not_matter(heads):
    parts = [amcl(*(x[c : c + 1] for x in heads), reduction="none") for c in range(3)]
    torch.testing.assert_close(amcl(*heads, reduction="none"), sum(parts), **EXACT)
    torch.testing.assert_close(amcl(*(x.flip(0) for x in heads)), amcl(*heads), **EXACT)


def test_examples_may_come_in_any_order(heads, generator):
    order = torch.randperm(5, generator=generator)
    shuffled = amcl(*(x[:, order] for x in heads[:2]), heads[2][:, order][:, :, order], reduction="none")
    torch.testing.assert_close(shuffled, amcl(*heads, reduction="none")[order], **EXACT)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("negatives", ["logsumexp", "max"])
def test_lengths_do_not_matter_to_amcl(heads, scale, negatives):
    first, second, tau = heads
    scaled = amcl(scale * first, second / scale, tau, negatives=negatives)
    torch.testing.assert_close(scaled, amcl(first, second, tau, negatives=negatives), **EXACT)


@pytest.mark.parametrize("shape", [(), (3, 1, 1), (5, 5), (1, 5), (3, 5, 1)])
def test_temperatures_are_broadcast(heads, shape, generator):
    tau = 0.2 + torch.rand(shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(amcl(*heads[:2], tau), amcl(*heads[:2], tau.expand(3, 5, 5).clone()), **EXACT)


def test_the_penalty_sees_the_dimension_it_is_told(heads):
    torch.testing.assert_close(amcl(*heads, dim=4), amcl(*heads), **EXACT)
    assert amcl(*heads, dim=40) != amcl(*heads)


def test_temperatures_may_be_of_another_precision(heads):
    first, second, tau = heads
    mixed = amcl(first.bfloat16(), second.bfloat16(), tau.float())
    assert mixed.dtype == torch.bfloat16
    assert mixed.item() == pytest.approx(amcl(first, second, tau).item(), rel=0.05)


@pytest.mark.parametrize("negatives", ["logsumexp", "max"])
@pytest.mark.parametrize("shape", [None, (), (3, 1, 1), (3, 5, 1)])
def test_both_directions_at_once_are_the_two_calls(heads, negatives, shape, generator):
    """Values in all reductions, and gradients of embeddings and temperatures, also of those that are broadcast."""
    first, second, tau = heads
    if shape is not None:
        tau = 0.2 + torch.rand(shape, generator=generator, dtype=torch.float64)
    options = {"negatives": negatives, "beta": 0.7, "dim": 9}
    back = tau.mT if tau.ndim else tau
    apart = [
        amcl(first, second, tau, reduction="none", **options),
        amcl(second, first, back, reduction="none", **options),
    ]
    each = amcl(first, second, tau, symmetric=True, reduction="none", **options)
    assert each.shape == (10,)
    torch.testing.assert_close(each, torch.cat(apart), **EXACT)
    total, mean = (amcl(first, second, tau, symmetric=True, reduction=kind, **options) for kind in ("sum", "mean"))
    torch.testing.assert_close(total, each.sum(), **EXACT)
    torch.testing.assert_close(mean, (apart[0].mean() + apart[1].mean()) / 2, **EXACT)

    leaves = [x.clone().requires_grad_() for x in (first, second, tau)]
    once = torch.autograd.grad(amcl(*leaves, symmetric=True, **options), leaves)
    back = leaves[2].mT if tau.ndim else leaves[2]
    two = (amcl(*leaves, **options) + amcl(leaves[1], leaves[0], back, **options)) / 2
    torch.testing.assert_close(once, torch.autograd.grad(two, leaves), **EXACT)


@pytest.mark.parametrize("negatives", ["logsumexp", "max"])
def test_both_directions_at_once_have_the_gradient_of_their_differences(heads, negatives):
    def function(*inputs):
        return amcl(*inputs, negatives=negatives, symmetric=True, reduction="none")

    assert torch.autograd.gradcheck(function, [x.clone().requires_grad_() for x in heads])


def test_exchanging_the_views_exchanges_the_anchors(heads):
    first, second, tau = heads
    there = amcl(first, second, tau, symmetric=True, reduction="none")
    back = amcl(second, first, tau.mT, symmetric=True, reduction="none")
    torch.testing.assert_close(back, there.roll(5), **EXACT)


def test_raising_the_temperature_of_a_negative_lowers_its_pull(heads):
    """At beta 0, for a negative with a positive cosine."""
    first, _, tau = heads
    leaf = tau.clone().requires_grad_()
    amcl(first.abs(), first.abs(), leaf, beta=0.0).backward()
    own = torch.eye(5, dtype=torch.bool).expand(3, 5, 5)
    assert (leaf.grad[own] > 0).all() and (leaf.grad[~own] < 0).all()
