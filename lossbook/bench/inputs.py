"""Seeded inputs of the cross-entropy benchmark: hidden states, classifier and targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Mean loss in nats that peaked inputs are tuned to: about what a small language model reaches on prose and code.
PEAKED_LOSS = 2.5
#: A probability below this changes no bfloat16 sum (2^-7 relative precision, 2^-5 of head room).
ENTRY_EPS = 2.0**-12

_TUNING_ROWS = 128
_ZIPF_SHIFT = 2.7  # Mandelbrot's correction: without it the first word alone takes a tenth of the text


@dataclass(frozen=True)
class Inputs:
    """What every method gets.

    Attributes:
        e: Hidden states, shape ``(N, D)``, a leaf that requires a gradient.
        c: Classifier, shape ``(V, D)``, a leaf that requires a gradient.
        target: Target indices, shape ``(N,)``.
        scale: Weight of the target's classifier row in a hidden state; 0 for Gaussian inputs.
    """

    e: Tensor
    c: Tensor
    target: Tensor
    scale: float


def make_inputs(
    *, n: int, vocab: int, dim: int, dtype: torch.dtype, device: str, seed: int, data: str, scale: float | None = None
) -> Inputs:
    """Draw the inputs of one benchmark; equal arguments give equal inputs.

    Classifier rows are Gaussian with expected norm 1, so a standard normal hidden state makes logits of variance 1.
    ``"gaussian"`` leaves it there: the softmax is nearly flat.  ``"peaked"`` adds ``scale`` times the target's row to
    each hidden state and draws the targets from Zipf's law, as text does.

    Args:
        n: Number of tokens N.
        vocab: Vocabulary size V.
        dim: Width D.
        dtype: Floating dtype of the hidden states and the classifier.
        device: Where to make them.
        seed: Seed of the generator.
        data: ``"gaussian"`` or ``"peaked"``.
        scale: Weight of the target's row, if already known; otherwise found by :func:`tune_scale`.

    Returns:
        The inputs.
    """
    generator = torch.Generator(device).manual_seed(seed)
    options = {"generator": generator, "device": device}
    c = torch.randn(vocab, dim, **options).mul_(dim**-0.5)
    e = torch.randn(n, dim, **options)
    if data == "gaussian":
        target = torch.randint(vocab, (n,), **options)
        scale = 0.0
    else:
        ranks = torch.arange(1, vocab + 1, device=device, dtype=torch.float64)
        target = torch.multinomial(1 / (ranks + _ZIPF_SHIFT), n, replacement=True, generator=generator)
        if scale is None:
            rows = torch.arange(min(n, _TUNING_ROWS), device=device)
            scale = tune_scale(e[rows], c, target[rows])
        e.add_(c[target], alpha=scale)
    return Inputs(e.to(dtype).requires_grad_(), c.to(dtype).requires_grad_(), target, scale)


def tune_scale(noise: Tensor, c: Tensor, target: Tensor, *, loss: float = PEAKED_LOSS) -> float:
    """Find by bisection the scale ``a`` at which ``noise + a * c[target]`` has the wanted mean loss.

    Args:
        noise: Hidden states without the target's share, shape ``(N, D)``.
        c: Classifier, shape ``(V, D)``.
        target: Target indices, shape ``(N,)``.
        loss: Mean cross-entropy to reach, in nats.

    Returns:
        The scale; 0 if the loss is already below the wanted value without any share of the target.
    """
    flat, slope = noise @ c.T, c[target] @ c.T

    def excess(scale: float) -> float:
        return torch.nn.functional.cross_entropy(torch.add(flat, slope, alpha=scale), target).item() - loss

    low, high = 0.0, 1.0
    if excess(low) <= 0:
        return 0.0
    while excess(high) > 0:
        low, high = high, 2 * high
    for _ in range(12):  # to 1/4096 of the bracket: far below the spread of the loss between batches
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high
