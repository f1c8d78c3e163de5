"""Ragged shapes, ignored rows, strides and dtypes."""

import pytest
import torch
from cce_reference import IGNORED
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from triton_cases import EVERYTHING, TOLERANCES, Head, assert_close, assert_equals_dense, head, outcome

ROWS = [1, 2, 127, 128, 129, 300]
VOCABULARIES = [1, 31, 32, 33, 700, 1030]
FEATURES = [1, 3, 48, 65, 130]


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("rows", ROWS)
def test_ragged_rows_and_features(rows, features):
    assert_equals_dense(head(rows, 33, features, ignored=0), reduction="none", return_lse=True)
    assert_equals_dense(head(rows, 33, features, ignored=0), reduction="none", filter_eps=2.0**-6)


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("rows", ROWS)
def test_ragged_rows_and_vocabularies(rows, vocab):
    assert_equals_dense(head(rows, vocab, 16, ignored=0), reduction="none", **EVERYTHING)
    assert_equals_dense(head(rows, vocab, 16, ignored=0), reduction="none", filter_eps=2.0**-7)


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("features", FEATURES)
def test_ragged_vocabularies_and_features(vocab, features):
    assert_equals_dense(head(129, vocab, features, ignored=0), reduction="none", filter_eps=2.0**-7, filter_c=False)


@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate])  # shrinking takes minutes
@given(
    rows=st.integers(2, 300),
    vocab=st.integers(1, 400),
    features=st.integers(1, 70),
    softcap=st.sampled_from([None, 3.0, 30.0]),
    ignored=st.sampled_from([0, 2, 5]),
)
def test_everything_ragged_at_once(rows, vocab, features, softcap, ignored):
    """Loss and log-sum-exp, each with a random upstream gradient for every row."""
    heads = head(rows, vocab, features, ignored=ignored, seed=rows)
    assert_equals_dense(heads, softcap=softcap, reduction="none", return_lse=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("filter_eps", [None, "auto"])
def test_no_row_counts(reduction, filter_eps):
    """An empty batch, and one of ignored rows: zeros, but for the mean over nothing."""
    empty = head(0, 70, 6)
    ignored = head(150, 70, 6)
    ignored.target.fill_(IGNORED)
    for heads in (empty, ignored):
        got = outcome(heads, impl="triton", reduction=reduction, filter_eps=filter_eps, **EVERYTHING)
        loss, *rest = got.values
        assert loss.isnan().all() if reduction == "mean" else not loss.any()
        assert not any(value.any() for value in rest) and (got.argmax[0] == -1).all()
        if reduction == "mean":
            plain = outcome(heads, impl="triton", filter_eps=filter_eps)
            assert plain.values[0].isnan()
        else:
            assert not any(gradient.any() for gradient in got.gradients)


@pytest.mark.parametrize("filter_eps", [None, 2.0**-5])
def test_ignored_rows_are_dropped_before_any_work(filter_eps):
    """Whatever they hold: results are those of the other rows alone, bit for bit."""
    heads = head(300, ignored=3)
    with torch.no_grad():
        heads.e[heads.target == IGNORED] = torch.nan
    valid = heads.target != IGNORED
    options = {"impl": "triton", "reduction": "sum", "filter_eps": filter_eps}
    got = outcome(heads, **options)
    rest = Head(heads.e[valid].detach().requires_grad_(), heads.c, heads.bias, heads.target[valid])
    want = outcome(rest, **options)
    assert torch.equal(got.values[0], want.values[0])
    assert torch.equal(got.gradients[0][valid], want.gradients[0]) and not got.gradients[0][~valid].any()
    assert all(torch.equal(x, y) for x, y in zip(got.gradients[1:], want.gradients[1:], strict=True))


@pytest.mark.parametrize("filter_eps", [None, 2.0**-5, (2.0**-8, None)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, filter_eps):
    """Against the same rounded operands; the loss of each row stays in float32."""
    heads = head(300, 300, 40, dtype=dtype)
    for options in ({}, {"softcap": 5.0, "label_smoothing": 0.1, **EVERYTHING}):
        got = assert_equals_dense(heads, reduction="none", filter_eps=filter_eps, **options)
        assert all(gradient.dtype == dtype for gradient in got.gradients)
        want = outcome(heads.double(), impl="dense", reduction="none", filter_eps=filter_eps, **options)
        assert_close(got._replace(gradients=[]), want._replace(gradients=[]), TOLERANCES[torch.float32])


@pytest.mark.parametrize("filter_eps", [None, 2.0**-5])
def test_strides_do_not_matter(filter_eps):
    """Transposed, sliced, reversed in memory, and broadcast."""
    plain = head(ignored=5)
    options = {"impl": "triton", "reduction": "none", "filter_eps": filter_eps, "return_lse": True}
    want = outcome(plain, **options)

    def transposed(matrix):
        return matrix.detach().t().contiguous().t()

    def sliced(matrix):
        wide = matrix.new_full((matrix.shape[0], 2 * matrix.shape[1] + 3), torch.nan)
        wide[:, 1 : 1 + matrix.shape[1]] = matrix.detach()
        return wide[:, 1 : 1 + matrix.shape[1]]

    def every_other(matrix):
        wide = matrix.new_full((matrix.shape[0], 2 * matrix.shape[1]), torch.nan)
        wide[:, ::2] = matrix.detach()
        return wide[:, ::2]

    for view in (transposed, sliced, every_other):
        bias = every_other(plain.bias[None])[0]
        target = plain.target[:, None].expand(-1, 2)[:, 0]
        leaves = (value.requires_grad_() for value in (view(plain.e), view(plain.c), bias))
        assert_close(outcome(Head(*leaves, target), **options), want, 1e-6)
    rows = Head(plain.e[:1].detach().expand(200, -1).requires_grad_(), plain.c, plain.bias, plain.target)
    assert_equals_dense(rows, reduction="none", filter_eps=filter_eps)


def test_batches_of_sequences_and_shift():
    """Three-dimensional hidden states, whose last position has no target after the shift."""
    flat = head(5 * 30, ignored=4)
    batch = Head(
        flat.e.detach().view(5, 30, -1).transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(),
        flat.c,
        flat.bias,
        flat.target.view(5, 30),
    )
    for shift in (0, 1, 7):
        got = assert_equals_dense(batch, shift=shift, reduction="none", filter_eps=2.0**-5, **EVERYTHING)
        assert got.values[0].shape == got.argmax[0].shape == (5, 30 - shift)
        assert got.gradients[0].shape == batch.e.shape
