"""A cache in host memory gives what the same selection gives from a cache on the device, whatever was guessed."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lossbook.kernels import build_labels, dense_decode, double_sparse_decode
from lossbook.kernels.sparse_attention.offload import OffloadedCache

LAYERS, BATCH, HEADS, KEY_HEADS, SIZE, CAPACITY = 3, 2, 6, 2, 8, 40


def channels(generator, heads=KEY_HEADS, r=3):
    orders = torch.rand(LAYERS, heads, SIZE, generator=generator).argsort(-1)
    return orders[..., :r].contiguous()


def cache(chosen, **options):
    settings = {"capacity": CAPACITY, "budget": 7, **options}
    return OffloadedCache(chosen, BATCH, KEY_HEADS, SIZE, **settings)


def tokens(generator, count, dtype=torch.float32):
    return torch.randn(2, LAYERS, BATCH, KEY_HEADS, count, SIZE, generator=generator).to(dtype)


def queries(generator, dtype=torch.float32):
    """One for each layer."""
    return list(torch.randn(LAYERS, BATCH, HEADS, SIZE, generator=generator).to(dtype))


def guesses(generator, queries):
    """Something like the next layer's query, for each layer."""
    noise = [0.3 * torch.randn(q.shape, generator=generator).to(q.dtype) for q in queries[1:]]
    return [*(q + more for q, more in zip(queries[1:], noise, strict=True)), None]


class OnDevice:
    """The same steps from keys and values that are not offloaded."""

    def __init__(self, chosen, k, v, lengths, bits=16, **options):
        self.options = {"budget": 7, **options}
        self.k, self.v = (torch.zeros(*x.shape[:3], CAPACITY, SIZE, dtype=x.dtype) for x in (k, v))
        self.k[..., : k.shape[3], :], self.v[..., : k.shape[3], :] = k, v
        self.lengths = lengths.clone()
        self.labels = [
            build_labels(x, c, bits, lengths=lengths, capacity=CAPACITY) for x, c in zip(k, chosen, strict=True)
        ]

    def append(self, k, v):
        for layer, labels in enumerate(self.labels):
            labels.append(k[layer])
        for row, length in enumerate(self.lengths.tolist()):
            self.k[:, row, :, length : length + k.shape[3]] = k[:, row]
            self.v[:, row, :, length : length + k.shape[3]] = v[:, row]
        self.lengths += k.shape[3]

    def attend(self, layer, q, scale=None):
        labels, cache = self.labels[layer], (self.k[layer], self.v[layer])
        return double_sparse_decode(q, *cache, labels.channels, labels=labels, scale=scale, **self.options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 4},
        {"bits": 8, "group_reduce": "mean"},
        {"sink": 2, "recent": 3},
        {"dtype": torch.bfloat16},
        {"budget": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("heads", [KEY_HEADS, HEADS])
def test_equals_a_cache_on_the_device(generator, options, heads):
    """Bit for bit, over steps that append one token or two to requests of several lengths."""
    chosen, dtype = channels(generator, heads), options.get("dtype", torch.float32)
    (k, v), lengths = tokens(generator, 20, dtype), torch.tensor([13, 20], dtype=torch.int32)
    ours = cache(chosen, **options)
    on_device = {name: value for name, value in options.items() if name != "dtype"}
    reference = OnDevice(chosen, k, v, lengths, **on_device)
    for layer in range(LAYERS):
        ours.fill(layer, k[layer], v[layer], lengths)
    for count in (1, 1, 2, 1):
        k_new, v_new = tokens(generator, count, dtype)
        reference.append(k_new, v_new)
        qs = queries(generator, dtype)
        for layer, (q, q_next) in enumerate(zip(qs, guesses(generator, qs), strict=True)):
            ours.append(layer, k_new[layer], v_new[layer])
            assert torch.equal(ours.attend(layer, q, q_next=q_next, scale=0.4), reference.attend(layer, q, scale=0.4))
            assert ours.lengths(layer).tolist() == reference.lengths.tolist()


@pytest.mark.parametrize("budget", [20, 60])
def test_all_tokens_are_dense_attention(generator, budget):
    ours, (k, v) = cache(channels(generator), budget=budget), tokens(generator, 20)
    lengths = torch.tensor([13, 20])
    for layer, q in enumerate(queries(generator)):
        ours.fill(layer, k[layer], v[layer], lengths)
        torch.testing.assert_close(ours.attend(layer, q), dense_decode(q, k[layer], v[layer], lengths))


def test_counts(generator):
    """Every selected token is a hit or a miss, and bytes are those of the tokens that were copied."""
    (k, v), ours = tokens(generator, 30), cache(channels(generator))
    for layer in range(LAYERS):
        ours.fill(layer, k[layer], v[layer])
    qs = queries(generator)
    for layer, q in enumerate(qs):
        ours.attend(layer, q, q_next=qs[layer + 1] if layer + 1 < LAYERS else None)
    selected = BATCH * KEY_HEADS * 7
    # Guesses that are right: only the first layer, which nobody guesses for, misses.
    assert (ours.counts.misses, ours.counts.hits) == (selected, (LAYERS - 1) * selected)
    assert ours.counts.hit_rate == pytest.approx((LAYERS - 1) / LAYERS)
    assert ours.counts.fetched_ahead == (LAYERS - 1) * selected
    assert ours.counts.bytes == LAYERS * selected * 2 * SIZE * 4


def test_guesses_save_late_fetches(generator):
    chosen, (k, v) = channels(generator), tokens(generator, 30)
    ahead, without = cache(chosen), cache(chosen)
    for layer in range(LAYERS):
        ahead.fill(layer, k[layer], v[layer])
        without.fill(layer, k[layer], v[layer])
    qs = queries(generator)
    for layer, (q, q_next) in enumerate(zip(qs, guesses(generator, qs), strict=True)):
        assert torch.equal(ahead.attend(layer, q, q_next=q_next), without.attend(layer, q))
    assert without.counts.hits == without.counts.fetched_ahead == 0 and without.counts.hit_rate == 0
    assert 0 < ahead.counts.hits and ahead.counts.misses < without.counts.misses
    assert ahead.counts.hits + ahead.counts.misses == without.counts.misses


def test_a_wrong_guess_changes_nothing(generator):
    """Guesses that point away from the query."""
    chosen, (k, v) = channels(generator), tokens(generator, 30)
    ours, reference = cache(chosen), OnDevice(chosen, k, v, torch.full((BATCH,), 30))
    for layer in range(LAYERS):
        ours.fill(layer, k[layer], v[layer])
    qs = queries(generator)
    for layer, q in enumerate(qs):
        q_next = -qs[layer + 1] if layer + 1 < LAYERS else None
        assert torch.equal(ours.attend(layer, q, q_next=q_next), reference.attend(layer, q))
    assert ours.counts.hit_rate < 0.2


def test_filling_again_forgets_what_was_guessed(generator):
    chosen, (k, v), (k2, v2) = channels(generator), tokens(generator, 30), tokens(generator, 30)
    ours = cache(chosen)
    for layer in range(LAYERS):
        ours.fill(layer, k[layer], v[layer])
    q = queries(generator)[0]
    ours.attend(0, q, q_next=q)
    ours.fill(1, k2[1], v2[1])
    reference = OnDevice(chosen, k2, v2, torch.full((BATCH,), 30))
    assert torch.equal(ours.attend(1, q), reference.attend(1, q))


def test_a_thread_that_fetches_ahead(generator, monkeypatch):
    """What happens on a GPU, but for its streams."""
    chosen, (k, v), threads = channels(generator), tokens(generator, 30), []
    ours, reference = cache(chosen), OnDevice(chosen, k, v, torch.full((BATCH,), 30, dtype=torch.int32))
    guessed = ours._guessed
    monkeypatch.setattr(ours, "_guessed", lambda *a: (threads.append(threading.current_thread()), guessed(*a))[1])
    with ThreadPoolExecutor(1) as thread:
        monkeypatch.setattr(ours, "_thread", thread)
        for layer in range(LAYERS):
            ours.fill(layer, k[layer], v[layer])
        for _ in range(3):
            k_new, v_new = tokens(generator, 1)
            reference.append(k_new, v_new)
            qs = queries(generator)
            for layer, (q, q_next) in enumerate(zip(qs, guesses(generator, qs), strict=True)):
                ours.append(layer, k_new[layer], v_new[layer])
                assert torch.equal(ours.attend(layer, q, q_next=q_next), reference.attend(layer, q))
    assert len(threads) == 3 * (LAYERS - 1) and threading.main_thread() not in threads
    assert ours.counts.hits > 0


def test_what_lies_behind_the_lengths_is_never_read(generator):
    chosen, (k, v) = channels(generator), tokens(generator, 20)
    k[:, 0, :, 13:] = v[:, 0, :, 13:] = torch.nan
    ours = cache(chosen, budget=20)
    for layer, q in enumerate(queries(generator)):
        ours.fill(layer, k[layer], v[layer], torch.tensor([13, 20]))
        assert ours.attend(layer, q).isfinite().all()


def filled(generator):
    ours, (k, v) = cache(channels(generator)), tokens(generator, 30)
    ours.fill(0, k[0], v[0])
    return ours


def new(count=1, **changes):
    return torch.zeros(changes.get("batch", BATCH), KEY_HEADS, count, SIZE, dtype=changes.get("dtype"))


BAD = {
    "layer": (
        lambda c: c.attend(3, torch.zeros(BATCH, HEADS, SIZE)),
        ValueError,
        r"layer must lie in .* \[0, 3\), got 3",
    ),
    "not filled": (lambda c: c.append(1, new(), new()), ValueError, "layer must have been filled before, got 1"),
    "no room": (lambda c: c.append(0, new(11), new(11)), ValueError, "capacity of 40 tokens, got 11 tokens for .* 30"),
    "too long": (lambda c: c.fill(0, new(41), new(41)), ValueError, "capacity = 40 tokens, got 41"),
    "batch": (
        lambda c: c.append(0, new(batch=3), new(batch=3)),
        ValueError,
        r"k must have shape .* got \(3, 2, 1, 8\)",
    ),
    "values": (lambda c: c.append(0, new(), new(2)), ValueError, r"v must have shape k.shape = .* got \(2, 2, 2, 8\)"),
    "dtype": (lambda c: c.append(0, new(dtype=torch.float16), new()), TypeError, "k must have dtype torch.float32"),
    "query": (
        lambda c: c.attend(0, torch.zeros(BATCH, 5, SIZE)),
        ValueError,
        "Hq must be a multiple of Hkv = 2, got 5",
    ),
    "guess": (
        lambda c: c.attend(0, torch.zeros(BATCH, HEADS, SIZE), q_next=torch.zeros(BATCH, HEADS, 7)),
        ValueError,
        r"q_next must have shape \(B, Hq, D\) = \(2, \*, 8\), got \(2, 6, 7\)",
    ),
    "next layer": (
        lambda c: c.attend(0, torch.zeros(BATCH, HEADS, SIZE), q_next=torch.zeros(BATCH, HEADS, SIZE)),
        ValueError,
        "layer must have been filled before, got 1",
    ),
    "lengths": (lambda c: c.fill(0, new(), new(), torch.tensor([0, 1])), ValueError, r"lengths must lie in \[1, S\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_call_is_named(generator, case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call(filled(generator))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": 0}, ValueError, "budget must be >= 1, got 0"),
        ({"budget": 2, "sink": 2, "recent": 1}, ValueError, "sink \\+ recent must be <= budget = 2"),
        ({"capacity": 0}, ValueError, "capacity must be > 0, got 0"),
        ({"bits": 5}, ValueError, "bits must be one of 16, 8, 4, got 5"),
        ({"dtype": torch.float64}, ValueError, "dtype must be one of .*, got torch.float64"),
        ({"group_reduce": "sum"}, ValueError, "group_reduce must be one of"),
        ({"impl": "cuda"}, ValueError, "impl must be one of"),
    ],
)
def test_bad_option_is_named(generator, options, error, message):
    with pytest.raises(error, match=message):
        cache(channels(generator), **options)


@pytest.mark.parametrize("heads", [1, 3])
def test_channels_of_other_heads_are_named(generator, heads):
    with pytest.raises(ValueError, match="2"):
        cache(channels(generator, heads))
