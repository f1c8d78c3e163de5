"""Small training sets of digits with wrong labels."""

import pytest
import torch

from lossbook.data import digits, noisy_digits


def test_shapes_types_and_sizes():
    X, Y, X_test, Y_test = noisy_digits()
    assert X.shape == (150, 64)
    assert Y.shape == (150, 10)
    assert X_test.shape == (1647, 64)
    assert Y_test.shape == (1647, 10)
    assert all(part.dtype == torch.float64 for part in (X, Y, X_test, Y_test))
    for part in (Y, Y_test):
        assert ((part == 0) | (part == 1)).all()
        assert (part.sum(1) == 1).all()


@pytest.mark.parametrize("n_train", [1, 1796])
def test_every_digit_is_used_once(n_train):
    X, _, X_test, _ = noisy_digits(n_train, normalise=False, seed=2)
    assert (len(X), len(X_test)) == (n_train, 1797 - n_train)
    rows = torch.cat([X, X_test]).float()
    assert torch.equal(rows.sort(0).values, digits().images.flatten(1).sort(0).values)
    labeled = {tuple(row.tolist()) for row in digits().images.flatten(1)}
    assert all(tuple(row.tolist()) in labeled for row in rows[:50])


def test_labels_are_right_but_for_the_noise():
    right = {
        tuple(image.tolist()): int(label)
        for image, label in zip(digits().images.flatten(1), digits().labels, strict=True)
    }
    X, Y, X_test, Y_test = noisy_digits(1000, 0.3, normalise=False, seed=1)
    wrong = sum(right[tuple(x.tolist())] != int(y.argmax()) for x, y in zip(X.float(), Y, strict=True))
    assert wrong == pytest.approx(0.9 * 300, abs=25)  # one redrawn label in ten is right by chance
    assert all(right[tuple(x.tolist())] == int(y.argmax()) for x, y in zip(X_test.float(), Y_test, strict=True))


def test_redrawn_labels_are_uniform():
    clean, noise = (noisy_digits(1796, share, seed=3)[1] for share in (0.0, 1.0))
    assert noise.sum(0).tolist() == pytest.approx([179.6] * 10, abs=50)
    assert ((clean * noise).sum() / 1796).item() == pytest.approx(0.1, abs=0.03)


def test_noise_grows_without_changing_what_was_drawn():
    clean, little, much = (noisy_digits(200, share, seed=5) for share in (0.0, 0.1, 0.4))
    assert torch.equal(clean[0], much[0])
    assert torch.equal(clean[2], much[2])
    changed = (little[1] != clean[1]).any(1)
    assert 0 < changed.sum() <= 20
    assert torch.equal(little[1][changed], much[1][changed])


def test_normalized_pixels():
    X, _, X_test, _ = noisy_digits(seed=4)
    pixels = torch.cat([X, X_test])
    torch.testing.assert_close(pixels.mean(0), torch.zeros(64, dtype=torch.float64))
    spread = pixels.std(0, correction=0)
    varied = digits().images.flatten(1).std(0) > 0
    torch.testing.assert_close(spread[varied], torch.full_like(spread[varied], 1 / 8))
    assert (spread[~varied] == 0).all()


def test_the_seed_decides_and_global_state_stays():
    before = torch.random.get_rng_state()
    first, again, other = (noisy_digits(seed=s) for s in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_train": 0}, ValueError, r"n_train must lie in \[1, 1796\], got 0"),
        ({"n_train": 1797}, ValueError, r"n_train must lie in \[1, 1796\], got 1797"),
        ({"n_train": 10.0}, TypeError, "n_train must be an int"),
        ({"label_noise": -0.1}, ValueError, r"label_noise must lie in \[0, 1\], got -0.1"),
        ({"label_noise": 1.1}, ValueError, r"label_noise must lie in \[0, 1\], got 1.1"),
        ({"label_noise": "0.2"}, TypeError, "label_noise must be a number"),
        ({"seed": -1}, ValueError, "seed must be >= 0, got -1"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        noisy_digits(**arguments)
