"""Extreme logits, masked words, broken rows, uninitialized memory, long offsets, and repeatability."""

import mmap

import pytest
import torch
from cce_reference import IGNORED
from triton.runtime.errors import InterpreterError
from triton_cases import EVERYTHING, Head, assert_close, assert_equals_dense, assert_identical, head, outcome, problem

from lossbook.kernels import cut_cross_entropy
from lossbook.kernels.cross_entropy.triton import config, engine
from lossbook.kernels.cross_entropy.triton.gradients import classifier_gradient_kernel
from lossbook.kernels.cross_entropy.triton.operands import Operands

FILTERS = [None, 2.0**-5, (2.0**-7, None), (None, 2.0**-7)]


@pytest.mark.parametrize("filter_eps", [None, 2.0**-5])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_logits_of_ten_thousand_stay_finite(size, filter_eps):
    heads = head(bias=False)
    with torch.no_grad():
        heads.e.mul_(size / (heads.e @ heads.c.T).abs().amax(1, keepdim=True))
    got = outcome(heads, impl="triton", reduction="none", filter_eps=filter_eps, **EVERYTHING)
    assert all(value.isfinite().all() for value in got.values + got.gradients)
    want = outcome(heads.double(), impl="dense", reduction="none", filter_eps=filter_eps, **EVERYTHING)
    # A logit of 1e4 has an error of about 1e-3 in float32.
    torch.testing.assert_close([value.double() for value in got.values], want.values, rtol=1e-6, atol=1e-2)
    assert torch.equal(got.argmax[0], want.argmax[0])


@pytest.mark.parametrize("filter_eps", FILTERS, ids=str)
@pytest.mark.parametrize("masked", ["first tile", "last word", "every other", "all but targets"])
def test_minus_infinity_masks_words(masked, filter_eps):
    heads = head(vocab=300)
    targets = heads.target[heads.target != IGNORED].unique()
    words = torch.zeros(300, dtype=torch.bool)
    words[{"first tile": slice(0, 128), "last word": slice(299, 300)}.get(masked, slice(0, 300, 2))] = True
    if masked == "all but targets":
        words[:] = True
    words[targets] = False
    with torch.no_grad():
        heads.bias[words] = -torch.inf
    got = assert_equals_dense(heads, reduction="none", filter_eps=filter_eps, **EVERYTHING)
    assert not got.gradients[1][words].any() and not got.gradients[2][words].any()
    if masked != "last word":
        outcome_of_mean = assert_equals_dense(heads, filter_eps=filter_eps)
        assert outcome_of_mean.values[0].isfinite()


@pytest.mark.parametrize("filter_eps", FILTERS, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_row_breaks_nothing_it_does_not_touch(value, filter_eps):
    heads, broken = head(ignored=5), 141
    options = {"impl": "triton", "reduction": "none", "filter_eps": filter_eps}
    whole = outcome(heads, **options, return_lse=True, return_entropy=True)
    with torch.no_grad():
        heads.e[broken] = value
    got = outcome(heads, **options, return_lse=True, return_entropy=True)
    others = torch.arange(len(heads.e)) != broken
    for result, before in zip(got.values, whole.values, strict=True):
        assert not result[broken].isfinite() and torch.equal(result[others], before[others])
    assert got.values[0][broken].isnan()
    d_e, d_c, d_bias = got.gradients
    assert d_e[broken].isnan().all() and d_e[others].isfinite().all()
    # Its own block, the first 128 rows that count, now keeps every column.
    torch.testing.assert_close(d_e[160:], whole.gradients[0][160:], rtol=1e-4, atol=1e-5)
    # A row without a softmax reaches every column.
    assert d_c.isnan().all() and d_bias.isnan().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_argmax_of_a_broken_row_is_a_word(value):
    heads, broken = head(ignored=5), 141
    (before,) = outcome(heads, impl="triton", return_argmax=True).argmax
    with torch.no_grad():
        heads.e[broken] = value
    try:
        (argmax,) = outcome(heads, impl="triton", return_argmax=True).argmax
    except InterpreterError as failure:
        if "All-NaN" not in str(failure):
            raise
        pytest.skip("this interpreter knows no argmax of NaN, where a GPU does")
    assert 0 <= argmax[broken] < len(heads.c)
    argmax[broken] = before[broken]
    assert torch.equal(argmax, before)


@pytest.mark.parametrize("filter_eps", FILTERS, ids=str)
def test_a_broken_word_breaks_every_row(filter_eps):
    """The filter hides nothing of it, whichever share of the vocabulary the word is in."""
    heads = head(vocab=600)
    with torch.no_grad():
        heads.c[37] = torch.nan
    valid = heads.target != IGNORED
    got = outcome(heads, impl="triton", reduction="none", filter_eps=filter_eps, return_lse=True)
    for value in (*got.values, got.gradients[0]):
        assert value[valid].isnan().all() and not value[~valid].any()
    assert all(gradient.isnan().all() for gradient in got.gradients[1:])


@pytest.mark.parametrize("filter_eps", FILTERS, ids=str)
def test_uninitialized_memory_is_never_read(filter_eps, nan_empty):
    for chunk_bytes in (1, 1 << 30):
        for heads in (head(300, 333, ignored=5), head(70, 33, 9, dtype=torch.float16)):
            assert_equals_dense(
                heads, filter_eps=filter_eps, chunk_bytes=chunk_bytes, reduction="none", softcap=9.0, **EVERYTHING
            )


@pytest.mark.parametrize("filter_eps", FILTERS, ids=str)
def test_runs_repeat_bit_by_bit(filter_eps):
    heads = head(300, 300)
    options = {"impl": "triton", "filter_eps": filter_eps, "label_smoothing": 0.1, "chunk_bytes": 1, **EVERYTHING}
    assert_identical(outcome(heads, **options), outcome(heads, **options))


@pytest.mark.parametrize("filter_eps", FILTERS, ids=str)
def test_two_backward_passes(filter_eps):
    heads = head()
    loss = cut_cross_entropy(
        heads.e, heads.c, heads.target, heads.bias, impl="triton", reduction="none", filter_eps=filter_eps
    ).sum()
    first = torch.autograd.grad(loss, heads[:3], retain_graph=True)
    copies = [value.clone() for value in first]
    second = torch.autograd.grad(loss, heads[:3])
    assert all(torch.equal(x, y) for x, y in zip(copies, second, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(copies, first, strict=True))


def far_apart(matrix):
    """The matrix with rows so far apart that the last ones begin past 2**31.

    Of that memory only the pages used are ever backed by any.
    """
    rows, columns = matrix.shape
    stride = 2**31 // (rows - 2) // 8 * 8
    far = long_buffer(rows * stride, matrix.dtype).as_strided((rows, columns), (stride, 1))
    return far.copy_(matrix)


def long_buffer(length, dtype):
    no_reserve = 0x4000  # of Linux, which Python's mmap names from 3.13 on only
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    return torch.frombuffer(mmap.mmap(-1, length * dtype.itemsize, flags=flags), dtype=dtype)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("filter_eps", [None, 2.0**-3])
def test_offsets_of_operands_pass_two_to_the_31(filter_eps, architecture, pretend):
    pretend(architecture)
    near = head(17, 18, 24, dtype=torch.float16, ignored=0)
    far = Head(*(far_apart(value.detach()).requires_grad_() for value in near[:2]), near.bias, near.target)
    options = {"impl": "triton", "reduction": "none", "filter_eps": filter_eps}
    assert_identical(outcome(far, **options), outcome(near, **options))


@pytest.mark.parametrize(
    ("filter_eps", "shape"),
    [((None, 2.0**-2), (20, 256)), ((2.0**-2, None), (160, 24)), (2.0**-2, (160, 24)), (2.0**-2, (20, 24))],
    ids=["spans", "hidden states", "hidden states, listed", "classifier"],
)
def test_offsets_of_gradients_pass_two_to_the_31(filter_eps, shape, monkeypatch):
    heads = head(160, 20, 24, dtype=torch.float16, ignored=0)
    near = outcome(heads, impl="triton", reduction="none", filter_eps=filter_eps)
    spread = []

    def spreading(make):
        def call(*args, **kwargs):
            result = make(*args, **kwargs)
            if result.shape != shape:
                return result
            spread.append(shape)
            return far_apart(result)

        return call

    monkeypatch.setattr(Operands, "new", spreading(Operands.new))
    monkeypatch.setattr(torch.Tensor, "new_zeros", spreading(torch.Tensor.new_zeros))
    assert_identical(outcome(heads, impl="triton", reduction="none", filter_eps=filter_eps), near)
    assert spread


def test_a_slot_beyond_two_to_the_24():
    """Slots of 128 values each: the last offsets of this gradient pass 2**31."""
    slots = 2**24 + 128
    values = long_buffer(slots * 128, torch.float16).view(slots, 128)
    peak, slot_of = torch.zeros(slots), torch.full((1, 128), -1, dtype=torch.int32)
    slot_of[0, 0], slot_of[0, 5] = slots - 1, 3
    values[[slots - 1, 3]] = torch.randn(2, 128, generator=torch.Generator().manual_seed(0)).half()
    peak[[slots - 1, 3]] = 1.0
    e, d_c = torch.randn(128, 16).half(), torch.zeros(10, 16)
    config.launch(
        classifier_gradient_kernel,
        config.table("sm_80", torch.float16).classifier_gradient,
        ("BLOCK_COLUMNS", "BLOCK_FEATURES"),
        lambda meta: (1, 128 // meta["BLOCK_COLUMNS"]),
        {
            "values": values,
            "e": e,
            "order": torch.arange(10, dtype=torch.int32),
            "slot_of": slot_of,
            "active": torch.zeros(1, 1, dtype=torch.int32),
            "n_active": torch.ones(1, dtype=torch.int32),
            "peak": peak,
            "column_sum": None,
            "d_c": d_c,
            "d_bias": None,
            "n_rows": 128,
            "n_listed": 10,
            "n_features": 16,
            "n_blocks": 1,
            "slot_stride": 128,
            "e_stride": 16,
            "d_c_stride": 16,
            "eps": 0.5,
            "PORTION": config.PORTION,
            "BLOCK_ROWS": config.BLOCK_ROWS,
            "PRECISION": "ieee",
        },
    )
    want = torch.zeros(10, 16)
    want[0], want[5] = values[slots - 1].float() @ e.float(), values[3].float() @ e.float()
    torch.testing.assert_close(d_c, want, rtol=1e-5, atol=1e-4)


def test_the_current_device_is_left_alone():
    """The engine's functions take what the operators hand them, a problem without a target included."""
    heads = head(40)
    statistics = engine.forward_statistics(problem(heads, target=None, valid=None))
    assert statistics.target_logit is None and statistics.column_map is None
    z = heads.e @ heads.c.T + heads.bias
    torch.testing.assert_close(statistics.lse, z.logsumexp(1).detach())


def test_the_largest_cap_is_no_cap():
    heads = head()
    plain, capped = (outcome(heads, impl="triton", reduction="none", softcap=cap) for cap in (None, 1e5))
    # The cap takes the logits from 1 - exp(-2 z / s), whose rounding it multiplies by s.
    assert_close(capped, plain, 1e-1)
