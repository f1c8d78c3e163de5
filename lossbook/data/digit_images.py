"""Handwritten digits from scikit-learn, in the one split that all chapters use, and images composed of them.

The module is not called ``digits``: importing it would hide the function of that name in ``lossbook.data``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lossbook._validation import check_choice, check_integer, check_non_negative, check_number, check_positive

SPLITS = ("train", "fit", "validation", "test")
TEST_FRACTION = 0.25
VALIDATION_FRACTION = 0.2
SPLIT_SEED = 20_260_101


@dataclass(frozen=True)
class Digits:
    """Images of digits, or of pairs of digits, with their labels.

    Attributes:
        images: Gray values in [0, 1], float32, shape (n, 8, 8), or (n, 8, 16) for pairs.
        labels: Digits 0 to 9, or numbers 0 to 99 for pairs, int64, shape (n,).
        index: Row of each image in scikit-learn's ``load_digits``, int64, shape (n,), or (n, 2) for pairs.
    """

    images: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def digits(split: str | None = None) -> Digits:
    """Return the handwritten digits of scikit-learn's ``load_digits``.

    1,797 gray images of 8 x 8 pixels, ten classes: the test set of "Optical Recognition of Handwritten Digits"
    (Alpaydin and Kaynak, 1998, UCI Machine Learning Repository, CC BY 4.0), shipped with scikit-learn, about 57 kB.
    The split is fixed, stratified by class and by image: 1,347 for training, 450 for testing, none in both. The files
    do not say who wrote a digit, so one person's hand may be on both sides. The training images are split once more in
    the same manner, 1,077 to fit and 270 for validation: choose hyperparameters with these two, and test once.

    Args:
        split: ``"train"``, ``"test"``, ``"fit"`` or ``"validation"``, or None for all images in the original order.

    Returns:
        Fresh tensors on the CPU: changing them changes nothing for the next caller.

    Raises:
        ValueError: If ``split`` is anything else.

    Examples:
        >>> train, test = digits("train"), digits("test")
        >>> train.images.shape, len(test)
        (torch.Size([1347, 8, 8]), 450)
    """
    check_choice("split", split, (*SPLITS, None))
    images, labels, parts = _load()
    index = torch.arange(len(labels)) if split is None else parts[split]
    return Digits(images[index], labels[index], index.clone())


def two_digit_images(split: str, n: int, *, seed: int) -> Digits:
    """Draw images of two-digit numbers: two handwritten digits side by side, 100 classes.

    Both digits come from the same part of :func:`digits`, so no pair for testing shows a digit that a pair for training
    has shown. The classes are as even as ``n`` allows: among the first 100k pairs each occurs k times. Within its
    class a pair takes its two images independently and uniformly, so pairs and single digits may repeat.

    Args:
        split: ``"train"``, ``"test"``, ``"fit"`` or ``"validation"``: whose digits to use, see :func:`digits`.
        n: Number of pairs, ``> 0``.
        seed: Seed of the draw, ``>= 0``. The global random states are neither read nor changed.

    Returns:
        Images of shape (n, 8, 16) with labels 10 a + b for the digits a on the left and b on the right, on the CPU.

    Raises:
        ValueError: If ``split`` is anything else, ``n`` is not positive or ``seed`` is negative.
        TypeError: If ``n`` or ``seed`` is not an int.

    Examples:
        >>> pairs = two_digit_images("train", 500, seed=0)
        >>> pairs.images.shape, pairs.index.shape
        (torch.Size([500, 8, 16]), torch.Size([500, 2]))
        >>> left = digits().labels[pairs.index[:, 0]]
        >>> bool((left == pairs.labels // 10).all())
        True
    """
    check_choice("split", split, SPLITS)
    for name, value, check in (("n", n, check_positive), ("seed", seed, check_non_negative)):
        check_integer(name, value)
        check(name, value)
    source = digits(split)
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(-(-n // 100), 100, generator=generator).argsort(1)
    labels = blocks.flatten()[:n]
    digit_of = torch.stack([labels // 10, labels % 10], 1)
    # Rows of one digit lie together after sorting: draw a place among them.
    order = source.labels.argsort(stable=True)
    count = source.labels.bincount(minlength=10)
    first = count.cumsum(0) - count
    # In float64, whose numbers below one times a small count stay below that count.
    place = (torch.rand(n, 2, generator=generator, dtype=torch.float64) * count[digit_of]).long()
    chosen = order[first[digit_of] + place]
    images = source.images[chosen]
    return Digits(torch.cat([images[:, 0], images[:, 1]], dim=2), labels, source.index[chosen])


def noisy_digits(
    n_train: int = 150, label_noise: float = 0.2, *, normalise: bool = True, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw a small training set of digits with wrong labels, and keep all other digits, labeled right, for testing.

    The images are drawn at random from all 1,797 of :func:`digits`, none in both sets, so that the training set may be
    of any size; this split is not the fixed one of :func:`digits`. A share of the training labels is drawn again,
    uniformly from the ten classes: one in ten of these happens to be right. With the same ``seed`` the images are the
    same at every ``label_noise``, and the labels redrawn at a small one are redrawn alike at a larger one.

    Args:
        n_train: Images to train on, 1 to 1796. Default 150.
        label_noise: Share of training labels to redraw, in [0, 1], rounded to a whole number of labels. Default 0.2.
        normalise: Shift and scale each pixel to mean 0 and standard deviation 1 over all 1,797 images, then divide by
            8, the square root of the number of pixels, so that an image has a squared norm of about 1. Default True.
            If False, gray values in [0, 1].
        seed: Seed of the split and of the redrawn labels, ``>= 0``. Default 0. Global random states stay as they are.

    Returns:
        ``(X, Y, X_test, Y_test)``, float64, on the CPU: images of shape (n_train, 64) and (1797 - n_train, 64), and
        one-hot labels of shape (n_train, 10) and (1797 - n_train, 10).

    Raises:
        TypeError: If ``n_train`` or ``seed`` is not an int, or ``label_noise`` is not a number.
        ValueError: If ``n_train``, ``label_noise`` or ``seed`` is out of its range.

    Examples:
        >>> X, Y, X_test, Y_test = noisy_digits(150, 0.2, seed=1)
        >>> X.shape, Y_test.shape
        (torch.Size([150, 64]), torch.Size([1647, 10]))
        >>> clean = noisy_digits(150, 0.0, seed=1)[1]
        >>> int((Y != clean).any(1).sum())  # of 30 redrawn labels, some are drawn right
        28

    References:
        The data of chapter 4 (:doc:`/notebooks/04_double_descent`).
    """
    source = digits()
    check_integer("n_train", n_train)
    if not 1 <= n_train < len(source):
        raise ValueError(f"n_train must lie in [1, {len(source) - 1}], got {n_train}")
    check_number("label_noise", label_noise)
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise must lie in [0, 1], got {label_noise!r}")
    check_integer("seed", seed)
    check_non_negative("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(source), generator=generator)
    redrawn = torch.randint(10, (n_train,), generator=generator)
    first = torch.randperm(n_train, generator=generator)[: round(label_noise * n_train)]

    X = source.images.double().flatten(1)
    if normalise:
        # Some border pixels are blank in every image.
        X = (X - X.mean(0)) / X.std(0, correction=0).clamp_min(1e-12) / X.shape[1] ** 0.5
    labels = source.labels[order]
    labels[first] = redrawn[first]
    X, Y = X[order], torch.nn.functional.one_hot(labels, 10).double()
    return X[:n_train], Y[:n_train], X[n_train:], Y[n_train:]


@cache
def _load() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()

    def split(rows: list[int], fraction: float) -> list[list[int]]:
        return train_test_split(rows, test_size=fraction, stratify=raw.target[rows], random_state=SPLIT_SEED)

    train, test = split(list(range(len(raw.target))), TEST_FRACTION)
    # Sorted before the second split: the order inside a split should not depend on the library's shuffling.
    fit, validation = split(sorted(train), VALIDATION_FRACTION)
    images = torch.tensor(raw.images, dtype=torch.float32) / 16
    labels = torch.tensor(raw.target, dtype=torch.int64)
    parts = {"train": train, "fit": fit, "validation": validation, "test": test}
    return images, labels, {name: torch.tensor(sorted(rows)) for name, rows in parts.items()}
