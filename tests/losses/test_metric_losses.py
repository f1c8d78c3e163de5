"""Pair losses with labels between 0 and 1 and mixed embeddings: peers, identities, limits, and what makes them safe."""

import math
import warnings

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss, MultiSimilarityLoss
from pytorch_metric_learning.reducers import SumReducer
from torch.nn import functional

from lossbook.losses import (
    NoPositivesWarning,
    metric_loss,
    metrix_embed_loss,
    mix_embeddings,
    pair_loss,
    positivity_threshold,
)

EXACT = {"rtol": 1e-12, "atol": 1e-12}
PEER = {"rtol": 1e-6, "atol": 1e-9}
KINDS = ("contrastive", "multi_similarity", "binomial_deviance")

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def batch(generator):
    """Nine examples of four classes, one of them alone, and a partner for each; the last is its own."""
    embeddings = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    return embeddings, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 7]), torch.tensor([3, 4, 5, 6, 7, 2, 0, 1, 8])


def gradient(loss_of, leaf):
    leaf = leaf.clone().requires_grad_()
    return torch.autograd.grad(loss_of(leaf), leaf)[0]


def mixed_pairs(embeddings, labels, partner, lam):
    """Cosines of each anchor with its formed mixed examples, and which of them exist."""
    unit = functional.normalize(embeddings, dim=1)
    mixed = mix_embeddings(unit[partner][:, None], unit, lam)
    return torch.einsum("ad,avd->av", unit, mixed), labels[:, None] != labels


def contrastive_peer():
    """With cosines, over pairs summed: 1 - s for a positive pair, max(0, s - 0.5) for a negative one."""
    return ContrastiveLoss(pos_margin=1, neg_margin=0.5, distance=CosineSimilarity(), reducer=SumReducer())


def test_multi_similarity_equals_pytorch_metric_learning(batch):
    embeddings, labels, _ = batch
    peer = MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
    torch.testing.assert_close(metric_loss(embeddings, labels), peer(embeddings, labels), **PEER)
    ours = gradient(lambda e: metric_loss(e, labels), embeddings)
    torch.testing.assert_close(ours, gradient(lambda e: peer(e, labels), embeddings), **PEER)


@pytest.mark.parametrize("alike", [True, False])
def test_contrastive_has_the_gradient_of_pytorch_metric_learning_on_one_pair(alike):
    embeddings = torch.tensor([[1.0, 0.2], [0.8, 0.9]], dtype=torch.float64)
    labels = torch.tensor([0, 0 if alike else 1])
    ours = gradient(lambda e: metric_loss(e, labels, kind="contrastive", reduction="sum"), embeddings)
    assert ours.abs().max() > 0.1
    torch.testing.assert_close(ours, gradient(lambda e: contrastive_peer()(e, labels), embeddings), **PEER)


def test_contrastive_differs_from_pytorch_metric_learning_by_one_for_each_positive_pair(batch):
    embeddings, labels, _ = batch
    positives = (labels[:, None] == labels).sum() - len(labels)
    ours = metric_loss(embeddings, labels, kind="contrastive", reduction="sum")
    torch.testing.assert_close(ours + positives, contrastive_peer()(embeddings, labels), **PEER)


def test_the_mixed_part_adds_to_a_loss_of_pytorch_metric_learning(batch):
    """Their clean loss with our mixed pairs is the loss we compute in one go."""
    embeddings, labels, partner = batch

    def composed(e):
        sim, exists = mixed_pairs(e, labels, partner, 0.3)
        clean = MultiSimilarityLoss(alpha=2, beta=50, base=0.5)(e, labels)
        return clean + 0.4 * pair_loss(sim, torch.full_like(sim, 0.3), mask=exists)

    def whole(e):
        return metrix_embed_loss(e, labels, lam=0.3, partner=partner)

    torch.testing.assert_close(whole(embeddings), composed(embeddings), **PEER)
    torch.testing.assert_close(gradient(whole, embeddings), gradient(composed, embeddings), **PEER)


def as_references(embeddings, labels, lam):
    """All mixes of two rows as reference embeddings of the peer, with the pairs in which the anchor is mixed."""
    unit = functional.normalize(embeddings, dim=1)
    n = len(unit)
    references = mix_embeddings(unit[:, None], unit, lam).flatten(0, 1)
    anchors, others = torch.where(labels[:, None] != labels)
    return references, anchors, anchors * n + others


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.9])
def test_mixed_multi_similarity_is_pytorch_metric_learnings_with_moved_bases(batch, lam):
    """A common label is a shift of the margin: lam exp(-b (s - m)) = exp(-b (s - m - log(lam) / b))."""
    embeddings, labels, _ = batch
    references, anchors, places = as_references(embeddings, labels, lam)
    none = anchors[:0]
    names = torch.arange(len(references))

    def peer(base, pairs):
        loss = MultiSimilarityLoss(alpha=2, beta=50, base=base)
        return loss(embeddings, labels, indices_tuple=pairs, ref_emb=references, ref_labels=names)

    positive = peer(0.5 + math.log(lam) / 2, (anchors, places, none, none))
    negative = peer(0.5 - math.log(1 - lam) / 50, (none, none, anchors, places))
    both = metrix_embed_loss(embeddings, labels, lam=lam, partner=torch.arange(9), weight=1)
    torch.testing.assert_close(both - metric_loss(embeddings, labels), positive + negative, **PEER)


@pytest.mark.parametrize("lam", [0.2, 0.9])
def test_mixed_contrastive_is_a_sum_of_two_losses_of_pytorch_metric_learning(batch, lam):
    """It is linear in the label: lam times all pairs as positives, 1 - lam times all as negatives."""
    embeddings, labels, _ = batch
    references, anchors, places = as_references(embeddings, labels, lam)
    none, names = anchors[:0], torch.arange(len(references))

    def peer(pairs):
        return contrastive_peer()(embeddings, labels, indices_tuple=pairs, ref_emb=references, ref_labels=names)

    expected = lam * (peer((anchors, places, none, none)) - len(anchors))
    expected = expected + (1 - lam) * peer((none, none, anchors, places))
    options = {"kind": "contrastive", "reduction": "sum"}
    both = metrix_embed_loss(embeddings, labels, lam=lam, partner=torch.arange(9), weight=1, **options)
    torch.testing.assert_close(both - metric_loss(embeddings, labels, **options), expected, **PEER)


@every_kind
def test_labels_of_zero_and_one_give_the_clean_loss(batch, kind):
    embeddings, labels, _ = batch
    unit = functional.normalize(embeddings, dim=1)
    sim, same = unit @ unit.T, labels[:, None] == labels
    mask = ~torch.eye(9, dtype=torch.bool)
    for label in (same, same.int(), same.double()):
        each = pair_loss(sim, label, kind=kind, mask=mask, reduction="none")
        torch.testing.assert_close(each, metric_loss(embeddings, labels, kind=kind, reduction="none"), **EXACT)


@every_kind
def test_the_limits_of_lam_are_pure_positives_and_pure_negatives(batch, kind):
    """lam = 1: the partner, once for each negative. lam = 0: the negatives."""
    embeddings, labels, partner = batch
    unit = functional.normalize(embeddings, dim=1)
    cosine, other = unit @ unit.T, labels[:, None] != labels
    clean = metric_loss(embeddings, labels, kind=kind, reduction="none")
    for lam, sim in ((1, cosine.gather(1, partner[:, None]).expand(9, 9)), (0, cosine)):
        mixed = metrix_embed_loss(embeddings, labels, lam=lam, partner=partner, kind=kind, weight=1, reduction="none")
        pure = pair_loss(sim, torch.full_like(sim, lam), kind=kind, mask=other, reduction="none")
        torch.testing.assert_close(mixed - clean, pure, **EXACT)


def test_no_weight_is_the_clean_loss(batch):
    embeddings, labels, partner = batch
    mixed = metrix_embed_loss(embeddings, labels, lam=0.3, partner=partner, weight=0)
    torch.testing.assert_close(mixed, metric_loss(embeddings, labels), **EXACT)


@every_kind
def test_which_kinds_are_linear_in_the_label(generator, kind):
    sim, low, high = torch.rand(3, 4, 6, generator=generator, dtype=torch.float64)
    of = {share: pair_loss(sim, share * high + (1 - share) * low, kind=kind, reduction="none") for share in (0, 0.3, 1)}
    linear = torch.allclose(of[0.3], 0.3 * of[1] + 0.7 * of[0], **EXACT)
    assert linear == (kind != "multi_similarity")


def test_a_mixed_example_attracts_up_to_the_threshold(generator):
    """2,000 random similarities and labels, one pair for each anchor; the sign of the derivative by autograd."""
    s = 2 * torch.rand(2000, 1, generator=generator, dtype=torch.float64) - 1
    lam = torch.rand(2000, generator=generator, dtype=torch.float64)
    for options in ({}, {"margin": 0.1, "beta": 3.0, "gamma": 7.0}):
        threshold = torch.tensor([positivity_threshold(each, **options) for each in lam.tolist()])
        near = (threshold + 1e-3 * s[:, 0])[:, None]
        for sim in (s, near):
            slope = gradient(lambda x: pair_loss(x, lam[:, None], reduction="sum", **options), sim)  # noqa: B023
            assert torch.equal(slope[:, 0] <= 0, sim[:, 0] <= threshold)


def test_a_mixed_example_of_the_contrastive_loss_attracts_near_or_from_one_half_on(generator):
    s = 2 * torch.rand(500, 1, generator=generator, dtype=torch.float64) - 1
    label = torch.rand(500, 1, generator=generator, dtype=torch.float64)
    slope = gradient(lambda x: pair_loss(x, label, kind="contrastive", reduction="sum"), s)
    assert torch.equal(slope <= 0, (s <= 0.5) | (label >= 0.5))


def test_threshold_by_hand():
    assert positivity_threshold(0.5, margin=0.7) == 0.7
    assert positivity_threshold(0) == -math.inf and positivity_threshold(1.0) == math.inf
    odds = positivity_threshold(1 - 1e-12, margin=0, beta=0.5, gamma=0.5)
    assert odds == pytest.approx(math.log((1 - 1e-12) / 1e-12), rel=1e-4)
    assert positivity_threshold(0.2) - 0.5 == pytest.approx(0.5 - positivity_threshold(0.8), rel=1e-12)


@every_kind
def test_order_of_examples_and_names_of_classes_do_not_matter(batch, generator, kind):
    embeddings, labels, partner = batch
    order = torch.randperm(9, generator=generator)
    moved = order.argsort()[partner[order]]  # where each partner stands now
    each = metrix_embed_loss(embeddings, labels, lam=0.3, partner=partner, kind=kind, reduction="none")
    shuffled = metrix_embed_loss(
        embeddings[order], 100 - labels[order], lam=0.3, partner=moved, kind=kind, reduction="none"
    )
    torch.testing.assert_close(shuffled, each[order], **EXACT)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_lengths_do_not_matter(batch, scale):
    embeddings, labels, partner = batch
    lengths = torch.logspace(-1, 1, 9, dtype=torch.float64)[:, None] * scale
    expected = metrix_embed_loss(embeddings, labels, lam=0.3, partner=partner)
    torch.testing.assert_close(
        metrix_embed_loss(lengths * embeddings, labels, lam=0.3, partner=partner), expected, **EXACT
    )


@every_kind
@pytest.mark.parametrize("lam", [0, 0.3, 1])
def test_gradients_by_differences(batch, kind, lam):
    embeddings, labels, partner = batch
    options = {"lam": lam, "partner": partner, "kind": kind, "gamma": 5.0}
    leaf = embeddings.clone().requires_grad_()
    torch.autograd.gradcheck(lambda e: metrix_embed_loss(e, labels, **options), leaf, fast_mode=True)
    torch.autograd.gradgradcheck(lambda e: metrix_embed_loss(e, labels, **options), leaf, fast_mode=True)


@every_kind
def test_the_gradient_by_the_label(generator, kind):
    """Also at labels of exactly 0 and 1, where a logarithm of the label would give none, or NaN."""
    sim = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    inner = (0.1 + 0.8 * torch.rand(3, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    torch.autograd.gradcheck(lambda y: pair_loss(sim, y, kind=kind, reduction="none"), inner)
    hard = inner.detach().round()
    slope = gradient(lambda y: pair_loss(sim, y, kind=kind, reduction="sum"), hard)
    step = 1e-6 * (0.5 - hard).sign()
    for a, v in ((0, 0), (1, 3), (2, 4)):
        moved = hard.clone()
        moved[a, v] += step[a, v]
        change = pair_loss(sim, moved, kind=kind, reduction="sum") - pair_loss(sim, hard, kind=kind, reduction="sum")
        assert slope[a, v].item() == pytest.approx((change / step[a, v]).item(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_default_gamma_stays_finite_in_half_precision(dtype):
    sim = torch.tensor([[1.0, -1.0, 0.5]], dtype=dtype)
    for label in ([0.0, 1.0, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]):
        slope = gradient(lambda s: pair_loss(s, torch.tensor([label]), reduction="sum"), sim)  # noqa: B023
        assert slope.isfinite().all()
    exact = 0.5 + math.log(math.exp(-25) + 1 + math.exp(-75) + math.exp(-25)) / 50
    loss = pair_loss(sim, torch.zeros(1, 3, dtype=dtype))
    assert loss.item() == pytest.approx(exact, rel=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_pair_without_weight_does_not_overflow(dtype):
    """A negative far away, whose exponent as a positive is beyond any float, but which is none."""
    sim = torch.tensor([[-1e4, 1e4]], dtype=dtype, requires_grad=True)
    loss = pair_loss(sim, torch.tensor([[0.0, 1.0]]))
    (slope,) = torch.autograd.grad(loss, sim)
    assert loss == 0 and (slope == 0).all()


def test_a_tiny_loss_keeps_its_digits():
    """log(1 + x) of an x that 1 + x would round away."""
    loss = pair_loss(torch.tensor([[-0.5]]), torch.tensor([[0.0]]))
    assert loss.item() == pytest.approx(math.exp(-50) / 50, rel=1e-5)


def test_what_is_masked_does_not_matter():
    sim = torch.tensor([[0.3, torch.nan, torch.inf]], requires_grad=True)
    label = torch.tensor([[0.2, torch.nan, 7.0]])
    mask = torch.tensor([[True, False, False]])
    for kind in KINDS:
        loss = pair_loss(sim, label, kind=kind, mask=mask)
        torch.testing.assert_close(loss, pair_loss(sim[:, :1], label[:, :1], kind=kind))
        (slope,) = torch.autograd.grad(loss, sim)
        assert slope[0, 0] != 0 and slope[0, 1:].tolist() == [0, 0]


@every_kind
def test_an_anchor_without_pairs_is_zero_and_counts_in_the_mean(kind):
    sim, label = torch.tensor([[0.9, 0.1], [0.7, 0.2]]), torch.tensor([[1.0, 0.3], [0.0, 0.5]])
    mask = torch.tensor([[True, True], [False, False]])
    each = pair_loss(sim, label, kind=kind, mask=mask, reduction="none")
    assert each[1] == 0 and each[0] != 0
    torch.testing.assert_close(pair_loss(sim, label, kind=kind, mask=mask), each[0] / 2)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_any_pair_it_is_zero_connected_and_warned_of(reduction):
    leaf = torch.ones(2, 3, requires_grad=True)
    with pytest.warns(NoPositivesWarning, match="none of the 2 anchors") as caught:
        loss = pair_loss(leaf, leaf.detach(), mask=torch.zeros(2, 3, dtype=torch.bool), reduction=reduction)
    assert (loss == 0).all() and caught[0].filename == __file__
    loss.sum().backward()
    assert (leaf.grad == 0).all()
    single = torch.ones(1, 3, requires_grad=True)
    with pytest.warns(NoPositivesWarning):
        loss = metrix_embed_loss(single, torch.tensor([4]), lam=0.5, partner=torch.tensor([0]), reduction=reduction)
    loss.sum().backward()
    assert (loss == 0).all() and (single.grad == 0).all()


def test_a_batch_without_positives_or_without_negatives_still_teaches(batch):
    embeddings = batch[0]
    same, apart = torch.zeros(9, dtype=torch.int64), torch.arange(9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for labels in (same, apart):
            mixed = gradient(
                lambda e: metrix_embed_loss(e, labels, lam=0.3, partner=torch.arange(9)),  # noqa: B023
                embeddings,
            )
            assert mixed.isfinite().all() and mixed.abs().max() > 1e-3
    clean = metric_loss(embeddings, same)
    torch.testing.assert_close(metrix_embed_loss(embeddings, same, lam=0.3, partner=torch.arange(9)), clean, **EXACT)


def test_embeddings_that_cancel_or_vanish_stay_finite():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    labels, partner = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 0, 2, 3])
    sim, exists = mixed_pairs(embeddings, labels, partner, 0.5)
    assert sim[0, 2] == 0
    expected = metric_loss(embeddings, labels) + 0.4 * pair_loss(sim, torch.full_like(sim, 0.5), mask=exists)

    def loss(e):
        return metrix_embed_loss(e, labels, lam=0.5, partner=partner)

    torch.testing.assert_close(loss(embeddings), expected, **EXACT)
    assert gradient(loss, embeddings).isfinite().all()


def test_mixes_have_unit_length_and_their_limits(generator):
    x, y = functional.normalize(torch.randn(2, 6, 4, generator=generator, dtype=torch.float64), dim=2)
    torch.testing.assert_close(mix_embeddings(x, y, 0.3).norm(dim=1), torch.ones(6, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(mix_embeddings(x, y, 1), x, **EXACT)
    torch.testing.assert_close(mix_embeddings(x, y, 0.0), y, **EXACT)
    torch.testing.assert_close(mix_embeddings(x, y, 0.3), mix_embeddings(y, x, 0.7), **EXACT)
    assert mix_embeddings(x[:, None], y, 0.5).shape == (6, 6, 4)
    assert mix_embeddings(x.half(), y.half(), 0.5).dtype == torch.float16
    assert (mix_embeddings(x, -x, 0.5) == 0).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(4, 3), torch.ones(5, 3), 0.5), ValueError, r"y must have shape .* of x, \(4, 3\), got \(5, 3\)"),
        ((torch.ones(4, 3), torch.ones(4, 1), 0.5), ValueError, r"y must have shape .* of x, \(4, 3\), got \(4, 1\)"),
        ((torch.tensor(1.0), torch.ones(1), 0.5), ValueError, r"x must have shape \(\.\.\., D\), got \(\)"),
        ((torch.ones(4, 3), torch.ones(4, 3).double(), 0.5), ValueError, "y must have the dtype of x"),
        ((torch.ones(4, 3), torch.ones(4, 3), 1.1), ValueError, r"lam must lie in \[0, 1\], got 1.1"),
        ((torch.ones(4, 3), torch.ones(4, 3), math.nan), ValueError, "lam must be finite, got nan"),
        ((torch.ones(4, 3).long(), torch.ones(4, 3).long(), 0.5), TypeError, "x must have a floating-point dtype"),
        (([1.0], torch.ones(1), 0.5), TypeError, "x must be a torch.Tensor, got list"),
    ],
)
def test_bad_mixes_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        mix_embeddings(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lam": -0.1}, ValueError, r"lam must lie in \[0, 1\], got -0.1"),
        ({"lam": "half"}, TypeError, "lam must be a number, got str"),
        ({"lam": 0.5, "beta": 0}, ValueError, "beta must be > 0, got 0"),
        ({"lam": 0.5, "gamma": -1.0}, ValueError, "gamma must be > 0, got -1.0"),
        ({"lam": 0.5, "margin": math.inf}, ValueError, "margin must be finite, got inf"),
    ],
)
def test_bad_thresholds_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        positivity_threshold(**arguments)
