"""The digits and their one split."""

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
    data.images._load.cache_clear()
    assert data.digits("test").index[:8].tolist() == FIRST_TEST_ROWS


def test_a_caller_cannot_spoil_the_next_one():
    data.digits("train").images.zero_()
    data.digits().labels.zero_()
    assert data.digits("train").images.sum() > 0 and data.digits().labels.sum() > 0


@pytest.mark.parametrize("split", ["valid", "", 1])
def test_unknown_split_is_refused(split):
    with pytest.raises(ValueError, match=r"split must be 'train', 'test' or None, got"):
        data.digits(split)
