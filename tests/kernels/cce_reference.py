"""Naive losses and inputs that the tests of the cross-entropy kernels compare with."""

import torch
import torch.nn.functional as F

IGNORED = -100


def make(rows=200, vocab=70, features=6, *, bias=False, dtype=torch.float64, ignored=7, scale=1.0, seed=0):
    """Leaves ``e``, ``c``, ``bias`` (or None) that require gradients, and targets with every 7th row ignored."""
    generator = torch.Generator().manual_seed(seed)
    e = torch.randn(rows, features, generator=generator, dtype=torch.float64) * scale
    c = torch.randn(vocab, features, generator=generator, dtype=torch.float64)
    b = torch.randn(vocab, generator=generator, dtype=torch.float64)
    target = torch.randint(vocab, (rows,), generator=generator)
    if ignored:
        target[::ignored] = IGNORED
    e, c, b = (value.to(dtype).requires_grad_() for value in (e, c, b))
    return e, c, b if bias else None, target


def logits(e, c, bias=None, softcap=None, temperature=1.0):
    z = e @ c.T if bias is None else e @ c.T + bias
    return (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature


def entropy(z, target):
    """Entropy of each row's softmax as torch's own distributions have it; zero at ignored rows."""
    return torch.distributions.Categorical(logits=z).entropy() * (target != IGNORED)


def naive(
    e,
    c,
    target,
    bias=None,
    *,
    softcap=None,
    temperature=1.0,
    reduction="mean",
    label_smoothing=0.0,
    z_loss=0.0,
    weight=None,
):
    """``F.cross_entropy`` of the logits, plus the z-loss with the same denominator."""
    z = logits(e, c, bias, softcap, temperature)
    loss = F.cross_entropy(z, target, weight=weight, reduction=reduction, label_smoothing=label_smoothing)
    valid = target != IGNORED
    penalty = z_loss * z.logsumexp(-1).square() * valid
    if reduction == "none":
        return loss + penalty
    if reduction == "sum":
        return loss + penalty.sum()
    return loss + penalty.sum() / (valid.sum() if weight is None else weight[target[valid]].sum())


def gradients(loss, e, c, bias=None, upstream=None):
    leaves = [value for value in (e, c, bias) if value is not None]
    return torch.autograd.grad(loss, leaves, upstream)


def relative(got, expected):
    """Largest relative Frobenius error over pairs of tensors."""
    return max(((x - y).norm() / y.norm().clamp(min=1e-300)).item() for x, y in zip(got, expected, strict=True))
