"""Handwritten digits from scikit-learn, in the one split that all chapters use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

SPLITS = ("train", "test")
TEST_FRACTION = 0.25
SPLIT_SEED = 20_260_101


@dataclass(frozen=True)
class Digits:
    """Images of digits with their labels.

    Attributes:
        images: Gray values in [0, 1], float32, shape (n, 8, 8).
        labels: Digits 0 to 9, int64, shape (n,).
        index: Row of each image in scikit-learn's ``load_digits``, int64, shape (n,).
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
    do not say who wrote a digit, so one person's hand may be on both sides.

    Args:
        split: ``"train"``, ``"test"``, or None for all images in the original order.

    Returns:
        Fresh tensors on the CPU: changing them changes nothing for the next caller.

    Raises:
        ValueError: If ``split`` is anything else.

    Examples:
        >>> train, test = digits("train"), digits("test")
        >>> train.images.shape, len(test)
        (torch.Size([1347, 8, 8]), 450)
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be 'train', 'test' or None, got {split!r}")
    images, labels, parts = _load()
    index = torch.arange(len(labels)) if split is None else parts[split]
    return Digits(images[index], labels[index], index.clone())


@cache
def _load() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    train, test = train_test_split(
        range(len(raw.target)), test_size=TEST_FRACTION, stratify=raw.target, random_state=SPLIT_SEED
    )
    images = torch.tensor(raw.images, dtype=torch.float32) / 16
    labels = torch.tensor(raw.target, dtype=torch.int64)
    # Sorted: the order inside a split should not depend on the library's shuffling.
    return images, labels, {"train": torch.tensor(sorted(train)), "test": torch.tensor(sorted(test))}
