"""Channels found offline, and the bytes that a step moves."""

import pytest
import torch

from lossbook.kernels import channel_importance, decode_bytes, dense_decode, heavy_channels

METHODS = ("q2vark", "qk", "q", "k")
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def sample(generator, group=3, dtype=torch.float64):
    shapes = (2, 2 * group, 9, 5), (2, 2, 9, 5)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_importance_is_what_loops_compute(method, group, generator):
    q, k = sample(generator, group)
    expected = torch.zeros(2 * group, 5, dtype=torch.float64)
    for h in range(2 * group):
        for c in range(5):
            queries, keys = q[:, h, :, c], k[:, h // group, :, c]
            expected[h, c] = {
                "q2vark": queries.square().mean() * sum(row.var(correction=0) for row in keys) / 2,
                "qk": (queries * keys).abs().mean(),
                "q": queries.abs().mean(),
                "k": keys.abs().mean(),
            }[method]
    torch.testing.assert_close(channel_importance(q, k, method), expected, **EXACT)
    shared = expected.view(2, group, 5).sum(1)
    torch.testing.assert_close(channel_importance(q, k, method, share_kv=True), shared, **EXACT)


@pytest.mark.parametrize("share_kv", [False, True])
def test_only_the_spread_of_a_key_channel_counts(share_kv, generator):
    q, k = sample(generator)
    shifted = k + torch.tensor([0.0, 7.0, 0.0, -3.0, 0.0])
    ours = channel_importance(q, k, share_kv=share_kv)
    torch.testing.assert_close(channel_importance(q, shifted, share_kv=share_kv), ours, rtol=1e-10, atol=1e-12)
    values = torch.randn(k.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(dense_decode(q[:, :, 0], shifted, values), dense_decode(q[:, :, 0], k, values), **EXACT)
    by_size = channel_importance(q, shifted, "k", share_kv=share_kv)
    assert (heavy_channels(by_size, 1) == 1).all(), "ranking by magnitude falls for the offset"


def test_planted_channels_are_found(generator):
    q, k = sample(generator)
    k[..., [4, 1]] *= torch.tensor([50.0, 20.0])
    assert heavy_channels(channel_importance(q, k), 2).tolist() == [[4, 1]] * 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", METHODS)
def test_low_precision_is_summed_in_float32(method, dtype, generator):
    q, k = sample(generator, dtype=dtype)
    ours = channel_importance(q, k, method)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), channel_importance(q.double(), k.double(), method), rtol=1e-5, atol=1e-6)


def test_heavy_channels_descend_and_ties_go_to_the_lowest():
    importance = torch.tensor([[1.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert heavy_channels(importance, 3).tolist() == [[1, 2, 0], [0, 1, 2]]
    assert heavy_channels(importance, 4).dtype == torch.int64
    assert heavy_channels(importance, 3).is_contiguous()


def ratio(*sizes, **options):
    count = decode_bytes(*sizes, **options)
    return round(count["dense"] / count["total"], 1)


@pytest.mark.parametrize(
    ("sizes", "options", "expected"),
    [
        # Llama-2-7B: 32 heads of 128.
        ((1, 32, 32, 8192, 128), {"budget": 512, "r": 8, "bits": 16, "share_kv": False}, 9.8),
        ((32, 32, 32, 16384, 128), {"budget": 1024, "r": 16, "bits": 16, "share_kv": False}, 7.5),
        ((1, 32, 32, 8192, 128), {"budget": 256, "r": 16, "bits": 4, "share_kv": True}, 16.0),
        # Llama-3-8B: 32 query heads, 8 key heads.
        ((8, 32, 8, 16384, 128), {"budget": 1024, "r": 8, "bits": 16, "share_kv": False}, 2.5),
        ((8, 32, 8, 16384, 128), {"budget": 1024, "r": 16, "bits": 16, "share_kv": False}, 1.9),
        ((8, 32, 8, 16384, 128), {"budget": 1024, "r": 16, "bits": 4, "share_kv": True}, 10.7),
    ],
)
def test_byte_ratios_worked_out_by_hand(sizes, options, expected):
    assert ratio(*sizes, **options) == expected


def test_bytes_worked_out_by_hand():
    assert decode_bytes(2, 4, 2, 100, 8, budget=10, r=3, bits=16, share_kv=False) == {
        "dense": 2 * 2 * 100 * 8 * 2 * 2,
        "labels": 2 * 4 * 100 * 6,
        "scores": 2 * 4 * 100 * 4,
        "kv": 2 * 4 * 10 * 8 * 2 * 2,
        "total": 4800 + 3200 + 2560,
    }
    assert decode_bytes(1, 1, 1, 10, 8, budget=99, r=3, bits=8, share_kv=True)["labels"] == 10 * (3 + 4)
    assert decode_bytes(1, 1, 1, 10, 8, budget=99, r=3, bits=4, share_kv=True)["labels"] == 10 * (2 + 4)
    eight_bits = decode_bytes(1, 1, 1, 10, 8, budget=99, r=3, bits=4, share_kv=True, kv_bytes=1)
    assert eight_bits["kv"] == eight_bits["dense"] == 10 * 8 * 2
