"""The latent world: what views share, what augmentations change, and that nothing else does."""

import pytest
import torch
from torch.nn import functional

from lossbook.data import latent_world

INDEX = torch.arange(2000)


def views(world, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [world.view(INDEX, generator=generator) for _ in range(count)]


def test_shapes_dtypes_and_balance():
    world = latent_world(0, 3)
    assert world.x_train.shape == (2000, 40) and world.x_test.shape == (1000, 40)
    assert world.x_train.dtype == world.x_test.dtype == torch.float32
    assert world.y_train.bincount().tolist() == [200] * 10 and world.y_test.bincount().tolist() == [100] * 10
    assert world.x_train.abs().max() <= 1 and world.num_augmentations == 3
    assert not torch.equal(world.x_train[:1000], world.x_test)


def test_augmentations_change_nothing_but_views():
    worlds = [latent_world(5, k) for k in (0, 5)]
    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert torch.equal(*(getattr(world, name) for world in worlds)), name
    assert not torch.equal(latent_world(6, 0).x_train, worlds[0].x_train)


def test_without_augmentation_a_view_is_the_observation_with_noise():
    world = latent_world(0, 0)
    noise = views(world)[0] - world.x_train
    assert noise.std().item() == pytest.approx(0.05, rel=0.02) and abs(noise.mean().item()) < 1e-3


@pytest.mark.parametrize("k", [1, 3, 5])
def test_each_block_is_redrawn_half_of_the_time(k):
    """A view with no block redrawn, one in 2^k, is the observation with noise."""
    world = latent_world(1, k)
    distance = (views(world)[0] - world.x_train).square().mean(1).sqrt()
    untouched = (distance < 0.07).float().mean().item()
    assert untouched == pytest.approx(0.5**k, abs=0.035)


def test_more_augmentations_make_views_less_alike():
    alike = []
    for k in (0, 1, 3, 5):
        a, b = views(latent_world(2, k))
        alike.append(functional.cosine_similarity(a, b).mean().item())
    assert alike == sorted(alike, reverse=True) and alike[0] > 0.9 and alike[-1] < 0.75


def test_all_augmentations_leave_the_class_in_the_mean_of_many_views():
    """Averaged over its views an example shows its class better than it does itself."""
    world = latent_world(3, 5)
    average = torch.stack(views(world, count=60)).mean(0)

    def nearest_mean(x):
        means = torch.stack([x[world.y_train == c].mean(0) for c in range(10)])
        return (torch.cdist(x, means).argmin(1) == world.y_train).float().mean().item()

    assert nearest_mean(average) > nearest_mean(world.x_train) + 0.1


def test_the_generator_decides_and_the_global_state_stays():
    before = torch.get_rng_state()
    world = latent_world(4, 2)
    first, again, other = views(world, 1, seed=0)[0], views(world, 1, seed=0)[0], views(world, 1, seed=1)[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other)
    x = world.x_train.clone()
    views(world)
    assert torch.equal(x, world.x_train) and torch.equal(x, latent_world(4, 2).x_train)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, 2), ValueError, "seed must be >= 0, got -1"),
        ((0.0, 2), TypeError, "seed must be an int, got float 0.0"),
        ((0, 6), ValueError, r"num_augmentations must lie in \[0, 5\], got 6"),
        ((0, -1), ValueError, r"num_augmentations must lie in \[0, 5\], got -1"),
        ((0, None), TypeError, "num_augmentations must be an int, got NoneType"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        latent_world(*arguments)


def test_bad_indices_are_named():
    world, generator = latent_world(0, 1), torch.Generator()
    with pytest.raises(TypeError, match="index must have dtype"):
        world.view(torch.zeros(3), generator=generator)
    with pytest.raises(ValueError, match=r"index must have shape \(B,\) = \(\*,\), got \(\)"):
        world.view(torch.tensor(1), generator=generator)
    with pytest.raises(IndexError):
        world.view(torch.tensor([2000]), generator=generator)
