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

# Chosen so that the softmax of peaked inputs is about as sparse as that of a 135M-parameter language model on prose
# and code: 0.2-0.4 % of entries reach 2^-12, and 128 consecutive rows share about a quarter of the columns at 2^-16.
_NOISE = 2.5  # standard deviation of a logit that is nobody's target
_SHARED = 0.7  # part of that variance common to a context: words that follow each other agree on the topic
_CONTEXT = 128
_LARGEST_SCALE = 1e4
_PRIOR = 1.1  # weight of the words' log frequency in every logit


@dataclass(frozen=True)
class Inputs:
    """What every method gets.

    Attributes:
        e: Hidden states, shape ``(N, D)``, a leaf that requires a gradient.
        c: Classifier, shape ``(V, D)``, a leaf that requires a gradient.
        target: Target indices, shape ``(N,)``.
        scale: Mean weight of the target's classifier row in a hidden state; 0 for Gaussian inputs.
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
    ``"gaussian"`` leaves it there: the softmax is nearly flat, which flatters any method that skips small entries.
    ``"peaked"`` imitates a language model: Zipf-distributed targets, one feature that carries the words' frequency,
    noise that neighbors share, and a share of the target's row that varies from token to token.

    Args:
        n: Number of tokens N.
        vocab: Vocabulary size V.
        dim: Width D.
        dtype: Floating dtype of the hidden states and the classifier.
        device: Where to make them.
        seed: Seed of the generator.
        data: ``"gaussian"`` or ``"peaked"``.
        scale: Mean weight of the target's row, if already known; otherwise found by :func:`tune_scale`.

    Returns:
        The inputs.
    """
    generator = torch.Generator(device).manual_seed(seed)
    options = {"generator": generator, "device": device}
    c = torch.randn(vocab, dim, **options).mul_(dim**-0.5)
    e = torch.randn(n, dim, **options)
    if data == "gaussian":
        target = torch.randint(vocab, (n,), **options)
        return _leaves(e, c, target, 0.0, dtype)
    frequency = 1 / (torch.arange(1, vocab + 1, device=device, dtype=torch.float64) + _ZIPF_SHIFT)
    target = torch.multinomial(frequency, n, replacement=True, generator=generator)
    topics = torch.randn(-(-n // _CONTEXT), dim, **options).repeat_interleave(_CONTEXT, 0)[:n]
    e.mul_((1 - _SHARED) ** 0.5).add_(topics, alpha=_SHARED**0.5).mul_(_NOISE)
    confidence = 2 * torch.rand(n, 1, **options)
    share = c[target] * confidence
    # The frequency has a feature to itself, without a target's share, so it has the same weight in every row.
    prior = frequency.log()
    c[:, 0] = ((prior - prior.mean()) * dim**-0.5).float()
    e[:, 0], share[:, 0] = _PRIOR * dim**0.5, 0.0
    if scale is None:
        rows = torch.linspace(0, n - 1, min(n, _TUNING_ROWS), device=device).long()  # of every context, not one
        scale = tune_scale(e[rows], share[rows], c, target[rows])
    return _leaves(e.add_(share, alpha=scale), c, target, scale, dtype)


def _leaves(e: Tensor, c: Tensor, target: Tensor, scale: float, dtype: torch.dtype) -> Inputs:
    return Inputs(e.to(dtype).requires_grad_(), c.to(dtype).requires_grad_(), target, scale)


def tune_scale(noise: Tensor, share: Tensor, c: Tensor, target: Tensor, *, loss: float = PEAKED_LOSS) -> float:
    """Find by bisection the scale ``a`` at which ``noise + a * share`` has the wanted mean loss.

    Args:
        noise: Hidden states without the target's share, shape ``(N, D)``.
        share: The target's share, shape ``(N, D)``.
        c: Classifier, shape ``(V, D)``.
        target: Target indices, shape ``(N,)``.
        loss: Mean cross-entropy to reach, in nats.

    Returns:
        The scale; 0 if the loss is already below the wanted value without any share of the target.

    Raises:
        ValueError: If no scale reaches the loss, as with a single feature.
    """
    flat, slope = noise @ c.T, share @ c.T

    def excess(scale: float) -> float:
        return torch.nn.functional.cross_entropy(torch.add(flat, slope, alpha=scale), target).item() - loss

    low, high = 0.0, 1.0
    if excess(low) <= 0:
        return 0.0
    while excess(high) > 0:
        low, high = high, 2 * high
        if high > _LARGEST_SCALE:
            raise ValueError(
                f"dim must be large enough for a mean loss of {loss}, got {c.shape[1]}; take data 'gaussian'"
            )
    for _ in range(12):  # to 1/4096 of the bracket: far below the spread of the loss between batches
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high
