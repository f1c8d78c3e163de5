"""info_nce: what it equals, what it cannot see, and its limits."""

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch.nn import functional

from lossbook.losses import info_nce

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


def test_the_masks_entry_of_the_positive_does_not_count(sim):
    mask = sim > 0
    with_positive, without = mask.clone(), mask.clone()
    with_positive.diagonal().fill_(True)
    without.diagonal().fill_(False)
    torch.testing.assert_close(info_nce(sim, mask=with_positive), info_nce(sim, mask=without), rtol=0, atol=0)
    assert torch.equal(mask, sim > 0), "the caller's mask stays as it was"


def test_a_masked_entry_has_no_influence_and_no_gradient(sim):
    mask = torch.ones_like(sim, dtype=torch.bool)
    mask[2, 7] = False
    spoiled = sim.clone()
    spoiled[2, 7] = 1e6
    torch.testing.assert_close(info_nce(spoiled, mask=mask), info_nce(sim, mask=mask), **EXACT)
    leaf = sim.clone().requires_grad_()
    info_nce(leaf, mask=mask).backward()
    assert leaf.grad[2, 7] == 0 and leaf.grad.isfinite().all()


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


def test_second_derivative(sim):
    mask = sim[:3] > -0.5
    leaf = sim[:3].clone().requires_grad_()
    torch.autograd.gradgradcheck(lambda s: info_nce(s, temperature=0.7, mask=mask), leaf, fast_mode=True)
