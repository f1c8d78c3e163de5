"""Metrics of retrieval and of embeddings, against torchmetrics, scikit-learn and brute force."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_reciprocal_rank

from lossbook import metrics
from lossbook.metrics import retrieval


@pytest.fixture
def ranked(generator):
    relevance = torch.rand(20, 30, generator=generator) < 0.1
    relevance[3] = False
    return torch.randn(20, 30, generator=generator, dtype=torch.float64), relevance


@pytest.fixture
def embedded(generator):
    z = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    return z, torch.randint(12, (40,), generator=generator)


def unit(z):
    return torch.nn.functional.normalize(z, dim=1)


@pytest.mark.parametrize("k", [1, 5, 30])
def test_ranks_equal_torchmetrics(ranked, k):
    """Of positive scores: theirs takes a document with a negative one for not retrieved."""
    rows = list(zip(ranked[0].exp(), ranked[1], strict=True))
    mrr = torch.stack([retrieval_reciprocal_rank(s, g, top_k=k) for s, g in rows]).double().mean()
    ndcg = torch.stack([retrieval_normalized_dcg(s, g, top_k=k) for s, g in rows]).double().mean()
    assert metrics.mrr_at_k(*ranked, k=k) == pytest.approx(mrr.item(), rel=1e-6)
    assert metrics.ndcg_at_k(*ranked, k=k) == pytest.approx(ndcg.item(), rel=1e-6)


def test_equal_scores_are_no_success():
    """Constant scores must not look good because the right document happens to stand first."""
    scores, relevance = torch.zeros(1, 4), torch.tensor([[True, False, False, False]])
    assert metrics.mrr_at_k(scores, relevance) == 1 / 4
    expected = np.mean([1 / math.log2(r + 1) for r in range(1, 5)])
    assert metrics.ndcg_at_k(scores, relevance) == pytest.approx(expected)
    same = torch.ones(4, 3)
    assert metrics.retrieval_recall_at_k(same, [0, 0, 1, 1], ks=(1, 2, 3)) == {1: 0.0, 2: 0.0, 3: 1.0}


def test_a_document_at_minus_infinity_is_out():
    scores = torch.tensor([[-torch.inf, 0.5, 0.1]])
    assert metrics.mrr_at_k(scores, torch.tensor([[0, 0, 1]])) == 1 / 2
    assert metrics.mrr_at_k(scores, torch.tensor([[1, 0, 0]]), k=2) == 0


@pytest.mark.parametrize("decimals", [None, 0])
def test_pooled_auc_of_all_negatives_equals_scikit_learn(ranked, decimals):
    scores, relevance = ranked
    scores = scores if decimals is None else scores.round(decimals=decimals)
    expected = roc_auc_score(relevance.flatten(), scores.flatten())
    for count in (30, 500):
        assert metrics.pooled_retrieval_auc(scores, relevance, count) == pytest.approx(expected, abs=1e-13)


def test_pooled_auc_takes_the_highest_negatives_of_each_query(ranked):
    scores, relevance = ranked
    negatives = [row[~right].topk(3).values for row, right in zip(scores, relevance, strict=True)]
    expected = metrics.mann_whitney_auc(scores[relevance], torch.cat(negatives))
    assert metrics.pooled_retrieval_auc(scores, relevance, top_negatives=3) == expected
    out = torch.where(relevance | (torch.arange(30) % 2 == 0), scores, -torch.inf)
    kept = metrics.mann_whitney_auc(scores[relevance], out[~relevance & (out > -torch.inf)])
    assert metrics.pooled_retrieval_auc(out, relevance) == kept, "a document at minus infinity is out"


def test_pooled_auc_notices_offsets_of_queries_that_ranks_do_not(ranked, generator):
    scores, relevance = ranked
    scores = scores + 3 * relevance
    moved = scores + 100 * torch.randn(20, 1, generator=generator, dtype=torch.float64)
    assert metrics.mrr_at_k(moved, relevance) == metrics.mrr_at_k(scores, relevance)
    assert metrics.pooled_retrieval_auc(scores, relevance) > 0.9
    assert metrics.pooled_retrieval_auc(moved, relevance) < 0.7


@pytest.mark.parametrize("block", [1, 100, 2**22])
def test_recall_and_uniformity_equal_brute_force_in_blocks_of_any_size(embedded, block, monkeypatch):
    monkeypatch.setattr(retrieval, "_BLOCK", block)
    z, labels = embedded
    order = NearestNeighbors().fit(unit(z)).kneighbors(n_neighbors=5, return_distance=False)
    hits = labels[torch.tensor(order)] == labels[:, None]
    expected = {k: hits[:, :k].any(1).double().mean().item() for k in (1, 2, 5)}
    assert metrics.retrieval_recall_at_k(z, labels, ks=(1, 2, 5)) == pytest.approx(expected)
    potentials = np.exp(-2 * pdist(unit(z)) ** 2)
    assert metrics.uniformity(z) == pytest.approx(math.log(potentials.mean()), rel=1e-12)


def test_an_example_alone_in_its_class_is_a_miss():
    assert metrics.retrieval_recall_at_k([[1, 0], [1, 0.1], [0, 1]], [0, 0, 1], ks=[2]) == {2: 2 / 3}


def test_alignment_equals_brute_force_and_has_its_limits(embedded):
    z, labels = embedded
    same = [pdist(unit(z)[labels == each]) ** 2 for each in labels.unique()]
    assert metrics.alignment(z, labels) == pytest.approx(np.concatenate(same).mean(), rel=1e-12)
    assert metrics.alignment(torch.ones(4, 3), [0, 0, 1, 1]) == pytest.approx(0, abs=1e-15)
    assert metrics.alignment([[1.0], [-1.0]], [5, 5]) == 4


def test_uniformity_has_its_limits():
    assert metrics.uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-12)
    assert metrics.uniformity([[1.0], [-1.0]], t=1000) == pytest.approx(-4000), "no underflow"


@pytest.mark.parametrize("scale", [1e-300, 1e-4, 1e200])
def test_lengths_do_not_matter(embedded, scale):
    z, labels = embedded
    assert metrics.alignment(scale * z, labels) == pytest.approx(metrics.alignment(z, labels), rel=1e-12)
    assert metrics.retrieval_recall_at_k(scale * z, labels) == metrics.retrieval_recall_at_k(z, labels)


def test_other_dtypes_and_arrays(ranked, embedded):
    scores, relevance = ranked
    coarse = (scores * 1000).round()
    assert metrics.mrr_at_k(coarse.numpy(), relevance.int().numpy()) == metrics.mrr_at_k(coarse, relevance)
    z = embedded[0].bfloat16()
    assert metrics.uniformity(z.requires_grad_()) == metrics.uniformity(z.detach().double().numpy())


Z, Y = torch.eye(3), [0, 0, 1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: metrics.retrieval_recall_at_k(Z, Y, ks=(3,)),
            ValueError,
            r"ks must lie in \[1, N - 1\] = \[1, 2\], got 3",
        ),
        (lambda: metrics.retrieval_recall_at_k(Z, Y, ks=(1.0,)), TypeError, "ks must be an int, got float"),
        (
            lambda: metrics.retrieval_recall_at_k(Z, Y[:2]),
            ValueError,
            r"labels must have shape \(N,\) = \(3,\), got \(2,\)",
        ),
        (lambda: metrics.alignment(Z, [0, 1, 2]), ValueError, "labels must have a class with two examples, got 3"),
        (lambda: metrics.alignment(Z[:1], [0]), ValueError, r"z must have shape \(N, D\) with N >= 2, got \(1, 3\)"),
        (lambda: metrics.uniformity(Z * torch.nan), ValueError, "z must be finite, got nan"),
        (lambda: metrics.uniformity(Z, t=0.0), ValueError, "t must be > 0, got 0.0"),
        (lambda: metrics.mrr_at_k(Z[0], Z[0]), ValueError, r"scores must have shape \(Q, D\) with Q >= 1, got \(3,\)"),
        (
            lambda: metrics.mrr_at_k(Z, Z[:2]),
            ValueError,
            r"relevance must have shape \(Q, D\) = \(3, 3\), got \(2, 3\)",
        ),
        (lambda: metrics.mrr_at_k(Z, 2 * Z), ValueError, "relevance must be 0 or 1, got 2.0"),
        (lambda: metrics.mrr_at_k(Z * torch.nan, Z), ValueError, "scores must not be NaN"),
        (lambda: metrics.mrr_at_k(Z, Z, k=0), ValueError, "k must be >= 1, got 0"),
        (lambda: metrics.pooled_retrieval_auc(Z, Z, 0), ValueError, "top_negatives must be >= 1, got 0"),
        (lambda: metrics.pooled_retrieval_auc(Z, Z, 2.0), TypeError, "top_negatives must be an int, got float"),
        (lambda: metrics.pooled_retrieval_auc(Z, 0 * Z), ValueError, "relevance must have a relevant document .* in 3"),
        (lambda: metrics.pooled_retrieval_auc(Z, 0 * Z + 1), ValueError, "relevance must leave a document that is not"),
        (lambda: metrics.pooled_retrieval_auc(Z[0], Z[0]), ValueError, r"scores must have shape \(Q, D\) with Q >= 1"),
        (
            lambda: metrics.ndcg_at_k(Z[:, :1], Z[:, :1]),
            ValueError,
            r"scores must have shape \(Q, D\) with D >= 2, got",
        ),
        (lambda: metrics.ndcg_at_k(Z / 0, Z), ValueError, "scores must not be NaN"),
        (lambda: metrics.ndcg_at_k(Z - torch.inf, Z), ValueError, "scores must be finite, got -inf"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
