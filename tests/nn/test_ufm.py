"""The unconstrained feature model against brute force, explicit minimizers, special cases and its own training."""

import math

import numpy as np
import pytest
import torch
from torch import nn as torch_nn

from lossbook.metrics import nc1, nc2, nc3, nc4
from lossbook.nn import UnconstrainedFeatureModel, collapse_threshold, ufm_ce_margin, ufm_mse_geometry
from lossbook.nn.ensemble import Ensemble

COUNTS = [60, 30, 15, 8, 4]
DECAYS = {1: ([0.02], 0.008), 2: ([0.009, 0.004], 0.012), 3: ([0.005, 0.008, 0.003], 0.006), 5: ([0.003] * 5, 0.004)}

every_depth = pytest.mark.parametrize("depth", DECAYS)


class Objective(torch_nn.Module):
    """What functional calls and ensembles see: the objective as the output of a module."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self):
        return self.model.objective()


def scalar_objective(z, count, samples, decays):
    depth = len(decays) - 1
    mean = math.prod(decays) ** (1 / (depth + 1))
    return (z - math.sqrt(count)) ** 2 / (2 * samples) + (depth + 1) / 2 * mean * z ** (2 / (depth + 1))


def decay_at(depth, ratio, count, samples):
    """Equal decays with b / count = ratio times the threshold."""
    return (ratio * collapse_threshold(depth) * count) ** (depth / (depth + 1)) / samples


def at_minimizer(counts, lambda_w, lambda_h, generator, bias=False, extra=3):
    """A model put where the geometry says, on random orthonormal bases."""
    classes, depth = len(counts), len(lambda_w)
    model = UnconstrainedFeatureModel(counts, classes + extra, lambda_w=lambda_w, lambda_h=lambda_h, bias=bias)
    geometry = ufm_mse_geometry(counts, lambda_w, lambda_h, bias=bias)
    mean = math.prod([*lambda_w, lambda_h]) ** (1 / (depth + 1))
    cost = mean * torch.from_numpy(geometry.singular_values) ** (2 / (depth + 1))  # decay times squared singular value
    width = classes + extra
    left = torch.eye(classes, dtype=torch.float64)
    if bias:  # directions of the centered labels, the mean last
        ones = torch.ones(classes, 1, dtype=torch.float64)
        left = torch.linalg.qr(torch.cat([ones, torch.eye(classes, classes - 1, dtype=torch.float64)], 1)).Q.roll(-1, 1)
        model.bias.data.fill_(1 / classes)
    inner = [torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q for _ in lambda_w]
    outputs = [basis[:, :classes] for basis in inner[1:]] + [left]
    for decay, weight, source, target in zip(lambda_w, model.weights, inner, outputs, strict=True):
        weight.data = target @ torch.diag((cost / decay).sqrt()) @ source[:, :classes].T
    right = left / torch.tensor(counts, dtype=torch.float64).sqrt()[:, None]
    means = right @ torch.diag((cost / lambda_h).sqrt()) @ inner[0][:, :classes].T
    model.features.data = means[model.labels]
    return model, geometry


def test_thresholds():
    assert collapse_threshold(1) == 1.0
    assert collapse_threshold(2) == 0.25
    assert [collapse_threshold(m) for m in (3, 4)] == pytest.approx([0.17638, 0.14247], abs=5e-6)
    assert collapse_threshold(3) == pytest.approx(2 ** (2 / 3) / 9, rel=1e-15)


@every_depth
def test_strengths_are_the_grid_minima(depth):
    lambda_w, lambda_h = DECAYS[depth]
    geometry = ufm_mse_geometry(COUNTS, lambda_w, lambda_h)
    for z, count in zip(geometry.singular_values, COUNTS, strict=True):
        grid = np.linspace(0, math.sqrt(count), 200_001)
        values = scalar_objective(grid, count, sum(COUNTS), [*lambda_w, lambda_h])
        assert z == pytest.approx(grid[values.argmin()], abs=2e-5 * math.sqrt(count))
        assert scalar_objective(z, count, sum(COUNTS), [*lambda_w, lambda_h]) <= values.min() + 1e-15


def test_one_layer_is_soft_thresholding():
    counts, lambda_w, lambda_h = [100, 25, 4, 1], 0.008, 0.018
    geometry = ufm_mse_geometry(counts, [lambda_w], lambda_h)
    samples = sum(counts)
    expected = np.maximum(np.sqrt(counts) - samples * math.sqrt(lambda_w * lambda_h), 0)
    np.testing.assert_allclose(geometry.singular_values, expected, rtol=1e-13)
    assert geometry.collapsed.tolist() == [False, False, False, True]
    # The lengths written out for one layer.
    w = np.sqrt(np.array(counts) * lambda_h / lambda_w) - samples * lambda_h
    np.testing.assert_allclose(geometry.weight_sq_norms, np.maximum(w, 0), rtol=1e-12)
    means = geometry.weight_sq_norms / (geometry.weight_sq_norms + samples * lambda_h) ** 2
    np.testing.assert_allclose(geometry.feature_sq_norms, means, rtol=1e-12)


def test_class_means_are_not_monotone():
    geometry = ufm_mse_geometry(COUNTS, [0.012], 0.012)
    assert geometry.feature_sq_norms == pytest.approx([0.106, 0.136, 0.165, 0.178, 0.149], abs=5e-4)
    assert (np.diff(geometry.weight_sq_norms) < 0).all()


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_the_drop_at_the_threshold(depth):
    def share(ratio):
        decay = decay_at(depth, ratio, 6, 66)
        return ufm_mse_geometry([60, 6], [decay] * depth, decay).singular_values[1] / math.sqrt(6)

    assert share(1 - 1e-9) == pytest.approx((depth - 1) / depth, abs=1e-4)
    assert share(1 + 1e-9) == 0.0
    assert 1 > share(0.1) > share(0.5) > share(0.9) > (depth - 1) / depth


@every_depth
def test_little_decay_interpolates(depth):
    geometry = ufm_mse_geometry(COUNTS, [1e-12] * depth, 1e-12)
    np.testing.assert_allclose(geometry.singular_values, np.sqrt(COUNTS), rtol=1e-9)
    assert geometry.objective < 1e-8


@every_depth
@pytest.mark.parametrize("bias", [False, True], ids=["bias-free", "bias"])
def test_the_minimizer_is_stationary_and_as_low_as_predicted(depth, bias, generator):
    lambda_w, lambda_h = DECAYS[depth]
    model, geometry = at_minimizer([12] * 4 if bias else COUNTS, lambda_w, lambda_h, generator, bias)
    assert not geometry.collapsed.all()
    value = model.objective()
    assert value.item() == pytest.approx(geometry.objective, rel=1e-12)
    for gradient in torch.autograd.grad(value, list(model.parameters())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    rows, means = model.weights[-1].detach(), model.class_means()
    np.testing.assert_allclose(rows.square().sum(1), geometry.weight_sq_norms, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(means.square().sum(1), geometry.feature_sq_norms, rtol=1e-10, atol=1e-14)


@every_depth
def test_no_point_nearby_is_lower(depth, generator):
    model, geometry = at_minimizer(COUNTS, *DECAYS[depth], generator)
    points = [parameter.detach().clone() for parameter in model.parameters()]
    for scale in (1e-3, 1e-1, 1.0):
        for _ in range(10):
            for parameter, point in zip(model.parameters(), points, strict=True):
                noise = torch.randn(point.shape, generator=generator, dtype=torch.float64)
                parameter.data = point + scale * noise
            assert model.objective().item() > geometry.objective


@pytest.mark.parametrize("seed", [0, 7])
def test_training_reaches_one_layer_from_any_seed(seed):
    model = UnconstrainedFeatureModel([20, 6, 3], 5, lambda_w=[0.02], lambda_h=0.03, seed=seed)
    history = model.fit(800)
    geometry = ufm_mse_geometry([20, 6, 3], [0.02], 0.03)
    assert len(history) == 800
    assert history[0] > history[-1] >= model.objective().item() - 1e-9
    assert model.objective().item() == pytest.approx(geometry.objective, abs=1e-7)
    np.testing.assert_allclose(model.weights[0].detach().square().sum(1), geometry.weight_sq_norms, atol=1e-3)


def test_a_trained_model_has_collapsed():
    """All four metrics at once, on the balanced model with a bias: a simplex ETF."""
    model = UnconstrainedFeatureModel([6] * 4, 8, lambda_w=[0.01], lambda_h=0.01, bias=True)
    model.fit(800)
    geometry = ufm_mse_geometry([6] * 4, [0.01], 0.01, bias=True)
    rows, means = model.weights[0], model.class_means()
    assert nc1(model.features, model.labels) < 1e-8
    assert max(nc2(rows), nc2(means), nc3(rows, means)) < 1e-5
    assert nc4(model.features, model.labels, rows, model.bias) == 0.0
    np.testing.assert_allclose(rows.detach().square().sum(1), geometry.weight_sq_norms, rtol=1e-4)
    assert geometry.singular_values[-1] == 0
    assert not geometry.collapsed.any()


def test_a_balanced_model_with_too_much_decay_is_erased():
    geometry = ufm_mse_geometry([4] * 3, [0.5], 0.5, bias=True)
    assert geometry.collapsed.all()
    assert geometry.objective == pytest.approx((3 - 1) * 4 / (2 * 12))  # the bias alone: variance of the labels
    assert ufm_ce_margin(3, 4, [0.5], 0.5) == 0.0
    assert ufm_ce_margin(3, 4, [0.5, 0.5], 0.5) == 0.0


@pytest.mark.parametrize("sizes", [(2, 1), (5, 10), (1000, 30)])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_margin_is_the_grid_minimum(sizes, depth):
    classes, per_class = sizes
    decay = 0.02 / (classes * per_class)
    c = ufm_ce_margin(classes, per_class, [decay] * depth, decay)
    power = 2 / (depth + 1)

    def value(c):
        return np.log1p((classes - 1) * np.exp(-c)) + decay / power * (classes - 1) * (c * per_class**0.5) ** power

    grid = np.linspace(0, 40, 400_001)
    assert c == pytest.approx(grid[value(grid).argmin()], abs=2e-4)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_margin_drops_to_zero_where_that_is_lower(depth):
    """Over a range of decays, some of which leave a local minimum that the origin beats."""
    power, grid = 2 / (depth + 1), np.linspace(0, 20, 20_001)
    margins, locally = [], 0
    for decay in np.geomspace(1e-3, 1, 60):
        value = np.log1p(3 * np.exp(-grid)) + decay / power * 3 * (grid * 2) ** power
        margins.append(ufm_ce_margin(4, 4, [decay] * depth, decay))
        assert margins[-1] == pytest.approx(grid[value.argmin()], abs=1e-3)
        locally += margins[-1] == 0 and (np.diff(value) < 0).any()
    assert margins[0] > 0 == margins[-1]
    assert (locally > 0) == (depth > 1)


def test_one_layer_cross_entropy_reaches_its_margin():
    model = UnconstrainedFeatureModel([5] * 3, 4, lambda_w=[0.02], lambda_h=0.01, loss="ce", bias=True)
    model.fit(800)
    logits = model().detach()
    c = ufm_ce_margin(3, 5, [0.02], 0.01)
    margins = logits.gather(1, model.labels[:, None]) - logits
    torch.testing.assert_close(margins, c * (margins > 0.5).double(), rtol=0, atol=1e-3)
    assert nc2(model.class_means()) < 1e-4


def test_two_layer_cross_entropy_has_points_below_the_simplex():
    """Three classes in a plane and two on a line: rank three, and a lower objective than the best ETF of rank four."""
    decay, classes, per_class = 0.003, 5, 10
    c = ufm_ce_margin(classes, per_class, [decay] * 2, decay)
    etf = math.log1p(4 * math.exp(-c)) + 1.5 * decay * 4 * (c * math.sqrt(per_class)) ** (2 / 3)
    model = UnconstrainedFeatureModel(
        [per_class] * classes, 16, lambda_w=[decay] * 2, lambda_h=decay, loss="ce", bias=True, seed=0
    )
    model.fit(1000)
    assert model.objective().item() < etf - 0.003
    assert torch.linalg.matrix_rank(model.class_means(), rtol=1e-2) == 3


def test_the_origin_traps_two_layers_but_not_one():
    for depth, trapped in ((1, False), (2, True), (3, True)):
        model = UnconstrainedFeatureModel([9, 4], 3, lambda_w=[0.01] * depth, lambda_h=0.01, init_scale=1e-3)
        for _ in range(300):  # plain gradient descent
            value = model.objective()
            for p, gradient in zip(model.parameters(), torch.autograd.grad(value, [*model.parameters()]), strict=True):
                p.data -= 0.5 * gradient
        erased = max(p.abs().max().item() for p in model.parameters()) < 1e-3
        assert erased == trapped, depth


@pytest.mark.parametrize("loss", ["mse", "ce"])
@pytest.mark.parametrize("how", ["batched", "vmap"])
def test_a_model_of_an_ensemble_trains_as_alone(loss, how):
    """Slicing the list of weights once cut the graph of inner layers under torch.func."""
    kinds = [dict(lambda_w=[decay] * 3, lambda_h=decay, bias=True, seed=k) for k, decay in enumerate((0.01, 0.02))]
    models = [UnconstrainedFeatureModel([3, 2], 4, loss=loss, **kind) for kind in kinds]
    ensemble = Ensemble([Objective(model) for model in models])
    objectives = ensemble() if how == "vmap" else ensemble.stacked.model.objective()
    assert objectives.tolist() == pytest.approx([model.objective().item() for model in models], rel=1e-12)
    objectives.sum().backward()
    for place, model in enumerate(models):
        model.objective().backward()
        for name, parameter in model.named_parameters():
            stacked = ensemble.get_parameter(f"stacked.model.{name}")
            torch.testing.assert_close(stacked.grad[place], parameter.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_gradients(loss):
    model = UnconstrainedFeatureModel([2, 1], 3, lambda_w=[0.1, 0.2], lambda_h=0.3, loss=loss, bias=True)
    names = [name for name, _ in model.named_parameters()]

    def value(*tensors):
        named = {f"model.{name}": tensor for name, tensor in zip(names, tensors, strict=True)}
        return torch.func.functional_call(Objective(model), named, ())

    assert torch.autograd.gradcheck(value, tuple(p.detach().clone().requires_grad_() for p in model.parameters()))


def test_shapes_names_and_random_state():
    state = torch.random.get_rng_state()
    model = UnconstrainedFeatureModel([3, 1], 4, lambda_w=[0.1, 0.1, 0.1], lambda_h=0.1, dtype=torch.float32, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.features.shape == (4, 4)
    assert [tuple(weight.shape) for weight in model.weights] == [(4, 4), (4, 4), (2, 4)]
    assert model.bias is None
    assert model.labels.tolist() == [0, 0, 0, 1]
    assert model().shape == (4, 2)
    assert model().dtype == torch.float32
    assert model.class_means().shape == (2, 4)
    torch.testing.assert_close(model.class_means()[0], model.features.detach()[:3].mean(0))
    assert not model.class_means().requires_grad
    double = UnconstrainedFeatureModel([3, 1], 4, lambda_w=[0.1, 0.1, 0.1], lambda_h=0.1, seed=3)
    torch.testing.assert_close(model.features.double(), double.features, rtol=1e-6, atol=1e-6)
    other = UnconstrainedFeatureModel([3, 1], 4, lambda_w=[0.1, 0.1, 0.1], lambda_h=0.1, seed=4)
    assert not torch.equal(double.features, other.features)


def test_counts_may_be_arrays_and_classes_one():
    alone = ufm_mse_geometry(np.array([9]), np.array([0.1]), 0.1)
    assert alone.singular_values == pytest.approx([3 - 0.9])
    assert ufm_mse_geometry(torch.tensor([9, 4]), (0.1,), 0.1).singular_values.dtype == np.float64


GOOD = {"class_counts": [4, 2], "feature_dim": 3, "lambda_w": [0.1], "lambda_h": 0.1}


def model_with(**changes):
    arguments = GOOD | changes
    return UnconstrainedFeatureModel(arguments.pop("class_counts"), arguments.pop("feature_dim"), **arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: collapse_threshold(0), ValueError, "depth must be >= 1, got 0"),
        (lambda: collapse_threshold(1.5), TypeError, "depth must be an int, got float 1.5"),
        (lambda: ufm_mse_geometry([], [0.1], 0.1), ValueError, r"class_counts must hold at least one .*, got \[\]"),
        (lambda: ufm_mse_geometry([3, 0], [0.1], 0.1), ValueError, r"class_counts must .* >= 1, got \[3, 0\]"),
        (lambda: ufm_mse_geometry([3, 1.5], [0.1], 0.1), TypeError, r"class_counts must be a sequence of ints"),
        (lambda: ufm_mse_geometry(3, [0.1], 0.1), TypeError, "class_counts must be a sequence of ints, got 3"),
        (lambda: ufm_mse_geometry([3], [], 0.1), ValueError, r"lambda_w must hold at least one number, got \[\]"),
        (lambda: ufm_mse_geometry([3], 0.1, 0.1), TypeError, "lambda_w must be a sequence of one number for each"),
        (lambda: ufm_mse_geometry([3], [0.1, -1.0], 0.1), ValueError, r"lambda_w\[1\] must be > 0, got -1.0"),
        (lambda: ufm_mse_geometry([3], [0.1], 0.0), ValueError, "lambda_h must be > 0, got 0.0"),
        (lambda: ufm_mse_geometry([3], [0.1], math.nan), ValueError, "lambda_h must be finite, got nan"),
        (lambda: ufm_mse_geometry([3, 2], [0.1], 0.1, bias=True), ValueError, r"class_counts must hold .* equal"),
        (lambda: ufm_mse_geometry([3], [0.1], 0.1, bias=True), ValueError, r"class_counts must hold at least 2 equal"),
        (lambda: ufm_ce_margin(1, 4, [0.1], 0.1), ValueError, "num_classes must be >= 2, got 1"),
        (lambda: ufm_ce_margin(2, 0, [0.1], 0.1), ValueError, "per_class must be >= 1, got 0"),
        (lambda: ufm_ce_margin(2, 4.0, [0.1], 0.1), TypeError, "per_class must be an int, got float 4.0"),
        (lambda: ufm_ce_margin(2, 4, [0.0], 0.1), ValueError, r"lambda_w\[0\] must be > 0, got 0.0"),
        (lambda: model_with(feature_dim=1), ValueError, "feature_dim must be >= the number of classes, 2, got 1"),
        (lambda: model_with(class_counts=[4, 0]), ValueError, r"class_counts must .* >= 1, got \[4, 0\]"),
        (lambda: model_with(lambda_h=-0.1), ValueError, "lambda_h must be > 0, got -0.1"),
        (lambda: model_with(loss="hinge"), ValueError, "loss must be one of 'mse', 'ce', got 'hinge'"),
        (lambda: model_with(init_scale=0.0), ValueError, "init_scale must be > 0, got 0.0"),
        (lambda: model_with().fit(0), ValueError, "steps must be >= 1, got 0"),
        (lambda: model_with().fit(1.0), TypeError, "steps must be an int, got float 1.0"),
        (lambda: model_with().fit(1, lr=0.0), ValueError, "lr must be > 0, got 0.0"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("loss", ["mse", "ce"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_differentiate_is_autograd(loss, depth, bias):
    kind = dict(lambda_w=[0.01, 0.03, 0.02][:depth], lambda_h=0.05, loss=loss, bias=bias)
    models = [UnconstrainedFeatureModel(COUNTS, 8, **kind, seed=seed) for seed in range(2)]
    stacked = Ensemble(models).stacked
    stacked.differentiate()
    found = [parameter.grad for parameter in stacked.parameters()]
    expected = torch.autograd.grad(stacked.objective().sum(), tuple(stacked.parameters()))
    torch.testing.assert_close(found, list(expected))
    models[1].differentiate()  # replaces what was there
    models[1].differentiate()
    torch.testing.assert_close([parameter.grad for parameter in models[1].parameters()], [part[1] for part in found])
