"""The comp-sum family beyond the common contract: identities, limits, peers, and which adversarial loss dominates."""

import math
from itertools import product

import mpmath
import pytest
import torch
from torch.nn import functional

from lossbook.losses import adversarial_comp_sum_loss, class_margins, comp_sum_loss, comp_sum_rho_margin_loss

TAUS = (0, 0.3, 1 - 1e-7, 1, 1 + 1e-7, 1.5, 1.9, 2, 3.5)


def problem(generator, n=40, classes=7, scale=3.0):
    logits = scale * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (n,), generator=generator)


def exact(logits, target, tau):
    """The definition with 60 digits."""
    values = []
    with mpmath.workdps(60):
        for z, y in zip(logits.tolist(), target.tolist(), strict=True):
            u = sum(mpmath.exp(mpmath.mpf(a) - mpmath.mpf(z[y])) for c, a in enumerate(z) if c != y)
            power = 1 - mpmath.mpf(tau)
            values.append(float(mpmath.log(1 + u) if tau == 1 else ((1 + u) ** power - 1) / power))
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("tau", TAUS)
def test_equals_the_definition_in_extended_precision(tau, generator):
    logits, target = problem(generator)
    computed = comp_sum_loss(logits, target, tau=tau, reduction="none")
    torch.testing.assert_close(computed, exact(logits, target, tau), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("tau", "of_p"),
    [
        (0, lambda p: 1 / p - 1),
        (1.7, lambda p: (1 - p**0.7) / 0.7),
        (2, lambda p: 1 - p),
        (3, lambda p: (1 - p**2) / 2),
    ],
)
def test_named_members(tau, of_p, generator):
    logits, target = problem(generator)
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(
        comp_sum_loss(logits, target, tau=tau, reduction="none"), of_p(p), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_tau_one_is_torchs_cross_entropy(reduction, generator):
    logits, target = problem(generator)
    expected = functional.cross_entropy(logits, target, reduction=reduction)
    torch.testing.assert_close(comp_sum_loss(logits, target, reduction=reduction), expected, rtol=1e-15, atol=1e-15)


def test_mae_is_half_the_l1_distance_of_the_probabilities(generator):
    logits, target = problem(generator)
    onehot = functional.one_hot(target, logits.shape[1])
    distance = (logits.softmax(1) - onehot).abs().sum(1)
    torch.testing.assert_close(comp_sum_loss(logits, target, tau=2, reduction="none"), distance / 2)


@pytest.mark.parametrize("tau", TAUS)
def test_gradient_is_that_of_cross_entropy_times_a_power_of_p(tau, generator):
    logits, target = problem(generator)
    logits.requires_grad_()
    (ours,) = torch.autograd.grad(comp_sum_loss(logits, target, tau=tau, reduction="sum"), logits)
    (plain,) = torch.autograd.grad(functional.cross_entropy(logits, target, reduction="sum"), logits)
    p = logits.softmax(1).gather(1, target[:, None])
    torch.testing.assert_close(ours, p ** (tau - 1) * plain, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("tau", [1.5, 2.0])
def test_small_gradients_keep_their_digits_in_float32(tau):
    """Where p is 1e-12, 1 - p rounds to 1, but the slope is still p^(tau - 1)."""
    logits = torch.tensor([[math.log(1e-12), 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(comp_sum_loss(logits, torch.tensor([0]), tau=tau), logits)
    slope = 1e-12 ** (tau - 1)
    torch.testing.assert_close(gradient, torch.tensor([[-slope, slope]]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("tau", [0, 0.5, 1, 1.5, 2, 3])
def test_second_derivatives(tau, generator):
    logits, target = problem(generator, n=3, classes=4, scale=1.0)
    logits.requires_grad_()
    torch.autograd.gradgradcheck(lambda z: comp_sum_loss(z, target, tau=tau, reduction="none"), logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tau", [1, 1.5, 2, 3])
def test_huge_logits(tau, dtype):
    logits = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    loss = comp_sum_loss(logits, torch.tensor([0, 0]), tau=tau, reduction="none")
    worst = 2 * logits[0, 1].item() if tau == 1 else 1 / (tau - 1)
    torch.testing.assert_close(loss, torch.tensor([worst, 0.0], dtype=dtype))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.isfinite().all()


def test_below_one_the_loss_may_exceed_the_largest_float():
    loss = comp_sum_loss(
        torch.tensor([[-600.0, 0.0], [-800.0, 0.0]]).double(), torch.tensor([0, 0]), tau=0, reduction="none"
    )
    torch.testing.assert_close(loss, torch.tensor([math.expm1(600), math.inf], dtype=torch.float64))
    # A right prediction is unharmed by the overflow of a wrong one.
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    loss = comp_sum_loss(logits, torch.tensor([0, 0]), tau=0, reduction="none")
    (gradient,) = torch.autograd.grad(loss[0], logits)
    assert loss[0] == 0 and loss[1] == math.inf and (gradient[0] == 0).all()


def test_falls_as_tau_grows(generator):
    logits, target = problem(generator)
    values = torch.stack(
        [comp_sum_loss(logits, target, tau=tau, reduction="none") for tau in torch.linspace(0, 3, 31).tolist()]
    )
    assert (values.diff(dim=0) <= 1e-15).all()


def test_margins_by_hand():
    logits = torch.tensor([[1.0, 4.0, 2.0], [5.0, 3.0, 0.0]])
    margins = class_margins(logits, torch.tensor([1, 2]))
    assert margins.tolist() == [[3.0, 2.0], [-5.0, -3.0]]
    assert class_margins(torch.zeros(2, 1), torch.tensor([0, 0])).shape == (2, 0)


@pytest.mark.parametrize(("tau", "rho"), list(product([0, 0.5, 1, 1.5, 2], [0.3, 1, 4])))
def test_rho_margin_by_loops(tau, rho, generator):
    logits, target = problem(generator)
    values = []
    for z, y in zip(logits.tolist(), target.tolist(), strict=True):
        u = sum(min(1.0, max(0.0, 1 - (z[y] - a) / rho)) for c, a in enumerate(z) if c != y)
        values.append(math.log1p(u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau))
    computed = comp_sum_rho_margin_loss(logits, target, tau=tau, rho=rho, reduction="none")
    torch.testing.assert_close(computed, torch.tensor(values, dtype=torch.float64), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("tau", [0, 1, 1.5, 2])
def test_rho_margin_dominates_the_error_and_vanishes_beyond_rho(tau, generator):
    logits, target = problem(generator)
    loss = comp_sum_rho_margin_loss(logits, target, tau=tau, rho=0.7, reduction="none")
    margin = class_margins(logits, target).amin(1)
    phi_one = math.log(2) if tau == 1 else (2 ** (1 - tau) - 1) / (1 - tau)
    assert (loss[margin <= 0] >= phi_one - 1e-15).all()
    assert (loss[margin >= 0.7] == 0).all() and (margin >= 0.7).any() and (margin <= 0).any()


@pytest.mark.parametrize(("tau", "rho"), list(product([0, 1, 1.4, 2], [0.5, 1, 3])))
def test_smooth_loss_dominates_the_margin_loss_of_the_perturbed_input(tau, rho, generator):
    """The key inequality, for any perturbed logits, not only for a worst case."""
    logits, target = problem(generator, n=2000, classes=6, scale=2.0)
    moved = logits + 2 * torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    nu = math.sqrt(5) / rho
    smooth = adversarial_comp_sum_loss(logits, moved, target, tau=tau, rho=rho, nu=nu, reduction="none")
    margin_loss = comp_sum_rho_margin_loss(moved, target, tau=tau, rho=rho, reduction="none")
    assert (smooth - margin_loss).min() >= -1e-12
    # The second term is needed: without it the inequality fails somewhere.
    clean = adversarial_comp_sum_loss(logits, moved, target, tau=tau, rho=rho, nu=0, reduction="none")
    assert (clean - margin_loss).min() < 0


def test_smooth_loss_without_its_second_term_is_a_scaled_comp_sum_loss(generator):
    logits, target = problem(generator)
    loss = adversarial_comp_sum_loss(logits, logits + 1, target, tau=1.3, rho=0.5, nu=0)
    torch.testing.assert_close(loss, comp_sum_loss(logits / 0.5, target, tau=1.3))
    # A common shift of all logits moves no margin.
    torch.testing.assert_close(
        adversarial_comp_sum_loss(logits, logits + 1, target, nu=9), comp_sum_loss(logits, target)
    )


def test_gradient_without_displacement_is_finite_and_that_of_the_first_term(generator):
    logits, target = problem(generator)
    clean, moved = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    gradients = torch.autograd.grad(adversarial_comp_sum_loss(clean, moved, target, nu=5.0), (clean, moved))
    (plain,) = torch.autograd.grad(comp_sum_loss(clean, target), clean)
    torch.testing.assert_close(gradients[0], plain)
    assert (gradients[1] == 0).all()


def test_displacement_sends_gradient_through_both_logits(generator):
    logits, target = problem(generator, n=4, classes=3)
    clean, moved = logits.requires_grad_(), (logits.detach() + torch.randn(4, 3, generator=generator)).requires_grad_()
    torch.autograd.gradcheck(
        lambda z, m: adversarial_comp_sum_loss(z, m, target, tau=1.5, rho=0.5, nu=2.0, reduction="none"), (clean, moved)
    )


@pytest.mark.parametrize("tau", [-1, -1e-9, math.nan, math.inf])
def test_tau_out_of_range_is_refused_by_every_member(tau, generator):
    logits, target = problem(generator)
    for call in (
        lambda: comp_sum_loss(logits, target, tau=tau),
        lambda: comp_sum_rho_margin_loss(logits, target, tau=tau),
        lambda: adversarial_comp_sum_loss(logits, logits, target, tau=tau),
    ):
        with pytest.raises(ValueError, match="tau must be"):
            call()
