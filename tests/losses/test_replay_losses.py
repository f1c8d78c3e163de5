"""PCR and the parts of HPCR: identities, which proxies learn, peers, and what distillation leaves free."""

import math
from functools import partial

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch.func import vmap
from torch.nn import functional

from lossbook import losses
from lossbook.losses import hpcr_scale, pcr, pcr_with_pairs, proxy_distillation, relation_distillation, sup_con

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def batch(generator):
    """Twelve examples of classes 0, 2 and 5 of six, unevenly many."""
    features = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    proxies = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return features, proxies, torch.tensor([0, 2, 5, 0, 0, 2, 0, 5, 0, 2, 0, 0])


def cosine_logits(features, proxies, temperature):
    return functional.normalize(features, dim=1) @ functional.normalize(proxies, dim=1).T / temperature


@pytest.mark.parametrize("temperature", [0.05, 0.09, 2.0])
def test_pcr_is_softmax_with_logits_adjusted_to_the_batch(batch, temperature):
    target = batch[2]
    log_count = target.bincount(minlength=6).double().log()
    adjusted = cosine_logits(*batch[:2], temperature) + log_count
    expected = functional.cross_entropy(adjusted, target, reduction="none") + log_count[target]
    torch.testing.assert_close(pcr(*batch, temperature=temperature, reduction="none"), expected, **EXACT)


def test_proxies_of_absent_classes_get_no_gradient(batch):
    features, proxies, target = batch
    for loss in (pcr, pcr_with_pairs):
        leaf = proxies.clone().requires_grad_()
        loss(features, leaf, target).backward()
        length = leaf.grad.norm(dim=1)
        assert (length[[1, 3, 4]] == 0).all() and (length[[0, 2, 5]] > 0).all()


def test_a_balanced_batch_of_all_classes_makes_it_a_cosine_softmax(batch):
    features, proxies, _ = batch
    target = torch.arange(12) % 6
    plain = functional.cross_entropy(cosine_logits(features, proxies, 0.09), target)
    torch.testing.assert_close(pcr(features, proxies, target), plain + math.log(2), **EXACT)


def test_doubling_the_batch_adds_log_two_and_keeps_the_gradient(batch):
    features, proxies, target = batch
    once, twice = (features.clone().requires_grad_() for _ in range(2))
    short, long = pcr(once, proxies, target), pcr(torch.cat([twice, twice]), proxies, torch.cat([target, target]))
    torch.testing.assert_close(long - short, torch.tensor(math.log(2), dtype=torch.float64), **EXACT)
    short.backward()
    long.backward()
    torch.testing.assert_close(once.grad, twice.grad, **EXACT)


def test_the_gradient_by_the_cosines_is_that_of_counts(batch):
    """n_c e^s / sum - [c = y], over the temperature."""
    features, proxies, target = batch
    leaf = functional.normalize(features, dim=1).requires_grad_()
    pcr(leaf, proxies, target, reduction="sum").backward()
    unit = functional.normalize(proxies, dim=1)
    weight = target.bincount(minlength=6) * cosine_logits(features, proxies, 0.09).exp()
    by_cosine = (weight / weight.sum(1, keepdim=True) - functional.one_hot(target, 6)) / 0.09
    along = by_cosine @ unit
    tangent = along - (along * leaf).sum(1, keepdim=True) * leaf.detach()  # the length is fixed
    torch.testing.assert_close(leaf.grad, tangent.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", [pcr, pcr_with_pairs])
def test_order_lengths_and_a_single_class(batch, loss, generator):
    features, proxies, target = batch
    order = torch.randperm(12, generator=generator)
    expected = loss(*batch, reduction="none")
    torch.testing.assert_close(
        loss(features[order], proxies, target[order], reduction="none"), expected[order], **EXACT
    )
    torch.testing.assert_close(loss(1e5 * features, 1e-5 * proxies, target, reduction="none"), expected, **EXACT)
    names = torch.tensor([3, 0, 1, 5, 4, 2])  # where each class goes
    renamed = loss(features, proxies[names.argsort()], names[target], reduction="none")
    torch.testing.assert_close(renamed, expected, **EXACT)


def test_one_class_alone_has_nothing_to_learn(batch):
    features, proxies, target = batch
    leaf = features.clone().requires_grad_()
    loss = pcr(leaf, proxies, torch.full_like(target, 4), reduction="sum")
    loss.backward()
    assert abs(loss.item() - 12 * math.log(12)) < 1e-9 and leaf.grad.abs().max() < 1e-12


def test_pairs_equal_the_supervised_contrast_of_features_and_proxies(batch):
    """pytorch-metric-learning, given for each anchor the proxies of the batch and the other features as references."""
    features, proxies, target = batch
    for i in range(12):
        others = torch.arange(12) != i
        references = torch.cat([proxies[target], features[others]])
        labels = torch.cat([target, target[others]])
        anchor = features[i : i + 1], target[i : i + 1]
        peer = SupConLoss(temperature=0.2)(*anchor, ref_emb=references, ref_labels=labels)
        ours = pcr_with_pairs(*batch, temperature=0.2, reduction="none")[i]
        torch.testing.assert_close(ours, peer, rtol=1e-9, atol=1e-12)


def test_pairs_with_far_proxies_are_sup_con():
    """Proxies opposite to all features leave no trace at a low temperature, but in the number of positives."""
    features = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, -0.3], [1.0, -0.2]], dtype=torch.float64)
    target = torch.tensor([0, 0, 1, 1])
    proxies = torch.full((2, 2), 0.0, dtype=torch.float64)
    proxies[:, 0] = -1.0
    pairs = pcr_with_pairs(features, proxies, target, temperature=0.05, reduction="none")
    unit = functional.normalize(features, dim=1)
    to_proxy = -(unit @ functional.normalize(proxies, dim=1).T / 0.05).gather(1, target[:, None])[:, 0]
    cosine = (unit @ unit.T / 0.05).fill_diagonal_(-torch.inf)
    expected = (
        2 * (cosine.logsumexp(1) + to_proxy) + sup_con(features, target, temperature=0.05, reduction="none")
    ) / 3
    torch.testing.assert_close(pairs, expected, rtol=1e-9, atol=1e-9)


def test_the_scale_swings_between_its_bounds():
    assert hpcr_scale(0) == pytest.approx(0.09 / 0.16) == 0.5625
    assert hpcr_scale(250) == pytest.approx(0.09 / 0.05)
    assert hpcr_scale(500) == pytest.approx(hpcr_scale(0)) and hpcr_scale(130) == pytest.approx(hpcr_scale(370))
    steps = [hpcr_scale(step, period=20) for step in range(100)]
    assert min(steps) >= 0.5625 and max(steps) <= 1.8 + 1e-12
    assert all(isinstance(step, float) for step in steps)


def test_the_scale_changes_gradients_and_not_probabilities(batch):
    """Times k(t) the gradient has the size of temperature tau / k, at the probabilities of tau."""
    features, proxies, target = batch
    leaves = [features.clone().requires_grad_() for _ in range(2)]
    scale = hpcr_scale(77)
    (scale * pcr(leaves[0], proxies, target)).backward()
    pcr(leaves[1], proxies, target).backward()
    torch.testing.assert_close(leaves[0].grad, scale * leaves[1].grad, **EXACT)
    assert 0.05 <= 0.09 / scale <= 0.16


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"low": 0.2}, ValueError, "low must be < high = 0.16, got 0.2"),
        ({"low": 0.16}, ValueError, "low must be < high = 0.16, got 0.16"),
        ({"low": 0}, ValueError, "low must be > 0, got 0"),
        ({"period": 0}, ValueError, "period must be > 0, got 0"),
        ({"temperature": -1.0}, ValueError, "temperature must be > 0, got -1.0"),
        ({"step": -1}, ValueError, "step must be >= 0, got -1"),
        ({"step": "1"}, TypeError, "step must be a number, got str '1'"),
    ],
)
def test_bad_scales_are_named(options, error, message):
    with pytest.raises(error, match=message):
        hpcr_scale(**{"step": 0} | options)


def test_proxy_distillation_sees_only_the_classes_of_the_batch(generator):
    old = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    new = old.clone()
    new[:, 3] += 7
    assert proxy_distillation(new, old, torch.tensor([0, 1, 2, 1])) == 0
    torch.testing.assert_close(
        proxy_distillation(new, old, torch.tensor([3, 3, 0, 1])), torch.tensor(24.5, dtype=torch.float64), **EXACT
    )
    every = proxy_distillation(new, old, torch.arange(4))
    torch.testing.assert_close(every, functional.mse_loss(new, old), **EXACT)


def test_relations_that_have_not_changed_cost_their_entropy_and_pull_nowhere(generator):
    old = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    leaf = old.clone().requires_grad_()
    loss = relation_distillation(leaf, old, reduction="none")
    cosine = cosine_logits(old, old, 0.09).fill_diagonal_(-torch.inf)
    entropy = torch.distributions.Categorical(logits=cosine).entropy()
    torch.testing.assert_close(loss, entropy, rtol=1e-9, atol=1e-9)
    loss.sum().backward()
    assert leaf.grad.abs().max() < 1e-10
    moved = old + 0.1 * torch.randn(7, 4, generator=generator, dtype=torch.float64)
    assert (relation_distillation(moved, old, reduction="none") > loss).all()


def test_relations_do_not_see_rotations_and_lengths(generator):
    new, old = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    torch.testing.assert_close(
        relation_distillation(3 * new @ rotation, old / 5), relation_distillation(new, old), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("loss", [relation_distillation, lambda a, b: proxy_distillation(a, b, torch.tensor([0, 2]))])
def test_what_was_stored_gets_no_gradient(loss, generator):
    new, old = torch.randn(2, 5, 4, generator=generator).requires_grad_().unbind()
    stored = old.detach().requires_grad_()
    loss(new.detach().requires_grad_(), stored).backward()
    assert stored.grad is None


def test_second_derivatives(batch, generator):
    features, proxies, target = batch
    for loss in (pcr, pcr_with_pairs):
        torch.autograd.gradgradcheck(
            lambda z, w, loss=loss: loss(z, w, target, temperature=0.5),
            [features.clone().requires_grad_(), proxies.clone().requires_grad_()],
            fast_mode=True,
        )


def test_broken_features_stay_visible(batch):
    features, proxies, target = batch
    broken = features.clone()
    broken[0, 0] = torch.nan
    assert pcr(broken, proxies, target).isnan() and pcr_with_pairs(broken, proxies, target).isnan()
    assert relation_distillation(broken, features).isnan()


def test_many_learners_at_once_get_what_each_gets_alone(generator):
    """torch.func.vmap over streams with different classes in their batches, and the gradient of the sum."""
    new, old = torch.randn(2, 4, 12, 5, generator=generator, dtype=torch.float64)
    proxies = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(6, (4, 12), generator=generator)
    for loss, arguments in (
        (pcr, (new, proxies, target)),
        (pcr_with_pairs, (new, proxies, target)),
        (sup_con, (new, target)),
        (relation_distillation, (new, old)),
        (proxy_distillation, (new, old, target % 5)),
    ):
        leaf = new.clone().requires_grad_()
        together = vmap(loss)(leaf, *arguments[1:])
        (gradient,) = torch.autograd.grad(together.sum(), leaf)
        for member, parts in enumerate(zip(*arguments, strict=True)):
            alone = parts[0].clone().requires_grad_()
            value = loss(alone, *parts[1:])
            value.backward()
            torch.testing.assert_close(together[member], value, **EXACT)
            torch.testing.assert_close(gradient[member], alone.grad, **EXACT)


def test_what_is_wrong_for_all_learners_is_still_named_under_vmap():
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        vmap(partial(pcr, temperature=0))(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4), torch.zeros(2, 3).long())


def test_they_are_found_among_the_contrastive_losses_too():
    for name in ("hpcr_scale", "pcr", "pcr_with_pairs", "proxy_distillation", "relation_distillation", "sup_con"):
        assert getattr(losses.contrastive, name) is getattr(losses, name)
