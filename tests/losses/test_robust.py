"""Label-distributionally robust losses against their definition, their limits and their theorems."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch.nn import functional

from lossbook.losses import ALDRKLLoss, aldr_kl_lambda, aldr_kl_loss, ldr_kl_loss, normalize_scores

LAMS = [0.0, 1e-3, 0.3, 1.0, 10.0, math.inf]
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture
def logits(generator):
    return 3 * torch.randn(12, 6, generator=generator, dtype=torch.float64)


@pytest.fixture
def target(generator):
    return torch.randint(6, (12,), generator=generator)


def every_label(logits, **options):
    """Losses of each row for each label, shape (N, C)."""
    labels = range(logits.shape[1])
    return torch.stack([ldr_kl_loss(logits, torch.full((len(logits),), k), **options) for k in labels], 1)


def by_loops(row, y, lam, margin):
    """The definition in plain Python, shifted by its maximum."""
    delta = [z - row[y] + (margin if k != y else 0.0) for k, z in enumerate(row)]
    if lam == 0:
        return max(delta)
    if lam == math.inf:
        return sum(delta) / len(delta)
    top = max(delta)
    return top + lam * math.log(sum(math.exp((d - top) / lam) for d in delta) / len(delta))


@pytest.mark.parametrize("lam", LAMS)
@pytest.mark.parametrize("margin", [0.0, 0.1, 2.0])
def test_definition(logits, target, lam, margin):
    expected = [by_loops(row, y, lam, margin) for row, y in zip(logits.tolist(), target.tolist(), strict=True)]
    ours = ldr_kl_loss(logits, target, lam=lam, margin=margin, reduction="none")
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), **TIGHT)


@pytest.mark.parametrize("lam", [0.3, 1.0, 10.0])
def test_cross_entropy_at_a_temperature(logits, target, lam):
    ours = ldr_kl_loss(logits, target, lam=lam, reduction="none")
    theirs = functional.cross_entropy(logits / lam, target, reduction="none")
    torch.testing.assert_close(ours, lam * (theirs - math.log(6)), **TIGHT)


@pytest.mark.parametrize("lam", [0.3, 1.0, 10.0])
def test_no_other_weights_are_worse(logits, target, lam, generator):
    """The value is the maximum of the adversary's objective, reached by the softmax."""
    delta = logits - logits.gather(1, target[:, None]) + 0.5
    delta = delta.scatter(1, target[:, None], 0.0)

    def objective(p):
        return (p * delta).sum(-1) - lam * (torch.special.entr(p).neg().sum(-1) + math.log(6))

    value = ldr_kl_loss(logits, target, lam=lam, margin=0.5, reduction="none")
    best = (delta / lam).softmax(1)
    torch.testing.assert_close(objective(best), value, **TIGHT)
    others = torch.rand(500, 12, 6, generator=generator, dtype=torch.float64).pow(4)
    others = others / others.sum(-1, keepdim=True)
    near = 0.99 * best + 0.01 * others
    assert (objective(torch.cat([others, near])) <= value + 1e-12).all()


def test_limits(logits, target):
    for margin in (0.0, 0.5):
        options = {"margin": margin, "reduction": "none"}
        hinge, mean = (ldr_kl_loss(logits, target, lam=lam, **options) for lam in (0.0, math.inf))
        cold, hot = (ldr_kl_loss(logits, target, lam=lam, **options) for lam in (1e-6, 1e7))
        assert (cold - hinge).abs().max() < 1e-5
        assert (hot - mean).abs().max() < 1e-5


def test_crammer_singer_is_the_multi_class_hinge(logits, target):
    ours = ldr_kl_loss(logits, target, lam=0.0, margin=1.0, reduction="none")
    others = logits.scatter(1, target[:, None], -math.inf).amax(1)
    right = logits.gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(ours, (1 + others - right).clamp(min=0), **TIGHT)


@pytest.mark.parametrize("margin", [0.0, 0.1, 2.0])
def test_infinite_lam_is_symmetric_and_finite_lam_is_not(logits, margin):
    total = every_label(logits, lam=math.inf, margin=margin, reduction="none").sum(1)
    torch.testing.assert_close(total, torch.full_like(total, margin * 5), **TIGHT)
    assert every_label(logits, lam=1.0, margin=margin, reduction="none").sum(1).std() > 0.1


def test_falls_with_lam_and_stays_above_its_bound(logits, target):
    values = torch.stack([ldr_kl_loss(logits, target, lam=lam, reduction="none") for lam in LAMS])
    assert (values.diff(dim=0) < 0).all()
    lam = 0.3
    confident = 1e3 * functional.one_hot(target, 6).double()
    lowest = ldr_kl_loss(confident, target, lam=lam, reduction="none")
    torch.testing.assert_close(lowest, torch.full_like(lowest, -lam * math.log(6)), **TIGHT)


@pytest.mark.parametrize(("lam", "margin"), [(0.3, 0.0), (1.0, 0.0), (5.0, 0.0), (1.0, 0.1), (5.0, 1.0)])
def test_the_minimizer_ranks_all_classes(lam, margin, generator):
    """Top-k consistency for every k; without a margin the softmax of the minimizer is the distribution."""
    q = torch.rand(8, 5, generator=generator, dtype=torch.float64) + 0.05
    q = q / q.sum(1, keepdim=True)
    scores = torch.zeros_like(q, requires_grad=True)
    options = {"lr": 1.0, "max_iter": 400, "tolerance_grad": 1e-12, "tolerance_change": 1e-16}
    optimizer = torch.optim.LBFGS([scores], line_search_fn="strong_wolfe", **options)

    def closure():
        optimizer.zero_grad()
        risk = (q * every_label(scores, lam=lam, margin=margin, reduction="none")).sum()
        risk.backward()
        return risk

    optimizer.step(closure)
    assert torch.equal(scores.detach().argsort(1), q.argsort(1))
    if margin == 0:
        assert ((scores / lam).softmax(1) - q).abs().max() < 1e-5


@pytest.mark.parametrize("lam", [0.3, 1.0, 10.0])
def test_second_derivatives(logits, target, lam):
    rows, labels = logits[:3].clone().requires_grad_(), target[:3]
    torch.autograd.gradgradcheck(lambda z: ldr_kl_loss(z, labels, lam=lam, margin=0.2, reduction="none"), [rows])


def test_equal_maxima_share_the_gradient_at_zero():
    logits = torch.tensor([[0.0, 2.0, 2.0]], dtype=torch.float64, requires_grad=True)
    ldr_kl_loss(logits, torch.tensor([0]), lam=0.0).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-1.0, 0.5, 0.5]], dtype=torch.float64))


@pytest.mark.parametrize("lam", [1e-300, 1e-40, 1e-20, 1e-6, 1e-2, 1.0, 1e3, 1e7, 1e30, 1e300])
def test_no_lam_loses_digits_in_float32(logits, target, lam):
    """A naive float32 log-mean-exp times 1e7 is wrong in its first digit."""
    exact = ldr_kl_loss(logits, target, lam=lam, margin=0.1, reduction="none")
    rows = logits.float().requires_grad_()
    ours = ldr_kl_loss(rows, target, lam=lam, margin=0.1, reduction="none")
    torch.testing.assert_close(ours.double(), exact, rtol=2e-6, atol=2e-6)
    (gradient,) = torch.autograd.grad(ours.sum(), rows)
    clean = logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(ldr_kl_loss(clean, target, lam=lam, margin=0.1, reduction="sum"), clean)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("lam", LAMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits(lam, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], dtype=dtype, requires_grad=True)
    for y in range(3):
        loss = ldr_kl_loss(logits, torch.full((2,), y), lam=lam, reduction="none")
        assert loss.isfinite().all()
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert gradient.isfinite().all()


def test_masked_classes_take_no_part(logits, target):
    """A logit of minus infinity, as masks set it, leaves loss and gradient of the others finite."""
    label = target % 3
    masked = logits.clone()
    masked[:, 3:] = -math.inf
    masked.requires_grad_()
    loss = ldr_kl_loss(masked, label, reduction="none")
    kept = functional.cross_entropy(logits[:, :3], label, reduction="none") - math.log(6)
    torch.testing.assert_close(loss, kept, **TIGHT)
    (gradient,) = torch.autograd.grad(loss.sum(), masked)
    assert gradient.isfinite().all()
    assert (gradient[:, 3:] == 0).all()


def test_one_class_costs_nothing():
    logits = torch.tensor([[3.0], [-2.0]])
    for lam in LAMS:
        assert (ldr_kl_loss(logits, torch.zeros(2, dtype=torch.int64), lam=lam, reduction="none") == 0).all()


def test_normalized_scores_have_mean_one_and_keep_the_order(logits):
    scores = normalize_scores(logits)
    torch.testing.assert_close(scores.mean(1), torch.ones(12, dtype=torch.float64), **TIGHT)
    assert torch.equal(scores.argsort(1), logits.argsort(1))
    assert (scores > 0).all()
    assert (scores < 6).all()


def test_normalized_scores_of_very_negative_logits():
    """Their softplus is zero in floating point; the ratios are those of the exponentials."""
    logits = torch.tensor([[-1e4, -1e4 + 1, -1e4 - 2], [-40.0, -39.0, -42.0]], requires_grad=True)
    scores = normalize_scores(logits)
    expected = 3 * (logits - logits.amax(1, keepdim=True)).softmax(1)
    torch.testing.assert_close(scores, expected)
    (gradient,) = torch.autograd.grad(scores[:, 0].sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient[:, 0] > 0).all()


@pytest.mark.parametrize("level", [-16.0, -15.9])
def test_normalized_scores_are_continuous_where_the_form_changes(level):
    logits = torch.tensor([[level, level - 1.0, level - 3.0]])
    torch.testing.assert_close(normalize_scores(logits).double(), normalize_scores(logits.double()))


def kl_to_uniform(scores, lam):
    p = np.exp(scores / lam[:, None])
    p = p / p.sum(1, keepdims=True)
    return (p * np.log(p * scores.shape[1])).sum(1)


def test_lambda_step_in_numpy(logits, generator):
    lam = 0.5 + torch.rand(12, generator=generator, dtype=torch.float64)
    ours = aldr_kl_lambda(logits, lam, lam0=1.5, alpha=3.0)
    expected = 1.5 * (1 - kl_to_uniform(logits.numpy(), lam.numpy()) / (3.0 * math.log(6)))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)
    twice = aldr_kl_lambda(logits, ours, lam0=1.5, alpha=3.0)
    torch.testing.assert_close(aldr_kl_lambda(logits, lam, lam0=1.5, alpha=3.0, n_iter=2), twice, **TIGHT)
    assert torch.equal(aldr_kl_lambda(logits, lam, n_iter=0), lam)


@pytest.mark.parametrize(("lam0", "alpha"), [(1.0, 2.0), (10.0, 2.0), (0.5, 1.1)])
def test_lambda_converges_to_the_root_of_its_equation(logits, lam0, alpha):
    scores = normalize_scores(logits)
    fixed = aldr_kl_lambda(scores, torch.full((12,), lam0, dtype=torch.float64), lam0=lam0, alpha=alpha, n_iter=300)

    def gap(lam, row):
        return lam0 * (1 - kl_to_uniform(row[None], np.array([lam]))[0] / (alpha * math.log(6))) - lam

    low = lam0 * (1 - 1 / alpha)
    roots = [brentq(gap, low, lam0 * (1 + 1e-12), args=(row,), xtol=1e-13) for row in scores.numpy()]
    np.testing.assert_allclose(fixed.numpy(), roots, rtol=1e-8)
    assert ((fixed >= low) & (fixed <= lam0)).all()


def test_lambda_of_undecided_and_decided_scores():
    scores = torch.cat([torch.ones(1, 5), 1e4 * torch.eye(5)[:1]]).double()
    lam = aldr_kl_lambda(scores, torch.full((2,), 3.0), lam0=3.0, alpha=2.0, n_iter=50)
    torch.testing.assert_close(lam, torch.tensor([3.0, 1.5], dtype=torch.float64), **TIGHT)


def test_lambda_has_no_gradient_and_the_wider_dtype(logits):
    lam = aldr_kl_lambda(logits.requires_grad_(), torch.ones(12))
    assert not lam.requires_grad
    assert lam.dtype == torch.float64
    assert aldr_kl_lambda(logits.bfloat16(), torch.ones(12)).dtype == torch.float32
    assert aldr_kl_lambda(logits.half(), torch.ones(12).half()).dtype == torch.float32


def test_adaptive_loss_is_the_maximum_over_lambda_too(logits, target):
    """At the fixed point no other temperature gives the adversary more, and the gradient is that of the maximum."""
    scores = normalize_scores(logits)
    lam = aldr_kl_lambda(scores, torch.ones(12, dtype=torch.float64), n_iter=300)
    best = aldr_kl_loss(scores, target, lam, margin=0.0, reduction="none")
    for other in torch.linspace(0.05, 3.0, 60, dtype=torch.float64):
        assert (aldr_kl_loss(scores, target, other.expand(12), margin=0.0, reduction="none") <= best + 1e-12).all()

    def maximum(z):
        roots = aldr_kl_lambda(z, lam, n_iter=300)
        return aldr_kl_loss(z, target, roots, margin=0.0, reduction="none")

    rows = scores.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(maximum(rows).sum(), rows)
    for k in range(6):
        step = 1e-5 * functional.one_hot(torch.tensor(k), 6)
        slope = (maximum(scores + step) - maximum(scores - step)) / 2e-5
        torch.testing.assert_close(slope, gradient[:, k], rtol=1e-5, atol=1e-7)


def test_adaptive_loss_adds_a_penalty_and_has_the_softmax_gradient(logits, target, generator):
    lam = (5 + 5 * torch.rand(12, generator=generator, dtype=torch.float64)).requires_grad_()
    rows = logits.clone().requires_grad_()
    ours = aldr_kl_loss(rows, target, lam, lam0=10.0, alpha=2.0, margin=0.1, reduction="none")
    plain = [
        ldr_kl_loss(logits[i : i + 1], target[i : i + 1], lam=own, margin=0.1) for i, own in enumerate(lam.tolist())
    ]
    penalty = 2.0 * math.log(6) / 20.0 * (lam - 10.0) ** 2
    torch.testing.assert_close(ours, torch.stack(plain) - penalty, **TIGHT)
    gradient, none = torch.autograd.grad(ours.sum(), [rows, lam], allow_unused=True)
    assert none is None
    delta = logits - logits.gather(1, target[:, None]) + 0.1 * (1 - functional.one_hot(target, 6).double())
    expected = (delta / lam[:, None]).softmax(1) - functional.one_hot(target, 6)
    torch.testing.assert_close(gradient, expected, **TIGHT)


def test_module_updates_the_batch_only(logits, target):
    loss = ALDRKLLoss(30, lam0=10.0)
    index = torch.tensor([3, 29, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0])
    value = loss(logits, target, index)
    new = aldr_kl_lambda(logits, torch.full((12,), 10.0), lam0=10.0)
    untouched = torch.ones(30, dtype=torch.bool).index_fill_(0, index, False)
    torch.testing.assert_close(loss.lam[index], new.float())
    assert (loss.lam[untouched] == 10.0).all()
    torch.testing.assert_close(value, aldr_kl_loss(logits, target, loss.lam[index], lam0=10.0), **TIGHT)
    again = aldr_kl_lambda(logits, loss.lam[index], lam0=10.0).float()
    loss(logits, target, index)
    torch.testing.assert_close(loss.lam[index], again)


def test_module_keeps_its_memory(logits, target):
    """The temperatures are saved, are no parameters, and rest in evaluation mode."""
    loss = ALDRKLLoss(12, lam0=2.0)
    loss(logits.requires_grad_(), target, torch.arange(12)).backward()
    assert list(loss.state_dict()) == ["lam"]
    assert not list(loss.parameters())
    assert not loss.lam.requires_grad
    restored = ALDRKLLoss(12, lam0=2.0)
    restored.load_state_dict(loss.state_dict())
    assert torch.equal(restored.lam, loss.lam)
    before = loss.lam.clone()
    loss.eval()(logits, target, torch.arange(12))
    assert torch.equal(loss.lam, before)


def test_module_stores_float32_under_autocast(logits, target):
    loss = ALDRKLLoss(12, lam0=10.0)
    with torch.autocast("cpu", torch.bfloat16):
        head = torch.nn.Linear(6, 6)(logits.float())
        assert head.dtype == torch.bfloat16
        value = loss(normalize_scores(head), target, torch.arange(12))
    assert loss.lam.dtype == torch.float32
    assert value.isfinite()


def test_module_survives_an_overflow(logits, target):
    loss = ALDRKLLoss(12)
    spoiled = logits.clone()
    spoiled[4, 0] = math.inf
    loss(spoiled, target, torch.arange(12))
    assert loss.lam.isfinite().all()
    assert loss.lam[4] == 1.0
    assert (loss.lam[torch.arange(12) != 4] < 1.0).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be >= 1, got 0"),
        ({"num_samples": 2.0}, TypeError, "num_samples must be an int, got float"),
        ({"lam0": 0.0}, ValueError, "lam0 must be > 0, got 0.0"),
        ({"alpha": 1.0}, ValueError, "alpha must be > 1, got 1.0"),
        ({"margin": -1.0}, ValueError, "margin must be >= 0, got -1.0"),
        ({"reduction": "median"}, ValueError, "reduction must be one of .*, got 'median'"),
    ],
)
def test_module_names_a_bad_setting(arguments, error, message):
    with pytest.raises(error, match=message):
        ALDRKLLoss(**{"num_samples": 5} | arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"logits": torch.zeros(4)}, ValueError, r"logits must have shape \(N, C\) .*, got \(4,\)"),
        ({"logits": torch.zeros(3, 1)}, ValueError, r"logits must .* C >= 2, got \(3, 1\)"),
        ({"lam": torch.ones(2)}, ValueError, r"lam must have shape \(N,\) = \(3,\), got \(2,\)"),
        ({"lam": torch.tensor([1.0, -2.0, 1.0])}, ValueError, "lam must be > 0 and finite, got -2.0"),
        ({"lam": torch.tensor([1.0, math.nan, 1.0])}, ValueError, "lam must be > 0 and finite, got nan"),
        ({"lam": 1.0}, TypeError, "lam must be a torch.Tensor, got float"),
        ({"lam0": -1.0}, ValueError, "lam0 must be > 0, got -1.0"),
        ({"alpha": 0.5}, ValueError, "alpha must be > 1, got 0.5"),
        ({"n_iter": -1}, ValueError, "n_iter must be >= 0, got -1"),
        ({"n_iter": 1.5}, TypeError, "n_iter must be an int, got float"),
    ],
)
def test_lambda_names_a_bad_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        aldr_kl_lambda(**{"logits": torch.zeros(3, 4), "lam": torch.ones(3)} | arguments)
