"""Losses of several right labels and the soft top-k operator: identities, signs of gradients, limits, peers."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.optimize import brentq
from torch.nn import functional

from lossbook.losses import (
    NoPositivesWarning,
    decoupled_softmax,
    log_soft_topk,
    multilabel_softmax,
    soft_topk,
    soft_topk_loss,
)

EXACT = {"rtol": 1e-12, "atol": 1e-12}
LOSSES = (multilabel_softmax, decoupled_softmax, lambda x, y, **options: soft_topk_loss(x, y, k=2, **options))

every_loss = pytest.mark.parametrize("loss", LOSSES, ids=["softmax", "decoupled", "soft_topk"])


@pytest.fixture
def problem(generator):
    """Two thousand queries with five right labels out of fifty."""
    logits = 3 * torch.randn(2000, 50, generator=generator, dtype=torch.float64)
    order = torch.rand(2000, 50, generator=generator).argsort(1)
    return logits.requires_grad_(), order < 5


def gradient_of(loss, logits, target, **options):
    return torch.autograd.grad(loss(logits, target, reduction="sum", **options), logits)[0]


@pytest.mark.parametrize("loss", LOSSES[:2], ids=["softmax", "decoupled"])
@pytest.mark.parametrize("normalize", [True, False])
def test_one_right_label_is_cross_entropy(loss, normalize, generator):
    logits = 5 * torch.randn(40, 9, generator=generator, dtype=torch.float64)
    index = torch.randint(9, (40,), generator=generator)
    target = functional.one_hot(index, 9)
    for reduction in ("mean", "sum", "none"):
        expected = functional.cross_entropy(logits, index, reduction=reduction)
        torch.testing.assert_close(loss(logits, target, normalize=normalize, reduction=reduction), expected, **EXACT)


def test_softmax_equals_cross_entropy_with_probabilities_as_target(problem):
    logits, target = problem
    expected = functional.cross_entropy(logits, target / 5.0, reduction="none")
    torch.testing.assert_close(multilabel_softmax(logits, target, normalize=True, reduction="none"), expected)


def test_softmax_pushes_easy_right_labels_down_and_decoupled_never(problem):
    logits, target = problem
    p = logits.detach().softmax(1)
    gradient = gradient_of(multilabel_softmax, logits, target)
    torch.testing.assert_close(gradient, 5 * p - target.double(), **EXACT)
    assert (gradient[target] > 0).double().mean() > 0.005
    assert torch.equal(gradient[target] > 1e-12, p[target] > 1 / 5 + 1e-12)

    wrong = logits.detach().exp().masked_fill(target, 0)
    q = logits.detach().exp() / (logits.detach().exp() + wrong.sum(1, keepdim=True))
    share = wrong / wrong.sum(1, keepdim=True)
    lost = ((1 - q) * target).sum(1, keepdim=True)
    gradient = gradient_of(decoupled_softmax, logits, target, normalize=False)
    torch.testing.assert_close(gradient, torch.where(target, q - 1, lost * share), **EXACT)
    assert (gradient[target] <= 0).all() and (gradient[~target] >= 0).all()


def test_right_labels_do_not_compete_in_the_decoupled_loss(generator):
    """Moving one right label's logit changes the term of that label and no other."""
    before = torch.randn(1, 8, generator=generator, dtype=torch.float64)
    after = before.clone()
    after[0, 0] += 3
    target = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]])
    own = [functional.cross_entropy(x[:, [0, 3, 4, 5, 6, 7]], torch.tensor([0])) for x in (before, after)]
    total = [decoupled_softmax(x, target, normalize=False) for x in (before, after)]
    torch.testing.assert_close(total[1] - total[0], own[1] - own[0], **EXACT)


def test_free_logits_level_out_under_softmax_only():
    """One right label ahead by 3: softmax takes the lead away, the decoupled loss adds to it."""
    target = torch.arange(20)[None] < 5
    ends = {}
    for loss in LOSSES[:2]:
        logits = torch.zeros(1, 20, dtype=torch.float64)
        logits[0, 0] = 3
        path = [3.0]
        for _ in range(2000):
            leaf = logits.requires_grad_()
            (gradient,) = torch.autograd.grad(loss(leaf, target, normalize=False), leaf)
            logits = leaf.detach() - 0.1 * gradient
            path.append(logits[0, 0].item())
        ends[loss] = path, logits.softmax(1)[0, 0].item()
    path, p = ends[multilabel_softmax]
    assert path[20] < 2.2 and p == pytest.approx(0.2, abs=0.02)
    path, _ = ends[decoupled_softmax]
    assert all(after >= before for before, after in pairwise(path))


def test_smallest_value_of_softmax():
    target = torch.arange(10)[None] < 4
    logits = torch.where(target, 0.0, -1e4).double()
    assert multilabel_softmax(logits, target).item() == pytest.approx(4 * math.log(4))
    assert decoupled_softmax(logits, target).item() == 0


@every_loss
def test_a_query_without_right_labels_is_zero_and_counts_in_the_mean(loss, generator):
    leaf = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.zeros(3, 6)
    target[0, :2] = 1
    each = loss(leaf, target, reduction="none")
    assert (each[1:] == 0).all() and each[0] > 0
    mean = loss(leaf, target)
    torch.testing.assert_close(mean, each[0] / 3, **EXACT)
    mean.backward()
    assert (leaf.grad[1:] == 0).all() and (leaf.grad[0] != 0).any()


@every_loss
def test_no_right_label_at_all_warns_where_the_loss_is_called(loss):
    leaf = torch.zeros(2, 5, requires_grad=True)
    with pytest.warns(NoPositivesWarning, match="none of the 2 anchors"):
        value = loss(leaf, torch.zeros(2, 5))
    value.backward()
    assert value == 0 and (leaf.grad == 0).all()


def test_the_warning_points_at_the_caller():
    with pytest.warns(NoPositivesWarning) as record:
        decoupled_softmax(torch.zeros(2, 5), torch.zeros(2, 5))
    assert record[0].filename == __file__


def test_only_right_labels_is_zero_with_a_zero_gradient():
    leaf = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    value = decoupled_softmax(leaf, torch.ones(2, 4))
    value.backward()
    assert value == 0 and (leaf.grad == 0).all()


def test_second_derivatives(generator):
    logits = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    torch.autograd.gradgradcheck(lambda x: decoupled_softmax(x, target, reduction="none"), logits)
    torch.autograd.gradgradcheck(lambda x: soft_topk(x, 2.5, alpha=1.3), logits)
    torch.autograd.gradgradcheck(lambda x: log_soft_topk(x, 2, alpha=1.3), logits)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_soft_topk_equals_a_root_finder_and_keeps_order_and_shifts(alpha, generator):
    x = 3 * torch.randn(6, 30, generator=generator, dtype=torch.float64)
    k = torch.tensor([1, 2, 5, 15, 28, 29])
    p = soft_topk(x, k, alpha=alpha)
    torch.testing.assert_close(p.sum(1), k.double(), rtol=1e-12, atol=0)
    for row, total, ours in zip(x.numpy(), k.tolist(), p, strict=True):
        t = brentq(
            lambda t, row=row, total=total: torch.tensor(alpha * (row + t)).sigmoid().sum().item() - total,
            -200,
            200,
            xtol=1e-14,
        )
        torch.testing.assert_close(ours, torch.tensor(alpha * (row + t)).sigmoid(), rtol=1e-10, atol=1e-12)
    assert (p.gather(1, x.argsort(1)).diff(dim=1) >= 0).all()
    offset = torch.tensor([[-7.0, 1e3, 0, 3, 1, -2e3]]).double().T
    torch.testing.assert_close(soft_topk(x + offset, k, alpha=alpha), p, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(log_soft_topk(x, k, alpha=alpha).exp(), p, **EXACT)


def test_soft_topk_gradient_is_the_displayed_jacobian(generator):
    x = torch.randn(1, 9, generator=generator, dtype=torch.float64)
    p = soft_topk(x, 3, alpha=1.7)[0]
    v = p * (1 - p)
    expected = 1.7 * (v.diag() - v[:, None] * v / v.sum())
    jacobian = torch.autograd.functional.jacobian(lambda x: soft_topk(x, 3, alpha=1.7)[0], x)[:, 0]
    torch.testing.assert_close(jacobian, expected, **EXACT)
    assert jacobian.sum(1).abs().max() < 1e-12
    step = 1e-6 * torch.eye(9, dtype=torch.float64)
    slopes = (soft_topk(x + step, 3, alpha=1.7) - soft_topk(x - step, 3, alpha=1.7)) / 2e-6
    torch.testing.assert_close(jacobian, slopes, rtol=1e-6, atol=1e-8)


def test_limits_of_soft_topk(generator):
    """Sharp: the mask of the k largest. Few of many: k times softmax."""
    x = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    mask = torch.zeros_like(x).scatter(1, x.topk(3).indices, 1)
    torch.testing.assert_close(soft_topk(x, 3, alpha=1e3), mask, rtol=0, atol=1e-2)
    torch.testing.assert_close(soft_topk(x, 3, alpha=1e6), mask, rtol=0, atol=1e-9)
    many = torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(soft_topk(many, 1), many.softmax(1), rtol=1e-3, atol=0)


@pytest.mark.parametrize("value", [0.0, 7.0, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_flat_scores_of_very_many_labels_still_sum_to_k(value, dtype):
    """The threshold lies below -10 here, where a fixed interval would stop."""
    p = soft_topk(torch.full((1, 200_000), value, dtype=dtype), 5)
    assert p.double().sum().item() == pytest.approx(5, rel=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_huge_scores_give_finite_values_and_gradients(dtype, generator):
    x = (1e4 * torch.randn(5, 8, generator=generator).sign()).to(dtype).requires_grad_()
    for k in (1, 2, 7):
        for function in (soft_topk, log_soft_topk):
            value = function(x, k)
            (gradient,) = torch.autograd.grad(value.sum(), x)
            assert value.isfinite().all() and gradient.isfinite().all() and value.dtype == dtype
        torch.testing.assert_close(
            soft_topk(x, k).double().sum(1), torch.full((5,), float(k)).double(), rtol=1e-2, atol=0
        )


def test_log_does_not_underflow():
    x = torch.tensor([[0.0, -1.0, -2000.0]])
    assert soft_topk(x, 1)[0, 2] == 0
    # The root for the first two is t = 1/2: the third has log(sigmoid(-1999.5)).
    assert log_soft_topk(x, 1)[0, 2].item() == pytest.approx(-1999.5)


def test_soft_topk_loss_adds_up_the_logarithms_of_soft_topk(generator):
    logits = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    target = torch.rand(4, 8, generator=generator) < 0.4
    k = torch.tensor([1, 2, 3, 6])
    total = -(log_soft_topk(logits, k, alpha=2.5) * target).sum(1)
    each = soft_topk_loss(logits, target.int(), k=k, alpha=2.5, normalize=False, reduction="none")
    torch.testing.assert_close(each, total, **EXACT)
    mean = soft_topk_loss(logits, target.double(), k=k, alpha=2.5)
    torch.testing.assert_close(mean, (total / target.sum(1).clamp(min=1)).mean(), **EXACT)


@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_the_loss_needs_half_of_the_halvings_in_float32(spread, generator):
    logits = spread * torch.randn(20, 400, generator=generator)
    target = torch.rand(20, 400, generator=generator) < 0.02
    for k in (1, 5, 50):
        whole = -(log_soft_topk(logits, k, num_iter=64) * target).sum(1)
        each = soft_topk_loss(logits, target, k=k, normalize=False, reduction="none")
        torch.testing.assert_close(each, whole, rtol=1e-5, atol=1e-5)


def test_soft_topk_in_functorch_transforms(generator):
    x = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda x: soft_topk(x, 2)[0, 0], x)
    torch.testing.assert_close(torch.func.grad(lambda x: soft_topk(x, 2)[0, 0])(x), expected, **EXACT)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_iter": 0}, ValueError, "num_iter must be > 0, got 0"),
        ({"num_iter": 3.0}, TypeError, "num_iter must be an int, got float"),
    ],
)
def test_bad_numbers_of_halvings_are_named(options, error, message):
    with pytest.raises(error, match=message):
        soft_topk(torch.zeros(1, 3), 1, **options)
