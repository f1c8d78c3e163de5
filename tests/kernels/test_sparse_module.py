"""The module that remembers what its method needs from one generated token to the next."""

import pytest
import torch
from sparse_reference import channels_of, poison, tensors

from lossbook.kernels import build_labels, dense_decode, double_sparse_decode, sparse_decode
from lossbook.nn import HeavyHitterState, SparseDecodeAttention, heavy_hitter, oracle, quest, random_channels, window

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("preallocated", [False, True])
def test_labels_grow_with_the_cache(bits, preallocated, generator):
    q, k, v = tensors(generator, tokens=30, group=2)
    channels = channels_of(generator, 2, 8, 3)
    attention = SparseDecodeAttention(channels=channels, budget=4, bits=bits, sink=1, group_reduce="mean")
    start = torch.tensor([9, 9 if not preallocated else 4])
    for step in range(15):
        lengths = start + step
        tokens = 30 if preallocated else 9 + step
        keys, values = (poison(x[:, :, :tokens], lengths) for x in (k, v))
        got = attention(q, keys, values, lengths if preallocated else None)
        options = {"budget": 4, "bits": bits, "sink": 1, "group_reduce": "mean", "lengths": lengths}
        assert torch.equal(got, double_sparse_decode(q, keys, values, channels, **options))
    assert attention.labels.lengths.tolist() == (start + 14).tolist()


def test_labels_are_rarely_made_anew(generator, monkeypatch):
    made = []

    def counting(*arguments, **options):
        made.append(options["capacity"])
        return build_labels(*arguments, **options)

    monkeypatch.setattr("lossbook.nn.attention.build_labels", counting)
    q, k, v = tensors(generator, tokens=40)
    attention = SparseDecodeAttention(channels=channels_of(generator, 2, 8, 3), budget=4)
    for tokens in range(5, 41):
        attention(q, k[:, :, :tokens], v[:, :, :tokens])
    assert made == [5, 12, 26, 54]


def test_a_skipped_token_is_refused_until_reset(generator):
    q, k, v = tensors(generator)
    attention = SparseDecodeAttention(channels=channels_of(generator, 2, 8, 3), budget=4)
    attention(q, k, v, torch.tensor([8, 8]))
    message = r"lengths must be \[9, 9\], one more than in the last call, got \[10, 9\]; reset\(\) goes before"
    with pytest.raises(ValueError, match=message):
        attention(q, k, v, torch.tensor([10, 9]))
    with pytest.raises(ValueError, match=r"got \[9\]; reset"):
        attention(q[:1], k[:1], v[:1], torch.tensor([9]))
    attention.reset()
    assert attention(q[:1], k[:1], v[:1], torch.tensor([9])).shape == (1, 2, 8)


@pytest.mark.parametrize(
    ("method", "select", "options"),
    [
        ("window", window, {"budget": 5, "sink": 2}),
        ("quest", quest, {"budget": 6, "page": 3}),
        ("oracle", oracle, {"budget": 5, "recent": 2}),
        ("random_channels", random_channels, {"budget": 5, "r": 2, "seed": 3}),
    ],
)
def test_methods_without_memory_are_their_functions(method, select, options, generator):
    q, k, v = tensors(generator, group=3)
    lengths = torch.tensor([12, 7])
    attention = SparseDecodeAttention(method, **options)
    attention.observe(k, k)
    expected = sparse_decode(q, k, v, *select(q, k, lengths=lengths, **options))
    for _ in range(2):
        assert torch.equal(attention(q, k, v, lengths), expected)


def test_dense_method(generator):
    q, k, v = tensors(generator)
    assert torch.equal(SparseDecodeAttention("dense")(q, k, v), dense_decode(q, k, v))
    assert torch.equal(SparseDecodeAttention("dense", scale=0.3)(q, k, v), dense_decode(q, k, v, scale=0.3))


def test_heavy_hitter_remembers_until_reset(generator):
    q, k, v = tensors(generator, group=2)
    prompt = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    attention, state = SparseDecodeAttention("heavy_hitter", budget=4, recent=1), HeavyHitterState()
    for _ in range(2):
        attention.observe(prompt, k[:, :, :8])
        state.observe(prompt, k[:, :, :8])
        for tokens in range(9, 13):
            keys, values = k[:, :, :tokens], v[:, :, :tokens]
            listed = heavy_hitter(q, keys, state, budget=4, recent=1)
            assert torch.equal(attention(q, keys, values), sparse_decode(q, keys, values, *listed))
        attention.reset()
        state = HeavyHitterState()


def test_channels_are_saved_with_the_model(generator):
    channels = channels_of(generator, 2, 8, 3)
    attention = SparseDecodeAttention(channels=channels, budget=4)
    assert torch.equal(attention.state_dict()["channels"], channels)
    assert not list(attention.parameters())
    assert not SparseDecodeAttention("window", budget=4).state_dict()


def test_no_gradient_is_recorded(generator):
    q, k, v = (x.requires_grad_() for x in tensors(generator))
    assert not SparseDecodeAttention("oracle", budget=3)(q, k, v).requires_grad


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SparseDecodeAttention("sparse"), ValueError, "method must be one of 'dense', .*, got 'sparse'"),
        (
            lambda: SparseDecodeAttention(budget=3),
            ValueError,
            "channels must be given for method='double_sparsity', got",
        ),
        (
            lambda: SparseDecodeAttention("quest", torch.tensor([[0]]), budget=16),
            ValueError,
            "channels must be None for method='quest', got Tensor",
        ),
        (
            lambda: SparseDecodeAttention("window"),
            TypeError,
            "options of method='window' must be among .*, got no budget",
        ),
        (
            lambda: SparseDecodeAttention("window", budget=8, page=4),
            TypeError,
            "options of method='window' must be among budget, sink, got unknown page",
        ),
        (lambda: SparseDecodeAttention("random_channels", budget=8), TypeError, "got no r"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_repr():
    assert repr(SparseDecodeAttention("window", budget=8)) == "SparseDecodeAttention('window', budget=8)"
