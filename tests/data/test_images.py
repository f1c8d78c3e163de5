"""Printed characters, chosen not to look alike, and their random warps."""

import math
import unicodedata
from collections import Counter
from pathlib import Path

import matplotlib
import pytest
import torch
from fontTools.ttLib import TTFont
from scipy.ndimage import affine_transform
from torch.nn import functional

from lossbook import data
from lossbook.data.images import FACES


@pytest.fixture(scope="module")
def drawn():
    return data.glyphs()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def still(images, generator=None, **amounts):
    """A warp by what is named alone."""
    nothing = {"rotation": 0.0, "scale": 0.0, "shift": 0.0, "shear": 0.0}
    return data.random_warp(images, **nothing | amounts, generator=generator or seeded())


def test_a_class_for_each_character_and_an_image_for_each_face(drawn):
    images, characters = drawn
    assert images.shape == (8, 178, 1, 20, 20) and images.dtype == torch.float32
    assert len(characters) == len(set(characters)) == 178 and all(len(each) == 1 for each in characters)
    assert images.min() == 0 and images.max() <= 1
    assert (images.amax((2, 3, 4)) > 0.5).all(), "none is blank"
    scripts = Counter(unicodedata.name(each).split()[0] for each in characters)
    assert scripts.keys() == {"DIGIT", "LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN"}


def test_every_face_has_every_character(drawn):
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for face in FACES:
        assert {ord(each) for each in drawn[1]} <= TTFont(folder / face).getBestCmap().keys()
    assert len(set(FACES)) == 8


def test_no_two_characters_look_alike_in_any_face(drawn):
    """0.9285 with the renderer that chose them; another one may round differently."""
    unit = functional.normalize(drawn[0].flatten(2), dim=2)
    cosine = (unit @ unit.mT).amax(0).fill_diagonal_(0)
    assert cosine.max() < 0.94


def test_faces_differ_and_no_ink_is_cut_off(drawn):
    images = drawn[0][:, :, 0]
    for face in range(8):
        assert all((images[face] != images[other]).any() for other in range(face))
    ink = images > 0.5
    assert not (ink[..., 0, :].any() or ink[..., -1, :].any() or ink[..., :, 0].any() or ink[..., :, -1].any())
    bold = images[1::2].sum((2, 3)) / images[0::2].sum((2, 3))
    assert (bold.mean(1) > 1.1).all()


def test_ink_is_centered(drawn):
    ink = drawn[0][:, :, 0] > 0.1
    for lines in (ink.any(2), ink.any(3)):
        first, last = lines.int().argmax(2), 19 - lines.flip(2).int().argmax(2)
        assert ((first + last) - 19).abs().max() <= 3


@pytest.mark.parametrize("size", [8, 21, 32])
def test_other_sizes(drawn, size):
    images, characters = data.glyphs(size)
    assert images.shape == (8, 178, 1, size, size) and characters == drawn[1]
    if size > 20:
        coarse = functional.interpolate(images[0], size=(20, 20), mode="area")
        assert functional.cosine_similarity(coarse.flatten(1), drawn[0][0].flatten(1)).mean() > 0.8


def test_a_caller_cannot_spoil_the_next_one(drawn):
    images, characters = data.glyphs()
    images.zero_()
    characters.clear()
    again = data.glyphs()
    assert torch.equal(again[0], drawn[0]) and again[1] == drawn[1]


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [(7, ValueError, "size must be >= 8, got 7"), (20.0, TypeError, "size must be an int, got float")],
)
def test_bad_sizes_are_named(size, error, message):
    with pytest.raises(error, match=message):
        data.glyphs(size)


def test_a_warp_by_nothing_changes_nothing(drawn):
    torch.testing.assert_close(still(drawn[0]), drawn[0], rtol=0, atol=1e-5)


def test_a_warp_is_the_map_it_says(generator):
    """By scipy, from the draws of the same generator: rotation, shear and scale about the center, then the shift."""
    images = torch.rand(6, 1, 9, 14, generator=generator, dtype=torch.float64)
    amounts = {"rotation": 30.0, "scale": 0.4, "shift": 0.2, "shear": 0.5}
    warped = data.random_warp(images, **amounts, generator=seeded(3))
    draws = 2 * torch.rand(5, 6, generator=seeded(3), dtype=torch.float64) - 1
    center = torch.tensor([4.0, 6.5], dtype=torch.float64)  # row, column
    for image, result, (a, k, h, right, down) in zip(images, warped, draws.T.tolist(), strict=True):
        angle, factor, slope = math.radians(30 * a), 1 + 0.4 * k, 0.5 * h
        # Columns first, as in the docstring: x to the right, y down.
        turned = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        forward = factor * turned.double() @ torch.tensor([[1.0, slope], [0.0, 1.0]]).double()
        back = torch.linalg.inv(forward).flip(0, 1)
        moved = torch.tensor([down * 0.2 * 9, right * 0.2 * 14], dtype=torch.float64)
        offset = center - back @ (center + moved)
        expected = affine_transform(image[0].numpy(), back.numpy(), offset.numpy(), order=1, mode="grid-constant")
        torch.testing.assert_close(result[0], torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_each_image_moves_by_itself_and_its_channels_together(drawn):
    image = drawn[0][0, 50]
    warped = data.random_warp(image.expand(20, 3, 20, 20), generator=seeded())
    assert torch.equal(warped[:, 0], warped[:, 2])
    assert len({each.numpy().tobytes() for each in warped}) == 20


def test_amounts_are_bounds():
    """A dot far from the center stays within what its largest move allows, and gets about."""
    dot = torch.zeros(500, 1, 41, 41)
    dot[:, :, 20, 30] = 1  # 10 pixels right of the center
    place = torch.arange(41.0)

    def centers(**amounts):
        warped = still(dot, **amounts)[:, 0]
        total = warped.sum((1, 2))
        return (warped.sum(1) @ place) / total - 20, (warped.sum(2) @ place) / total - 20

    right, down = centers(rotation=30.0)
    angle = torch.atan2(down, right).rad2deg()
    assert angle.abs().max() <= 32 and angle.min() < -25 and angle.max() > 25
    right, down = centers(scale=0.3)
    assert down.abs().max() < 1e-3 and 6.5 < right.min() < 7.5 and 12.5 < right.max() < 13.5
    right, down = centers(shift=0.1)
    assert (right - 10).abs().max() < 4.2 and (right - 10).abs().max() > 3.8 and 3.8 < down.abs().max() < 4.2
    right, down = centers(shear=0.5)
    assert (right - 10).abs().max() < 1e-3, "a shear leaves the height of the center where it is"


def test_gray_values_stay_in_range_and_dtype_and_shape_are_kept(drawn):
    warped = data.random_warp(drawn[0], generator=seeded())
    assert warped.shape == drawn[0].shape and 0 <= warped.min() and warped.max() <= 1 + 1e-6
    assert data.random_warp(torch.rand(3, 9, 14).double(), generator=seeded()).dtype == torch.float64
    half = data.random_warp(drawn[0].bfloat16(), generator=seeded())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), warped, rtol=0, atol=1e-2)
    assert data.random_warp(torch.rand(0, 1, 9, 9), generator=seeded()).shape == (0, 1, 9, 9)


def test_the_generator_alone_decides(drawn):
    before = torch.get_rng_state()
    first, same, other = (data.random_warp(drawn[0], generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rotation": -1.0}, ValueError, "rotation must be >= 0, got -1.0"),
        ({"scale": 1.0}, ValueError, r"scale must lie in \[0, 1\), got 1.0"),
        ({"shift": -0.1}, ValueError, "shift must be >= 0, got -0.1"),
        ({"shear": math.nan}, ValueError, "shear must be finite, got nan"),
        ({"rotation": "12"}, TypeError, "rotation must be a number, got str"),
        ({"images": torch.ones(9, 9)}, ValueError, r"images must have shape \(\.\.\., C, H, W\), got \(9, 9\)"),
        ({"images": torch.ones(1, 9, 9).long()}, TypeError, "images must have a floating-point dtype"),
    ],
)
def test_bad_warps_are_named(change, error, message):
    with pytest.raises(error, match=message):
        data.random_warp(**{"images": torch.ones(1, 9, 9), "generator": seeded()} | change)
