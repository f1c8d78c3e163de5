"""The Triton selection takes exactly the tokens that a stable sort puts first, whatever the scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.kernels import select_tokens
from lossbook.kernels.sparse_attention.triton import engine

SPECIAL = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38]


@pytest.fixture(params=["short", "long"])
def rows(request, monkeypatch):
    """Rows that one program selects from, and those that several share."""
    if request.param == "long":
        monkeypatch.setattr(engine, "_ROW_TOKENS", 0)
        monkeypatch.setattr(engine, "_SELECT_TOKENS", 64)


def sorted_selection(scores, budget, lengths, sink, recent):
    """By a sort of tuples: forced before others, numbers before NaN, large before small, early before late."""
    batch, heads, _ = scores.shape
    index = torch.full((batch, heads, budget), -1, dtype=torch.int32)
    count = torch.zeros(batch, heads, dtype=torch.int32)
    for request, length in enumerate(lengths):
        for head in range(heads):
            row = scores[request, head, :length].tolist()

            def rank(token, row=row, length=length):
                score = row[token]
                forced = token < sink or token >= length - recent
                return not forced, score != score, 0.0 if score != score else -score, token

            best = sorted(sorted(range(length), key=rank)[:budget])
            index[request, head, : len(best)] = torch.tensor(best, dtype=torch.int32)
            count[request, head] = len(best)
    return index, count


def assert_selects(scores, budget, lengths=None, sink=0, recent=0):
    """Compare with the sort and with the torch engine; what lies behind a length is the best there could be."""
    lengths = [scores.shape[2]] * scores.shape[0] if lengths is None else list(lengths)
    for request, length in enumerate(lengths):
        scores[request, :, length:] = float("inf")
    limits = torch.tensor(lengths, dtype=torch.int32)
    got = select_tokens(scores, budget, limits, sink, recent, impl="triton")
    torch_engine = select_tokens(scores, budget, limits, sink, recent, impl="torch")
    for want in (sorted_selection(scores, budget, lengths, sink, recent), torch_engine):
        assert torch.equal(got[1], want[1])
        assert torch.equal(got[0], want[0])


def random_scores(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("budget", [1, 31, 64, 150])
def test_random_scores(budget):
    assert_selects(random_scores(2, 2, 150), budget)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(("sink", "recent"), [(0, 0), (4, 0), (0, 8), (4, 8), (20, 20)])
def test_the_ends_are_kept(sink, recent):
    assert_selects(random_scores(3, 2, 100), 40, (100, 61, 12), sink, recent)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("budget", [40, 100, 130])
def test_more_room_than_tokens(budget):
    assert_selects(random_scores(3, 1, 100), budget, (100, 40, 1))


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("budget", [1, 50, 129])
def test_all_scores_equal(budget):
    for value in (1.5, 0.0, *SPECIAL[:3]):
        assert_selects(torch.full((1, 1, 130), value), budget, sink=1)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("budget", [1, 7, 60, 130])
def test_ties(budget):
    """Few distinct values, both zeros among them, so that the threshold is met many times."""
    scores = (random_scores(2, 2, 140) * 2).round() / 2
    scores[scores == 0] = torch.where(torch.arange(int((scores == 0).sum())) % 2 == 0, 0.0, -0.0)
    assert_selects(scores, budget, (140, 131), 1, 0)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("budget", [1, 20, 60, 90])
def test_numbers_of_every_kind(budget):
    values = torch.tensor([*SPECIAL, 1.0, -1.0])
    pick = torch.randint(len(values), (2, 2, 100), generator=torch.Generator().manual_seed(1))
    assert_selects(values[pick], budget, (100, 77), *((2, 3) if budget > 4 else (0, 0)))


@pytest.mark.usefixtures("rows")
def test_one_token():
    assert_selects(random_scores(2, 1, 1), 1)
    assert_selects(random_scores(2, 1, 1), 5)
    assert_selects(torch.full((1, 1, 1), torch.nan), 1, sink=1)


@pytest.mark.usefixtures("rows")
def test_keys_that_differ_in_one_byte():
    """Each pass of the selection decides: bit patterns that agree in all other bytes."""
    for shift in (0, 8, 16, 23):
        bits = torch.arange(120, dtype=torch.int32).flip(0) << shift
        scores = (0x20000000 + bits).view(torch.float32)
        for sign in (1, -1):
            assert_selects((sign * scores)[None, None].clone(), 33)


def test_long_rows_by_default():
    """At the lengths and blocks that are shipped."""
    scores = random_scores(1, 1, engine._ROW_TOKENS + 500)
    scores[..., ::7] = 1.0
    assert_selects(scores, 3000, sink=2, recent=2)


def test_rows_of_several_blocks():
    assert_selects((random_scores(1, 2, 2500) * 50).round(), 700, (2300,), 4, 8)


def test_scores_of_any_stride_and_dtype():
    scores = random_scores(2, 3, 90)
    want = select_tokens(scores, 20, impl="triton")
    for view in (scores.mT.contiguous().mT, scores.transpose(0, 1).contiguous().transpose(0, 1)):
        assert all(map(torch.equal, select_tokens(view, 20, impl="triton"), want))
    half = scores.half()
    got, want = (select_tokens(half, 20, impl=impl) for impl in ("triton", "torch"))
    assert all(map(torch.equal, got, want))


@pytest.mark.usefixtures("rows")
def test_repeated_calls_are_identical():
    scores = random_scores(2, 3, 200).round()
    first, second = (select_tokens(scores, 50, sink=1, recent=2, impl="triton") for _ in range(2))
    assert all(map(torch.equal, first, second))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_scores(data):
    """Against the sort, on either path."""
    tokens = data.draw(st.integers(1, 90), label="tokens")
    scores = data.draw(
        st.lists(st.one_of(st.floats(width=32), st.sampled_from(SPECIAL)), min_size=tokens, max_size=tokens),
        label="scores",
    )
    budget = data.draw(st.integers(1, 100), label="budget")
    sink = data.draw(st.integers(0, budget), label="sink")
    recent = data.draw(st.integers(0, budget - sink), label="recent")
    length = data.draw(st.integers(1, tokens), label="length")
    for row_tokens, block in ((engine._ROW_TOKENS, engine._SELECT_TOKENS), (0, 32)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "_ROW_TOKENS", row_tokens)
            patch.setattr(engine, "_SELECT_TOKENS", block)
            assert_selects(torch.tensor(scores)[None, None], budget, (length,), sink, recent)
