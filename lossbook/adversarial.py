"""Attacks: perturbations within a ball around the input that make an objective large."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lossbook._validation import (
    check_choice,
    check_floating,
    check_integer,
    check_non_negative,
    check_number,
    check_positive,
    check_tensor,
    values_are_readable,
)

__all__ = ["pgd"]

NORMS = ("linf", "l2")


def pgd(
    model: Callable[[Tensor], Any],
    x: Tensor,
    objective: Callable[[Any], Tensor],
    *,
    eps: float,
    steps: int,
    step_size: float,
    norm: str = "linf",
    clip: tuple[float, float] | None = (0, 1),
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Projected gradient ascent on an objective, within a ball around each input.

    One step is :math:`x' \leftarrow \Pi(x' + s\, \mathrm{sign}(g))` for the maximum norm and
    :math:`x' \leftarrow \Pi(x' + s\, g / \lVert g \rVert_2)` for the Euclidean one, with :math:`g` the gradient of the
    objective by :math:`x'`, :math:`s` the step size, and :math:`\Pi` the projection onto the ball of radius
    :math:`\varepsilon` around :math:`x`, then onto the box ``clip``.

    The model attacks as it predicts: a ``torch.nn.Module`` is in evaluation mode for the duration of the call, so that
    dropout is off and the statistics of batch normalization stay as they are, and every submodule's mode is restored
    after it. No parameter receives a gradient.

    Args:
        model: Maps inputs shaped like ``x`` to outputs, examples independent of each other.
        x: Inputs, shape ``(N, ...)``, floating point, within ``clip``.
        objective: Maps the outputs at the perturbed inputs to what is made large: one value per example, shape
            ``(N,)``, or their sum or mean, shape ``()``. What it takes from the clean inputs should be detached.
        eps: Radius of the ball, ``>= 0``, in units of ``x``.
        steps: Number of steps, ``>= 0``.
        step_size: Length of a step, ``> 0``, in units of ``x``.
        norm: ``"linf"`` (largest change of an entry) or ``"l2"`` (Euclidean length of an example's change).
        clip: Smallest and largest admissible value of an entry; None for no limits.
        random_start: Start uniformly within the ball instead of at ``x``. Needed where the gradient vanishes at ``x``,
            as that of any distance from the clean outputs does.
        generator: Source of the random starts, on the device of ``x``. Default: a new one with seed 0, hence the same
            starts in each call. The global random state is neither read nor changed.

    Returns:
        Perturbed inputs after the last step, shape, dtype and device of ``x``, detached.

    Raises:
        ValueError: If a number is out of its range, ``norm`` is unknown, ``clip`` is not an interval, or (where values
            may be read) an input lies outside it.
        TypeError: If ``x`` is not floating point, or a number or ``clip`` has another type.

    Examples:
        >>> weights = torch.tensor([[1.0, -1.0]])
        >>> pgd(lambda x: x @ weights.T, torch.full((1, 2), 0.5), torch.sum, eps=0.1, steps=5, step_size=0.05)
        tensor([[0.6000, 0.4000]])

    References:
        Madry et al. (2018), "Towards Deep Learning Models Resistant to Adversarial Attacks";
        :doc:`/notebooks/01_comp_sum`.
    """
    check_tensor("x", x)
    check_floating("x", x)
    if x.dim() == 0:
        raise ValueError("x must have shape (N, ...), got ()")
    check_non_negative("eps", eps)
    check_integer("steps", steps)
    check_non_negative("steps", steps)
    check_positive("step_size", step_size)
    check_choice("norm", norm, NORMS)
    _check_clip(clip, x)
    x = x.detach()

    def project(change: Tensor) -> Tensor:
        change = change.clamp(-eps, eps) if norm == "linf" else change * (eps / _length(change)).clamp(max=1)
        # Clipping moves every entry towards x, which lies in the box, hence not out of the ball.
        return x + change if clip is None else (x + change).clamp(*clip)

    moved = x.clone()
    if random_start:
        generator = torch.Generator(x.device).manual_seed(0) if generator is None else generator
        moved = project(_uniform(x, eps, norm, generator))
    with _evaluation(model), torch.enable_grad():
        for _ in range(steps):
            moved.requires_grad_()
            (gradient,) = torch.autograd.grad(objective(model(moved)).sum(), moved)
            direction = gradient.sign() if norm == "linf" else gradient / _length(gradient)
            moved = project(moved.detach() + step_size * direction - x)
    return moved


def _check_clip(clip: tuple[float, float] | None, x: Tensor) -> None:
    if clip is None:
        return
    if not isinstance(clip, tuple | list):
        raise TypeError(f"clip must be None or a pair of numbers, got {type(clip).__name__} {clip!r}")
    if len(clip) != 2:
        raise ValueError(f"clip must be (low, high) with low < high, got {clip!r}")
    low, high = clip
    check_number("clip[0]", low)
    check_number("clip[1]", high)
    if low >= high:
        raise ValueError(f"clip must be (low, high) with low < high, got {clip!r}")
    if values_are_readable(x) and not ((x >= low) & (x <= high)).all():
        raise ValueError(
            f"x must lie in clip = [{low}, {high}], got values from {x.min().item():.4g} to {x.max().item():.4g}"
        )


def _length(change: Tensor) -> Tensor:
    """Euclidean norm of each example's change, shaped to divide it; not zero."""
    norms = torch.linalg.vector_norm(change.flatten(1), dim=1)
    return norms.clamp(min=torch.finfo(change.dtype).tiny).view(-1, *[1] * (change.dim() - 1))


def _uniform(x: Tensor, eps: float, norm: str, generator: torch.Generator) -> Tensor:
    """A point drawn uniformly from the ball of radius ``eps`` around zero, for each example."""
    kind = {"generator": generator, "device": x.device, "dtype": x.dtype}
    if norm == "linf":
        return eps * (2 * torch.rand(x.shape, **kind) - 1)
    direction = torch.randn(x.shape, **kind)
    radius = torch.rand(len(x), *[1] * (x.dim() - 1), **kind) ** (1 / max(x[0].numel() if len(x) else 1, 1))
    return eps * radius * direction / _length(direction)


@contextmanager
def _evaluation(model: Any) -> Iterator[None]:
    """Put a module into evaluation mode, and each of its parts back into its own afterwards."""
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
