"""Consistency bounds: closed forms, limits, the inequality on random problems, and where it is tight."""

import math

import mpmath
import pytest
import torch
from scipy.optimize import minimize

from lossbook.losses import comp_sum_loss
from lossbook.theory import best_conditional_risk, h_consistency_bound, h_consistency_transform

TAUS = (0, 0.25, 0.5, 0.9, 1, 1.1, 1.5, 1.9, 2, 2.5, 3)


def simplex(n, classes, generator, concentration=1.0):
    weights = torch.rand(n, classes, generator=generator, dtype=torch.float64).log().neg() ** (1 / concentration)
    return weights / weights.sum(1, keepdim=True)


def conditional_loss(logits, p, tau):
    """Expected loss of scores under label probabilities, row by row."""
    classes = torch.arange(p.shape[1])
    each = [comp_sum_loss(logits, classes[c].expand(len(p)), tau=tau, reduction="none") for c in classes]
    return (p * torch.stack(each, 1)).sum(1)


def exact_transform(beta, tau, classes):
    with mpmath.workdps(80):
        b, t, n = (mpmath.mpf(x) for x in (beta, tau, classes))
        if t == 1:
            x_log_x = [x * mpmath.log(x) if x else mpmath.mpf(0) for x in (1 + b, 1 - b)]
            return float(sum(x_log_x) / 2)
        if t >= 2:
            return float(b / ((t - 1) * n ** (t - 1)))
        a, k = 1 / (2 - t), n if t > 1 else 2
        return float(((((1 + b) ** a + (1 - b) ** a) / 2) ** (2 - t) - 1) / ((t - 1) * k ** (t - 1)))


@pytest.mark.parametrize("tau", [*TAUS, 1 - 1e-9, 1 - 1e-7, 1 + 1e-7, 1 + 1e-9, 1.999, 2 - 1e-7])
@pytest.mark.parametrize("classes", [2, 10])
def test_transform_in_extended_precision(tau, classes):
    for beta in (0, 1e-6, 1e-3, 0.05, 0.3, 0.5, 0.9, 1 - 1e-9, 1):
        computed = h_consistency_transform(beta, tau=tau, num_classes=classes)
        assert isinstance(computed, float)
        assert computed == pytest.approx(exact_transform(beta, tau, classes), rel=1e-11, abs=1e-22)


def test_transform_of_cross_entropy_is_half_a_square_near_zero():
    assert h_consistency_transform(1e-3, tau=1, num_classes=7) == pytest.approx(0.5e-6, rel=1e-5)
    assert h_consistency_transform(1, tau=1, num_classes=7) == pytest.approx(math.log(2))


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("classes", [2, 3, 100])
def test_transform_is_convex_increasing_and_above_its_polynomial(tau, classes):
    grid = [step / 500 for step in range(501)]
    values = torch.tensor([h_consistency_transform(b, tau=tau, num_classes=classes) for b in grid], dtype=torch.float64)
    b = torch.tensor(grid, dtype=torch.float64)
    assert values[0] == 0 and (values.diff() > 0).all() and (values.diff().diff() >= -1e-15).all()
    if tau < 1:
        floor = b**2 / (2**tau * (2 - tau))
    elif tau < 2:
        floor = b**2 / (2 * classes ** (tau - 1))
    else:
        floor = b / ((tau - 1) * classes ** (tau - 1))
    assert (values - floor >= -1e-15).all()


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("classes", [2, 10])
def test_bound_inverts_the_transform(tau, classes):
    for beta in (0.0, 1e-6, 1e-3, 0.2, 0.77, 1.0):
        excess = h_consistency_transform(beta, tau=tau, num_classes=classes)
        bound = h_consistency_bound(excess, tau=tau, num_classes=classes)
        assert isinstance(bound, float)
        assert bound == pytest.approx(beta, rel=1e-7, abs=1e-15)


def test_bound_ends_at_one():
    most = h_consistency_transform(1, tau=1, num_classes=3)
    for excess in (most, most + 1, 1e6, math.inf):
        assert h_consistency_bound(excess, tau=1, num_classes=3) == 1.0
    assert h_consistency_bound(0, tau=1, num_classes=3) == 0.0


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_inequality_on_random_problems(tau, classes, generator):
    p = simplex(400, classes, generator)
    scores = torch.randn(400, classes, generator=generator, dtype=torch.float64)
    # Half of them near the best scores, where the inequality is narrow.
    scores[::2] = p[::2].log() + 0.1 * scores[::2]
    surrogate = conditional_loss(scores, p, tau) - best_conditional_risk(p, tau=tau)
    error = p.amax(1) - p.gather(1, scores.argmax(1, keepdim=True))[:, 0]
    bound = torch.tensor(
        [h_consistency_transform(b, tau=tau, num_classes=classes) for b in error.tolist()], dtype=torch.float64
    )
    assert ((surrogate - bound) / (1 + surrogate)).min() > -1e-12
    assert (error > 0).any()


@pytest.mark.parametrize("beta", [0.01, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(
    ("tau", "classes"), [(0, 2), (0, 10), (0.5, 5), (1, 3), (1, 100), (1.3, 2), (1.5, 2), (1.9, 2)]
)
def test_tight_case(tau, classes, beta):
    """Two classes share all probability; the scores tie them, and the tie goes to the less likely one."""
    p, scores = torch.zeros(1, classes, dtype=torch.float64), torch.full((1, classes), -800.0, dtype=torch.float64)
    p[0, :2], scores[0, :2] = torch.tensor([1 + beta, 1 - beta], dtype=torch.float64) / 2, 0.0
    if classes == 2 or tau > 0:  # at tau = 0 a class of probability zero would cost 0 times infinity
        surrogate = conditional_loss(scores, p, tau)
    else:
        surrogate = conditional_loss(scores[:, :2], p[:, :2], tau)
    excess = (surrogate - best_conditional_risk(p, tau=tau)).item()
    assert excess == pytest.approx(h_consistency_transform(beta, tau=tau, num_classes=classes), abs=1e-10)


@pytest.mark.parametrize("tau", [0, 0.5, 0.999, 1, 1.001, 1.5, 1.8])
def test_best_conditional_risk_is_the_numerical_minimum(tau, generator):
    p = simplex(5, 4, generator)
    p[0, 0] = 0.0
    p[0] /= p[0].sum()  # one class that never occurs
    for row in p:

        def objective(z, row=row):
            z = torch.tensor(z, requires_grad=True)
            loss = conditional_loss(z[None], row[None], tau).sum()
            (gradient,) = torch.autograd.grad(loss, z)
            return loss.item(), gradient.numpy()

        found = minimize(objective, [0.0] * 4, jac=True, method="BFGS", options={"gtol": 1e-10}).fun
        assert best_conditional_risk(row, tau=tau).item() == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("tau", [0, 0.7, 1, 1.4, 1.9, 1.9999])
def test_stated_minimizer_attains_it(tau, generator):
    p = simplex(50, 6, generator)
    best = p.log() / (2 - tau)
    torch.testing.assert_close(conditional_loss(best, p, tau), best_conditional_risk(p, tau=tau), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tau", [2, 2.5])
def test_from_two_on_the_infimum_is_at_a_vertex(tau, generator):
    p = simplex(50, 6, generator)
    vertex = 800.0 * torch.nn.functional.one_hot(p.argmax(1), 6).double()
    torch.testing.assert_close(conditional_loss(vertex, p, tau), best_conditional_risk(p, tau=tau))
    scores = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    assert (conditional_loss(scores, p, tau) > best_conditional_risk(p, tau=tau)).all()


@pytest.mark.parametrize("tau", TAUS)
def test_best_conditional_risk_of_certain_and_uniform_labels(tau):
    certain = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(best_conditional_risk(certain, tau=tau), torch.zeros(5).double(), rtol=0, atol=1e-14)
    uniform = torch.full((5,), 0.2, dtype=torch.float64)
    # Equal scores are the best ones up to tau = 2; beyond, betting on one class costs less.
    equal = comp_sum_loss(torch.zeros(1, 5, dtype=torch.float64), torch.tensor([0]), tau=tau)
    expected = equal if tau <= 2 else torch.tensor(0.8 / (tau - 1), dtype=torch.float64)
    torch.testing.assert_close(best_conditional_risk(uniform, tau=tau), expected, rtol=1e-12, atol=0)


def test_best_conditional_risk_near_tau_one_is_the_entropy(generator):
    p = simplex(20, 8, generator)
    p[:, 0] = 0
    p /= p.sum(1, keepdim=True)
    entropy = torch.distributions.Categorical(probs=p).entropy()
    for tau, tolerance in ((1, 1e-12), (1 - 1e-9, 1e-8), (1 + 1e-9, 1e-8)):
        torch.testing.assert_close(best_conditional_risk(p, tau=tau), entropy, rtol=tolerance, atol=0)


@pytest.mark.parametrize("tau", [0, 1, 1.4, 1.7, 2])
def test_best_conditional_risk_keeps_shape_dtype_and_gradient(tau, generator):
    p = simplex(6, 4, generator).view(2, 3, 4)
    p[0, 0] = torch.tensor([0.5, 0.5, 0.0, 0.0])
    risk = best_conditional_risk(p.requires_grad_(), tau=tau)
    assert risk.shape == (2, 3) and risk.dtype == torch.float64
    (gradient,) = torch.autograd.grad(risk.sum(), p)
    assert gradient.isfinite().all()
    assert best_conditional_risk(p.detach().float(), tau=tau).dtype == torch.float32
    assert best_conditional_risk(torch.zeros(0, 4), tau=tau).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"beta": -0.1}, ValueError, r"beta must lie in \[0, 1\], got -0.1"),
        ({"beta": 1.1}, ValueError, r"beta must lie in \[0, 1\], got 1.1"),
        ({"beta": math.nan}, ValueError, "beta must be finite, got nan"),
        ({"beta": "0"}, TypeError, "beta must be a number"),
        ({"tau": -1}, ValueError, "tau must be >= 0, got -1"),
        ({"tau": math.nan}, ValueError, "tau must be finite, got nan"),
        ({"num_classes": 1}, ValueError, "num_classes must be >= 2, got 1"),
        ({"num_classes": 2.0}, TypeError, "num_classes must be an int, got float 2.0"),
    ],
)
def test_bad_arguments_of_the_transform_are_named(arguments, error, message):
    good = {"beta": 0.5, "tau": 1.0, "num_classes": 3}
    beta, family = good["beta"], {"tau": 1.0, "num_classes": 3}
    family |= {name: value for name, value in arguments.items() if name != "beta"}
    with pytest.raises(error, match=message):
        h_consistency_transform(arguments.get("beta", beta), **family)
    if "beta" not in arguments:
        with pytest.raises(error, match=message):
            h_consistency_bound(0.1, **family)


@pytest.mark.parametrize(
    ("excess", "error", "message"),
    [
        (-1e-3, ValueError, "excess must be >= 0, got -0.001"),
        (math.nan, ValueError, "excess must be finite, got nan"),
        (None, TypeError, "excess must be a number"),
    ],
)
def test_bad_excess_is_named(excess, error, message):
    with pytest.raises(error, match=message):
        h_consistency_bound(excess, tau=1, num_classes=3)


@pytest.mark.parametrize(
    ("p", "tau", "error", "message"),
    [
        (torch.tensor([0.5, 0.6]), 1, ValueError, "p must be non-negative and sum to 1 .* sums from 1.1"),
        (torch.tensor([1.5, -0.5]), 1, ValueError, "p must be non-negative and sum to 1 .* entries from -0.5"),
        (torch.tensor(1.0), 1, ValueError, r"p must have shape \(..., C\) with C >= 1, got \(\)"),
        (torch.zeros(3, 0), 1, ValueError, r"p must have shape \(..., C\) with C >= 1, got \(3, 0\)"),
        (torch.tensor([1, 0]), 1, TypeError, "p must have a floating-point dtype"),
        ([0.5, 0.5], 1, TypeError, "p must be a torch.Tensor, got list"),
        (torch.tensor([0.5, 0.5]), -1, ValueError, "tau must be >= 0, got -1"),
    ],
)
def test_bad_probabilities_are_named(p, tau, error, message):
    with pytest.raises(error, match=message):
        best_conditional_risk(p, tau=tau)
