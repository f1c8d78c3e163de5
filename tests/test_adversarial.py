"""Projected gradient ascent: exact on linear models, inside its ball and box, and without traces."""

import math

import pytest
import torch
from torch import nn

from lossbook.adversarial import pgd


@pytest.fixture
def inputs(generator):
    return 0.2 + 0.6 * torch.rand(12, 3, 4, generator=generator)


@pytest.fixture
def weights(generator):
    return torch.randn(3, 4, generator=generator)


def linear(weights):
    return lambda x: (x * weights).sum((1, 2))


def identity(values):
    return values


def test_linear_model_linf_reaches_the_corner(inputs, weights):
    moved = pgd(linear(weights), inputs, identity, eps=0.1, steps=6, step_size=0.05)
    torch.testing.assert_close(moved, inputs + 0.1 * weights.sign())


def test_linear_model_l2_reaches_the_exact_optimum(inputs, weights):
    moved = pgd(linear(weights), inputs, identity, eps=0.3, steps=200, step_size=0.03, norm="l2", clip=None)
    torch.testing.assert_close(moved, inputs + 0.3 * weights / weights.norm(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_stays_in_ball_and_box(norm, steps, inputs, weights, generator):
    at_the_edge = inputs.clone()
    at_the_edge[0], at_the_edge[1] = 0.0, 1.0
    moved = pgd(
        linear(weights), at_the_edge, identity, eps=0.4, steps=steps, step_size=0.3, norm=norm, generator=generator
    )
    change = (moved - at_the_edge).flatten(1)
    length = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert (length <= 0.4 + 1e-6).all() and moved.min() >= 0 and moved.max() <= 1
    assert (length > 0).all()
    assert moved.shape == inputs.shape and moved.dtype == inputs.dtype and not moved.requires_grad


def test_reduction_of_the_objective_does_not_matter(inputs):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh())
    options = {"eps": 0.1, "steps": 3, "step_size": 0.05, "norm": "l2"}
    objectives = (
        lambda out: out.square().sum(1),
        lambda out: out.square().sum(),
        lambda out: out.square().sum(1).mean(),
    )
    first, second, third = (pgd(model, inputs, objective, **options) for objective in objectives)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, third)


def test_attack_raises_the_objective(inputs, generator):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 5))
    target = torch.randint(5, (12,), generator=generator)

    def loss(out):
        return nn.functional.cross_entropy(out, target, reduction="none")

    values = []
    for steps in (0, 2, 20):
        moved = pgd(model, inputs, loss, eps=0.2, steps=steps, step_size=0.05, random_start=False)
        values.append(loss(model(moved)).detach())
    assert torch.equal(values[0], loss(model(inputs)).detach())
    assert (values[1] > values[0]).all() and values[2].mean() > values[1].mean()


def test_a_distance_from_the_clean_outputs_needs_the_random_start(inputs):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    clean = model(inputs).detach()

    def distance(out):
        return torch.linalg.vector_norm(out - clean, dim=1)

    options = {"eps": 0.1, "steps": 5, "step_size": 0.05}
    assert torch.equal(pgd(model, inputs, distance, random_start=False, **options), inputs)
    moved = pgd(model, inputs, distance, **options)
    assert (distance(model(moved)) > 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_start_is_uniform_in_the_ball(norm):
    x = torch.full((4000, 2), 0.5)
    start = pgd(identity, x, identity, eps=0.1, steps=0, step_size=1.0, norm=norm) - 0.5
    length = start.abs().amax(1) if norm == "linf" else start.norm(dim=1)
    # In two dimensions the half of the ball's area lies within sqrt(1/2) of its radius.
    assert length.max() <= 0.1 + 1e-6
    assert (length < 0.1 * math.sqrt(0.5)).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert start.mean(0).abs().max() < 0.003


def test_randomness_comes_from_the_generator_alone(inputs, weights):
    state = torch.get_rng_state()
    options = {"eps": 0.1, "steps": 0, "step_size": 0.05}
    default, again = (pgd(linear(weights), inputs, identity, **options) for _ in range(2))
    assert torch.equal(default, again)
    generator = torch.Generator().manual_seed(3)
    first, second = (pgd(linear(weights), inputs, identity, generator=generator, **options) for _ in range(2))
    assert not torch.equal(first, second) and not torch.equal(first, default)
    assert torch.equal(torch.get_rng_state(), state)


def test_leaves_no_trace_in_the_model(inputs):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    model[2].eval()
    modes = [part.training for part in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    with torch.no_grad():
        pgd(model, inputs, lambda out: seen.append(model.training) or out.sum(), eps=0.1, steps=2, step_size=0.1)
        assert not torch.is_grad_enabled()
    assert seen == [False, False]
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_are_restored_after_an_error(inputs):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))

    def fail(out):
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        pgd(model, inputs, fail, eps=0.1, steps=1, step_size=0.1)
    assert model.training and model[1].training


def test_inputs_are_not_changed(inputs, weights):
    before = inputs.clone()
    inputs.requires_grad_()
    moved = pgd(linear(weights), inputs, identity, eps=0.1, steps=3, step_size=0.1)
    assert torch.equal(inputs.detach(), before) and inputs.grad is None and inputs.requires_grad
    still = pgd(linear(weights), inputs, identity, eps=0.0, steps=3, step_size=0.1, norm="l2")
    torch.testing.assert_close(still, before)
    assert still.data_ptr() != inputs.data_ptr() and moved.isfinite().all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(n, norm, inputs, weights):
    moved = pgd(linear(weights), inputs[:n], identity, eps=0.1, steps=2, step_size=0.1, norm=norm)
    assert moved.shape == (n, 3, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"eps": -0.1}, ValueError, "eps must be >= 0, got -0.1"),
        ({"eps": math.nan}, ValueError, "eps must be finite, got nan"),
        ({"steps": -1}, ValueError, "steps must be >= 0, got -1"),
        ({"steps": 1.0}, TypeError, "steps must be an int, got float 1.0"),
        ({"step_size": 0}, ValueError, "step_size must be > 0, got 0"),
        ({"norm": "l1"}, ValueError, "norm must be one of 'linf', 'l2', got 'l1'"),
        ({"clip": (1, 0)}, ValueError, r"clip must be \(low, high\) with low < high, got \(1, 0\)"),
        ({"clip": (0, 0.5, 1)}, ValueError, r"clip must be \(low, high\) with low < high, got \(0, 0.5, 1\)"),
        ({"clip": 1}, TypeError, "clip must be None or a pair of numbers, got int 1"),
        ({"clip": (0.5, 1)}, ValueError, r"x must lie in clip = \[0.5, 1\], got values from 0.2"),
        ({"x": torch.zeros(2, dtype=torch.int64)}, TypeError, "x must have a floating-point dtype"),
        ({"x": torch.tensor(0.5)}, ValueError, r"x must have shape \(N, ...\), got \(\)"),
        ({"x": 0.5}, TypeError, "x must be a torch.Tensor, got float"),
    ],
)
def test_bad_arguments_are_named(change, error, message, inputs, weights):
    arguments = {"x": inputs, "eps": 0.1, "steps": 1, "step_size": 0.1} | change
    with pytest.raises(error, match=message):
        pgd(linear(weights), arguments.pop("x"), identity, **arguments)
