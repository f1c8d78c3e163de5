"""Attention of the Triton engine, over lists and over everything, equals the torch engine in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_cases import JOINED, ROUNDED, SAME_ORDER, cache, channels, error, lists

from lossbook.kernels import (
    approx_scores,
    build_labels,
    dense_decode,
    double_sparse_decode,
    select_tokens,
    sparse_decode,
)
from lossbook.kernels.sparse_attention.triton import engine


@pytest.fixture(params=[1, 4], ids="{}-parts".format)
def bound(request, monkeypatch):
    """Split every list into so many parts, some of them empty; the largest error this may cause."""
    monkeypatch.setattr(engine, "_n_parts", lambda *_: request.param)
    return SAME_ORDER if request.param == 1 else JOINED


def assert_dense(tokens, bound, **options):
    got = dense_decode(*tokens, impl="triton", **options)
    assert got.dtype == tokens.q.dtype
    assert error(got, dense_decode(*tokens.double(), impl="torch", **options)) < bound
    return got


def assert_sparse(tokens, index, count, bound, **options):
    got = sparse_decode(*tokens[:3], index, count, impl="triton", **options)
    assert got.dtype == tokens.q.dtype
    assert error(got, sparse_decode(*tokens.double()[:3], index, count, impl="torch", **options)) < bound
    return got


@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("features", [16, 64, 96, 128])
def test_heads_and_sizes(features, group, bound):
    tokens = cache((150, 40), group=group, features=features)
    assert_dense(tokens, bound)
    for heads in {2, 2 * group}:
        assert_sparse(tokens, *lists((150, 40), heads, 60), bound)


@pytest.mark.parametrize("features", [1, 5, 40, 256])
def test_other_sizes_of_a_head(features, bound):
    tokens = cache((70, 33), features=features)
    assert_dense(tokens, bound)
    assert_sparse(tokens, *lists((70, 33), 2, 50), bound)


@pytest.mark.parametrize("lengths", [(1,), (16, 1), (129, 128, 127), (300, 2)])
def test_lengths(lengths, bound):
    tokens = cache(lengths)
    assert_dense(tokens, bound)
    for budget in (1, 130):
        assert_sparse(tokens, *lists(lengths, 6, budget), bound)


def test_parts_as_shipped():
    """Rows few enough for the engine to split their tokens itself."""
    tokens = cache((1100, 520), key_heads=1)
    assert engine._n_parts(tokens.q.device, 2, 1100) == 4
    assert_dense(tokens, JOINED)
    assert_sparse(tokens, *lists((1100, 520), 1, 1030), JOINED)


@pytest.mark.parametrize("page", [1, 20])
def test_pages_in_any_order(page, bound):
    """Equal to the cache in one piece bit for bit, though the table ends in garbage."""
    tokens = cache((150, 40, 1), group=4)
    paged, table = tokens.paged(page)
    assert torch.equal(dense_decode(*paged, block_table=table, impl="triton"), assert_dense(tokens, bound))
    for heads in (2, 8):
        listed = lists((150, 40, 1), heads, 60)
        got = sparse_decode(*paged[:3], *listed, block_table=table, impl="triton")
        assert torch.equal(got, assert_sparse(tokens, *listed, bound))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, bound):
    tokens = cache((150, 40), group=4, features=64, dtype=dtype)
    allowed = ROUNDED[dtype] + bound
    assert_dense(tokens, allowed)
    assert_sparse(tokens, *lists((150, 40), 2, 60), allowed)
    paged, table = tokens.paged(16)
    assert_dense(paged, allowed, block_table=table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_float8_caches(dtype):
    """Multiplied by their scales."""
    tokens = cache((150, 40), features=64, dtype=dtype, kv_dtype=torch.float8_e4m3fn)
    scales = {"k_scale": 0.5, "v_scale": 3.0}
    paged, table = tokens.paged(16)
    for operands, layout in ((tokens, {}), (paged, {"block_table": table})):
        assert_dense(operands, ROUNDED[dtype], **scales, **layout)
        assert_sparse(operands, *lists((150, 40), 2, 60), ROUNDED[dtype], **scales, **layout)


def test_any_scale(bound):
    tokens = cache((80, 50))
    for scale in (1e-3, 1.0, 20.0):
        # The rounding of the logits grows with them; the bound is for the default of 1/4.
        allowed = bound * max(1.0, 4 * scale)
        assert_dense(tokens, allowed, scale=scale)
        assert_sparse(tokens, *lists((80, 50), 6, 30), allowed, scale=scale)


def test_large_logits_do_not_overflow(bound):
    tokens = cache((100, 40))
    tokens.q.mul_(1e4)
    got = dense_decode(*tokens, impl="triton")
    best = (tokens.q.unflatten(1, (2, 3)) @ tokens.k.mT).nan_to_num(-torch.inf).argmax(3, keepdim=True)
    want = tokens.v.gather(2, best.flatten(2, 3)[..., None].expand(-1, -1, -1, 16)).flatten(1, 2)
    assert got.isfinite().all()
    assert error(got, want) < 1e-3


def test_a_list_of_one_token_gives_its_value(bound):
    tokens = cache((40, 30))
    index = torch.tensor([[[7], [39]], [[0], [29]]], dtype=torch.int32)
    got = assert_sparse(tokens, index, torch.ones(2, 2, dtype=torch.int32), bound)
    want = torch.stack([tokens.v[b, h, index[b, h, 0]] for b, h in itertools.product(range(2), range(2))])
    assert error(got.view(2, 2, 3, 16), want.view(2, 2, 1, 16).expand(2, 2, 3, 16)) < bound


def test_empty_lists_give_zero(bound):
    tokens = cache()
    index, count = torch.full((2, 6, 40), -1, dtype=torch.int32), torch.zeros(2, 6, dtype=torch.int32)
    assert not assert_sparse(tokens, index, count, bound).any()


def test_strides_do_not_matter():
    """The layout of a cache whose tokens come before its heads, and every other one of a larger cache."""
    tokens = cache((70, 33), features=20)
    listed = lists((70, 33), 2, 40)
    want = dense_decode(*tokens, impl="triton"), sparse_decode(*tokens[:3], *listed, impl="triton")

    def tokens_first(x):
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    def every_other(x):
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
        wide[..., ::2] = x
        return wide[..., ::2]

    for view in (tokens_first, every_other):
        other = tokens._replace(k=view(tokens.k), v=view(tokens.v), q=every_other(tokens.q))
        assert torch.equal(dense_decode(*other, impl="triton"), want[0])
        assert torch.equal(sparse_decode(*other[:3], *listed, impl="triton"), want[1])


def test_keys_and_values_apart_in_layout():
    tokens = cache((70, 33))
    apart = tokens._replace(v=tokens.v.transpose(1, 2).contiguous().transpose(1, 2))
    assert torch.equal(dense_decode(*apart, impl="triton"), dense_decode(*tokens, impl="triton"))


def test_permuted_tokens_change_nothing_but_rounding():
    tokens = cache((64,))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    moved = tokens._replace(k=tokens.k[:, :, order], v=tokens.v[:, :, order])
    assert error(dense_decode(*moved, impl="triton"), dense_decode(*tokens, impl="triton")) < 1e-6


OPTIONS = [
    {},
    {"sink": 4, "recent": 8},
    {"bits": 8},
    {"bits": 4, "sink": 1, "group_reduce": "mean"},
    {"group_reduce": "maxnorm", "bits": 4},
    {"group_reduce": "sumsoftmax"},
]


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(map(str, options.values())) or "default")
def test_a_whole_step(options, heads):
    """The torch engine's result, and that of the stages one by one."""
    tokens = cache((90, 20), features=32)
    wanted = channels(heads, 8, 32)
    got = double_sparse_decode(*tokens[:3], wanted, budget=24, lengths=tokens.lengths, impl="triton", **options)
    want = double_sparse_decode(*tokens[:3], wanted, budget=24, lengths=tokens.lengths, impl="torch", **options)
    assert error(got, want.double()) < 2 * SAME_ORDER  # both are float32
    bits, reduction = options.get("bits", 16), options.get("group_reduce", "max")
    labels = build_labels(tokens.k, wanted, bits, lengths=tokens.lengths, impl="triton")
    scores = approx_scores(tokens.q, labels, group_reduce=reduction, impl="triton")
    ends = options.get("sink", 0), options.get("recent", 0)
    listed = select_tokens(scores, 24, tokens.lengths, *ends, impl="triton")
    assert torch.equal(sparse_decode(*tokens[:3], *listed, impl="triton"), got)


@pytest.mark.parametrize("heads", [2, 8])
def test_a_step_in_pages_with_a_grown_cache(heads):
    """The state of a server: pages, labels of 4 bits appended token by token, requests of several lengths."""
    tokens = cache((150, 40, 3), group=4, features=32)
    paged, table = tokens.paged(16)
    labels = build_labels(
        paged.k, channels(heads, 8, 32), 4, lengths=tokens.lengths - 2, capacity=160, block_table=table, impl="triton"
    )
    for back in (2, 1):
        place = (tokens.lengths - back).long()
        labels.append(tokens.k[torch.arange(3), :, place][:, :, None])
    options = {"budget": 30, "sink": 2, "recent": 4, "labels": labels}
    got = double_sparse_decode(*paged[:3], labels.channels, block_table=table, impl="triton", **options)
    whole = build_labels(tokens.k, labels.channels, 4, lengths=tokens.lengths, impl="torch")
    want = double_sparse_decode(*tokens[:3], labels.channels, impl="torch", **options | {"labels": whole})
    assert error(got, want.double()) < 2 * SAME_ORDER


def test_a_budget_above_every_length_is_dense_attention():
    tokens = cache((90, 40))
    wanted = channels(2, 4, 16)
    dense = dense_decode(*tokens, impl="triton")
    for budget in (90, 200):
        got = double_sparse_decode(*tokens[:3], wanted, budget=budget, lengths=tokens.lengths, impl="triton")
        assert torch.equal(got, dense)
    ragged = double_sparse_decode(*tokens[:3], wanted, budget=50, lengths=tokens.lengths, impl="triton")
    assert error(ragged[1], dense[1].double()) < SAME_ORDER


def test_all_channels_find_the_exact_top_k():
    """A budget of one gives the value of the largest dot product."""
    tokens = cache((90,), group=1)
    every = torch.arange(16).repeat(2, 1)
    got = double_sparse_decode(*tokens[:3], every, budget=1, impl="triton")
    best = (tokens.q[:, :, None] * tokens.k).sum(3).argmax(2)
    assert error(got, tokens.v[0, torch.arange(2), best[0]][None]) < SAME_ORDER


def test_requests_do_not_see_each_other():
    """Each request alone gives the bits it gives in a batch, whatever the others hold."""
    tokens = cache((140, 90, 40))
    wanted = channels(2, 8, 16)

    def step(tokens):
        options = {"budget": 32, "bits": 4, "lengths": tokens.lengths, "impl": "triton"}
        return double_sparse_decode(*tokens[:3], wanted, **options)

    together = step(tokens)
    for request in range(3):
        alone = tokens._replace(**{name: getattr(tokens, name)[request : request + 1] for name in tokens._fields})
        assert torch.equal(step(alone)[0], together[request])
    tokens.q[1] = torch.nan
    poisoned = step(tokens)
    assert torch.equal(poisoned[0], together[0]) and torch.equal(poisoned[2], together[2])


def test_repeated_steps_are_identical(bound):
    tokens = cache((140, 90))
    step = {"budget": 64, "bits": 4, "sink": 2, "recent": 2, "lengths": tokens.lengths, "impl": "triton"}
    first, second = (double_sparse_decode(*tokens[:3], channels(2, 5, 16), **step) for _ in range(2))
    assert torch.equal(first, second)


def test_scratch_is_written_before_it_is_read(nan_empty):
    """Parts, scores and lists start as garbage."""
    tokens = cache((1100, 30), key_heads=1)
    assert_dense(tokens, JOINED)
    assert_sparse(tokens, *lists((1100, 30), 1, 1030), JOINED)
    got = double_sparse_decode(*tokens[:3], channels(1, 4, 16), budget=16, lengths=tokens.lengths, impl="triton")
    assert got.isfinite().all()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=3),
    key_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    features=st.integers(1, 70),
    budget=st.integers(1, 210),
    page=st.integers(1, 40),
    shared=st.booleans(),
    parts=st.sampled_from([1, 2, 4]),
)
def test_everything_ragged_at_once(lengths, key_heads, group, features, budget, page, shared, parts):
    tokens = cache(tuple(lengths), key_heads, group, features, seed=budget)
    listed = lists(lengths, key_heads if shared else key_heads * group, budget, seed=page)
    paged, table = tokens.paged(page)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_n_parts", lambda *_: parts)
        assert_dense(paged, JOINED, block_table=table)
        assert_sparse(paged, *listed, JOINED, block_table=table)
