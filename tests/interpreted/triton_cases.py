"""Heads for the interpreter, and their results beside those of the dense reference in float64."""

from typing import NamedTuple

import torch
from cce_reference import IGNORED, logits, make
from torch import Tensor

from lossbook.kernels import cut_cross_entropy
from lossbook.kernels.cross_entropy.problem import Problem

# Largest relative Frobenius errors, set before the first comparison: sums in another order in float32, two roundings
# of the gradient otherwise.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
BLOCK = 128
EVERYTHING = {"return_lse": True, "return_entropy": True, "return_argmax": True}


class Head(NamedTuple):
    """Leaves and targets."""

    e: Tensor
    c: Tensor
    bias: Tensor | None
    target: Tensor

    def leaves(self) -> list[Tensor]:
        return [value for value in self[:3] if value is not None and value.requires_grad]

    def double(self) -> "Head":
        """The same numbers in float64."""
        return Head(
            *(
                None if value is None else value.detach().double().requires_grad_(value.requires_grad)
                for value in self[:3]
            ),
            self.target,
        )


class Outcome(NamedTuple):
    """Loss and other floating-point results, gradients of their weighted sum, and the argmax."""

    values: list[Tensor]
    gradients: list[Tensor]
    argmax: list[Tensor]


def head(rows=200, vocab=150, features=20, *, spread=2.0, dtype=torch.float32, bias=True, **options) -> Head:
    """Random operands whose logits have a standard deviation of ``spread``, for more than one block of rows."""
    return Head(*make(rows, vocab, features, scale=spread * features**-0.5, dtype=dtype, bias=bias, **options))


def outcome(heads: Head, **options) -> Outcome:
    """Results, and gradients under a random upstream gradient for each of them, the same at every call."""
    results = cut_cross_entropy(heads.e, heads.c, heads.target, heads.bias, **options)
    results = results if isinstance(results, tuple) else (results,)
    values = [value for value in results if value.is_floating_point()]
    generator = torch.Generator().manual_seed(1)
    upstream = [(torch.rand(value.shape, generator=generator) + 0.5).to(value.dtype) for value in values]
    gradients = torch.autograd.grad(values, heads.leaves(), upstream)
    return Outcome(values, list(gradients), [value for value in results if not value.is_floating_point()])


def error(got: Tensor, want: Tensor) -> float:
    """Relative Frobenius error; absolute, per entry, where the reference is exactly zero."""
    size = want.norm() if want.any() else torch.tensor(max(1, want.numel())).sqrt()
    return ((got.detach().double() - want.double()).norm() / size).item()


def assert_close(got: Outcome, want: Outcome, tolerance: float, case: object = "") -> None:
    """Compare values, gradients and argmax."""
    errors = [[error(x, y) for x, y in zip(a, b, strict=True)] for a, b in zip(got[:2], want[:2], strict=True)]
    assert max(errors[0]) < tolerance, f"values are off by {errors[0]}: {case}"
    assert max(errors[1], default=0) < tolerance, f"gradients are off by {errors[1]}: {case}"
    assert all(torch.equal(x, y) for x, y in zip(got.argmax, want.argmax, strict=True)), case


def assert_equals_dense(heads: Head, **options) -> Outcome:
    """Compare the Triton kernels with the dense reference on the same rounded operands; returns what they gave."""
    got = outcome(heads, impl="triton", **options)
    weight = options.get("weight")
    reference = {**options, "weight": None if weight is None else weight.double()}
    assert_close(got, outcome(heads.double(), impl="dense", **reference), TOLERANCES[heads.e.dtype], options)
    return got


def assert_identical(got: Outcome, want: Outcome) -> None:
    """Compare bit by bit."""
    for mine, theirs in zip(got, want, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


def kept_columns(heads: Head, eps: float, **options) -> Tensor:
    """Columns that each block of valid rows keeps by definition, shape ``(blocks, V)``, from float64."""
    valid = (heads.target != IGNORED).nonzero()[:, 0]
    softmax = logits(*heads.double()[:3], **options).softmax(1)[valid].detach()
    target = heads.target[valid]
    kept = []
    for rows in torch.arange(len(valid)).split(BLOCK):
        columns = softmax[rows].amax(0) >= eps
        columns[target[rows]] = True
        kept.append(columns)
    return torch.stack(kept)


def problem(heads: Head, **changes) -> Problem:
    """The head as the engines take it."""
    plain = Problem(
        *heads,
        valid=heads.target != IGNORED,
        class_weight=None,
        softcap=None,
        eps_e=None,
        eps_c=None,
        work=torch.float32,
        chunk_bytes=1 << 20,
        scale=1.0,
        want_mean=False,
        want_argmax=False,
        impl="triton",
    )
    return plain._replace(**changes)
