"""Several heads and their temperatures: against loops, within bounds, and with gradients for every parameter."""

import pytest
import torch
from torch.nn import functional

from lossbook.losses import amcl
from lossbook.nn import AdaptiveTemperature, MultiHeadProjector


@pytest.fixture
def features(generator):
    return torch.randn(6, 8, generator=generator)


@pytest.fixture
def views(generator):
    return functional.normalize(torch.randn(2, 3, 6, 4, generator=generator), dim=3).unbind()


def test_heads_equal_a_loop(features, generator):
    projector = MultiHeadProjector(8, 4, num_heads=3, hidden_dim=5, generator=generator)
    z = projector(features)
    assert z.shape == (3, 6, 4)
    for c in range(3):
        hidden = torch.relu(features @ projector.hidden["weight"][c] + projector.hidden["bias"][c])
        out = hidden @ projector.output["weight"][c] + projector.output["bias"][c]
        torch.testing.assert_close(z[c], out / out.norm(dim=1, keepdim=True))
    torch.testing.assert_close(z.norm(dim=2), torch.ones(3, 6))


def test_heads_differ_and_default_to_three_of_the_width_of_the_features(features):
    projector = MultiHeadProjector(8, 4)
    assert projector.hidden["weight"].shape == (3, 8, 8) and projector.output["weight"].shape == (3, 8, 4)
    z = projector(features)
    assert not torch.allclose(z[0], z[1]) and not torch.allclose(z[1], z[2])
    assert MultiHeadProjector(8, 4, num_heads=1)(features[:0]).shape == (1, 0, 4)


def test_weights_are_drawn_like_those_of_linear_layers():
    projector = MultiHeadProjector(64, 16, num_heads=4, hidden_dim=25, generator=torch.Generator().manual_seed(0))
    for layer, bound in ((projector.hidden, 1 / 8), (projector.output, 1 / 5)):
        weight = layer["weight"].detach()
        assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_temperatures_equal_a_loop(views, generator):
    module = AdaptiveTemperature(4, num_heads=3, generator=generator)
    with torch.no_grad():
        module.bias.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    tau = module(*views)
    assert tau.shape == (3, 6, 6)
    for c in range(3):
        for i in range(6):
            for j in range(6):
                product = module.phi(views[0][c, i]) @ module.phi(views[1][c, j])
                expected = 0.05 + 0.95 * torch.sigmoid(product + module.bias[c])
                torch.testing.assert_close(tau[c, i, j], expected)


@pytest.mark.parametrize(("low", "init", "high"), [(0.05, 0.2, 1.0), (0.01, 0.011, 5.0), (0.3, 0.4, 0.5)])
def test_temperatures_start_near_init_and_stay_inside(views, low, init, high, generator):
    module = AdaptiveTemperature(4, num_heads=3, low=low, init=init, high=high, generator=generator)
    tau = module(*views)
    assert tau.mean().item() == pytest.approx(init, rel=0.15)
    with torch.no_grad():
        module.phi.weight *= 10
    tau = module(*views)
    assert (tau > low).all() and (tau < high).all()


def test_temperatures_are_symmetric(views):
    module = AdaptiveTemperature(4, num_heads=3)
    first, second = views
    torch.testing.assert_close(module(first, first), module(first, first).mT)
    torch.testing.assert_close(module(first, second), module(second, first).mT)


def test_every_parameter_gets_a_gradient(features, generator):
    projector = MultiHeadProjector(8, 4, generator=generator)
    temperature = AdaptiveTemperature(4, num_heads=3, generator=generator)
    other = features + torch.randn(features.shape, generator=generator)
    z_a, z_b = projector(features), projector(other)
    amcl(z_a, z_b, temperature(z_a, z_b)).backward()
    for name, parameter in [*projector.named_parameters(), *temperature.named_parameters()]:
        assert parameter.grad.abs().amax() > 0, name
    assert all((projector.output["weight"].grad[c] != 0).any() for c in range(3))


def test_both_compile_and_keep_their_state(features, generator):
    projector = MultiHeadProjector(8, 4, generator=generator)
    copy = MultiHeadProjector(8, 4)
    copy.load_state_dict(projector.state_dict())
    temperature = AdaptiveTemperature(4, num_heads=3, generator=generator)
    torch.testing.assert_close(copy(features), projector(features), rtol=0, atol=0)

    def both(x):
        z = projector(x)
        return temperature(z, z)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), both(features))


def test_a_generator_decides_and_the_global_state_stays():
    before = torch.get_rng_state()
    weights = [MultiHeadProjector(8, 4, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    phis = [AdaptiveTemperature(8, num_heads=2, generator=torch.Generator().manual_seed(1)).phi for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights[0].hidden["weight"], weights[1].hidden["weight"])
    assert torch.equal(phis[0].weight, phis[1].weight)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"in_dim": 0}, ValueError, "in_dim must be >= 1, got 0"),
        ({"out_dim": -1}, ValueError, "out_dim must be >= 1, got -1"),
        ({"num_heads": 0}, ValueError, "num_heads must be >= 1, got 0"),
        ({"hidden_dim": 0}, ValueError, "hidden_dim must be >= 1, got 0"),
        ({"num_heads": 2.0}, TypeError, "num_heads must be an int, got float 2.0"),
    ],
)
def test_bad_sizes_of_heads_are_named(options, error, message):
    with pytest.raises(error, match=message):
        MultiHeadProjector(**{"in_dim": 4, "out_dim": 2} | options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"low": 0.0}, ValueError, "low must be > 0, got 0.0"),
        ({"init": 0.05}, ValueError, r"init must lie in \(low, high\) = \(0.05, 1.0\), got 0.05"),
        ({"init": 1.0}, ValueError, r"init must lie in \(low, high\) .*, got 1.0"),
        ({"high": 0.1}, ValueError, r"init must lie in \(low, high\) = \(0.05, 0.1\), got 0.2"),
        ({"high": "hot"}, TypeError, "high must be a number, got str 'hot'"),
        ({"dim": 0}, ValueError, "dim must be >= 1, got 0"),
        ({"num_heads": True}, TypeError, "num_heads must be an int, got bool True"),
    ],
)
def test_bad_bounds_are_named(options, error, message):
    with pytest.raises(error, match=message):
        AdaptiveTemperature(**{"dim": 4, "num_heads": 2} | options)


def test_bad_inputs_are_named(features, views):
    projector, temperature = MultiHeadProjector(8, 4), AdaptiveTemperature(4, num_heads=3)
    with pytest.raises(ValueError, match=r"features must have shape \(B, in_dim\) = \(\*, 8\), got \(6, 7\)"):
        projector(features[:, :7])
    with pytest.raises(TypeError, match=r"features must have a floating-point dtype, got torch\.int64"):
        projector(features.long())
    with pytest.raises(ValueError, match=r"z_a must have shape \(C, B, dim\) = \(3, \*, 4\), got \(2, 6, 4\)"):
        temperature(views[0][:2], views[1])
    with pytest.raises(ValueError, match=r"z_b must have shape z_a\.shape = \(3, 6, 4\), got \(3, 5, 4\)"):
        temperature(views[0], views[1][:, :5])
    with pytest.raises(ValueError, match=r"z_b must have the dtype of z_a, torch\.float32, got torch\.float64"):
        temperature(views[0], views[1].double())
