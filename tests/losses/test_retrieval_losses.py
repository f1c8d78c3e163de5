"""Losses of similarities: what they equal, what they cannot see, what they bound, and their limits."""

import math

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch.nn import functional

from lossbook.losses import info_nce, mann_whitney, mann_whitney_retrieval, ranknet_retrieval, retrieval, siglip
from lossbook.metrics import mann_whitney_auc

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def sim(generator):
    return torch.randn(6, 9, generator=generator, dtype=torch.float64)


def test_without_a_mask_it_is_cross_entropy_with_the_diagonal_as_target(sim):
    torch.testing.assert_close(info_nce(sim, temperature=0.2), functional.cross_entropy(sim / 0.2, torch.arange(6)))


def test_equals_pytorch_metric_learning_between_two_sets(generator):
    query, passage = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    index = torch.arange(6)
    peer = NTXentLoss(temperature=0.1)(query, index, ref_emb=passage, ref_labels=index.clone())
    cosine = functional.normalize(query, dim=1) @ functional.normalize(passage, dim=1).T
    torch.testing.assert_close(info_nce(cosine, temperature=0.1), peer, rtol=1e-9, atol=0)


def test_is_blind_to_an_offset_of_each_query(sim, generator):
    offset = 100 * torch.randn(6, 1, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(info_nce(sim + offset), info_nce(sim), rtol=1e-10, atol=1e-10)


def test_a_row_without_negatives_is_zero_and_the_others_stay(sim):
    mask = torch.ones_like(sim, dtype=torch.bool)
    mask[1] = False
    leaf = sim.clone().requires_grad_()
    each = info_nce(leaf, mask=mask, reduction="none")
    each.sum().backward()
    assert each[1] == 0 and (leaf.grad[1] == 0).all()
    others = torch.arange(6) != 1
    torch.testing.assert_close(each[others], info_nce(sim, reduction="none")[others], **EXACT)


def test_limits_of_the_temperature(sim):
    """Cold: the margin by which the best wrong passage wins. Hot: log of the number of passages."""
    best_wrong = sim.masked_fill(torch.eye(6, 9).bool(), -torch.inf).max(1).values
    margin = (best_wrong - sim.diagonal()).relu()
    torch.testing.assert_close(1e-6 * info_nce(sim, temperature=1e-6, reduction="none"), margin, rtol=1e-5, atol=1e-5)
    hot = info_nce(sim, temperature=1e9, reduction="none")
    torch.testing.assert_close(hot, torch.full_like(hot, 9).log(), rtol=1e-8, atol=0)


def test_one_query_with_hard_negatives():
    assert info_nce(torch.tensor([[0.9, 0.2, 0.1]])).item() == pytest.approx(1.0e-6, rel=0.3)


WITHIN_A_QUERY = (info_nce, ranknet_retrieval)
ALL = (*WITHIN_A_QUERY, mann_whitney_retrieval, siglip)

each_loss = pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.__name__)


def off_diagonal(sim):
    return sim[~torch.eye(*sim.shape, dtype=torch.bool)]


def test_mann_whitney_retrieval_is_mann_whitney_of_the_diagonal_and_the_rest(sim):
    expected = mann_whitney(sim.diagonal(), off_diagonal(sim), temperature=0.2)
    torch.testing.assert_close(mann_whitney_retrieval(sim, temperature=0.2), expected, **EXACT)
    pairs = mann_whitney(sim.diagonal(), off_diagonal(sim), temperature=0.2, reduction="none")
    torch.testing.assert_close(mann_whitney_retrieval(sim, temperature=0.2, reduction="none"), pairs.mean(1), **EXACT)


def test_ranknet_is_mann_whitney_of_each_row(sim):
    rows = [mann_whitney(row[i : i + 1], row[torch.arange(9) != i]) for i, row in enumerate(sim)]
    torch.testing.assert_close(ranknet_retrieval(sim, temperature=1, reduction="none"), torch.stack(rows), **EXACT)


def test_siglip_is_binary_cross_entropy_of_each_pair(sim):
    logits, target = sim / 0.3 - 2, torch.eye(6, 9, dtype=torch.float64)
    expected = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
    torch.testing.assert_close(siglip(sim, temperature=0.3, bias=-2, reduction="none"), expected, **EXACT)


def test_only_losses_within_a_query_are_blind_to_offsets_of_queries(sim, generator):
    moved = sim + torch.randn(6, 1, generator=generator, dtype=torch.float64)
    for loss in WITHIN_A_QUERY:
        torch.testing.assert_close(loss(moved), loss(sim), rtol=1e-10, atol=1e-10)
    for loss in (mann_whitney_retrieval, siglip):
        assert (loss(moved) - loss(sim)).abs() > 0.1


def test_offsets_of_queries_get_no_gradient_from_losses_within_a_query(sim):
    offset = torch.zeros(6, 1, dtype=torch.float64, requires_grad=True)
    for loss in ALL:
        (gradient,) = torch.autograd.grad(loss(sim + offset), offset)
        assert (gradient.abs().max() < 1e-14) == (loss in WITHIN_A_QUERY), loss.__name__


def test_all_are_blind_to_an_offset_of_everything(sim):
    """siglip, which knows an absolute threshold, if its bias makes up for it."""
    for loss in (*WITHIN_A_QUERY, mann_whitney_retrieval):
        torch.testing.assert_close(loss(sim + 3), loss(sim), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(siglip(sim + 3, temperature=0.5, bias=-16), siglip(sim, temperature=0.5), **EXACT)


def test_bounds_one_minus_auc_at_every_temperature(generator):
    def numbers(count):
        return torch.randn(count, generator=generator, dtype=torch.float64)

    for trial in range(300):
        pos, neg = numbers(7) + 2 * numbers(1), numbers(11)
        if trial % 3 == 0:
            pos, neg = pos.round(), neg.round()
        temperature = 10 ** (4 * torch.rand(1, generator=generator).item() - 2)
        bound = mann_whitney(pos, neg, temperature=temperature).item() / math.log(2)
        assert 1 - mann_whitney_auc(pos, neg) <= bound + 1e-12


def test_limits_of_the_mann_whitney_temperature(generator):
    """Cold: by how much pairs are in the wrong order. Hot: the difference of the means."""
    pos, neg = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    hinge = (neg - pos[:, None]).relu().mean()
    torch.testing.assert_close(1e-6 * mann_whitney(pos, neg, temperature=1e-6), hinge, rtol=1e-6, atol=1e-6)
    hot = 2e6 * (mann_whitney(pos, neg, temperature=1e6) - math.log(2))
    torch.testing.assert_close(hot, neg.mean() - pos.mean(), rtol=1e-4, atol=1e-5)


def test_gradient_of_a_positive_is_the_sum_over_all_pairs_it_may_lose(generator):
    pos, neg = torch.randn(6, generator=generator).double().requires_grad_(), torch.randn(9, generator=generator)
    neg = neg.double()
    (gradient,) = torch.autograd.grad(mann_whitney(pos, neg, temperature=0.3), pos)
    expected = -torch.sigmoid(-(pos.detach()[:, None] - neg) / 0.3).mean(1) / (0.3 * 6)
    torch.testing.assert_close(gradient, expected, **EXACT)


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 100])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_chunks_change_nothing(chunk_size, reduction, generator):
    pos, neg = torch.randn(2, 7, generator=generator, dtype=torch.float64).requires_grad_()
    values = [mann_whitney(pos, neg, reduction=reduction, chunk_size=size) for size in (None, chunk_size)]
    gradients = [torch.autograd.grad(value.square().sum(), (pos, neg)) for value in values]
    torch.testing.assert_close(values[1], values[0], **EXACT)
    torch.testing.assert_close(gradients[1], gradients[0], **EXACT)


def test_chunks_keep_fewer_pairs_for_the_backward_pass(generator):
    pos, neg = torch.randn(2, 64, generator=generator).requires_grad_()

    def kept(**options):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            mann_whitney(pos, neg, **options)
        return max(sizes)

    assert kept() == 64 * 64
    assert kept(chunk_size=8) <= 64


def test_large_batches_go_in_parts(sim, monkeypatch):
    leaf = sim.clone().requires_grad_()
    results = []
    for pairs in (2**24, 100, 1):
        monkeypatch.setattr(retrieval, "_PAIRS", pairs)
        value = mann_whitney_retrieval(leaf, mask=sim > -1)
        results.append((value, *torch.autograd.grad(value, leaf)))
    torch.testing.assert_close(results[1], results[0], **EXACT)
    torch.testing.assert_close(results[2], results[0], **EXACT)


@each_loss
def test_what_the_mask_drops_has_no_influence_and_no_gradient(loss, sim):
    mask = torch.ones_like(sim, dtype=torch.bool)
    mask[2, 7] = mask[4, 0] = False
    spoiled = sim.clone()
    spoiled[2, 7], spoiled[4, 0] = 1e6, torch.nan
    leaf = spoiled.requires_grad_()
    value = loss(leaf, mask=mask)
    torch.testing.assert_close(value, loss(sim, mask=mask), **EXACT)
    value.backward()
    assert leaf.grad[2, 7] == 0 and leaf.grad[4, 0] == 0 and leaf.grad.isfinite().all()


@each_loss
def test_the_positive_counts_whatever_the_mask_says_of_it(loss, sim):
    mask = sim > 0
    with_positive = mask | torch.eye(6, 9, dtype=torch.bool)
    torch.testing.assert_close(loss(sim, mask=with_positive), loss(sim, mask=mask), rtol=0, atol=0)
    assert torch.equal(mask, sim > 0), "the caller's mask stays as it was"


def test_a_row_without_negatives(sim):
    mask = torch.ones_like(sim, dtype=torch.bool)
    mask[1] = False
    assert ranknet_retrieval(sim, mask=mask, reduction="none")[1] == 0
    assert mann_whitney_retrieval(sim, mask=mask, reduction="none")[1] > 0, "it has those of the other rows"
    own = functional.softplus(-(sim[1, 1] / 0.05 - 10))
    torch.testing.assert_close(siglip(sim, mask=mask, reduction="none")[1], own)


@each_loss
def test_a_single_query_with_hard_negatives(loss):
    good, bad = (loss(torch.tensor([[own, 0.2, 0.1]])) for own in (0.9, 0.0))
    assert good.isfinite() and good < bad


def test_a_learnable_bias_gets_its_gradient_in_any_dtype(sim):
    logits = sim / 0.05 - 10
    expected = (logits.sigmoid().sum() - 6) / 6
    for dtype in (torch.float64, torch.float32):
        bias = torch.tensor(-10.0, dtype=dtype, requires_grad=True)
        siglip(sim, bias=bias).backward()
        assert bias.grad.item() == pytest.approx(expected.item(), rel=1e-6)
        assert siglip(sim.bfloat16(), bias=bias).dtype == torch.bfloat16


@each_loss
def test_second_derivatives(loss, sim):
    mask = sim[:3] > -0.5
    leaf = sim[:3].clone().requires_grad_()
    torch.autograd.gradgradcheck(lambda s: loss(s, temperature=0.7, mask=mask), leaf, fast_mode=True)
