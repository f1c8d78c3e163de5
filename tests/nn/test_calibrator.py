"""The features and the calibrator: against a loop, within bounds, trainable, and harmless to accuracy."""

import math

import pytest
import torch

from lossbook.losses import correctness_aware_loss
from lossbook.nn import TemperatureCalibrator, transformed_features


@pytest.fixture
def views(generator):
    return [torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(4)]


def test_features_equal_a_loop(views):
    original, *copies = views
    features = transformed_features(original, copies, k=2)
    assert features.shape == (7, 6)
    for i in range(7):
        top = sorted(range(5), key=lambda c: -original[i, c])[:2]
        expected = [copy[i].softmax(0)[c].item() for copy in copies for c in top]
        assert features[i].tolist() == pytest.approx(expected, rel=1e-14)


def test_features_default_to_four_classes_and_may_take_all(views):
    original, *copies = views
    assert transformed_features(original, copies).shape == (7, 12)
    every = transformed_features(original, copies[:1], k=5)
    torch.testing.assert_close(every.sum(1), torch.ones(7, dtype=torch.float64))


def test_features_of_copies_that_change_nothing_are_the_own_softmax(views):
    features = transformed_features(views[0], [views[0]], k=3)
    torch.testing.assert_close(features, views[0].softmax(1).topk(3).values)


def test_features_of_half_precision_and_of_no_example(views):
    half = [view.half() for view in views]
    features = transformed_features(half[0], half[1:])
    assert features.dtype == torch.float16
    expected = transformed_features(*(lambda first, *rest: (first, rest))(*[view.double() for view in half]))
    torch.testing.assert_close(features.double(), expected, atol=1e-3, rtol=1e-3)
    assert transformed_features(views[0][:0], [views[1][:0]]).shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "message", "error"),
    [
        ({"k": 0}, r"k must lie in \[1, C\] = \[1, 5\], got 0", ValueError),
        ({"k": 6}, r"k must lie in \[1, C\] = \[1, 5\], got 6", ValueError),
        ({"k": 2.0}, "k must be an int, got float 2.0", TypeError),
        ({"transformed_logits": []}, "transformed_logits must hold .* at least one copy, got none", ValueError),
        ({"logits": torch.zeros(5)}, r"logits must have shape \(N, C\) .*, got \(5,\)", ValueError),
        ({"transformed_logits": [torch.zeros(7, 5), torch.zeros(6, 5)]}, r"_logits\[1\] .* got \(6, 5\)", ValueError),
        ({"transformed_logits": [torch.zeros(7, 4)]}, r"transformed_logits\[0\] .* got \(7, 4\)", ValueError),
        ({"transformed_logits": [torch.zeros(7, 5).long()]}, r"transformed_logits\[0\] .*int64", TypeError),
    ],
)
def test_features_name_bad_arguments(views, change, message, error):
    with pytest.raises(error, match=message):
        transformed_features(**{"logits": views[0], "transformed_logits": views[1:]} | change)


@pytest.fixture
def calibrator(generator):
    return TemperatureCalibrator(3, generator=generator)


def test_temperature_has_its_shape_and_range(calibrator):
    for scale in (0.0, 1.0, 1e3, 1e6):
        features = scale * torch.linspace(-1, 1, 60).view(20, 3)
        temperature = calibrator.temperature(features)
        assert temperature.shape == (20, 1)
        assert (temperature >= calibrator.t_min).all() and (temperature <= calibrator.t_max).all()


@pytest.mark.parametrize(("bounds", "start"), [({}, 1.0), ({"t_min": 2.0, "t_max": 8.0}, 4.0), ({"t_max": 0.9}, 0.3)])
def test_a_calibrator_of_zeros_starts_inside_its_bounds(bounds, start):
    calibrator = TemperatureCalibrator(3, **bounds)
    for parameter in calibrator.parameters():
        torch.nn.init.zeros_(parameter)
    temperature = calibrator.temperature(torch.ones(1, 3))
    assert temperature.item() == pytest.approx(start, rel=1e-6)
    temperature.sum().backward()
    assert calibrator.last.bias.grad.item() > 0


def test_forward_divides_by_the_temperature_and_keeps_every_answer(calibrator, generator):
    logits, features = torch.randn(50, 4, generator=generator), torch.rand(50, 3, generator=generator)
    scaled = calibrator(logits, features)
    torch.testing.assert_close(scaled, logits / calibrator.temperature(features))
    assert torch.equal(scaled.argsort(1), logits.argsort(1))


def test_every_parameter_learns(generator):
    """The gradient of the loss reaches the calibrator, from any of many initial weights."""
    logits, features = torch.randn(200, 4, generator=generator), torch.rand(200, 12, generator=generator)
    target = torch.randint(4, (200,), generator=generator)
    for _ in range(20):
        calibrator = TemperatureCalibrator(12, generator=generator)
        correctness_aware_loss(calibrator(logits, features), target).backward()
        assert all(p.grad.isfinite().all() for p in calibrator.parameters())
        assert calibrator.last.bias.grad != 0, "the bounds must not stop the gradient at the start"
    assert any((p.grad != 0).any() for p in calibrator.first.parameters())


def test_it_learns_to_doubt_where_the_features_say_so(generator):
    """Half of the examples are random guesses and marked as such; only there should confidence fall."""
    marked = torch.arange(400) % 2
    logits = 3 * torch.randn(400, 4, generator=generator)
    guess = torch.randint(4, (400,), generator=generator)
    target = torch.where(marked == 1, guess, logits.argmax(1))
    features = torch.stack([marked, 1 - marked], 1).float()
    calibrator = TemperatureCalibrator(2, generator=generator)
    optimizer = torch.optim.Adam(calibrator.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        correctness_aware_loss(calibrator(logits, features), target).backward()
        optimizer.step()
    temperature = calibrator.temperature(features)[:, 0]
    assert temperature[marked == 1].min() > 3 > 1 > temperature[marked == 0].max()


def test_a_generator_decides_the_weights_and_the_global_state_is_left_alone():
    before = torch.get_rng_state()
    first, again = (TemperatureCalibrator(6, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    for layer in (first.first, first.last):
        bound = layer.in_features**-0.5
        assert all((p.abs() <= bound).all() and p.abs().max() > 0 for p in layer.parameters())
    torch.manual_seed(3)
    without = TemperatureCalibrator(6)
    torch.manual_seed(3)
    assert torch.equal(without.first.weight, TemperatureCalibrator(6).first.weight)


def test_state_dict_round_trip_and_compile(calibrator, generator):
    logits, features = torch.randn(9, 4, generator=generator), torch.rand(9, 3, generator=generator)
    other = TemperatureCalibrator(3)
    other.load_state_dict(calibrator.state_dict())
    expected = calibrator(logits, features)
    assert torch.equal(other(logits, features), expected)
    torch.compiler.reset()
    compiled = torch.compile(calibrator, fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(compiled(logits, features), expected)


def test_no_example(calibrator):
    assert calibrator(torch.zeros(0, 4), torch.zeros(0, 3)).shape == (0, 4)


@pytest.mark.parametrize(
    ("arguments", "message", "error"),
    [
        ({"in_features": 0}, "in_features must be >= 1, got 0", ValueError),
        ({"in_features": 2.0}, "in_features must be an int, got float 2.0", TypeError),
        ({"hidden": 0}, "hidden must be >= 1, got 0", ValueError),
        ({"t_min": 0.0}, "t_min must be > 0, got 0.0", ValueError),
        ({"t_min": -1.0}, "t_min must be > 0, got -1.0", ValueError),
        ({"t_min": 2.0, "t_max": 2.0}, "t_max must be > t_min = 2.0, got 2.0", ValueError),
        ({"t_min": 20.0}, "t_max must be > t_min = 20.0, got 10.0", ValueError),
        ({"t_max": math.inf}, "t_max must be finite, got inf", ValueError),
        ({"t_max": "hot"}, "t_max must be a number, got str 'hot'", TypeError),
    ],
)
def test_calibrator_names_bad_arguments(arguments, message, error):
    with pytest.raises(error, match=message):
        TemperatureCalibrator(**{"in_features": 3} | arguments)


@pytest.mark.parametrize(
    ("logits", "features", "message"),
    [
        (
            torch.zeros(2, 4),
            torch.zeros(2, 2),
            r"features must have shape \(N, in_features\) = \(\*, 3\), got \(2, 2\)",
        ),
        (torch.zeros(2, 4), torch.zeros(3), r"features must have shape .*, got \(3,\)"),
        (torch.zeros(2, 4), torch.zeros(1, 3), r"logits must have shape \(N, C\) = \(1, \*\), got \(2, 4\)"),
        (torch.zeros(2), torch.zeros(2, 3), r"logits must have shape .*, got \(2,\)"),
    ],
)
def test_forward_names_bad_shapes(calibrator, logits, features, message):
    with pytest.raises(ValueError, match=message):
        calibrator(logits, features)


def test_forward_names_bad_types(calibrator):
    with pytest.raises(TypeError, match="features must have a floating-point dtype"):
        calibrator(torch.zeros(2, 4), torch.zeros(2, 3).long())
    with pytest.raises(TypeError, match="logits must have a floating-point dtype"):
        calibrator(torch.zeros(2, 4).long(), torch.zeros(2, 3))
