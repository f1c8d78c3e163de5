"""Bad arguments of sparse attention: the error names the argument, what was expected and what came."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lossbook.kernels import (
    ImplementationUnavailableError,
    _implementations,
    approx_scores,
    build_labels,
    channel_importance,
    decode_bytes,
    dense_decode,
    double_sparse_decode,
    heavy_channels,
    select_tokens,
    sparse_decode,
)
from lossbook.kernels.sparse_attention import torch_engine
from lossbook.kernels.sparse_attention.engines import engine

Q, K = torch.zeros(2, 4, 8), torch.zeros(2, 2, 6, 8)
CHANNELS = torch.tensor([[0, 1, 2], [3, 4, 5]])
PAGES, TABLE = torch.zeros(5, 2, 3, 8), torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
INDEX, COUNT = torch.zeros(2, 2, 3, dtype=torch.int32), torch.ones(2, 2, dtype=torch.int32)


def decode(q=Q, k=K, v=None, channels=CHANNELS, budget=3, **options):
    return double_sparse_decode(q, k, k if v is None else v, channels, budget=budget, **options)


def paged(**options):
    return decode(k=PAGES, **{"block_table": TABLE, **options})


def listed(index=INDEX, count=COUNT, k=K, **options):
    return sparse_decode(Q, k, k, index, count, **options)


def traffic(**changes):
    sizes = {"B": 1, "Hq": 4, "Hkv": 2, "S": 9, "D": 8, "budget": 3, "r": 2, "bits": 16, "share_kv": True}
    return decode_bytes(**(sizes | changes))


def table(*rows, dtype=torch.int32):
    return torch.tensor(rows, dtype=dtype)


VALUE_ERRORS = {
    "q-shape": (lambda: decode(q=Q[0]), r"q must have shape \(B, Hq, D\) = \(\*, \*, \*\), got \(4, 8\)"),
    "q-empty": (lambda: decode(q=Q[:0], k=K[:0]), r"q must not be empty, got shape \(0, 4, 8\)"),
    "k-features": (lambda: decode(k=K[..., :7]), r"k must have shape \(B, Hkv, S, D\) = \(2, 2, 6, 8\), got .* 7\)"),
    "k-batch": (lambda: decode(k=K[:1]), r"k must have shape \(B, Hkv, S, D\) = \(2, 2, 6, 8\), got \(1, 2, 6, 8\)"),
    "k-empty": (lambda: decode(k=K[:, :, :0]), r"k must not be empty, got shape \(2, 2, 0, 8\)"),
    "k-dtype": (lambda: decode(k=K.double()), "k must have the dtype of q, torch.float32, got torch.float64"),
    "k-device": (lambda: decode(k=K.to("meta")), "k must be on the device of q, cpu, got meta"),
    "k-heads": (
        lambda: decode(k=torch.zeros(2, 3, 6, 8), channels=CHANNELS[[0, 1, 1]]),
        "Hq must be a multiple of Hkv = 3, got 4",
    ),
    "v-shape": (lambda: decode(v=K[:, :, :5]), r"v must have shape k.shape = \(2, 2, 6, 8\), got \(2, 2, 5, 8\)"),
    "v-dtype": (lambda: decode(v=K.half()), "v must have the dtype of k, torch.float32, got torch.float16"),
    "v-device": (lambda: dense_decode(Q, K, K.to("meta")), "v must be on the device of q, cpu, got meta"),
    "channels-dim": (lambda: decode(channels=CHANNELS[0]), r"channels must have shape \(H, r\) = \(\*, \*\), got \(3,"),
    "channels-rows": (lambda: decode(channels=CHANNELS[:1]), "channels must have Hkv = 2 or Hq = 4 rows, got 1"),
    "channels-many": (
        lambda: decode(channels=CHANNELS.repeat(1, 3)),
        r"r = channels.shape\[1\] must lie in \[1, D\] = \[1, 8\], got 9",
    ),
    "channels-none": (lambda: decode(channels=CHANNELS[:, :0]), r"must lie in \[1, D\] = \[1, 8\], got 0"),
    "channels-high": (lambda: decode(channels=CHANNELS + 3), r"channels must lie in \[0, D\) = \[0, 8\), got 8"),
    "channels-low": (lambda: decode(channels=CHANNELS - 1), r"channels must lie in \[0, D\) = \[0, 8\), got -1"),
    "channels-device": (
        lambda: decode(channels=CHANNELS.to("meta")),
        "channels must be on the device of q, cpu, got meta",
    ),
    "budget": (lambda: decode(budget=0), "budget must be >= 1, got 0"),
    "sink": (lambda: decode(sink=-1), "sink must be >= 0, got -1"),
    "recent": (lambda: decode(recent=-2), "recent must be >= 0, got -2"),
    "kept": (lambda: decode(sink=2, recent=2), r"sink \+ recent must be <= budget = 3, got 2 \+ 2 = 4"),
    "bits": (lambda: decode(bits=2), "bits must be one of 16, 8, 4, got 2"),
    "group_reduce": (
        lambda: decode(group_reduce="sum"),
        "group_reduce must be one of 'max', 'mean', 'maxnorm', 'sumsoftmax', got 'sum'",
    ),
    "impl": (lambda: decode(impl="cuda"), "impl must be one of 'auto', 'torch', 'triton', got 'cuda'"),
    "scale": (lambda: decode(scale=0.0), "scale must be > 0, got 0.0"),
    "k_scale": (lambda: decode(k_scale=-1.0), "k_scale must be > 0, got -1.0"),
    "v_scale": (lambda: decode(v_scale=float("nan")), "v_scale must be finite, got nan"),
    "dense_below": (lambda: decode(dense_below=-1), "dense_below must be >= 0, got -1"),
    "lengths-shape": (lambda: decode(lengths=torch.tensor([3])), r"lengths must have shape \(B,\) = \(2,\), got \(1,"),
    "lengths-high": (lambda: decode(lengths=torch.tensor([3, 7])), r"lengths must lie in \[1, S\] = \[1, 6\], got 7"),
    "lengths-low": (lambda: decode(lengths=torch.tensor([0, 6])), r"lengths must lie in \[1, S\] = \[1, 6\], got 0"),
    "lengths-device": (
        lambda: decode(lengths=torch.tensor([3, 3], device="meta")),
        "lengths must be on the device of the cache, cpu, got meta",
    ),
    "table-shape": (
        lambda: paged(block_table=TABLE[:1]),
        r"block_table must have shape \(B, pages\) = \(2, \*\), got \(1, 2\)",
    ),
    "table-empty": (lambda: paged(block_table=TABLE[:, :0]), "block_table must not be empty"),
    "table-device": (
        lambda: paged(block_table=TABLE.to("meta")),
        "block_table must be on the device of k, cpu, got me",
    ),
    "table-high": (lambda: paged(block_table=TABLE + 2), r"block_table must lie in \[0, P\) = \[0, 5\), got 5"),
    "table-low": (lambda: paged(block_table=TABLE - 1), r"block_table must lie in \[0, P\) = \[0, 5\), got -1"),
    "pages-features": (
        lambda: paged(q=Q[..., :7]),
        r"k must have shape \(P, Hkv, page, D\) = \(\*, 2, 3, 7\), got \(5, 2, 3, 8\)",
    ),
    "lengths-paged": (
        lambda: paged(lengths=torch.tensor([1, 7])),
        r"lengths must lie in \[1, S\] = \[1, 6\], got 7",
    ),
    "labels-lengths": (
        lambda: decode(labels=build_labels(K, CHANNELS), lengths=torch.tensor([6, 5])),
        r"labels must be of the tokens that lengths = \[6, 5\] count, got \[6, 6\]",
    ),
    "labels-channels": (
        lambda: decode(labels=build_labels(K, CHANNELS + 1)),
        "channels must be those the labels were built with, got others",
    ),
    "labels-r": (
        lambda: decode(labels=build_labels(K, CHANNELS[:, :2])),
        r"channels must have shape labels.channels.shape = \(2, 2\), got \(2, 3\)",
    ),
    "labels-batch": (
        lambda: decode(labels=build_labels(K[:1], CHANNELS)),
        r"q must have shape \(B, Hq, D\) of the labels = \(1, 4, 8\), got \(2, 4, 8\)",
    ),
    "labels-heads": (
        lambda: approx_scores(Q[:, :2], build_labels(K, CHANNELS.repeat(2, 1))),
        "labels must have Hkv = 2 or Hq = 2 heads, got 4",
    ),
    "labels-group": (lambda: approx_scores(Q[:, :3], build_labels(K, CHANNELS)), "Hq must be a multiple of Hkv = 2"),
    "labels-device": (
        lambda: approx_scores(Q, build_labels(K, CHANNELS).to("meta")),
        "labels must be on the device of q, cpu, got meta",
    ),
    "build-rows": (
        lambda: build_labels(K, CHANNELS[:1]),
        r"channels must have shape \(H, r\) with H a multiple of Hkv = 2, got H = 1",
    ),
    "build-capacity": (lambda: build_labels(K, CHANNELS, capacity=5), "capacity must be >= S = 6, got 5"),
    "build-bits": (lambda: build_labels(K, CHANNELS, 32), "bits must be one of 16, 8, 4, got 32"),
    "append-full": (
        lambda: build_labels(K, CHANNELS, capacity=7).append(K[:, :, :2]),
        "k_new must fit the capacity of 7 tokens, got 2 tokens for a request of 6",
    ),
    "append-heads": (
        lambda: build_labels(K, CHANNELS, capacity=7).append(K[:, :1, :1]),
        r"k_new must have shape \(B, Hkv, T, D\) = \(2, 2, 1, 8\), got \(2, 1, 1, 8\)",
    ),
    "append-dtype": (
        lambda: build_labels(K, CHANNELS, capacity=7).append(K[:, :, :1].half()),
        "k_new must have the dtype of labels, torch.float32, got torch.float16",
    ),
    "index-shape": (
        lambda: listed(index=INDEX[:1]),
        r"index must have shape \(B, H, budget\) = \(2, \*, \*\), got \(1",
    ),
    "index-heads": (lambda: listed(INDEX[:, :1], COUNT[:, :1]), "index must have Hkv = 2 or Hq = 4 heads, got 1"),
    "index-high": (lambda: listed(INDEX + 6), r"index must lie in \[0, S\) = \[0, 6\), got 6"),
    "index-low": (lambda: listed(INDEX - 1), r"index must lie in \[0, S\) = \[0, 6\), got -1"),
    "index-device": (lambda: listed(INDEX.to("meta")), "index must be on the device of q, cpu, got meta"),
    "index-page": (
        lambda: listed(INDEX + 3, k=PAGES, block_table=table([0, -1], [0, 1])),
        r"block_table must lie in \[0, P\) = \[0, 5\), got -1",
    ),
    "count-shape": (lambda: listed(count=COUNT[:, :1]), r"count must have shape \(B, H\) = \(2, 2\), got \(2, 1\)"),
    "count-high": (lambda: listed(count=COUNT + 3), r"count must lie in \[0, budget \+ 1\) = \[0, 4\), got 4"),
    "count-low": (lambda: listed(count=COUNT - 2), r"count must lie in \[0, budget \+ 1\) = \[0, 4\), got -1"),
    "scores-shape": (lambda: select_tokens(Q[0], 1), r"scores must have shape \(B, H, S\) = .*, got \(4, 8\)"),
    "scores-budget": (lambda: select_tokens(Q, 0), "budget must be >= 1, got 0"),
    "scores-lengths": (lambda: select_tokens(Q, 1, torch.tensor([9, 9])), r"lengths must lie in \[1, S\] = \[1, 8\]"),
    "importance-tokens": (
        lambda: channel_importance(torch.zeros(2, 4, 5, 8), K),
        r"k must have shape \(B, Hkv, T, D\) = \(2, 2, 5, 8\), got \(2, 2, 6, 8\)",
    ),
    "importance-method": (lambda: channel_importance(K, K, "v"), "method must be one of 'q2vark', 'qk', 'q', 'k', got"),
    "importance-heads": (lambda: channel_importance(K[:, :1], K), "Hq must be a multiple of Hkv = 2, got 1"),
    "importance-dtype": (lambda: channel_importance(K, K.half()), "k must have the dtype of q, torch.float32, got"),
    "importance-device": (lambda: channel_importance(K, K.to("meta")), "k must be on the device of q, cpu, got meta"),
    "importance-empty": (lambda: channel_importance(K[:, :, :0], K[:, :, :0]), "q must not be empty, got shape"),
    "heavy-r": (lambda: heavy_channels(Q[0], 9), r"r must lie in \[1, D\] = \[1, 8\], got 9"),
    "heavy-shape": (lambda: heavy_channels(Q, 1), r"importance must have shape \(H, D\) = \(\*, \*\), got \(2, 4, 8\)"),
    "heavy-nan": (lambda: heavy_channels(Q[0] / 0, 1), "importance must not be NaN, got NaN"),
    "bytes-heads": (lambda: traffic(Hkv=3), "Hq must be a multiple of Hkv = 3, got 4"),
    "bytes-size": (lambda: traffic(S=0), "S must be > 0, got 0"),
    "bytes-r": (lambda: traffic(r=9), r"r must lie in \[1, D\] = \[1, 8\], got 9"),
    "bytes-bits": (lambda: traffic(bits=5), "bits must be one of 16, 8, 4, got 5"),
}
TYPE_ERRORS = {
    "q": (lambda: decode(q=[1.0]), "q must be a torch.Tensor, got list"),
    "q-dtype": (lambda: decode(q=Q.int()), "q must have one of the dtypes torch.float16, .*, got torch.int32"),
    "q-float8": (lambda: decode(q=Q.to(torch.float8_e4m3fn)), "q must have one of the dtypes .*float8_e4m3fn"),
    "k-dtype": (lambda: decode(k=K.to(torch.float8_e5m2)), "k must have one of the dtypes .*, got torch.float8_e5m2"),
    "channels": (lambda: decode(channels=CHANNELS.int()), "channels must have dtype torch.int64, got torch.int32"),
    "lengths": (lambda: decode(lengths=torch.tensor([1.0, 2.0])), "lengths must have one of the dtypes torch.int32, t"),
    "lengths-list": (lambda: decode(lengths=[1, 2]), "lengths must be a torch.Tensor, got list"),
    "table": (lambda: paged(block_table=TABLE.long()), "block_table must have dtype torch.int32, got torch.int64"),
    "labels": (lambda: decode(labels=K), "labels must be a LabelCache, got Tensor"),
    "budget": (lambda: decode(budget=2.0), "budget must be an int, got float 2.0"),
    "sink": (lambda: decode(sink=True), "sink must be an int, got bool True"),
    "index": (lambda: listed(index=INDEX.long()), "index must have dtype torch.int32, got torch.int64"),
    "capacity": (lambda: build_labels(K, CHANNELS, capacity=6.0), "capacity must be an int, got float 6.0"),
    "scores": (lambda: select_tokens(INDEX, 1), "scores must have a floating-point dtype, got torch.int32"),
    "importance": (lambda: heavy_channels(CHANNELS, 1), "importance must have a floating-point dtype"),
    "r": (lambda: heavy_channels(Q[0], 1.0), "r must be an int, got float 1.0"),
    "bytes": (lambda: traffic(S=1.5), "S must be an int, got float 1.5"),
}


@pytest.mark.parametrize(("call", "message"), VALUE_ERRORS.values(), ids=VALUE_ERRORS)
def test_value_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("call", "message"), TYPE_ERRORS.values(), ids=TYPE_ERRORS)
def test_type_errors(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_the_calls_that_the_bad_ones_spoil_are_good():
    for good in (decode, paged, listed, traffic):
        good()


@pytest.mark.parametrize(
    "call",
    [
        decode,
        lambda impl: dense_decode(Q, K, K, impl=impl),
        lambda impl: listed(impl=impl),
        lambda impl: select_tokens(Q, 2, impl=impl),
        lambda impl: build_labels(K, CHANNELS, impl=impl),
        lambda impl: approx_scores(Q, build_labels(K, CHANNELS), impl=impl),
    ],
)
def test_triton_says_why_it_cannot_run_and_what_can(call, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(_implementations, "_TRITON_IS_INSTALLED", True)
    message = r"must be on a GPU, or on the CPU with TRITON_INTERPRET=1 set .*, got cpu; use impl='torch' \(plain torch"
    with pytest.raises(ImplementationUnavailableError, match=message):
        call(impl="triton")


def test_triton_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(_implementations, "_TRITON_IS_INSTALLED", False)
    with pytest.raises(ImplementationUnavailableError, match="triton is not installed; use impl='torch'"):
        decode(impl="triton")
    assert engine("auto", "q", Q) is torch_engine


def test_triton_takes_no_double(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(_implementations, "_TRITON_IS_INSTALLED", True)
    with pytest.raises(ImplementationUnavailableError, match=r"q must have dtype .* or torch.float8_e4m3fn, got .*64"):
        decode(Q.double(), K.double(), impl="triton")


def test_auto_is_torch_on_a_cpu_and_where_triton_cannot_run(monkeypatch):
    monkeypatch.setattr(_implementations, "_TRITON_IS_INSTALLED", True)
    assert engine("auto", "q", Q) is torch_engine
    with FakeTensorMode():
        assert engine("auto", "q", torch.empty(2, device="cuda", dtype=torch.float64)) is torch_engine
        assert engine("torch", "q", torch.empty(2, device="cuda")) is torch_engine
