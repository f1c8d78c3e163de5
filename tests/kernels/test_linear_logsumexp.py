"""The two parts of the loss on their own."""

import pytest
import torch
from cce_reference import logits, make, relative

from lossbook.kernels import cut_cross_entropy, indexed_dot, linear_logsumexp


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("bias", [False, True])
def test_logsumexp_equals_torch(bias, softcap):
    e, c, b, _ = make(200, 900, bias=bias)
    lse = linear_logsumexp(e.view(4, 50, 6), c, b, softcap=softcap)
    expected = logits(e, c, b, softcap).logsumexp(1).view(4, 50)
    torch.testing.assert_close(lse, expected, rtol=1e-13, atol=0)
    upstream = torch.randn_like(expected)
    leaves = [value for value in (e, c, b) if value is not None]
    got = torch.autograd.grad(lse, leaves, upstream)
    assert relative(got, torch.autograd.grad(expected, leaves, upstream)) < 1e-12


def test_gradcheck():
    e, c, b, target = make(5, 7, 3, bias=True, ignored=0)
    assert torch.autograd.gradcheck(lambda *args: linear_logsumexp(*args, softcap=2.0), (e, c, b))
    assert torch.autograd.gradcheck(lambda e, c: indexed_dot(e, c, target), (e, c))


def test_indexed_dot_equals_gathering():
    e, c, _, index = make(200, 70, ignored=0)
    dot = indexed_dot(e.view(4, 50, 6), c, index.view(4, 50))
    expected = (e * c[index]).sum(1).view(4, 50)
    torch.testing.assert_close(dot, expected, rtol=1e-13, atol=1e-13)
    upstream = torch.randn_like(expected)
    assert relative(torch.autograd.grad(dot, (e, c), upstream), torch.autograd.grad(expected, (e, c), upstream)) < 1e-12


def test_indexed_dot_in_chunks(monkeypatch):
    monkeypatch.setattr("lossbook.kernels.cross_entropy.logsumexp._GATHER_BYTES", 500)
    test_indexed_dot_equals_gathering()


def test_their_difference_is_the_loss():
    e, c, _, target = make(ignored=0)
    torch.testing.assert_close(
        linear_logsumexp(e, c) - indexed_dot(e, c, target),
        cut_cross_entropy(e, c, target, reduction="none"),
        rtol=1e-12,
        atol=1e-14,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_accumulated_in_float32(dtype):
    e, c, _, index = make(100, 300, 64, dtype=dtype, ignored=0)
    exact_e, exact_c = e.detach().double().requires_grad_(), c.detach().double().requires_grad_()
    for got, want in (
        (linear_logsumexp(e, c), logits(exact_e, exact_c).logsumexp(1)),
        (indexed_dot(e, c, index), (exact_e * exact_c[index]).sum(1)),
    ):
        assert got.dtype == torch.float32
        assert relative([got.double()], [want]) < 1e-6
        grads = torch.autograd.grad(got.sum(), (e, c))
        truth = torch.autograd.grad(want.sum(), (exact_e, exact_c))
        for grad, exact in zip(grads, truth, strict=True):
            assert grad.dtype == dtype
            assert relative([grad.double()], [exact]) <= 1.05 * relative([exact.to(dtype).double()], [exact]) + 1e-6


def test_only_the_requested_gradients_are_computed():
    e, c, _, index = make(ignored=0)
    c.requires_grad_(False)
    (linear_logsumexp(e, c).sum() + indexed_dot(e, c, index).sum()).backward()
    assert c.grad is None and e.grad is not None


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_no_rows_and_one_row(shape):
    c = torch.randn(5, 3, requires_grad=True)
    e = torch.ones(*shape, 3, requires_grad=True)
    index = torch.zeros(shape, dtype=torch.int64)
    for value in (linear_logsumexp(e, c), indexed_dot(e, c, index)):
        assert value.shape == shape
        value.sum().backward()
    assert c.grad.isfinite().all()


def test_all_words_masked_is_minus_infinity():
    e, c, b, _ = make(bias=True)
    lse = linear_logsumexp(e, c, torch.full_like(b, -torch.inf))
    assert (lse == -torch.inf).all()
