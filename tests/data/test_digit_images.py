"""The digits, their one split, and the pairs made of them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lossbook import data

FIRST_TEST_ROWS = [7, 8, 9, 13, 15, 17, 19, 25]


def test_all_digits_are_scikit_learns():
    raw, ours = load_digits(), data.digits()
    assert ours.images.shape == (1797, 8, 8) and ours.images.dtype == torch.float32
    assert ours.labels.dtype == torch.int64 and len(ours) == 1797
    np.testing.assert_array_equal(ours.images.numpy() * 16, raw.images.astype(np.float32))
    np.testing.assert_array_equal(ours.labels.numpy(), raw.target)
    assert ours.images.min() == 0 and ours.images.max() == 1


def test_the_split_shares_no_image_and_loses_none():
    train, test = data.digits("train"), data.digits("test")
    assert (len(train), len(test)) == (1347, 450)
    assert sorted([*train.index.tolist(), *test.index.tolist()]) == list(range(1797))
    # Not only other rows: no picture of the one part occurs in the other.
    pictures = [{image.numpy().tobytes() for image in part.images} for part in (train, test)]
    assert not pictures[0] & pictures[1]


def test_the_split_is_stratified_and_fixed():
    whole, test = data.digits(), data.digits("test")
    share = torch.bincount(test.labels) / torch.bincount(whole.labels)
    assert (share - 0.25).abs().max() < 0.005
    torch.testing.assert_close(whole.images[test.index], test.images)
    assert test.index[:8].tolist() == FIRST_TEST_ROWS
    assert test.index.tolist() == data.digits("test").index.tolist()


def test_the_split_ignores_the_global_seed():
    np.random.seed(1)  # noqa: NPY002 - the state that scikit-learn would read
    torch.manual_seed(1)
    data.digit_images._load.cache_clear()
    assert data.digits("test").index[:8].tolist() == FIRST_TEST_ROWS


def test_a_caller_cannot_spoil_the_next_one():
    data.digits("train").images.zero_()
    data.digits().labels.zero_()
    assert data.digits("train").images.sum() > 0 and data.digits().labels.sum() > 0


def test_the_training_images_are_split_once_more():
    train, fit, validation = (data.digits(part) for part in ("train", "fit", "validation"))
    assert (len(fit), len(validation)) == (1077, 270)
    assert sorted([*fit.index.tolist(), *validation.index.tolist()]) == train.index.tolist()
    share = torch.bincount(validation.labels) / torch.bincount(train.labels)
    assert (share - 0.2).abs().max() < 0.01


@pytest.mark.parametrize("split", ["valid", "", 1])
def test_unknown_split_is_refused(split):
    with pytest.raises(ValueError, match=r"split must be one of 'train', 'fit', 'validation', 'test', None, got"):
        data.digits(split)


@pytest.mark.parametrize("split", ["train", "fit", "validation", "test"])
def test_pairs_show_digits_of_their_split_only(split):
    pairs, whole = data.two_digit_images(split, 2000, seed=3), data.digits()
    assert pairs.images.shape == (2000, 8, 16) and pairs.images.dtype == torch.float32
    assert pairs.labels.shape == (2000,) and pairs.labels.dtype == torch.int64 and len(pairs) == 2000
    assert set(pairs.index.flatten().tolist()) <= set(data.digits(split).index.tolist())
    for side in (0, 1):
        digit = pairs.labels // 10 if side == 0 else pairs.labels % 10
        assert torch.equal(pairs.images[:, :, 8 * side : 8 * side + 8], whole.images[pairs.index[:, side]])
        assert torch.equal(digit, whole.labels[pairs.index[:, side]])


def test_pairs_use_all_digits_evenly():
    pairs, test = data.two_digit_images("test", 45_000, seed=0), data.digits("test")
    assert (pairs.labels.bincount() == 450).all()
    for side in (0, 1):
        count = pairs.index[:, side].bincount(minlength=1797)[test.index]
        # 4,500 draws for each digit among about 45 images: 100 each, give or take 10.
        assert 50 < count.min() and count.max() < 150
    assert np.corrcoef(pairs.index.numpy().T)[0, 1] ** 2 < 1e-3


@pytest.mark.parametrize("n", [1, 99, 101])
def test_classes_of_pairs_are_as_even_as_possible(n):
    count = data.two_digit_images("train", n, seed=1).labels.bincount(minlength=100)
    assert count.sum() == n and count.max() - count.min() <= 1


def test_pairs_depend_on_their_seed_alone():
    state = torch.get_rng_state()
    first = data.two_digit_images("train", 300, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    again, other = (data.two_digit_images("train", 300, seed=seed) for seed in (5, 6))
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, 5, 0), ValueError, "split must be one of .*, got None"),
        (("all", 5, 0), ValueError, "split must be one of .*, got 'all'"),
        (("train", 0, 0), ValueError, "n must be > 0, got 0"),
        (("train", 5.0, 0), TypeError, "n must be an int, got float 5.0"),
        (("train", 5, -1), ValueError, "seed must be >= 0, got -1"),
        (("train", 5, None), TypeError, "seed must be an int, got NoneType"),
    ],
)
def test_bad_arguments_for_pairs_are_named(arguments, error, message):
    split, n, seed = arguments
    with pytest.raises(error, match=message):
        data.two_digit_images(split, n, seed=seed)


def test_no_import_hides_the_function():
    """In a fresh process, because this one has imported every name already."""
    code = "import lossbook.data.digit_images; from lossbook.data import Digits, digits; digits()"
    subprocess.run([sys.executable, "-c", code], check=True)
