"""The methods that Double Sparsity is compared with."""

import pytest
import torch
from sparse_reference import poison, tensors

from lossbook.kernels import approx_scores, build_labels, dense_decode, select_tokens, sparse_decode
from lossbook.nn import HeavyHitterState, heavy_hitter, oracle, quest, random_channels, window

EXACT = {"rtol": 1e-12, "atol": 1e-12}
LENGTHS = torch.tensor([12, 7])


def chosen(result):
    """The listed tokens of every request and head; the rest of a list must hold -1."""
    index, count = result
    assert index.dtype == count.dtype == torch.int32
    lists = []
    for row, n in zip(index.flatten(0, 1).tolist(), count.flatten().tolist(), strict=True):
        assert row[:n] == sorted(set(row[:n])) and set(row[n:]) <= {-1}
        lists.append(row[:n])
    return lists


SELECTIONS = {
    "window": lambda q, k, **o: window(q, k, **o, sink=2),
    "heavy_hitter": lambda q, k, **o: heavy_hitter(q, k, HeavyHitterState(), **o),
    "quest": lambda q, k, **o: quest(q, k, **o, page=3),
    "random_channels": lambda q, k, **o: random_channels(q, k, **o, r=2),
    "oracle": oracle,
}


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS)
def test_every_method_serves_sparse_decode(select, group, generator):
    q, k, v = tensors(generator, group=group)
    k, v = poison(k, LENGTHS), poison(v, LENGTHS)
    result = select(q, k, budget=6, lengths=LENGTHS)
    heads = len(chosen(result)) // 2
    assert all(len(tokens) <= 6 for tokens in chosen(result))
    assert all(max(tokens) < 7 for tokens in chosen(result)[heads:])
    assert sparse_decode(q, k, v, *result).isfinite().all()
    everything = select(q, k, budget=12, lengths=LENGTHS)
    torch.testing.assert_close(sparse_decode(q, k, v, *everything), dense_decode(q, k, v, LENGTHS), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS)
def test_every_method_takes_every_dtype(select, dtype, generator):
    q, k, _ = tensors(generator, dtype=dtype)
    q = q.float() if dtype == torch.float8_e4m3fn else q
    assert chosen(select(q, k, budget=6)) == chosen(select(q.float(), k.float(), budget=6))


def test_window(generator):
    q, k, _ = tensors(generator)
    assert chosen(window(q, k, budget=5, lengths=LENGTHS, sink=2)) == [[0, 1, 9, 10, 11]] * 2 + [[0, 1, 4, 5, 6]] * 2
    assert chosen(window(q, k, budget=4, lengths=LENGTHS, sink=4)) == [[0, 1, 2, 3]] * 4
    with pytest.raises(ValueError, match=r"sink \+ recent must be <= budget = 3, got 4 \+ 0 = 4"):
        window(q, k, budget=3)


@pytest.mark.parametrize("group", [1, 3])
def test_oracle_takes_the_largest_scores(group, generator):
    q, k, _ = tensors(generator, group=group)
    dots = torch.einsum("bhd,bhtd->bht", q, k.repeat_interleave(group, 1))
    assert chosen(oracle(q, k, budget=4)) == dots.topk(4).indices.sort().values.flatten(0, 1).tolist()
    kept = oracle(q, k, budget=4, lengths=LENGTHS, sink=1, recent=2)
    assert all({0, 10, 11} <= set(tokens) for tokens in chosen(kept)[: 2 * group])


def test_random_channels_are_those_of_the_seed(generator):
    q, k, _ = tensors(generator, group=2, features=32)
    first = chosen(random_channels(q, k, budget=4, r=4))
    assert chosen(random_channels(q, k, budget=4, r=4)) == first
    assert chosen(random_channels(q, k, budget=4, r=4, seed=1)) != first
    assert chosen(random_channels(q, k, budget=4, r=32)) == chosen(oracle(q, k, budget=4))
    with pytest.raises(ValueError, match=r"r must lie in \[1, D\] = \[1, 32\], got 33"):
        random_channels(q, k, budget=4, r=33)


def test_random_channels_use_no_global_generator(generator):
    q, k, _ = tensors(generator)
    before = torch.get_rng_state()
    random_channels(q, k, budget=4, r=2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("page", "budget", "recent"), [(3, 6, 0), (3, 8, 1), (5, 5, 0), (5, 5, 1), (2, 6, 2), (16, 16, 1)]
)
def test_quest_ranks_pages_by_their_bound(page, budget, recent, generator):
    q, k, _ = tensors(generator, group=3)
    q[:, 0] = 0
    q[:, 1, :4] = 0
    expected = []
    for b, length in enumerate(LENGTHS.tolist()):
        for h in range(6):
            keys, query = k[b, h // 3, :length], q[b, h]
            pages = [list(range(start, min(start + page, length))) for start in range(0, length, page)]
            bound = [
                sum(max(float(x * keys[p, c].min()), float(x * keys[p, c].max())) for c, x in enumerate(query))
                for p in pages
            ]
            last = len(pages) - recent
            best = sorted(range(len(pages)), key=lambda i: (i < last, -bound[i], i))[: budget // page]
            expected.append([token for i in sorted(best) for token in pages[i]])
    result = quest(q, poison(k, LENGTHS), budget=budget, lengths=LENGTHS, page=page, recent_pages=recent)
    assert chosen(result) == expected
    assert result[0].shape == (2, 6, budget)


def test_quest_needs_a_page(generator):
    q, k, _ = tensors(generator)
    with pytest.raises(ValueError, match="budget must be >= page = 16, got 15"):
        quest(q, k, budget=15)
    with pytest.raises(ValueError, match="page must be > 0, got 0"):
        quest(q, k, budget=15, page=0)
    with pytest.raises(ValueError, match=r"recent_pages must lie in \[0, budget // page\] = \[0, 2\], got 3"):
        quest(q, k, budget=15, page=7, recent_pages=3)


def naive_heavy_hitter(q, k, prompt, budget, recent, steps):
    """One head of one request: what is kept in each step, by lists and dictionaries."""
    mass, kept = {}, set()
    for row in range(prompt):
        for t, weight in enumerate((q[row] @ k[: row + 1].T / q.shape[1] ** 0.5).softmax(0).tolist()):
            mass[t] = mass.get(t, 0) + weight
        kept.add(row)
    history = []
    for row in range(prompt, prompt + steps):
        kept.add(row)
        mass.setdefault(row, 0)
        last = {t for t in kept if t > row - recent}
        others = sorted(kept - last, key=lambda t: (-mass[t], t))
        kept = last | set(others[: budget - len(last)])
        tokens = sorted(kept)
        for t, weight in zip(tokens, (q[row] @ k[tokens].T / q.shape[1] ** 0.5).softmax(0).tolist(), strict=True):
            mass[t] += weight
        history.append(tokens)
    return history


@pytest.mark.parametrize("preallocated", [False, True])
def test_heavy_hitter_is_what_loops_compute(preallocated, generator, monkeypatch):
    monkeypatch.setattr("lossbook.kernels.sparse_attention.baselines._PROMPT_BLOCK", 4)
    q = 3 * torch.randn(2, 4, 20, 8, generator=generator, dtype=torch.float64)
    k = torch.randn(2, 2, 20, 8, generator=generator, dtype=torch.float64)
    state, histories = HeavyHitterState(), []
    prompts = torch.tensor([10, 10 if not preallocated else 6])
    valid = poison(k[:, :, :10], prompts)
    state.observe(poison(q[:, :, :10], prompts), valid, prompts)
    for step in range(8):
        lengths = prompts + step + 1
        tokens = 20 if preallocated else 11 + step
        newest = torch.stack([q[b, :, length - 1] for b, length in enumerate(lengths.tolist())])
        histories.append(
            chosen(heavy_hitter(newest, poison(k[:, :, :tokens], lengths), state, budget=6, lengths=lengths, recent=3))
        )
    for b in range(2):
        for h in range(4):
            expected = naive_heavy_hitter(q[b, h], k[b, h // 2], int(prompts[b]), 6, 3, 8)
            assert [lists[4 * b + h] for lists in histories] == expected


def test_what_a_heavy_hitter_evicts_never_returns(generator):
    q, k, _ = tensors(generator)
    state = HeavyHitterState()
    heavy_hitter(q, k[:, :, :8], state, budget=4)
    gone = ~state.kept
    index, count = heavy_hitter(q, k, state, budget=12)
    assert (count == 8).all() and not state.kept[:, :, :8][gone].any()
    assert all(not gone[i // 2, i % 2][t] for i, tokens in enumerate(chosen((index, count))) for t in tokens if t < 8)


def test_state_of_another_batch_is_refused(generator):
    q, k, _ = tensors(generator)
    state = HeavyHitterState()
    heavy_hitter(q, k, state, budget=4)
    message = r"state must be of B = 1 requests, Hq = 2 heads and at most S = 12 tokens, got \(2, 2, 12\)"
    with pytest.raises(ValueError, match=message):
        heavy_hitter(q[:1], k[:1], state, budget=4)
    with pytest.raises(ValueError, match="at most S = 11 tokens"):
        heavy_hitter(q, k[:, :, :11], state, budget=4)
    with pytest.raises(ValueError, match=r"sink \+ recent must be <= budget = 4, got 0 \+ 5 = 5"):
        heavy_hitter(q, k, HeavyHitterState(), budget=4, recent=5)
    with pytest.raises(ValueError, match=r"k must have shape \(B, Hkv, T, D\)"):
        state.observe(k, k[..., :3])


def test_labels_of_all_channels_find_what_the_oracle_finds(generator):
    q, k, _ = tensors(generator)
    labels = build_labels(k, torch.arange(8).expand(2, 8))
    assert chosen(select_tokens(approx_scores(q, labels), 5)) == chosen(oracle(q, k, budget=5))
