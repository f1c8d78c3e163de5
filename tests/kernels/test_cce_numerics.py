"""Extreme logits, low precision, masked words, broken inputs, and repeatability."""

import pytest
import torch
import torch.nn.functional as F
from cce_reference import IGNORED, gradients, make, naive, relative

from lossbook.kernels import cut_cross_entropy

SCHEDULES = [("mean", 1 << 26), ("none", 1 << 26), ("none", 1)]


@pytest.mark.parametrize(("reduction", "chunk_bytes"), SCHEDULES)
@pytest.mark.parametrize("size", [1e4, -1e4, 3e4])
def test_logits_of_ten_thousand_stay_finite(size, reduction, chunk_bytes):
    e, c, _, target = make(dtype=torch.float32)
    with torch.no_grad():
        e *= abs(size) / (e @ c.T).abs().amax(1, keepdim=True)
        e *= 1 if size > 0 else -1
    loss, lse = cut_cross_entropy(e, c, target, reduction=reduction, chunk_bytes=chunk_bytes, return_lse=True)
    expected = naive(e.double(), c.double(), target, reduction=reduction)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=4e-3)
    got = gradients(cut_cross_entropy(e, c, target, reduction=reduction, chunk_bytes=chunk_bytes).sum(), e, c)
    assert lse.isfinite().all() and all(grad.isfinite().all() for grad in got)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_a_constant_shift_of_ten_thousand_cancels(size):
    e, c, b, target = make(bias=True, dtype=torch.float64)
    plain, moved = (cut_cross_entropy(e, c, target, bias) for bias in (b, b + size))
    torch.testing.assert_close(plain, moved, rtol=1e-11, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_low_precision_is_no_worse_than_the_plain_path(reduction, dtype):
    """Against a float64 truth from the same rounded operands, compared with the logits path torch users write."""
    e, c, b, target = make(300, 500, 32, bias=True, dtype=dtype, scale=0.5)
    exact = [value.detach().double().requires_grad_() for value in (e, c, b)]
    truth = naive(exact[0], exact[1], target, exact[2], reduction=reduction)
    ours = cut_cross_entropy(e, c, target, b, reduction=reduction)
    plain = F.cross_entropy(F.linear(e, c, b).float(), target, reduction=reduction)
    assert ours.dtype == torch.float32
    assert (ours - truth).abs().max() <= (plain - truth).abs().max()
    assert (ours - truth).abs().max() < 1e-5
    want = gradients(truth.sum(), *exact)
    for got, other, best in zip(gradients(ours.sum(), e, c, b), gradients(plain.sum(), e, c, b), want, strict=True):
        assert got.dtype == dtype
        error, rounding = relative([got.double()], [best]), relative([best.to(dtype).double()], [best])
        assert error <= relative([other.double()], [best])
        assert error <= 1.05 * rounding + 1e-6, "a single rounding to the parameter's dtype is all that is lost"


def test_accumulation_in_float64():
    e, c, b, target = make(400, 300, bias=True, dtype=torch.float32)
    exact = [value.detach().double().requires_grad_() for value in (e, c, b)]
    want = gradients(naive(exact[0], exact[1], target, exact[2]), *exact)
    for impl in ("torch", "dense"):
        loss = cut_cross_entropy(e, c, target, b, accum_dtype=torch.float64, impl=impl)
        got = gradients(loss, e, c, b)
        assert loss.dtype == torch.float32 and all(grad.dtype == torch.float32 for grad in got)
        assert relative([grad.double() for grad in got], want) < 4e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["torch", "dense"])
def test_result_dtypes(impl, dtype):
    e, c, _, target = make(dtype=dtype)
    loss, lse = cut_cross_entropy(e, c, target, reduction="none", return_lse=True, impl=impl)
    assert loss.dtype == lse.dtype == torch.float32
    assert cut_cross_entropy(e.double(), c.double(), target, impl=impl).dtype == torch.float64


@pytest.mark.parametrize(("reduction", "chunk_bytes"), [*SCHEDULES, ("sum", 1)])
@pytest.mark.parametrize("filter_eps", [None, 2.0**-8])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_bias_of_minus_infinity_masks_a_word(softcap, filter_eps, reduction, chunk_bytes):
    e, c, b, target = make(200, 150, bias=True)
    masked = torch.zeros(150, dtype=torch.bool)
    masked[64:128] = True  # a whole tile of the smallest tile width
    masked[3] = True
    target[masked[target.clamp(0)]] = IGNORED
    with torch.no_grad():
        b[masked] = -torch.inf
    options = {"reduction": reduction, "softcap": softcap}
    loss = cut_cross_entropy(e, c, target, b, chunk_bytes=chunk_bytes, filter_eps=filter_eps, **options)
    torch.testing.assert_close(loss, naive(e, c, target, b, **options), rtol=1e-12, atol=1e-13)
    got = gradients(loss.sum(), e, c, b)
    assert all(grad.isfinite().all() for grad in got)
    if filter_eps is None and softcap is None:
        keep = ~masked
        remap = torch.cumsum(keep, 0) - 1
        mapped = torch.where(target == IGNORED, IGNORED, remap[target.clamp(0)])
        without = gradients(naive(e, c[keep], mapped, b[keep], reduction=reduction).sum(), e, c, b)
        assert relative(got, without) < 1e-12


@pytest.mark.parametrize(("reduction", "chunk_bytes"), SCHEDULES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("filter_eps", [None, "fast"])
def test_broken_rows_stay_visible(filter_eps, bad, reduction, chunk_bytes):
    e, c, _, target = make(ignored=0)
    with torch.no_grad():
        e[5, 2] = bad
    loss = cut_cross_entropy(e, c, target, reduction=reduction, chunk_bytes=chunk_bytes, filter_eps=filter_eps)
    if reduction == "none":
        assert loss.isnan().nonzero().tolist() == [[5]]
    else:
        assert loss.isnan()
    d_e, d_c = gradients(loss.sum(), e, c)
    assert d_e[5].isnan().all() and d_c.isnan().any()
    assert d_e[[4, 6]].isfinite().all()


@pytest.mark.parametrize("filter_eps", [None, 2.0**-7])
@pytest.mark.parametrize(("reduction", "chunk_bytes"), SCHEDULES)
def test_bitwise_repeatable(reduction, chunk_bytes, filter_eps):
    e, c, b, target = make(400, 300, 16, bias=True, dtype=torch.float32)
    upstream = torch.rand(400) if reduction == "none" else None

    def run():
        loss = cut_cross_entropy(e, c, target, b, reduction=reduction, chunk_bytes=chunk_bytes, filter_eps=filter_eps)
        return [loss.detach(), *gradients(loss, e, c, b, upstream)]

    first = run()
    for _ in range(3):
        assert all(torch.equal(x, y) for x, y in zip(first, run(), strict=True))


def test_no_global_state_is_touched():
    e, c, _, target = make()
    before = (torch.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    cut_cross_entropy(e, c, target).backward()
    after = (torch.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_arguments_are_not_written_to():
    e, c, b, target = make(bias=True)
    weight = torch.rand(len(c), dtype=torch.float64)
    given = [value.detach().clone() for value in (e, c, b, target, weight)]
    for reduction in ("mean", "none"):
        loss = cut_cross_entropy(e, c, target, b, weight=weight, label_smoothing=0.1, reduction=reduction)
        loss.sum().backward()
    assert all(torch.equal(x, y) for x, y in zip(given, (e, c, b, target, weight), strict=True))


@pytest.mark.parametrize("impl", ["torch", "dense"])
def test_uninitialized_memory_is_never_read(nan_empty, impl):
    e, c, b, target = make(300, bias=True)
    for options in ({}, {"reduction": "none"}, {"filter_eps": 2.0**-5}, {"softcap": 3.0, "label_smoothing": 0.1}):
        loss = cut_cross_entropy(e, c, target, b, impl=impl, **options).sum()
        assert loss.isfinite() and all(grad.isfinite().all() for grad in gradients(loss, e, c, b))
