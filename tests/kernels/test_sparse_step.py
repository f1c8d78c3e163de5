"""A decode step of Double Sparsity against loops, its limits, and the layouts and dtypes of the cache."""

import subprocess
import sys

import pytest
import torch
from sparse_reference import as_pages, attend, channels_of, double_sparse, poison, tensors
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from lossbook.kernels import (
    approx_scores,
    build_labels,
    dense_decode,
    double_sparse_decode,
    select_tokens,
    sparse_decode,
)

EXACT = {"rtol": 1e-12, "atol": 1e-12}
HALF = [torch.float16, torch.bfloat16]
GROUPS = pytest.mark.parametrize("group", [1, 3, 4])


def all_tokens(lengths):
    return lambda b, h: range(lengths[b])


@GROUPS
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("sink", "recent"), [(0, 0), (1, 2)])
def test_a_step_is_what_loops_compute(group, shared, sink, recent, generator):
    q, k, v = tensors(generator, group=group)
    lengths = torch.tensor([12, 7])
    channels = channels_of(generator, 2 if shared else 2 * group, 8, 3)
    expected = double_sparse(q, k, v, channels, 5, lengths.tolist(), sink, recent)
    options = {"budget": 5, "lengths": lengths, "sink": sink, "recent": recent}
    k, v = poison(k, lengths), poison(v, lengths)
    torch.testing.assert_close(double_sparse_decode(q, k, v, channels, **options), expected, **EXACT)
    labels = build_labels(k, channels, lengths=lengths)
    with_labels = double_sparse_decode(q, k, v, channels, labels=labels, **options)
    torch.testing.assert_close(with_labels, expected, **EXACT)


@GROUPS
def test_dense_decode_is_what_loops_and_torch_compute(group, generator):
    q, k, v = tensors(generator, group=group)
    lengths = torch.tensor([12, 5], dtype=torch.int32)
    expected = attend(q, k, v, all_tokens([12, 5]))
    torch.testing.assert_close(dense_decode(q, poison(k, lengths), poison(v, lengths), lengths), expected, **EXACT)
    theirs = scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)
    torch.testing.assert_close(dense_decode(q, k, v), theirs[:, :, 0], **EXACT)
    scaled = scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True, scale=0.7)
    torch.testing.assert_close(dense_decode(q, k, v, scale=0.7), scaled[:, :, 0], **EXACT)


@pytest.mark.parametrize("budget", [12, 13, 100])
def test_a_budget_of_all_tokens_is_dense_attention(budget, generator):
    q, k, v = tensors(generator, group=3)
    channels = channels_of(generator, 6, 8, 2)
    lengths = torch.tensor([12, 4])
    dense = dense_decode(q, k, v, lengths)
    assert torch.equal(double_sparse_decode(q, k, v, channels, budget=budget, lengths=lengths), dense)


def test_a_request_within_the_budget_gets_dense_attention(generator):
    q, k, v = tensors(generator)
    channels, lengths = channels_of(generator, 2, 8, 2), torch.tensor([12, 4])
    sparse = double_sparse_decode(q, k, v, channels, budget=4, lengths=lengths)
    dense = dense_decode(q, k, v, lengths)
    torch.testing.assert_close(sparse[1], dense[1], **EXACT)
    assert not torch.allclose(sparse[0], dense[0])


def test_short_caches_are_dense_on_request(generator):
    q, k, v = tensors(generator)
    channels = channels_of(generator, 2, 8, 2)
    assert torch.equal(double_sparse_decode(q, k, v, channels, budget=2, dense_below=12), dense_decode(q, k, v))
    assert not torch.equal(double_sparse_decode(q, k, v, channels, budget=2, dense_below=11), dense_decode(q, k, v))


@GROUPS
def test_all_channels_give_exact_top_k_attention(group, generator):
    q, k, v = tensors(generator, group=group)
    channels = channels_of(generator, 2 * group, 8, 8)
    dots = torch.einsum("bhd,bhtd->bht", q, k.repeat_interleave(group, 1))
    best = dots.topk(4).indices.sort().values
    expected = attend(q, k, v, lambda b, h: best[b, h].tolist())
    torch.testing.assert_close(double_sparse_decode(q, k, v, channels, budget=4), expected, **EXACT)


def test_one_token_gives_the_value_of_the_best(generator):
    q, k, v = tensors(generator)
    channels = channels_of(generator, 2, 8, 8)
    best = torch.einsum("bhd,bhtd->bht", q, k).argmax(2)
    expected = v.gather(2, best[..., None, None].expand(-1, -1, -1, 8))[:, :, 0]
    assert torch.equal(double_sparse_decode(q, k, v, channels, budget=1), expected)


def test_equal_tokens_go_to_the_lowest_index(generator):
    q, k, v = tensors(generator)
    k = k[:, :, :1].expand_as(k)
    output = double_sparse_decode(q, k, v, channels_of(generator, 2, 8, 2), budget=3)
    torch.testing.assert_close(output, v[:, :, :3].mean(2), **EXACT)


def test_the_order_of_tokens_does_not_matter(generator):
    q, k, v = tensors(generator)
    channels, order = channels_of(generator, 2, 8, 3), torch.randperm(12, generator=generator)
    straight = double_sparse_decode(q, k, v, channels, budget=4)
    permuted = double_sparse_decode(q, k[:, :, order], v[:, :, order], channels, budget=4)
    torch.testing.assert_close(permuted, straight, **EXACT)


def test_a_constant_on_a_key_channel_changes_nothing(generator):
    q, k, v = tensors(generator)
    channels = torch.tensor([[0, 3], [1, 3]])
    shifted = k.clone()
    shifted[..., 3] += 2.5
    for decode in (
        lambda keys: dense_decode(q, keys, v),
        lambda keys: double_sparse_decode(q, keys, v, channels, budget=4),
    ):
        torch.testing.assert_close(decode(shifted), decode(k), **EXACT)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("group_reduce", ["max", "mean", "maxnorm", "sumsoftmax"])
def test_a_request_does_not_depend_on_the_others(bits, group_reduce, generator):
    q, k, v = tensors(generator, batch=3, group=2)
    lengths, channels = torch.tensor([12, 6, 9]), channels_of(generator, 2, 8, 3)
    options = {"budget": 4, "bits": bits, "sink": 1, "recent": 1, "group_reduce": group_reduce}
    together = double_sparse_decode(q, k, v, channels, lengths=lengths, **options)
    for b, length in enumerate(lengths.tolist()):
        alone = double_sparse_decode(
            q[b : b + 1], k[b : b + 1, :, :length], v[b : b + 1, :, :length], channels, **options
        )
        torch.testing.assert_close(together[b : b + 1], alone, **EXACT)


@pytest.mark.parametrize("page", [1, 4, 5, 16])
@pytest.mark.parametrize("shared", [False, True])
def test_pages_hold_the_same_cache(page, shared, generator):
    q, k, v = tensors(generator, group=2)
    lengths = torch.tensor([12, 6])
    channels = channels_of(generator, 2 if shared else 4, 8, 3)
    pages, table = as_pages(torch.cat((k, v), 3), page, generator)
    key_pages, value_pages = pages.split(8, 3)
    table[torch.arange(table.shape[1]) * page >= lengths[:, None]] = -1
    paged = {"lengths": lengths, "block_table": table}
    dense = dense_decode(q, k, v, lengths)
    torch.testing.assert_close(dense_decode(q, key_pages, value_pages, **paged), dense, **EXACT)
    sparse = double_sparse_decode(q, k, v, channels, budget=4, lengths=lengths)
    got = double_sparse_decode(q, key_pages, value_pages, channels, budget=4, **paged)
    torch.testing.assert_close(got, sparse, **EXACT)


@pytest.mark.parametrize("bits", [16, 4])
def test_float8_cache_is_the_numbers_it_stands_for(bits, generator):
    q, k, v = tensors(generator, group=2, dtype=torch.float32)
    k, v = k.to(torch.float8_e4m3fn), v.to(torch.float8_e4m3fn)
    channels, scales = channels_of(generator, 2, 8, 3), {"k_scale": 0.5, "v_scale": 3.0}
    plain_k, plain_v = k.float() * 0.5, v.float() * 3
    torch.testing.assert_close(dense_decode(q, k, v, **scales), dense_decode(q, plain_k, plain_v))
    options = {"budget": 4, "bits": bits}
    got = double_sparse_decode(q, k, v, channels, **options, **scales)
    torch.testing.assert_close(got, double_sparse_decode(q, plain_k, plain_v, channels, **options))
    pages, table = as_pages(k, 5, generator)
    values, _ = as_pages(v, 5, torch.Generator().manual_seed(1))
    assert dense_decode(q, pages, values, torch.tensor([12, 12]), block_table=table).shape == q.shape


@pytest.mark.parametrize("dtype", HALF)
def test_low_precision_is_no_worse_than_torch(dtype, generator):
    q, k, v = tensors(generator, tokens=64, features=32, group=3, dtype=dtype)
    exact = dense_decode(q.double(), k.double(), v.double())
    ours = dense_decode(q, k, v)
    theirs = scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)[:, :, 0]
    assert ours.dtype == dtype
    allowed = (theirs.double() - exact).norm() / exact.norm() + torch.finfo(dtype).eps
    assert (ours.double() - exact).norm() / exact.norm() <= allowed
    channels = channels_of(generator, 2, 32, 8)
    sparse = double_sparse_decode(q, k, v, channels, budget=64 - 1)
    assert sparse.dtype == dtype
    assert (sparse.double() - double_sparse_decode(*(x.double() for x in (q, k, v)), channels, budget=63)).norm() <= 0.1


def test_autocast_does_not_lower_the_precision(generator):
    q, k, v = tensors(generator, dtype=torch.float32)
    channels = channels_of(generator, 2, 8, 3)
    expected = double_sparse_decode(q, k, v, channels, budget=4)
    with torch.autocast("cpu"):
        assert torch.equal(double_sparse_decode(q, k, v, channels, budget=4), expected)


@pytest.mark.parametrize("sizes", [{"tokens": 1}, {"batch": 1}, {"features": 1}, {"batch": 1, "key_heads": 1}])
def test_smallest_sizes(sizes, generator):
    q, k, v = tensors(generator, **sizes)
    channels = channels_of(generator, k.shape[1], k.shape[3], 1)
    expected = double_sparse(q, k, v, channels, 2, [k.shape[2]] * k.shape[0])
    torch.testing.assert_close(double_sparse_decode(q, k, v, channels, budget=2), expected, **EXACT)


def test_strides_do_not_matter(generator):
    q, k, v = tensors(generator)
    channels = channels_of(generator, 2, 8, 3)
    expected = double_sparse_decode(q, k, v, channels, budget=4)
    turned = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (q, k, v)]
    channels = channels.T.contiguous().T
    assert torch.equal(double_sparse_decode(*turned, channels, budget=4), expected)
    pages, table = as_pages(k, 4, generator)
    lengths = torch.tensor([9, 0, 5, 0], dtype=torch.int32)
    dense = dense_decode(q, pages, pages, lengths[::2].contiguous(), block_table=table)
    assert torch.equal(dense_decode(q, pages, pages, lengths[::2], block_table=table.T.contiguous().T), dense)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("group_reduce", ["max", "mean", "maxnorm", "sumsoftmax"])
def test_a_step_is_its_parts(bits, group_reduce, generator):
    q, k, v = tensors(generator, tokens=60, group=3)
    channels, lengths = channels_of(generator, 2, 8, 3), torch.tensor([60, 31])
    scores = approx_scores(q, build_labels(k, channels, bits, lengths=lengths), channels, group_reduce)
    parts = sparse_decode(q, k, v, *select_tokens(scores, 20, lengths, 1, 2), scale=0.4)
    options = {"budget": 20, "lengths": lengths, "sink": 1, "recent": 2, "scale": 0.4}
    step = double_sparse_decode(q, k, v, channels, bits=bits, group_reduce=group_reduce, **options)
    assert torch.equal(step, parts)
    if group_reduce != "max" or bits == 4:
        assert not torch.equal(step, double_sparse_decode(q, k, v, channels, **options))


def test_lists_are_read_up_to_their_count(generator):
    q, k, v = tensors(generator, group=2)
    v[:, :, 0] = torch.inf
    index = torch.tensor([5, 2, 10_000, -1], dtype=torch.int32).expand(2, 2, 4)
    count = torch.tensor([[2, 1], [0, 2]], dtype=torch.int32)
    expected = attend(q, k, v, lambda b, h: [5, 2][: count[b, h // 2]])
    torch.testing.assert_close(sparse_decode(q, k, v, index, count), expected, **EXACT)


def test_lengths_default_to_those_of_the_labels(generator):
    q, k, v = tensors(generator)
    channels, lengths = channels_of(generator, 2, 8, 3), torch.tensor([9, 5])
    labels = build_labels(k, channels, lengths=lengths)
    got = double_sparse_decode(q, k, v, channels, budget=3, labels=labels)
    assert torch.equal(got, double_sparse_decode(q, k, v, channels, budget=3, lengths=lengths))


def test_labels_may_have_room_for_more(generator):
    q, k, v = tensors(generator)
    channels = channels_of(generator, 2, 8, 3)
    labels = build_labels(k, channels, capacity=50)
    got = double_sparse_decode(q, k, v, channels, budget=3, labels=labels)
    assert torch.equal(got, double_sparse_decode(q, k, v, channels, budget=3))


def test_no_gradient_is_recorded(generator):
    q, k, v = (x.requires_grad_() for x in tensors(generator))
    channels = channels_of(generator, 2, 8, 3)
    assert not double_sparse_decode(q, k, v, channels, budget=4).requires_grad
    assert not dense_decode(q, k, v).requires_grad


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("paged", [False, True])
def test_a_step_has_static_shapes_and_waits_for_nothing(bits, paged):
    """Fake tensors have no values, so reading one, as a CUDA graph forbids, raises."""
    with FakeTensorMode():
        q, channels = torch.empty(2, 6, 16), torch.empty(3, 4, dtype=torch.int64)
        k = torch.empty(40, 3, 8, 16) if paged else torch.empty(2, 3, 64, 16)
        table = torch.empty(2, 8, dtype=torch.int32) if paged else None
        lengths = torch.empty(2, dtype=torch.int32)
        labels = build_labels(k, channels, bits, lengths=lengths, capacity=80, block_table=table)
        labels.append(torch.empty(2, 3, 1, 16))
        options = {"labels": labels, "block_table": table, "sink": 1, "group_reduce": "sumsoftmax"}
        assert double_sparse_decode(q, k, k, channels, budget=9, **options).shape == (2, 6, 16)
        assert dense_decode(q, k, k, lengths, block_table=table).shape == (2, 6, 16)


def test_selection_and_attention_can_be_used_alone(generator):
    q, k, v = tensors(generator)
    index, count = select_tokens(torch.einsum("bhd,bhtd->bht", q, k), 3)
    channels = torch.arange(8).expand(2, 8)
    torch.testing.assert_close(
        sparse_decode(q, k, v, index, count), double_sparse_decode(q, k, v, channels, budget=3), **EXACT
    )


def test_a_step_loads_neither_triton_nor_the_compiler():
    code = """
import sys, torch
from lossbook.kernels import double_sparse_decode
import lossbook.nn
k = torch.randn(1, 1, 8, 4)
double_sparse_decode(torch.randn(1, 1, 4), k, k, torch.tensor([[0]]), budget=2)
assert not {"triton", "torch._dynamo"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
