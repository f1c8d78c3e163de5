"""Labels and scores of the Triton engine equal those of the torch engine."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_cases import SAME_ORDER, cache, channels, error

from lossbook.kernels import approx_scores, build_labels

BITS = [16, 8, 4]
REDUCTIONS = ["max", "mean", "maxnorm", "sumsoftmax"]


def labels(tokens, r, bits, impl, *, heads=2, dtype=None, **options):
    k = tokens.k.to(dtype or tokens.k.dtype)
    wanted = channels(heads, r, k.shape[-1])
    return build_labels(k, wanted, bits, lengths=tokens.lengths, impl=impl, **options)


def stored(cached):
    """Everything that is stored, a row of bytes for each request and place."""
    parts = [part for part in (cached.values, cached.scale, cached.zero) if part is not None]
    return torch.cat([part.movedim(2, 1).flatten(2).contiguous().view(torch.uint8) for part in parts], 2)


def assert_same_labels(got, want):
    """Every stored number of every token that exists, bit for bit."""
    assert torch.equal(got.lengths, want.lengths)
    exists = torch.arange(want.capacity) < want.lengths[:, None]
    assert torch.equal(stored(got)[exists], stored(want)[exists])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("r", [1, 3, 7, 8, 16])
@pytest.mark.parametrize("heads", [2, 6])
def test_labels_of_a_prompt(bits, r, heads):
    """More than one block of tokens, ragged, shared in the group or of each query head."""
    tokens = cache((70, 64, 1))
    assert_same_labels(*(labels(tokens, r, bits, impl, heads=heads) for impl in ("triton", "torch")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", BITS)
def test_labels_of_half_precision_keys(bits, dtype):
    assert_same_labels(*(labels(cache(), 5, bits, impl, dtype=dtype) for impl in ("triton", "torch")))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("r", [3, 8])
def test_appending_in_turn_is_building_at_once(bits, r):
    """A prompt, single tokens, and a chunk of more than one block, behind requests of different lengths."""
    more = cache((90, 90))
    short = more.lengths - 88
    grown = build_labels(more.k[:, :, :9].clone(), channels(2, r, 16), bits, lengths=short, capacity=99, impl="triton")
    parts = (1, 1, 70, 3)
    for start, part in zip((2, 3, 4, 74), parts, strict=True):
        grown.append(more.k[:, :, start : start + part])
    prompt = torch.cat([more.k[:, :, :2], more.k[:, :, 2 : 2 + sum(parts)]], 2)
    assert_same_labels(grown, build_labels(prompt, grown.channels, bits, capacity=99, impl="torch"))


@pytest.mark.parametrize("bits", BITS)
def test_appending_leaves_room_of_others_alone(bits):
    """Behind each request's own length, at any stride of the new keys, and nowhere else."""
    tokens = cache((30, 7, 19))
    grown = [labels(tokens, 5, bits, impl, capacity=33) for impl in ("triton", "torch")]
    new = torch.randn(3, 3, 2, 16, generator=torch.Generator().manual_seed(5)).transpose(1, 2)
    before = [stored(cached) for cached in grown]
    for cached in grown:
        cached.append(new)
    assert_same_labels(*grown)
    place = torch.arange(33)
    touched = (place >= tokens.lengths[:, None]) & (place < tokens.lengths[:, None] + 3)
    for cached, old in zip(grown, before, strict=True):
        assert torch.equal(stored(cached)[~touched], old[~touched])


def test_a_constant_token_has_no_step():
    tokens = cache((4,))
    tokens.k[0, :, 2] = 1.5
    for bits in (8, 4):
        got = labels(tokens, 4, bits, "triton")
        assert_same_labels(got, labels(tokens, 4, bits, "torch"))
        assert got.scale[0, 0, 2] == 0 and (got.dequantize()[0, 0, 2] == 1.5).all()


@pytest.mark.parametrize("group_reduce", REDUCTIONS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("r", [1, 5, 16])
def test_scores(group_reduce, bits, r):
    """Shared in the group, with room to spare; -inf from each length on."""
    tokens = cache((37, 20))
    cached = labels(tokens, r, bits, "torch", capacity=41)
    got = approx_scores(tokens.q, cached, group_reduce=group_reduce, impl="triton")
    # Sums of softmaxes add as many terms as there are tokens, in another order.
    bound = SAME_ORDER if group_reduce != "sumsoftmax" else 1e-6
    assert got.dtype == torch.float32
    assert error(got, approx_scores(tokens.q.double(), cached, group_reduce=group_reduce, impl="torch")) < bound


@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("bits", BITS)
def test_scores_of_each_query_head(group, bits):
    """Labels of their own: the reduction has no effect."""
    tokens = cache((37, 20), group=group)
    cached = labels(tokens, 6, bits, "torch", heads=2 * group)
    want = approx_scores(tokens.q.double(), cached, impl="torch")
    for group_reduce in REDUCTIONS:
        got = approx_scores(tokens.q, cached, group_reduce=group_reduce, impl="triton")
        assert error(got, want) < SAME_ORDER


@pytest.mark.parametrize("group_reduce", REDUCTIONS)
def test_scores_beyond_one_block_of_tokens(group_reduce):
    tokens = cache((1100, 600), key_heads=1)
    cached = labels(tokens, 8, 4, "torch", heads=1)
    got = approx_scores(tokens.q, cached, group_reduce=group_reduce, impl="triton")
    want = approx_scores(tokens.q.double(), cached, group_reduce=group_reduce, impl="torch")
    assert error(got, want) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_stay_in_float32(dtype):
    tokens = cache(dtype=dtype)
    cached = labels(tokens, 6, 16, "torch")
    got = approx_scores(tokens.q, cached, impl="triton")
    cached.values = cached.values.double()
    assert error(got, approx_scores(tokens.q.double(), cached, impl="torch")) < SAME_ORDER


def test_a_query_of_zero_norm_scores_zero():
    tokens = cache()
    tokens.q[:] = 0
    got = approx_scores(tokens.q, labels(tokens, 4, 8, "torch"), group_reduce="maxnorm", impl="triton")
    assert (got[0] == 0).all()


def test_queries_of_any_stride():
    tokens = cache()
    cached = labels(tokens, 4, 16, "torch")
    want = approx_scores(tokens.q, cached, impl="triton")
    for q in (tokens.q.transpose(0, 1).contiguous().transpose(0, 1), tokens.q.mT.contiguous().mT):
        assert torch.equal(approx_scores(q, cached, impl="triton"), want)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=3),
    group=st.integers(1, 4),
    r=st.integers(1, 16),
    bits=st.sampled_from(BITS),
    shared=st.booleans(),
)
def test_everything_ragged_at_once(lengths, group, r, bits, shared):
    tokens = cache(tuple(lengths), group=group, seed=r)
    heads = 2 if shared else 2 * group
    built = [labels(tokens, r, bits, impl, heads=heads) for impl in ("triton", "torch")]
    assert_same_labels(*built)
    got = approx_scores(tokens.q, built[0], impl="triton")
    assert error(got, approx_scores(tokens.q.double(), built[1], impl="torch")) < SAME_ORDER
