"""Label caches and the scores they give."""

import math

import pytest
import torch
from sparse_reference import as_pages, channels_of, poison, tensors

from lossbook.kernels import approx_scores, build_labels

BITS = pytest.mark.parametrize("bits", [16, 8, 4])
INTEGERS = pytest.mark.parametrize("bits", [8, 4])
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def labelled(k, channels):
    """The numbers that labels stand for, ``(B, H, S, r)``."""
    group = len(channels) // k.shape[1]
    return torch.stack([k[:, h // group, :, row] for h, row in enumerate(channels.tolist())], 1)


def contents(labels):
    return [x for x in (labels.values, labels.scale, labels.zero) if x is not None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("rows", [2, 6])
def test_sixteen_bits_keep_the_numbers(dtype, rows, generator):
    _, k, _ = tensors(generator, dtype=dtype)
    channels = channels_of(generator, rows, 8, 3)
    labels = build_labels(k, channels)
    assert labels.values.dtype == labels.dequantize().dtype == dtype
    assert torch.equal(labels.dequantize().float(), labelled(k.float(), channels))


@INTEGERS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("r", [1, 3, 8])
def test_integers_err_by_half_a_step(bits, dtype, r, generator):
    _, k, _ = tensors(generator, tokens=40, dtype=dtype)
    channels = channels_of(generator, 6, 8, r)
    labels = build_labels(k, channels, bits)
    x, step = labelled(k, channels).float(), labels.scale.float()[..., None]
    rounding = x.amin(3, keepdim=True).abs() / 2048
    error = (labels.dequantize() - x).abs()
    assert (error <= torch.maximum(step.abs() / 2, rounding) * (1 + 1e-5) + 1e-7).all()
    spread = x.amax(3, keepdim=True) - x.amin(3, keepdim=True)
    assert (step.abs() <= (spread + rounding) / (2**bits - 1) * (1 + 1e-3) + 1e-7).all()


@INTEGERS
def test_offset_keys_err_by_no_more_than_their_rounding(bits, generator):
    _, k, _ = tensors(generator, tokens=40, dtype=torch.float32)
    k = k * 1e-3 + 100
    channels = channels_of(generator, 2, 8, 4)
    labels = build_labels(k, channels, bits)
    assert (labels.dequantize() - labelled(k, channels)).abs().max() <= 101 / 2048


@INTEGERS
@pytest.mark.parametrize("constant", [0.0, -3.0, 1000.3])
def test_equal_channels_are_one_number(bits, constant):
    labels = build_labels(torch.full((1, 1, 2, 4), constant), torch.tensor([[0, 3, 2]]), bits)
    assert (labels.dequantize() - constant).abs().max() <= abs(constant) / 2048


@INTEGERS
def test_integers_on_a_grid_are_exact(bits):
    top = 2**bits - 1
    x = torch.tensor([0.0, 1.0, top // 2, top]) * 0.25 - 2
    labels = build_labels(x.view(1, 1, 1, 4), torch.tensor([[3, 1, 2, 0]]), bits)
    assert torch.equal(labels.dequantize().flatten(), x[[3, 1, 2, 0]])


def test_four_bits_lie_two_to_a_byte_the_earlier_one_low():
    k = torch.tensor([[0.0, 15.0, 3.0, 7.0, 1.0]]).view(1, 1, 1, 5)
    labels = build_labels(k, torch.tensor([[2, 1, 0, 3, 4]]), 4)
    assert labels.values.flatten().tolist() == [3 | 15 << 4, 0 | 7 << 4, 1]
    assert labels.scale.item() == 1 and labels.zero.item() == 0


@BITS
@pytest.mark.parametrize("rows", [2, 6])
def test_appending_is_building(bits, rows, generator):
    _, k, _ = tensors(generator)
    channels = channels_of(generator, rows, 8, 3)
    whole = build_labels(k, channels, bits)
    labels = build_labels(k[:, :, :5], channels, bits, capacity=12)
    for start, stop in ((5, 6), (6, 11), (11, 12)):
        labels.append(k[:, :, start:stop])
    assert labels.lengths.tolist() == [12, 12] and labels.lengths.dtype == torch.int32
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(contents(labels), contents(whole), strict=True))


@BITS
def test_each_request_is_appended_to_at_its_own_length(bits, generator):
    _, k, _ = tensors(generator)
    channels, lengths = channels_of(generator, 2, 8, 3), torch.tensor([9, 4])
    labels = build_labels(poison(k, lengths), channels, bits, lengths=lengths)
    new = torch.stack([k[0, :, 9:12], k[1, :, 4:7]])
    labels.append(new)
    expected = build_labels(k, channels, bits, lengths=lengths + 3)
    assert labels.lengths.tolist() == [12, 7]
    assert torch.equal(labels.dequantize(), expected.dequantize())
    assert lengths.tolist() == [9, 4], "the caller's lengths are not the cache's"


def test_capture_keeps_the_storage(generator):
    """A CUDA graph replays on the tensors it was captured with."""
    _, k, _ = tensors(generator)
    labels = build_labels(k, channels_of(generator, 2, 8, 3), 4, capacity=20)
    before = [x.data_ptr() for x in (*contents(labels), labels.lengths)]
    labels.append(k[:, :, :2])
    assert [x.data_ptr() for x in (*contents(labels), labels.lengths)] == before


@BITS
@pytest.mark.parametrize("page", [3, 8])
def test_pages_hold_the_same_keys(bits, page, generator):
    _, k, _ = tensors(generator)
    channels, lengths = channels_of(generator, 4, 8, 3), torch.tensor([12, 2])
    pages, table = as_pages(k, page, generator)
    table[torch.arange(table.shape[1]) * page >= lengths[:, None]] = 10_000
    labels = build_labels(pages, channels, bits, lengths=lengths, block_table=table)
    assert labels.capacity == table.shape[1] * page
    expected = build_labels(k, channels, bits, lengths=lengths)
    assert torch.equal(labels.dequantize(), expected.dequantize())


def test_dequantize_ends_with_the_longest_request(generator):
    _, k, _ = tensors(generator)
    lengths = torch.tensor([3, 5])
    for bits in (16, 8, 4):
        x = build_labels(poison(k, lengths), channels_of(generator, 2, 8, 2), bits, lengths=lengths).dequantize()
        assert x.shape == (2, 2, 5, 2)
        assert (x[0, :, 3:] == 0).all() and x.isfinite().all()


@pytest.mark.parametrize(("bits", "row"), [(16, 3 * 4), (8, 3 + 4), (4, 2 + 4)])
def test_nbytes_counts_what_is_used(bits, row, generator):
    _, k, _ = tensors(generator, dtype=torch.float32)
    labels = build_labels(k, channels_of(generator, 6, 8, 3), bits, lengths=torch.tensor([7, 2]), capacity=100)
    assert labels.nbytes == 2 * 6 * 7 * row
    labels.append(k[:, :, :2])
    assert labels.nbytes == 2 * 6 * 9 * row


def test_to_another_device_is_a_cache_of_its_own(generator):
    _, k, _ = tensors(generator)
    labels = build_labels(k, channels_of(generator, 2, 8, 3), 8)
    moved = labels.to("meta")
    assert {x.device.type for x in (*contents(moved), moved.lengths, moved.channels)} == {"meta"}
    assert labels.values.device.type == "cpu" and moved.capacity == 12
    assert build_labels(k, channels_of(generator, 2, 8, 3)).to("meta").scale is None


@BITS
@pytest.mark.parametrize("group", [1, 3, 4])
def test_scores_are_products_with_what_labels_stand_for(bits, group, generator):
    q, k, _ = tensors(generator, group=group)
    for rows in {2, 2 * group}:
        channels = channels_of(generator, rows, 8, 5)
        labels = build_labels(k, channels, bits)
        wanted = channels.repeat_interleave(2 * group // rows, 0).expand(2, -1, -1)
        stored = labels.dequantize().double().repeat_interleave(2 * group // rows, 1)
        products = torch.einsum("bhr,bhsr->bhs", q.gather(2, wanted), stored)
        expected = products.unflatten(1, (rows, -1)).amax(2)
        tolerance = EXACT if bits == 16 else {"rtol": 1e-6, "atol": 1e-6}
        torch.testing.assert_close(approx_scores(q, labels, channels), expected, **tolerance)


@pytest.mark.parametrize("kind", ["max", "mean", "maxnorm", "sumsoftmax"])
def test_group_reductions_over_ragged_requests(kind, generator):
    q, k, _ = tensors(generator, group=3)
    lengths, channels = torch.tensor([12, 5]), channels_of(generator, 2, 8, 3)
    scores = approx_scores(q, build_labels(poison(k, lengths), channels, lengths=lengths), channels, kind)
    assert scores.dtype == torch.float64 and scores.shape == (2, 2, 12)
    assert (scores[1, :, 5:] == -math.inf).all()
    for b, length in enumerate(lengths.tolist()):
        for h in range(2):
            query, key = q[b, 3 * h : 3 * h + 3][:, channels[h]], k[b, h, :length][:, channels[h]]
            p = query @ key.T
            expected = {
                "max": p.amax(0),
                "mean": p.mean(0),
                "maxnorm": (p / query.norm(dim=1, keepdim=True)).amax(0),
                "sumsoftmax": (p / 8**0.5).softmax(1).sum(0),
            }[kind]
            torch.testing.assert_close(scores[b, h, :length], expected, **EXACT)


@pytest.mark.parametrize("kind", ["max", "mean", "maxnorm", "sumsoftmax"])
def test_scores_of_a_head_of_its_own_are_not_reduced(kind, generator):
    q, k, _ = tensors(generator, group=2)
    labels = build_labels(k, channels_of(generator, 4, 8, 3))
    assert torch.equal(approx_scores(q, labels, group_reduce=kind), approx_scores(q, labels))


def test_a_query_of_zero_scores_zero(generator):
    q, k, _ = tensors(generator, group=2)
    labels = build_labels(k, channels_of(generator, 2, 8, 3))
    assert (approx_scores(torch.zeros_like(q), labels, group_reduce="maxnorm") == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@BITS
def test_scores_are_float32_and_as_wide_as_the_capacity(dtype, bits, generator):
    q, k, _ = tensors(generator, dtype=dtype)
    labels = build_labels(k, channels_of(generator, 2, 8, 3), bits, capacity=15)
    scores = approx_scores(q, labels)
    assert scores.dtype == torch.float32 and scores.shape == (2, 2, 15)
    assert scores[:, :, :12].isfinite().all() and (scores[:, :, 12:] == -math.inf).all()
