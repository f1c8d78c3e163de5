"""The wrapper of MNIST-1D: the package's own numbers, by a seed, with the global random states left alone."""

import random

import numpy as np
import pytest
import torch
from mnist1d.data import get_dataset_args, make_dataset

from lossbook import data
from lossbook.data.mnist1d import SAMPLED_POINTS

SHIFTS = {
    "none": {},
    "noise": {"corr_noise_scale": 0.5, "iid_noise_scale": 0.1},
    "shear": {"shear_scale": 2.0},
    "scale": {"scale_coeff": 0.9, "max_translation": 60},
}


@pytest.mark.parametrize("shift", SHIFTS)
def test_samples_are_the_packages(shift):
    settings = get_dataset_args()
    for name, value in {"num_samples": 40, "seed": 3, "train_split": 1.0, **SHIFTS[shift]}.items():
        setattr(settings, name, value)
    theirs, ours = make_dataset(settings), data.mnist1d_samples(40, seed=3, **SHIFTS[shift])
    np.testing.assert_allclose(ours.signals, theirs["x"], atol=1e-6)
    np.testing.assert_array_equal(ours.labels, theirs["y"])


def test_shapes_types_balance_and_scale():
    samples = data.mnist1d_samples(50)
    assert len(samples) == 50 and samples.signals.shape == (50, 40)
    assert samples.signals.dtype == torch.float32 and samples.labels.dtype == torch.int64
    assert samples.labels.bincount().tolist() == [5] * 10
    assert abs(samples.signals.mean()) < 1e-6 and abs(samples.signals.std(unbiased=False) - 1) < 1e-6


def test_a_seed_repeats_and_another_differs():
    first, again, other = (data.mnist1d_samples(20, seed=seed).signals for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_every_shift_changes_the_signals():
    plain = data.mnist1d_samples(20, seed=1).signals
    for options in (*SHIFTS.values(), {"scale_coeff": 0.9}, {"max_translation": 60}, {"iid_noise_scale": 0.1}):
        shifted = data.mnist1d_samples(20, seed=1, **options).signals
        assert torch.equal(shifted, plain) == (not options)


@pytest.mark.parametrize("fails", [False, True])
def test_global_random_states_are_left_alone(fails, monkeypatch):
    if fails:

        def broken(settings):
            np.random.seed(settings.seed)  # noqa: NPY002
            random.seed(settings.seed)
            raise MemoryError

        monkeypatch.setattr("mnist1d.data.make_dataset", broken)

    def states():
        return str(np.random.get_state(legacy=False)), random.getstate(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = states()
    if fails:
        with pytest.raises(MemoryError):
            data.mnist1d_samples(10)
    else:
        data.mnist1d_samples(10)
    assert states() == before


def test_the_global_seed_has_no_influence():
    np.random.seed(1)  # noqa: NPY002
    first = data.mnist1d_samples(10).signals
    np.random.seed(2)  # noqa: NPY002
    assert torch.equal(first, data.mnist1d_samples(10).signals)


@pytest.mark.parametrize("max_translation", [1, SAMPLED_POINTS])
def test_limits_of_the_translation(max_translation):
    assert data.mnist1d_samples(10, max_translation=max_translation).signals.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message", "error"),
    [
        ({"count": 15}, "count must be a positive multiple of 10, got 15", ValueError),
        ({"count": 0}, "count must be a positive multiple of 10, got 0", ValueError),
        ({"count": 10.0}, "count must be an int, got float 10.0", TypeError),
        ({"seed": -1}, r"seed must lie in \[0, 4294967296\), got -1", ValueError),
        ({"seed": None}, "seed must be an int, got NoneType None", TypeError),
        ({"max_translation": 0}, r"max_translation must lie in \[1, 73\), got 0", ValueError),
        ({"max_translation": 73}, r"max_translation must lie in \[1, 73\), got 73", ValueError),
        ({"corr_noise_scale": -0.1}, "corr_noise_scale must be >= 0, got -0.1", ValueError),
        ({"iid_noise_scale": float("nan")}, "iid_noise_scale must be finite, got nan", ValueError),
        ({"scale_coeff": -1}, "scale_coeff must be >= 0, got -1", ValueError),
        ({"shear_scale": "2"}, "shear_scale must be a number, got str '2'", TypeError),
    ],
)
def test_bad_arguments_are_named(arguments, message, error):
    with pytest.raises(error, match=message):
        data.mnist1d_samples(**{"count": 10} | arguments)
