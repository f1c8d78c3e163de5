"""The loss and its first derivatives are those of the dense cross-entropy, whatever the options and the schedule."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cce_reference import IGNORED, gradients, logits, make, naive, relative
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.kernels import LinearCrossEntropy, cut_cross_entropy

# One row block of logits fits (gradients in the forward pass, two chunks of rows); or none does (two passes).
ROW_CHUNKS, TILES = 80_000, 1
SCHEDULES = [("torch", ROW_CHUNKS), ("torch", TILES), ("dense", TILES)]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize(("impl", "chunk_bytes"), SCHEDULES)
def test_every_combination_of_options_equals_dense(impl, chunk_bytes, return_lse, reduction):
    for bias, softcap, smoothing, z_loss, weighted in itertools.product(
        [False, True], [None, 3.0], [0.0, 0.1], [0.0, 0.01], [False, True]
    ):
        e, c, b, target = make(bias=bias)
        weight = torch.linspace(0, 2, len(c), dtype=torch.float64) if weighted else None
        options = {
            "softcap": softcap,
            "reduction": reduction,
            "label_smoothing": smoothing,
            "z_loss": z_loss,
            "weight": weight,
        }
        loss = cut_cross_entropy(e, c, target, b, **options, return_lse=return_lse, impl=impl, chunk_bytes=chunk_bytes)
        expected = naive(e, c, target, b, **options)
        if return_lse:
            loss, lse = loss
            torch.testing.assert_close(
                lse, logits(e, c, b, softcap).logsumexp(1) * (target != IGNORED), rtol=1e-13, atol=1e-13
            )
        upstream = torch.rand_like(expected) + 0.5
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-13, msg=str(options))
        error = relative(gradients(loss, e, c, b, upstream), gradients(expected, e, c, b, upstream))
        assert error < 1e-12, options


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 300),
    vocab=st.integers(1, 200),
    features=st.integers(1, 9),
    chunk_bytes=st.sampled_from([1, 40_000, 1 << 26]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    ignored=st.sampled_from([0, 2, 5]),
)
def test_ragged_shapes(rows, vocab, features, chunk_bytes, reduction, ignored):
    e, c, b, target = make(rows + 1, vocab, features, bias=True, ignored=ignored, seed=rows)
    loss = cut_cross_entropy(e, c, target, b, reduction=reduction, chunk_bytes=chunk_bytes)
    expected = naive(e, c, target, b, reduction=reduction)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for got, want in zip(gradients(loss, e, c, b, upstream), gradients(expected, e, c, b, upstream), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("impl", "chunk_bytes"), [("torch", 1 << 20), ("torch", 1), ("dense", 1)])
def test_gradcheck(impl, chunk_bytes, reduction):
    e, c, b, target = make(5, 7, 3, bias=True, ignored=4)
    weight = torch.linspace(0.5, 2, 7, dtype=torch.float64)

    def loss(e, c, b):
        return cut_cross_entropy(
            e,
            c,
            target,
            b,
            reduction=reduction,
            impl=impl,
            chunk_bytes=chunk_bytes,
            softcap=2.0,
            label_smoothing=0.1,
            z_loss=0.1,
            weight=weight,
        )

    def loss_and_lse(e, c, b):
        return cut_cross_entropy(
            e, c, target, b, reduction=reduction, impl=impl, chunk_bytes=chunk_bytes, return_lse=True
        )

    assert torch.autograd.gradcheck(loss, (e, c, b))
    assert torch.autograd.gradcheck(loss_and_lse, (e, c, b))


def test_lse_gradient_adds_to_the_loss_gradient():
    e, c, b, target = make(bias=True)
    valid = target != IGNORED
    loss, lse = cut_cross_entropy(e, c, target, b, softcap=4.0, return_lse=True, chunk_bytes=1)
    factor = torch.randn_like(lse)
    expected = naive(e, c, target, b, softcap=4.0) + (logits(e, c, b, 4.0).logsumexp(1) * factor)[valid].sum()
    got = gradients(loss + (lse * factor).sum(), e, c, b)
    assert relative(got, gradients(expected, e, c, b)) < 1e-12
    # The log-sum-exp alone, with no gradient from the loss.
    _, lse = cut_cross_entropy(e, c, target, b, return_lse=True)
    expected = (logits(e, c, b).logsumexp(1) * factor)[valid].sum()
    assert relative(gradients((lse * factor).sum(), e, c, b), gradients(expected, e, c, b)) < 1e-12


def test_z_loss_is_the_squared_lse():
    e, c, _, target = make(ignored=0)
    plain, lse = cut_cross_entropy(e, c, target, reduction="none", return_lse=True)
    with_z = cut_cross_entropy(e, c, target, reduction="none", z_loss=0.3)
    torch.testing.assert_close(with_z, plain + 0.3 * lse**2, rtol=1e-14, atol=0)


@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_shift_equals_slicing(shift, reduction):
    e, c, _, target = make(60)
    e3, target2 = e.view(3, 20, 6), target.view(3, 20)
    loss, lse = cut_cross_entropy(e3, c, target2, shift=shift, reduction=reduction, return_lse=True)
    sliced = cut_cross_entropy(e3[:, :-shift], c, target2[:, shift:], reduction=reduction)
    assert lse.shape == (3, 20 - shift)
    assert loss.shape == (() if reduction == "mean" else (3, 20 - shift))
    torch.testing.assert_close(loss, sliced, rtol=1e-14, atol=0)
    upstream = torch.randn_like(loss)
    assert relative(gradients(loss, e, c, None, upstream), gradients(sliced, e, c, None, upstream)) < 1e-13
    assert e.grad is None


@pytest.mark.parametrize("chunk_bytes", [ROW_CHUNKS, TILES])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ignored_rows_contribute_nothing(reduction, chunk_bytes):
    e, c, b, target = make(bias=True)
    ignored = target == IGNORED
    with torch.no_grad():
        e[ignored] = torch.nan
    loss = cut_cross_entropy(e, c, target, b, reduction=reduction, chunk_bytes=chunk_bytes, label_smoothing=0.1)
    kept = naive(e[~ignored], c, target[~ignored], b, reduction=reduction, label_smoothing=0.1)
    if reduction == "none":
        assert (loss[ignored] == 0).all()
        loss, kept = loss.sum(), kept.sum()
    torch.testing.assert_close(loss, kept, rtol=1e-12, atol=0)
    d_e, d_c, d_b = gradients(loss, e, c, b)
    assert (d_e[ignored] == 0).all()
    expected = gradients(kept, e, c, b)
    assert relative((d_e[~ignored], d_c, d_b), (expected[0][~ignored], *expected[1:])) < 1e-12


def test_another_ignore_index_may_be_a_word():
    e, c, _, target = make(ignored=0)
    loss = cut_cross_entropy(e, c, target, ignore_index=3, reduction="none")
    expected = F.cross_entropy(e @ c.T, target, ignore_index=3, reduction="none")
    assert (target == 3).any()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("impl", ["torch", "dense"])
@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("rows", [0, 4])
def test_no_valid_row(rows, return_lse, impl):
    e, c, b, _ = make(rows, bias=True)
    target = torch.full((rows,), IGNORED)
    for reduction, value in (("mean", torch.nan), ("sum", 0.0)):
        loss = cut_cross_entropy(e, c, target, b, reduction=reduction, return_lse=return_lse, impl=impl)
        loss = loss[0] if return_lse else loss
        torch.testing.assert_close(loss, torch.tensor(value, dtype=loss.dtype), equal_nan=True)
        assert all((grad == 0).all() for grad in gradients(loss, e, c, b))
    assert cut_cross_entropy(e, c, target, b, reduction="none", impl=impl).tolist() == [0.0] * rows


@pytest.mark.parametrize("impl", ["torch", "dense"])
def test_a_single_token_without_a_batch_axis(impl):
    e, c, _, target = make(1, ignored=0)
    loss, lse = cut_cross_entropy(e[0], c, target[0], reduction="none", return_lse=True, impl=impl)
    assert loss.shape == lse.shape == ()
    torch.testing.assert_close(loss, naive(e, c, target), rtol=1e-13, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_leading_axes_and_strides_do_not_matter(reduction):
    e, c, _, target = make(120)
    expected = naive(e, c, target, reduction=reduction)
    upstream = torch.randn_like(expected)
    want = gradients(expected, e, c, None, upstream)
    e_strided = e.detach().view(4, 30, 6).transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    c_strided = c.detach().T.contiguous().T.requires_grad_()
    assert not e_strided.is_contiguous() and not c_strided.is_contiguous()
    for chunk_bytes in (ROW_CHUNKS, TILES):
        loss = cut_cross_entropy(e_strided, c_strided, target.view(4, 30), reduction=reduction, chunk_bytes=chunk_bytes)
        torch.testing.assert_close(loss.reshape(expected.shape), expected, rtol=1e-12, atol=1e-13)
        d_e, d_c = torch.autograd.grad(loss, (e_strided, c_strided), upstream.view(loss.shape))
        assert relative((d_e.reshape(120, 6), d_c), want) < 1e-12


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("chunk_bytes", [1, 50_000, 1 << 17, 1 << 26])
def test_chunk_size_changes_rounding_only(chunk_bytes, reduction):
    e, c, b, target = make(700, 190, bias=True)
    expected = naive(e, c, target, b, reduction=reduction, label_smoothing=0.1, softcap=5.0)
    loss = cut_cross_entropy(
        e, c, target, b, reduction=reduction, label_smoothing=0.1, softcap=5.0, chunk_bytes=chunk_bytes
    )
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    upstream = torch.randn_like(expected)
    assert relative(gradients(loss, e, c, b, upstream), gradients(expected, e, c, b, upstream)) < 1e-13


@pytest.mark.parametrize("impl", ["torch", "dense"])
def test_one_word_is_always_right(impl):
    e, c, _, _ = make(9, 1)
    loss = cut_cross_entropy(e, c, torch.zeros(9, dtype=torch.int64), impl=impl)
    assert loss.item() == 0
    assert all((grad == 0).all() for grad in gradients(loss, e, c))


def test_a_zero_classifier_is_uniform():
    e, c, _, target = make()
    torch.testing.assert_close(
        cut_cross_entropy(e, c * 0, target), torch.tensor(len(c), dtype=torch.float64).log(), rtol=1e-15, atol=0
    )


def test_a_huge_softcap_is_none():
    e, c, b, target = make(bias=True)
    plain, capped = (cut_cross_entropy(e, c, target, b, softcap=softcap) for softcap in (None, 1e9))
    torch.testing.assert_close(plain, capped, rtol=1e-12, atol=0)
    assert relative(gradients(plain, e, c, b), gradients(capped, e, c, b)) < 1e-9


def test_a_constant_bias_moves_only_the_lse():
    e, c, b, target = make(bias=True, ignored=0)
    (loss, lse), (moved, moved_lse) = (cut_cross_entropy(e, c, target, bias, return_lse=True) for bias in (b, b + 5))
    torch.testing.assert_close(loss, moved, rtol=1e-12, atol=0)
    torch.testing.assert_close(lse + 5, moved_lse, rtol=1e-13, atol=0)


@pytest.mark.parametrize("filter_eps", [None, 2.0**-6])
def test_permuting_the_vocabulary_permutes_the_classifier_gradient(filter_eps):
    e, c, b, target = make(300, bias=True, ignored=0)
    order = torch.randperm(len(c), generator=torch.Generator().manual_seed(3))
    position = order.argsort()
    loss = cut_cross_entropy(e, c, target, b, filter_eps=filter_eps)
    permuted = cut_cross_entropy(e, c[order], position[target], b[order], filter_eps=filter_eps)
    torch.testing.assert_close(loss, permuted, rtol=1e-13, atol=0)
    # Both gradients are taken by the leaves, so the permutation is undone by indexing's own derivative.
    assert relative(gradients(loss, e, c, b), gradients(permuted, e, c, b)) < 1e-12


@pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy to compare with"
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equals_torchs_own_linear_cross_entropy(reduction):
    e, c, b, target = make(256, bias=True, dtype=torch.float32)
    weight = torch.linspace(0.5, 1, len(c))
    ours = cut_cross_entropy(e, c, target, b, reduction=reduction, weight=weight)
    theirs = F.linear_cross_entropy(
        e, c, target, linear_bias=b, reduction=reduction, weight=weight, ignore_index=IGNORED
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    assert relative(gradients(ours, e, c, b), gradients(theirs, e, c, b)) < 1e-5


def test_displayed_formula():
    """The formula of the docstring, written out token by token."""
    e, c, b, target = make(20, 9, 4, bias=True, ignored=6)
    s, alpha, zeta, w = 2.5, 0.2, 0.05, torch.linspace(0.3, 1.7, 9, dtype=torch.float64)
    total = denominator = 0.0
    for i, x in enumerate(target.tolist()):
        if x == IGNORED:
            continue
        z = [s * torch.tanh((e[i] @ c[v] + b[v]) / s) for v in range(9)]
        lse = torch.log(sum(torch.exp(value) for value in z))
        smoothed = alpha / 9 * sum(w[v] * (lse - z[v]) for v in range(9))
        total = total + (1 - alpha) * w[x] * (lse - z[x]) + smoothed + zeta * lse**2
        denominator = denominator + w[x]
    loss = cut_cross_entropy(e, c, target, b, softcap=s, label_smoothing=alpha, z_loss=zeta, weight=w)
    torch.testing.assert_close(loss, total / denominator, rtol=1e-13, atol=0)


def test_module_is_the_function():
    module = LinearCrossEntropy(6, 70, bias=True, softcap=3.0, shift=1, label_smoothing=0.1, dtype=torch.float64)
    e, _, _, target = make(60)
    loss = module(e, target)
    expected = cut_cross_entropy(e, module.weight, target, module.bias, softcap=3.0, shift=1, label_smoothing=0.1)
    assert torch.equal(loss, expected)
    loss.backward()
    assert module.weight.grad is not None and module.bias.grad is not None and e.grad is not None
