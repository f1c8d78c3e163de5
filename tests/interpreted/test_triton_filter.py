"""The gradient filter, and the map of columns that the forward pass leaves for it."""

import pytest
import torch
from cce_reference import IGNORED
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from triton_cases import (
    EVERYTHING,
    Head,
    assert_close,
    assert_equals_dense,
    assert_identical,
    head,
    kept_columns,
    outcome,
    problem,
)

from lossbook.kernels import cut_cross_entropy
from lossbook.kernels.cross_entropy.triton import backward, config, forward

# Groups and spans of the smallest size, and everything at once.
CHUNKS = [1, 1 << 30]


def peaked(rows=200, vocab=500, features=24, **options):
    """Logits of a language model in small: few large probabilities, and words of all frequencies."""
    heads = head(rows, vocab, features, spread=3.0, **options)
    with torch.no_grad():
        heads.bias.sub_(6 * torch.linspace(0, 1, vocab))
    return heads


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize(
    "filter_eps",
    [2.0**-5, (2.0**-9, 2.0**-5), (2.0**-4, 2.0**-8), (None, 2.0**-6), (2.0**-6, None), "auto", "fast", 1.0, 2.0**-60],
    ids=str,
)
def test_gradients_are_those_of_the_kept_columns(filter_eps, chunk_bytes):
    extras = {} if chunk_bytes == 1 else {"softcap": 8.0, "z_loss": 0.02, **EVERYTHING}
    assert_equals_dense(peaked(), filter_eps=filter_eps, chunk_bytes=chunk_bytes, reduction="none", **extras)


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("filtered", ["e", "c"])
def test_one_side_may_stay_exact(filtered, chunk_bytes):
    heads, exact = peaked(), outcome(peaked().double(), impl="dense", reduction="none")
    got = assert_equals_dense(
        heads,
        filter_eps=2.0**-5,
        filter_e=filtered == "e",
        filter_c=filtered == "c",
        reduction="none",
        chunk_bytes=chunk_bytes,
    )
    errors = [((x.double() - y).norm() / y.norm()).item() for x, y in zip(got.gradients, exact.gradients, strict=True)]
    if filtered == "e":
        assert errors[0] > 1e-3 and max(errors[1:]) < 1e-5
    else:
        assert errors[0] < 1e-5 and min(errors[1:]) > 1e-3


def test_the_largest_eps_keeps_targets_only_and_the_smallest_everything():
    heads = head(100, 300, ignored=0)
    used = torch.zeros(300, dtype=torch.bool)
    used[heads.target] = True
    for eps in (1.0, 2.0**-140):
        _, d_c, d_bias = outcome(heads, impl="triton", reduction="sum", filter_eps=eps).gradients
        has_gradient = d_c.norm(dim=1) > 0
        assert has_gradient[used].all() and has_gradient[~used].all() == (eps < 1)
        assert torch.equal(has_gradient, d_bias != 0)


def test_results_do_not_depend_on_the_filter():
    heads = peaked()
    exact = outcome(heads, impl="triton", reduction="none", **EVERYTHING)
    for filter_eps in ("auto", 0.5, (None, 2.0**-9)):
        filtered = outcome(heads, impl="triton", reduction="none", filter_eps=filter_eps, **EVERYTHING)
        assert_identical(filtered._replace(gradients=[]), exact._replace(gradients=[]))


@pytest.mark.parametrize("side", ["e", "c", "bias", "e+bias", "c+bias", "e+c"])
def test_filters_of_gradients_nobody_wants(side):
    """Both thresholds are set; only the wanted gradients are computed, and they are the same."""
    whole = outcome(peaked(), impl="triton", reduction="none", filter_eps=(2.0**-8, 2.0**-5))
    everything = dict(zip(("e", "c", "bias"), whole.gradients, strict=True))
    heads = peaked()
    for name, leaf in zip(("e", "c", "bias"), heads[:3], strict=True):
        leaf.requires_grad_(name in side.split("+"))
    got = assert_equals_dense(heads, reduction="none", filter_eps=(2.0**-8, 2.0**-5))
    assert_close(got, whole._replace(gradients=[everything[name] for name in side.split("+")]), 1e-6)


def test_groups_give_what_one_group_gives(monkeypatch):
    sizes = []
    split = backward._groups

    def spy(*arguments):
        groups, slots = split(*arguments)
        sizes.append(len(groups))
        return groups, slots

    monkeypatch.setattr(backward, "_groups", spy)
    options = {"impl": "triton", "reduction": "none", "filter_eps": (2.0**-9, 2.0**-6)}
    several, one = (outcome(peaked(200, 2000), chunk_bytes=size, **options) for size in (1, 1 << 30))
    assert sizes[0] > 2 and sizes[1] == 1
    assert_close(several, one, 1e-6)


@pytest.mark.parametrize("splits", [2, 3, 7])
def test_the_number_of_vocabulary_splits_changes_only_rounding(splits, monkeypatch):
    options = {"impl": "triton", "reduction": "none", "filter_eps": 2.0**-7, **EVERYTHING}
    results = []
    for number in (1, splits):
        monkeypatch.setattr(config, "n_splits", lambda *arguments, number=number: number)
        results.append(outcome(peaked(), **options))
    assert_close(*results, 1e-6)


def recorded(heads, eps_e, eps_c, **changes):
    """The maps as bits, shape ``(maps, blocks, V)``."""
    statistics = forward.forward_statistics(problem(heads, eps_e=eps_e, eps_c=eps_c, **changes))
    words = statistics.column_map[:, : -(-int((heads.target != IGNORED).sum()) // config.BLOCK_ROWS)]
    return ((words[..., None] >> torch.arange(32, dtype=torch.int32)) & 1).flatten(-2)[..., : len(heads.c)].bool()


@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate])  # shrinking takes minutes
@given(
    rows=st.integers(2, 300),
    vocab=st.integers(1, 700),
    exponents=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    softcap=st.sampled_from([None, 6.0]),
    temperature=st.sampled_from([0.5, 1.0]),
    splits=st.integers(1, 4),
)
def test_the_map_is_a_superset_of_what_is_kept(rows, vocab, exponents, softcap, temperature, splits):
    heads = peaked(rows, vocab, 12, seed=rows + vocab)
    eps_e, eps_c = (2.0**-exponent for exponent in exponents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "n_splits", lambda *arguments: splits)
        maps = recorded(heads, eps_e, eps_c, softcap=softcap, scale=1 / temperature)
    levels = [min(eps_e, eps_c), eps_c] if eps_c > eps_e else [min(eps_e, eps_c)]
    for bits, eps in zip(maps, levels, strict=True):
        assert not (kept_columns(heads, eps, softcap=softcap, temperature=temperature) & ~bits).any()


def test_the_map_is_no_larger_than_it_need_be(monkeypatch):
    """A few columns more than are kept, where frequent words come first; targets in every map."""
    monkeypatch.setattr(config, "n_splits", lambda *arguments: 1)
    heads = peaked(300, 2000)
    for exponent in (4, 8, 12):
        (bits,) = recorded(heads, 2.0**-exponent, None)
        kept = kept_columns(heads, 2.0**-exponent)
        assert kept.sum() <= bits.sum() <= 1.5 * kept.sum() and bits.double().mean() < 0.7
    first, second = recorded(heads, 2.0**-12, 2.0**-4)
    assert second.sum() < 0.5 * first.sum() and not (second & ~first).any()


def test_the_test_is_made_before_scaling():
    """Small weights, a mean over many rows and a small upstream gradient do not shrink what is kept."""
    heads = peaked()
    weight = torch.full((len(heads.c),), 1e-6)
    kept = []
    for scale, options in ((1, {"reduction": "sum"}), (1, {}), (1e-6, {"reduction": "sum"}), (1, {"weight": weight})):
        loss = scale * cut_cross_entropy(
            heads.e, heads.c, heads.target, heads.bias, filter_eps=2.0**-5, impl="triton", **options
        )
        kept.append(torch.autograd.grad(loss, heads.c)[0].norm(dim=1) > 0)
    assert not kept[0].all() and all(torch.equal(kept[0], other) for other in kept[1:])


def test_columns_with_holes_between_them():
    """Kept columns that alternate with dropped ones, in runs of every length, in blocks that agree on none."""
    rows, vocab = 384, 1030
    generator = torch.Generator().manual_seed(3)
    heads = head(rows, vocab, 16, ignored=0, bias=True)
    runs = torch.cat([torch.full((1 + i % 40,), i % 2) for i in range(70)])[:vocab]
    with torch.no_grad():
        heads.bias.copy_(-30.0 * runs)
        # Each block prefers columns of its own.
        for block in range(3):
            heads.c[block::3] += 2 * torch.randn(16, generator=generator)
    assert_equals_dense(Head(*heads), filter_eps=(2.0**-10, 2.0**-7), reduction="none", chunk_bytes=1)
