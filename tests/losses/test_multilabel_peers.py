"""Losses of several right answers against pytorch-metric-learning, and pairs of scores against scikit-learn."""

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from lossbook.losses import decoupled_softmax, mann_whitney, mann_whitney_retrieval, multilabel_softmax

CLOSE = {"rtol": 1e-9, "atol": 0}


@pytest.fixture
def classes(generator):
    """Queries and passages of four classes; class 3 has no passage, class 4 no query."""
    queries, passages = torch.randn(7, 5, generator=generator, dtype=torch.float64).split([5, 2])
    passages = torch.cat([passages, torch.randn(7, 5, generator=generator, dtype=torch.float64)])
    of_queries, of_passages = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 1, 1, 2, 2, 2, 0, 4, 4])
    return queries, of_queries, passages, of_passages


def logits_of(queries, of_queries, passages, of_passages, temperature):
    cosine = functional.normalize(queries, dim=1) @ functional.normalize(passages, dim=1).T
    return cosine / temperature, of_queries[:, None] == of_passages


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_decoupled_softmax_is_their_nt_xent_of_classes(classes, temperature):
    """Their NT-Xent leaves the other positives out of the denominator too; it averages over pairs, not over queries."""
    logits, target = logits_of(*classes, temperature)
    queries, of_queries, passages, of_passages = classes
    peer = NTXentLoss(temperature=temperature)(queries, of_queries, ref_emb=passages, ref_labels=of_passages)
    total = decoupled_softmax(logits, target, normalize=False, reduction="sum")
    torch.testing.assert_close(total / target.sum(), peer, **CLOSE)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_normalized_multilabel_softmax_is_their_sup_con_between_two_sets(classes, temperature):
    """Theirs leaves a query without a right answer out of the mean, where ours counts it."""
    logits, target = logits_of(*classes, temperature)
    queries, of_queries, passages, of_passages = classes
    peer = SupConLoss(temperature=temperature)(queries, of_queries, ref_emb=passages, ref_labels=of_passages)
    total = multilabel_softmax(logits, target, normalize=True, reduction="sum")
    torch.testing.assert_close(total / target.any(1).sum(), peer, **CLOSE)


def test_gradients_are_theirs_too(classes):
    queries, of_queries, passages, of_passages = classes
    leaf = queries.clone().requires_grad_()
    logits, target = logits_of(leaf, of_queries, passages, of_passages, 0.1)
    ours = decoupled_softmax(logits, target, normalize=False, reduction="sum") / target.sum()
    peer = NTXentLoss(temperature=0.1)(leaf, of_queries, ref_emb=passages, ref_labels=of_passages)
    for a, b in zip(torch.autograd.grad(ours, leaf), torch.autograd.grad(peer, leaf), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_a_cold_mann_whitney_loss_knows_the_area_of_scikit_learn(generator):
    """Of scores a whole number apart, a lost pair costs its distance over the temperature, a tie log 2."""
    score = torch.randint(0, 4, (40,), generator=generator).double()
    y = torch.rand(40, generator=generator) < 0.4
    pairs = mann_whitney(score[y], score[~y], temperature=1e-3, reduction="none")
    lost, tied = pairs > 1, (pairs - 0.6931).abs() < 1e-3
    area = 1 - (lost.double() + tied.double() / 2).mean()
    assert area.item() == pytest.approx(roc_auc_score(y, score), abs=1e-12)


def test_the_bound_holds_for_the_pooled_area_of_scikit_learn(generator):
    sim = torch.randn(8, 20, generator=generator, dtype=torch.float64)
    relevant = torch.eye(8, 20, dtype=torch.bool)
    area = roc_auc_score(relevant.flatten(), sim.flatten())
    for temperature in (0.01, 0.1, 1.0, 10.0):
        assert 1 - area <= mann_whitney_retrieval(sim, temperature=temperature).item() / 0.693
