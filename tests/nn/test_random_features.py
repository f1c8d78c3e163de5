"""Random features, readouts in closed form against the loops they replace, and networks of many widths."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from lossbook.nn import (
    RandomFeatures,
    WidthSweepMLP,
    condition_number,
    descent_filter,
    gd_readout,
    preconditioned_gd_readout,
)

F64 = torch.float64


def problem(n, p, generator, outputs=3, dtype=F64):
    return (torch.randn(n, size, generator=generator, dtype=dtype) for size in (p, outputs))


def descend(Z, Y, steps, lr, start):
    """Plain gradient descent, step by step."""
    A = start
    for _ in range(steps):
        A = A - lr * Z.T @ (Z @ A - Y) / len(Z)
    return A


def training_loss(Z, Y, A):
    return (Z @ A - Y).square().sum(1).mean().item()


def largest_eigenvalue(Z):
    return torch.linalg.matrix_norm(Z, 2).item() ** 2 / len(Z)


SHAPES = [(12, 5), (12, 12), (5, 12), (1, 1)]


@pytest.mark.parametrize(("n", "p"), SHAPES)
@pytest.mark.parametrize("steps", [0, 1, 7, 300])
@pytest.mark.parametrize("relative_lr", [None, 0.3, 1.7])
@pytest.mark.parametrize("started", [False, True])
def test_readout_equals_the_loop(n, p, steps, relative_lr, started, generator):
    Z, Y = problem(n, p, generator)
    start = torch.randn(p, 3, generator=generator, dtype=F64) if started else None
    lr = None if relative_lr is None else relative_lr / largest_eigenvalue(Z)
    ours = gd_readout(Z, Y, steps=steps, lr=lr, init=start)
    begin = torch.zeros(p, 3, dtype=F64) if start is None else start
    theirs = descend(Z, Y, steps, lr or 1 / largest_eigenvalue(Z), begin)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_no_step_changes_nothing(generator):
    Z, Y = problem(6, 4, generator)
    start = torch.randn(4, 3, generator=generator, dtype=F64)
    assert torch.equal(gd_readout(Z, Y, steps=0), torch.zeros(4, 3, dtype=F64))
    assert torch.equal(gd_readout(Z, Y, steps=0, init=start), start)


@pytest.mark.parametrize(("n", "p"), SHAPES)
def test_endless_descent_is_the_minimum_norm_fit(n, p, generator):
    Z, Y = problem(n, p, generator)
    expected = np.linalg.lstsq(Z.numpy(), Y.numpy(), rcond=None)[0]
    torch.testing.assert_close(gd_readout(Z, Y, steps=math.inf), torch.tensor(expected), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gd_readout(Z, Y, steps=10**12), torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_endless_descent_on_a_singular_matrix_is_the_pseudo_inverse(generator):
    Z, Y = problem(8, 6, generator)
    Z[:, 5] = Z[:, 0] - 2 * Z[:, 1]
    expected = torch.linalg.pinv(Z, rtol=1e-12) @ Y
    torch.testing.assert_close(gd_readout(Z, Y, steps=math.inf), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gd_readout(Z, Y, steps=10**15), expected, rtol=1e-9, atol=1e-9)
    newton = preconditioned_gd_readout(Z, Y, steps=1, damping=0.0)
    torch.testing.assert_close(newton, expected, rtol=1e-9, atol=1e-9)


def test_endless_descent_is_ridge_without_a_penalty(generator):
    Z, Y = problem(20, 6, generator)
    ridge = Ridge(alpha=1e-10, fit_intercept=False).fit(Z.numpy(), Y.numpy())
    torch.testing.assert_close(gd_readout(Z, Y, steps=math.inf), torch.tensor(ridge.coef_.T), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("relative_lr", [0.1, 0.5, 1.0])
def test_training_loss_falls_with_steps(relative_lr, generator):
    Z, Y = problem(10, 10, generator)
    lr = relative_lr / largest_eigenvalue(Z)
    curve = [training_loss(Z, Y, gd_readout(Z, Y, steps=steps, lr=lr)) for steps in (0, 1, 10, 100, 10**4, 10**6)]
    assert curve == sorted(curve, reverse=True)
    assert len(set(curve)) == len(curve)


@pytest.mark.parametrize("steps", [3, 10**6, math.inf])
def test_the_start_outside_the_row_space_stays(steps, generator):
    Z, Y = problem(4, 9, generator)
    start = torch.randn(9, 3, generator=generator, dtype=F64)
    null = torch.eye(9, dtype=F64) - torch.linalg.pinv(Z) @ Z
    torch.testing.assert_close(null @ gd_readout(Z, Y, steps=steps, init=start), null @ start)
    torch.testing.assert_close(null @ gd_readout(Z, Y, steps=steps), torch.zeros_like(start))


def test_a_batch_of_problems_is_solved_one_by_one(generator):
    Z = torch.randn(2, 3, 6, 4, generator=generator, dtype=F64)
    Y = torch.randn(2, 3, 6, 2, generator=generator, dtype=F64)
    together = gd_readout(Z, Y, steps=50)
    newton = preconditioned_gd_readout(Z, Y, steps=50, damping=0.01)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(together[i, j], gd_readout(Z[i, j], Y[i, j], steps=50))
            alone = preconditioned_gd_readout(Z[i, j], Y[i, j], steps=50, damping=0.01)
            torch.testing.assert_close(newton[i, j], alone)


def test_zero_features_learn_nothing():
    Z, Y = torch.zeros(3, 2, dtype=F64), torch.ones(3, 1, dtype=F64)
    for steps in (0, 5, math.inf):
        assert (gd_readout(Z, Y, steps=steps) == 0).all()
        assert (preconditioned_gd_readout(Z, Y, steps=steps, damping=0.0) == 0).all()


def test_single_precision_is_close(generator):
    Z, Y = problem(20, 8, generator)
    ours = gd_readout(Z.float(), Y.float(), steps=1000)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), gd_readout(Z, Y, steps=1000), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("damping", [1e-3, 0.1, 5.0])
@pytest.mark.parametrize("steps", [0, 1, 40])
def test_preconditioned_readout_equals_the_loop(damping, steps, generator):
    Z, Y = problem(9, 7, generator)
    hessian = Z.T @ Z / 9
    damped = hessian + damping * largest_eigenvalue(Z) * torch.eye(7, dtype=F64)
    A = torch.zeros(7, 3, dtype=F64)
    for _ in range(steps):
        A = A - (1 + damping) * torch.linalg.solve(damped, Z.T @ (Z @ A - Y) / 9)
    ours = preconditioned_gd_readout(Z, Y, steps=steps, damping=damping)
    torch.testing.assert_close(ours, A, rtol=1e-10, atol=1e-10)


def test_preconditioning_spans_newton_and_plain_descent(generator):
    Z, Y = problem(9, 7, generator)
    newton = preconditioned_gd_readout(Z, Y, steps=1, damping=0.0)
    torch.testing.assert_close(newton, torch.linalg.pinv(Z) @ Y, rtol=1e-10, atol=1e-10)
    plain = preconditioned_gd_readout(Z, Y, steps=33, damping=math.inf)
    torch.testing.assert_close(plain, gd_readout(Z, Y, steps=33), rtol=1e-12, atol=1e-12)
    nearly = preconditioned_gd_readout(Z, Y, steps=33, damping=1e9)
    torch.testing.assert_close(nearly, plain, rtol=1e-6, atol=1e-6)


def test_filter_keeps_its_digits():
    """Rates down to 1e-18, where the formula as written rounds to zero; times up to 1e18."""
    rates = torch.tensor([1e-18, 1e-12, 1e-6], dtype=F64)
    torch.testing.assert_close(descent_filter(rates, 10**6), -torch.expm1(-(10**6) * rates), rtol=1e-5, atol=0)
    torch.testing.assert_close(descent_filter(rates, 10**18)[0].item(), -math.expm1(-1), rtol=1e-9, atol=0)
    torch.testing.assert_close(descent_filter(rates, 10**30), torch.ones(3, dtype=F64))


def test_filter_overshoots_above_one():
    rates = torch.tensor([0.0, 1.0, 1.5], dtype=F64)
    assert descent_filter(rates, 1).tolist() == [0.0, 1.0, 1.5]
    assert descent_filter(rates, 2).tolist() == [0.0, 1.0, 0.75]
    assert descent_filter(rates, math.inf).tolist() == [0.0, 1.0, 1.0]


def test_condition_number_is_numpys(generator):
    for n, p in ((7, 4), (4, 7), (5, 5), (1, 3)):
        (Z,) = (torch.randn(n, p, generator=generator, dtype=F64),)
        assert condition_number(Z) == pytest.approx(np.linalg.cond(Z.numpy()), rel=1e-10)
    assert condition_number(torch.eye(3)) == 1.0


def test_condition_number_of_a_singular_matrix_is_infinite():
    assert condition_number(torch.zeros(2, 2)) == math.inf
    assert condition_number(torch.ones(3, 2)) == math.inf
    assert condition_number(torch.diag(torch.tensor([1.0, 1e-15], dtype=F64))) == math.inf
    assert condition_number(torch.diag(torch.tensor([1.0, 1e-13], dtype=F64))) == pytest.approx(1e13)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_features_follow_the_seed_alone(activation, generator):
    X = torch.randn(5, 8, generator=generator, dtype=F64)
    before = torch.random.get_rng_state()
    first, again, other = (RandomFeatures(8, 20, activation=activation, seed=s)(X) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_features_keep_their_scale_at_every_number(activation, generator):
    X = torch.randn(200, 16, generator=generator, dtype=F64) / 4
    norms = [
        RandomFeatures(16, p, activation=activation, seed=1)(X).square().sum(1).mean().item() for p in (400, 1600, 6400)
    ]
    assert norms == pytest.approx([norms[-1]] * 3, rel=0.1)


def test_features_have_the_stated_scales():
    layer = RandomFeatures(50, 400, weight_std=3.0, bias_std=0.5, seed=2)
    assert layer.weight.std().item() == pytest.approx(3.0, rel=0.02)
    assert layer.bias.std().item() == pytest.approx(0.5, rel=0.1)
    assert (RandomFeatures(4, 3, bias_std=0.0).bias == 0).all()


def test_features_train_nothing_and_follow_the_inputs_dtype():
    layer = RandomFeatures(3, 4)
    assert not list(layer.parameters())
    assert set(dict(layer.named_buffers())) == {"weight", "bias"}
    assert layer(torch.ones(2, 3)).dtype == torch.float32
    assert layer(torch.ones(2, 3, dtype=F64)).dtype == F64
    assert layer(torch.ones(0, 3)).shape == (0, 4)


def sweep_and_one(row, generator):
    nets = WidthSweepMLP(6, [3, 1, 5], 2, init_scale=2.0, seed=4).double()
    width = nets.widths[row]
    alone = torch.nn.Sequential(torch.nn.Linear(6, width), torch.nn.ReLU(), torch.nn.Linear(width, 2)).double()
    with torch.no_grad():
        alone[0].weight.copy_(nets.weight1[row, :width])
        alone[0].bias.copy_(nets.bias1[row, :width])
        alone[2].weight.copy_(nets.weight2[row, :, :width])
        alone[2].bias.copy_(nets.bias2[row])
    return nets, alone, torch.randn(7, 6, generator=generator, dtype=F64)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_network_of_the_sweep_is_a_network(row, generator):
    nets, alone, X = sweep_and_one(row, generator)
    assert nets(X).shape == (3, 7, 2)
    torch.testing.assert_close(nets(X)[row], alone(X))


def test_networks_of_the_sweep_train_as_if_alone(generator):
    nets, alone, X = sweep_and_one(0, generator)
    Y = torch.randn(7, 2, generator=generator, dtype=F64)
    for model in (nets, alone):
        for _ in range(20):
            parameters = list(model.parameters())
            gradients = torch.autograd.grad((model(X) - Y).square().sum(), parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= 0.01 * gradient
    torch.testing.assert_close(nets(X)[0], alone(X), rtol=1e-9, atol=1e-9)


def test_masked_units_get_no_gradient_and_do_nothing(generator):
    nets, _, X = sweep_and_one(0, generator)
    expected = nets(X).detach()
    with torch.no_grad():
        for parameter in (nets.weight1, nets.bias1, nets.weight2):
            parameter.add_(1.0)
        spoiled = nets(X)
        masked = ~nets.mask
        for parameter in (nets.weight1, nets.bias1, nets.weight2):
            parameter.sub_(1.0)
        nets.weight1[masked], nets.bias1[masked] = 5.0, 5.0
        nets.weight2.mT[masked] = 5.0
    assert not torch.allclose(spoiled, expected)
    torch.testing.assert_close(nets(X), expected)
    nets(X).square().sum().backward()
    assert (nets.weight1.grad[masked] == 0).all()
    assert (nets.bias1.grad[masked] == 0).all()
    assert (nets.weight2.grad.mT[masked] == 0).all()
    assert (nets.weight2.grad.mT[~masked] != 0).any()


def test_a_networks_start_depends_on_its_width_and_the_seed_alone():
    before = torch.random.get_rng_state()
    many, one, other = (WidthSweepMLP(4, widths, 3, seed=s) for widths, s in (([2, 7, 5], 1), ([5], 1), ([5], 2)))
    assert torch.equal(many.weight1[2, :5], one.weight1[0])
    assert torch.equal(many.weight2[2, :, :5], one.weight2[0])
    assert not torch.equal(one.weight1, other.weight1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_networks_start_at_the_stated_scales():
    nets = WidthSweepMLP(50, [300], 40, init_scale=4.0)
    assert nets.weight1.std().item() == pytest.approx(4 * math.sqrt(2 / 50), rel=0.03)
    assert nets.weight2.std().item() == pytest.approx(300**-0.5, rel=0.03)
    assert (nets.bias1 == 0).all()
    assert (nets.bias2 == 0).all()


Z, Y = torch.ones(4, 3), torch.ones(4, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RandomFeatures(3, 4, activation="gelu"), ValueError, r"activation must be one of .*, got 'gelu'"),
        (lambda: RandomFeatures(0, 4), ValueError, "in_features must be > 0, got 0"),
        (lambda: RandomFeatures(3, -1), ValueError, "num_features must be > 0, got -1"),
        (lambda: RandomFeatures(3.0, 4), TypeError, "in_features must be an int, got float"),
        (lambda: RandomFeatures(3, 4, weight_std=0.0), ValueError, "weight_std must be > 0"),
        (lambda: RandomFeatures(3, 4, bias_std=-0.1), ValueError, "bias_std must be >= 0"),
        (lambda: RandomFeatures(3, 4, seed=-1), ValueError, "seed must be >= 0"),
        (lambda: RandomFeatures(3, 4)(torch.ones(2, 5)), ValueError, r"X must have shape \(n, D\) = \(\*, 3\)"),
        (lambda: RandomFeatures(3, 4)(torch.ones(2, 3).int()), TypeError, "X must have a floating-point dtype"),
        (lambda: gd_readout(Z, Y, steps=-1), ValueError, "steps must be >= 0, got -1"),
        (lambda: gd_readout(Z, Y, steps=1.5), TypeError, "steps must be an int, got float"),
        (lambda: gd_readout(Z, Y, steps=1, lr=0.0), ValueError, "lr must be > 0, got 0.0"),
        (lambda: gd_readout(Z, Y, steps=1, lr=-1.0), ValueError, "lr must be > 0, got -1.0"),
        (lambda: gd_readout(Z, Y, steps=1, lr=0.67), ValueError, r"lr must be < 2 / lambda_max = 0\.6666.*, got 0.67"),
        (lambda: gd_readout(Z, Y[:3], steps=1), ValueError, r"Y must have shape .* = \(4, \*\), got \(3, 2\)"),
        (lambda: gd_readout(Z, Y.double(), steps=1), ValueError, "Y must have the dtype of Z"),
        (lambda: gd_readout(Z.half(), Y.half(), steps=1), TypeError, "Z must have dtype torch.float32 or"),
        (lambda: gd_readout(Z[0], Y, steps=1), ValueError, r"Z must have shape \(\.\.\., n, p\)"),
        (lambda: gd_readout(Z[:0], Y[:0], steps=1), ValueError, r"n, p >= 1, got \(0, 3\)"),
        (lambda: gd_readout([[1.0]], Y, steps=1), TypeError, "Z must be a torch.Tensor, got list"),
        (lambda: gd_readout(Z, Y, steps=1, init=torch.ones(4, 2)), ValueError, r"init must have shape .* = \(3, 2\)"),
        (lambda: gd_readout(Z, Y, steps=1, init=torch.ones(3, 2).double()), ValueError, "init must have the dtype"),
        (lambda: preconditioned_gd_readout(Z, Y, steps=1, damping=-0.1), ValueError, "damping must be >= 0, got -0.1"),
        (lambda: preconditioned_gd_readout(Z, Y, steps=-2, damping=0.1), ValueError, "steps must be >= 0, got -2"),
        (lambda: preconditioned_gd_readout(Z, Y[:2], steps=1, damping=0.1), ValueError, "Y must have shape"),
        (lambda: descent_filter(torch.tensor([0.5, 2.0]), 1), ValueError, r"rates must lie in \[0, 2\), got 2"),
        (lambda: descent_filter(torch.tensor([-0.1]), 1), ValueError, r"rates must lie in \[0, 2\), got -0.1"),
        (lambda: condition_number(torch.ones(2)), ValueError, r"Z must have shape \(n, p\)"),
        (lambda: condition_number(torch.ones(0, 2)), ValueError, "Z must have at least one row and column"),
        (lambda: condition_number(torch.ones(2, 2).int()), TypeError, "Z must have a floating-point dtype"),
        (lambda: WidthSweepMLP(3, [], 2), ValueError, r"widths must hold at least one width, got \[\]"),
        (lambda: WidthSweepMLP(3, [2, 0], 2), ValueError, r"widths\[1\] must be > 0, got 0"),
        (lambda: WidthSweepMLP(3, [2.0], 2), TypeError, r"widths\[0\] must be an int"),
        (lambda: WidthSweepMLP(0, [2], 2), ValueError, "in_features must be > 0"),
        (lambda: WidthSweepMLP(3, [2], 2, init_scale=0.0), ValueError, "init_scale must be > 0"),
        (lambda: WidthSweepMLP(3, [2], 2)(torch.ones(1, 4)), ValueError, r"X must have shape \(n, D\) = \(\*, 3\)"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
