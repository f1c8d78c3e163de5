"""Images of printed characters, in classes enough to keep some unseen, and random warps of images."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from lossbook._validation import check_floating, check_integer, check_non_negative, check_range, check_tensor

# Upright, bold, slanted and both, without and with serifs.
FACES = tuple(
    f"DejaVu{family}{style}.ttf"
    for family, slant in (("Sans", "Oblique"), ("Serif", "Italic"))
    for style in ("", "-Bold", f"-{slant}", f"-Bold{slant}")
)
# Of the digits and of the Latin, Greek, Cyrillic, Armenian and Georgian letters, in this order, those that look like
# none before them: the images of 20 pixels have a cosine of at most 0.9285 in every face. Fixed here, since another
# version of the renderer would draw the line elsewhere.
CHARACTERS = (
    "012345679"
    "ABCDEGHIJKLMNOPQRSTUVWXYZabcdefgijkmnoprstvwxyz"
    "ΓΞΣΦΨαβδεζηθικλμνξςτφχω"
    "ДЖЙЛУЦЧШЩЪЫЬЭЮЯджзйлмфцчщъыюя"
    "ԲԳԴԵԶԷԸԹԺԻԽԾԿՀՁՃՅՆՇՈՉՊՎՒՔՖեզըթիխծկձճմյնշչպջվփֆ"
    "აბგდეთიკლმნოჟრსტუფქღცჭჯჰ"
)
MIN_SIZE = 8
EM = 0.65  # of the side of the image; from 20 pixels on the widest character fits


def glyphs(size: int = 20) -> tuple[Tensor, list[str]]:
    """Draw 178 characters of six scripts in eight faces: a class for each character, few images of each.

    Digits and Latin, Greek, Cyrillic, Armenian and Georgian letters, without those that look like another one, in
    DejaVu Sans and Serif, each upright, bold, slanted and bold slanted. The fonts are those that matplotlib ships
    (Bitstream Vera license), drawn in white on black with Pillow. The ink of each character is centered; the type has
    the same size for all.

    Args:
        size: Height and width of an image in pixels, ``>= 8``. Default 20.

    Returns:
        ``(images, characters)``: gray values in [0, 1], float32, shape (8, 178, 1, size, size), faces before
        characters, on the CPU, and the characters as strings of length one. Fresh at each call.

    Raises:
        TypeError: If ``size`` is not an int.
        ValueError: If ``size`` is smaller than 8.

    Examples:
        >>> images, characters = glyphs()
        >>> images.shape, characters[:12]
        (torch.Size([8, 178, 1, 20, 20]), ['0', '1', '2', '3', '4', '5', '6', '7', '9', 'A', 'B', 'C'])

    Note:
        Pixels may differ in the last bits between versions of Pillow, which brings its own font renderer.

    References:
        The data of chapter 10 (:doc:`/notebooks/10_metric_mix`).
    """
    check_integer("size", size)
    if size < MIN_SIZE:
        raise ValueError(f"size must be >= {MIN_SIZE}, got {size}")
    return torch.from_numpy(_draw(size).astype(np.float32) / 255)[:, :, None], list(CHARACTERS)


def random_warp(
    images: Tensor,
    *,
    rotation: float = 12.0,
    scale: float = 0.15,
    shift: float = 0.12,
    shear: float = 0.2,
    generator: Generator,
) -> Tensor:
    r"""Rotate, shear, scale and shift each image at random, about its center.

    A point at :math:`x` from the center moves to :math:`k R(\theta) H x + b`, with the rotation :math:`R` by the angle
    :math:`\theta`, the shear :math:`H = \begin{pmatrix} 1 & h \\ 0 & 1 \end{pmatrix}`, the factor :math:`k` and the
    displacement :math:`b`. Each image draws its own, uniformly: :math:`\theta` within ``rotation``, :math:`h` within
    ``shear``, :math:`k` within ``scale`` of 1, and both entries of :math:`b` within ``shift``. Pixels are interpolated
    bilinearly; what comes from outside is 0.

    Args:
        images: Images, shape ``(..., C, H, W)``, floating point; all channels of an image move together. Half precision
            is interpolated in float32.
        rotation: Largest angle to either side, in degrees, ``>= 0``. Default 12.
        scale: Largest change of size, as a share, in [0, 1). Default 0.15.
        shift: Largest displacement, as a share of the side of the image, ``>= 0``. Default 0.12.
        shear: Largest shear, sideways displacement per height, ``>= 0``. Default 0.2.
        generator: Source of randomness; the global state is neither read nor changed.

    Returns:
        Warped images, shape, dtype and device of ``images``. Gray values stay within the range of 0 and the old ones.

    Raises:
        TypeError: If ``images`` is not a floating-point tensor or an amount is not a number.
        ValueError: If ``images`` has fewer than three dimensions or an amount is out of its range.

    Examples:
        >>> images, _ = glyphs()
        >>> warped = random_warp(images, generator=torch.Generator().manual_seed(0))
        >>> warped.shape, bool(warped.max() <= 1)
        (torch.Size([8, 178, 1, 20, 20]), True)

    References:
        The unseen test images of chapter 10 (:doc:`/notebooks/10_metric_mix`).
    """
    check_tensor("images", images)
    check_floating("images", images)
    if images.ndim < 3:
        raise ValueError(f"images must have shape (..., C, H, W), got {tuple(images.shape)}")
    check_non_negative("rotation", rotation)
    check_range("scale", scale, 0, 1)
    check_non_negative("shift", shift)
    check_non_negative("shear", shear)
    if not images.numel():
        return images.clone()
    flat = images.flatten(0, -4) if images.ndim > 3 else images[None]
    flat = flat.to(torch.promote_types(images.dtype, torch.float32))
    height, width = flat.shape[-2:]
    draws = 2 * torch.rand(5, len(flat), generator=generator, dtype=torch.float64, device=generator.device) - 1
    draws = draws.to(images.device)
    angle, factor, slope = draws[0] * math.radians(rotation), 1 + draws[1] * scale, draws[2] * shear
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    sheared = torch.eye(2, dtype=turned.dtype, device=turned.device).repeat(len(flat), 1, 1)
    sheared[:, 0, 1] = slope
    forward = factor[:, None, None] * (turned @ sheared)
    # The sampler asks for each new pixel where it came from, in coordinates of which a side is two long.
    back = torch.linalg.inv(forward)
    side = torch.tensor([width, height], dtype=back.dtype, device=back.device)
    offset = -(back @ (draws[3:].T * shift * side)[:, :, None]) * 2 / side[:, None]
    theta = torch.cat([back * side / side[:, None], offset], 2).to(flat.dtype)
    grid = functional.affine_grid(theta, list(flat.shape), align_corners=False)
    return functional.grid_sample(flat, grid, align_corners=False).view(images.shape).to(images.dtype)


@cache
def _draw(size: int) -> np.ndarray:
    """Gray values from 0 to 255, shape (faces, characters, size, size)."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    canvas = np.zeros((len(FACES), len(CHARACTERS), size, size), np.uint8)
    for row, face in enumerate(FACES):
        # The basic layout: the other one depends on libraries that are not everywhere.
        font = ImageFont.truetype(str(folder / face), int(EM * size), layout_engine=ImageFont.Layout.BASIC)
        for column, character in enumerate(CHARACTERS):
            image = Image.new("L", (size, size))
            left, top, right, bottom = font.getbbox(character)
            corner = ((size - left - right) / 2, (size - top - bottom) / 2)
            ImageDraw.Draw(image).text(corner, character, font=font, fill=255)
            canvas[row, column] = np.asarray(image)
    return canvas
