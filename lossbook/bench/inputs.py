"""Seeded inputs of the cross-entropy benchmark: hidden states, classifier and targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Mean loss in nats that peaked inputs are tuned to: about what a small language model reaches on prose and code.
PEAKED_LOSS = 2.5
#: A probability below this changes no bfloat16 sum (2^-7 relative precision, 2^-5 of head room).
ENTRY_EPS = 2.0**-12
#: Rows that share a topic, and the height of a block of the gradient filter.
CONTEXT = 128

_TUNING_ROWS = 512
_ZIPF_SHIFT = 2.7  # Mandelbrot's correction: without it the first word alone takes a tenth of the text
_LARGEST_SCALE = 1e5
_BISECTIONS = 14


@dataclass(frozen=True)
class _Language:
    """How unsure the model is that peaked inputs imitate.

    Attributes:
        noise: Standard deviation of a logit that is nobody's target.
        shared: Part of that variance common to a context: words that follow each other agree on the topic.
        prior: Weight of the words' log frequency in every logit.
        themes: Themes a context draws its rows from; 0 for none.
        lift: What a theme adds to the logits of its words.
    """

    noise: float
    shared: float
    prior: float
    themes: int = 0
    lift: float = 0.0


# Chosen so that the softmax is about as sparse as that of a 135M-parameter language model on prose and code: 0.2-0.4 %
# of 49,152 entries reach 2^-12, and 128 consecutive rows share about a quarter of the columns at 2^-16.
_PLAIN = _Language(noise=2.5, shared=0.7, prior=1.1)
# Gaussian logits cannot spread a row over more than a few hundred words.  A model unsure among more of them must be
# unsure about the words of one theme; a context of 128 rows then touches about 20-30 times the entries of one row.
_THEMATIC = _Language(noise=0.4, shared=0.0, prior=0.3, themes=8, lift=8.0)
_PLAIN_ENTRIES = 250  # entries of a row up to which the plain recipe reaches a density with a plausible loss
_THEME_WORDS = 3  # words of a theme for every entry wanted
_THEME_SHARE = 0.3  # part of a classifier row's variance that its theme determines


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

    def copy(self) -> Inputs:
        """Return equal inputs at other addresses."""
        e, c = (x.detach().clone().requires_grad_() for x in (self.e, self.c))
        return Inputs(e, c, self.target.clone(), self.scale)


def make_inputs(
    *,
    n: int,
    vocab: int,
    dim: int,
    dtype: torch.dtype,
    device: str,
    seed: int,
    data: str,
    density: float | None = None,
    scale: float | None = None,
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
        density: For peaked inputs the fraction of softmax entries that shall reach :data:`ENTRY_EPS`; None tunes the
            mean loss to :data:`PEAKED_LOSS` instead.
        scale: Mean weight of the target's row, if already known; otherwise found by :func:`tune_scale`.

    Returns:
        The inputs.

    Raises:
        ValueError: If the density or the loss cannot be reached with these sizes.
    """
    generator = torch.Generator(device).manual_seed(seed)
    options = {"generator": generator, "device": device}
    c = torch.randn(vocab, dim, **options).mul_(dim**-0.5)
    e = torch.randn(n, dim, **options)
    if data == "gaussian":
        target = torch.randint(vocab, (n,), **options)
        return _leaves(e, c, target, 0.0, dtype)
    many = density is not None and density * vocab > _PLAIN_ENTRIES
    language = _THEMATIC if many else _PLAIN
    frequency = 1 / (torch.arange(1, vocab + 1, device=device, dtype=torch.float64) + _ZIPF_SHIFT)
    target = torch.multinomial(frequency, n, replacement=True, generator=generator)
    topics = torch.randn(-(-n // CONTEXT), dim, **options).repeat_interleave(CONTEXT, 0)[:n]
    e.mul_((1 - language.shared) ** 0.5).add_(topics, alpha=language.shared**0.5).mul_(language.noise)
    # Evenly spaced between 0 and 2 in random order: a random draw would make the density of few rows uncertain.
    confidence = (torch.randperm(n, **options)[:, None] + 0.5) * (2 / n)
    share = c[target] * confidence
    if language.themes:
        _add_themes(e, c, language, max(1, round(1 / (_THEME_WORDS * density))), options)
    # The frequency has a feature to itself, without a target's share, so it has the same weight in every row.
    prior = frequency.log()
    c[:, 0] = ((prior - prior.mean()) * dim**-0.5).float()
    e[:, 0], share[:, 0] = language.prior * dim**0.5, 0.0
    if scale is None:
        # Of every degree of confidence alike: at a low density nearly all entries come from the few unsure rows.
        spaced = torch.linspace(0, n - 1, min(n, _TUNING_ROWS), device=device).long()
        rows = confidence[:, 0].argsort()[spaced]
        scale = tune_scale(e[rows], share[rows], c, target[rows], density=density)
    return _leaves(e.add_(share, alpha=scale), c, target, scale, dtype)


def _add_themes(e: Tensor, c: Tensor, language: _Language, count: int, options: dict[str, Any]) -> None:
    """Give every word one of ``count`` themes, and every row one out of the few of its context; in place."""
    centers = torch.randn(count, c.shape[1], **options).mul_(c.shape[1] ** -0.5)
    c.mul_((1 - _THEME_SHARE) ** 0.5)
    c.add_(centers[torch.randint(count, (len(c),), **options)], alpha=_THEME_SHARE**0.5)
    contexts = torch.randint(count, (-(-len(e) // CONTEXT), language.themes), **options)
    chosen = torch.randint(language.themes, (len(e), 1), **options)
    theme = contexts.repeat_interleave(CONTEXT, 0)[: len(e)].gather(1, chosen)[:, 0]
    e.add_(centers[theme], alpha=language.lift * _THEME_SHARE**-0.5)


def _leaves(e: Tensor, c: Tensor, target: Tensor, scale: float, dtype: torch.dtype) -> Inputs:
    return Inputs(e.to(dtype).requires_grad_(), c.to(dtype).requires_grad_(), target, scale)


def tune_scale(
    noise: Tensor,
    share: Tensor,
    c: Tensor,
    target: Tensor,
    *,
    loss: float = PEAKED_LOSS,
    density: float | None = None,
) -> float:
    """Find by bisection the scale ``a`` at which ``noise + a * share`` has the wanted density or mean loss.

    Args:
        noise: Hidden states without the target's share, shape ``(N, D)``.
        share: The target's share, shape ``(N, D)``.
        c: Classifier, shape ``(V, D)``.
        target: Target indices, shape ``(N,)``.
        loss: Mean cross-entropy to reach, in nats.
        density: Fraction of softmax entries of at least :data:`ENTRY_EPS` to reach; None reaches ``loss``.

    Returns:
        The scale; 0 if the loss is already below the wanted value without any share of the target.

    Raises:
        ValueError: If no scale reaches the loss, as with a single feature, or the density, as when it is below one
            entry a row.
    """
    flat, slope = noise @ c.T, share @ c.T

    def excess(scale: float) -> float:
        logits = torch.add(flat, slope, alpha=scale)
        if density is None:
            return torch.nn.functional.cross_entropy(logits, target).item() - loss
        return (torch.softmax(logits, 1) >= ENTRY_EPS).float().mean().item() - density

    if density is None:
        unreachable = f"dim must be large enough for a mean loss of {loss}, got {c.shape[1]}; take data 'gaussian'"
    else:
        unreachable = f"density must be reachable with V = {len(c)} and D = {c.shape[1]}, got {density}"
    low, high = 0.0, 1.0
    if (start := excess(low)) <= 0:
        if density is not None and start < 0:
            raise ValueError(f"{unreachable}; without a sure target it is {density + start:.2g}")
        return 0.0
    while (above := excess(high)) > 0:
        low, high = high, 2 * high
        if high > _LARGEST_SCALE:
            reached = f"; with sure targets it is {density + above:.2g}" if density is not None else ""
            raise ValueError(unreachable + reached)
    for _ in range(_BISECTIONS):  # far below the spread between batches
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high
