"""Synthetic data with known properties, drawn from a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lossbook._validation import check_dtype, check_integer, check_non_negative, check_number, check_shape, check_tensor

_CLASSES, _CLASS_DIM, _CLASS_NOISE = 10, 6, 0.35
_BLOCKS, _BLOCK_DIM = 5, 4
_HIDDEN, _OBSERVED = 64, 40
_VIEW_NOISE = 0.05
_TRAIN, _TEST = 2000, 1000


def scores_at_auroc(
    n: int, *, auroc: float, prevalence: float, seed: int = 0, normalize: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    r"""Draw labels and scores whose AUROC has a given expectation.

    The :math:`N_+ = \mathrm{round}(n \cdot \mathrm{prevalence})` positives score uniformly in [0, 1]. Each negative
    draws from :math:`\mathrm{Binomial}(N_+, 1 - \mathrm{AUROC})` how many positives lie below it, and then a uniform
    place in the gap there. With many positives all negatives crowd into one narrow band, so this is a generator for
    few positives.

    Args:
        n: Number of examples, ``>= 2``.
        auroc: Expected AUROC, in [0, 1].
        prevalence: Share of positives, in (0, 1); at least one example must be of each class.
        seed: Seed of the draw, ``>= 0``, default 0.
        normalize: Multiply the scores so that their mean is the share of positives, a crude calibration, after which
            they may exceed 1. Default True.

    Returns:
        Labels, int64, and distinct scores, float64, both of shape ``(n,)``, in random order.

    Raises:
        TypeError: If ``n`` or ``seed`` is not an int, or ``auroc`` or ``prevalence`` not a number.
        ValueError: If an argument is outside its range, or all examples would be of one class.

    Examples:
        >>> label, score = scores_at_auroc(200, auroc=0.85, prevalence=0.05)
        >>> int(label.sum()), round(float(score.mean()), 6)
        (10, 0.05)

    References:
        McDermott et al. (2024), Section 3 and the generator of their public code; chapter 6
        (:doc:`/notebooks/06_auroc_auprc`).
    """
    check_integer("n", n)
    check_integer("seed", seed)
    check_number("auroc", auroc)
    check_number("prevalence", prevalence)
    if n < 2:
        raise ValueError(f"n must be >= 2, got {n}")
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    if not 0 <= auroc <= 1:
        raise ValueError(f"auroc must lie in [0, 1], got {auroc!r}")
    if not 0 < prevalence < 1:
        raise ValueError(f"prevalence must lie in (0, 1), got {prevalence!r}")
    count = round(n * prevalence)
    if not 0 < count < n:
        raise ValueError(f"prevalence must leave examples of both classes, got {prevalence!r}: {count} of {n} positive")
    rng = np.random.default_rng(seed)
    positive = np.sort(rng.uniform(size=count))
    edges = np.concatenate([[0.0], positive, [1.0]])
    below = rng.binomial(count, 1 - auroc, size=n - count)
    negative = rng.uniform(edges[below], edges[below + 1])
    label = np.repeat(np.array([1, 0]), [count, n - count])
    score = np.concatenate([positive, negative])
    if normalize:
        score *= count / n / score.mean()
    order = rng.permutation(n)
    return label[order], score[order]


@dataclass(frozen=True)
class LatentWorld:
    """Observations of ten classes with known latent variables, and views that differ in nuisance variables only.

    Attributes:
        x_train: Observations to train on, float32, shape (2000, 40); no augmentation has touched them.
        y_train: Their classes 0 to 9, int64, shape (2000,), 200 of each.
        x_test: Observations to test on, float32, shape (1000, 40).
        y_test: Their classes, int64, shape (1000,), 100 of each.
        num_augmentations: How many of the five nuisance blocks a view may change.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_augmentations: int
    _latents: Tensor
    _weights: tuple[Tensor, Tensor]

    def view(self, index: Tensor, *, generator: torch.Generator) -> Tensor:
        """Draw an augmented view of training examples; call it twice for a positive pair.

        Each of the blocks that may change is drawn again with probability 1/2, for every example by itself, so that
        some views share almost everything and others their class only. Then noise of standard deviation 0.05 is added.

        Args:
            index: Which training examples, int64, shape ``(B,)``.
            generator: Draws the view; on the CPU.

        Returns:
            The view, float32, shape ``(B, 40)``.

        Raises:
            TypeError: If ``index`` is no tensor of int64.
            ValueError: If it is not 1-D.
            IndexError: If there is no such training example.
        """
        check_tensor("index", index)
        check_dtype("index", index, torch.int64)
        check_shape("index", index, "(B,)", (None,))
        latents = self._latents[index]
        changeable = self.num_augmentations
        redrawn = torch.rand(len(index), changeable, 1, generator=generator) < 0.5
        fresh = torch.randn(len(index), changeable, _BLOCK_DIM, generator=generator)
        blocks = latents[:, _CLASS_DIM:].unflatten(1, (_BLOCKS, _BLOCK_DIM)).clone()
        blocks[:, :changeable] = torch.where(redrawn, fresh, blocks[:, :changeable])
        clean = _observe(torch.cat([latents[:, :_CLASS_DIM], blocks.flatten(1)], 1), self._weights)
        return clean + _VIEW_NOISE * torch.randn(clean.shape, generator=generator)


def latent_world(seed: int, num_augmentations: int) -> LatentWorld:
    r"""Draw a small world in which it is known what two views of an example share.

    An example's latent variables are the prototype of its class in 6 dimensions, itself normal, plus noise of standard
    deviation 0.35, and five nuisance blocks of 4 normal dimensions each, which say nothing of the class. It is observed
    in 40 dimensions, through a fixed random network :math:`\tanh(W_2 \tanh(W_1 \cdot))` with 64 hidden units and
    weights of standard deviation one over the root of the number of inputs. Real images would need hundreds of epochs
    before augmentations show their effect; here every augmentation hides one block.

    Args:
        seed: Seed of prototypes, network and examples, ``>= 0``. Global random states stay as they are.
        num_augmentations: How many blocks, the first ones, a view may change, 0 to 5. It changes nothing else: worlds
            of one seed hold the same examples.

    Returns:
        2,000 examples to train on, 1,000 to test on, and their views.

    Raises:
        TypeError: If an argument is no int.
        ValueError: If ``seed`` is negative or ``num_augmentations`` not in [0, 5].

    Examples:
        >>> world = latent_world(0, num_augmentations=3)
        >>> generator = torch.Generator().manual_seed(0)
        >>> index = torch.randint(2000, (256,), generator=generator)
        >>> a, b = (world.view(index, generator=generator) for _ in range(2))
        >>> a.shape, world.x_test.shape
        (torch.Size([256, 40]), torch.Size([1000, 40]))

    References:
        This package's stand-in for images with up to five kinds of augmentation, as in Wang et al. (2024); chapter 9
        (:doc:`/notebooks/09_multi_head_contrastive`).
    """
    check_integer("seed", seed)
    check_non_negative("seed", seed)
    check_integer("num_augmentations", num_augmentations)
    if not 0 <= num_augmentations <= _BLOCKS:
        raise ValueError(f"num_augmentations must lie in [0, {_BLOCKS}], got {num_augmentations}")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    nuisance = _BLOCKS * _BLOCK_DIM
    prototypes = normal(_CLASSES, _CLASS_DIM)
    layers = ((_CLASS_DIM + nuisance, _HIDDEN), (_HIDDEN, _OBSERVED))
    weights = tuple(normal(inputs, outputs) / math.sqrt(inputs) for inputs, outputs in layers)
    y = torch.arange(_TRAIN + _TEST) % _CLASSES
    latents = torch.cat([prototypes[y] + _CLASS_NOISE * normal(len(y), _CLASS_DIM), normal(len(y), nuisance)], 1)
    x = _observe(latents, weights)
    return LatentWorld(x[:_TRAIN], y[:_TRAIN], x[_TRAIN:], y[_TRAIN:], num_augmentations, latents[:_TRAIN], weights)


def _observe(latents: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    first, second = weights
    return ((latents @ first).tanh() @ second).tanh()
