"""The sparsity figures against their definitions, entry by entry."""

import math

import pytest
import torch
from cce_reference import logits, make

from lossbook.kernels import softmax_sparsity


def brute_force(e, c, target, eps, block, order):
    p = logits(e, c).softmax(1)
    difference = p.clone()
    difference[torch.arange(len(e)), target] -= 1
    reaches = difference.abs() >= eps
    rows, width = block
    order = torch.arange(len(c)) if order is None else order
    tiles, columns, mass, ever = [], [], 0.0, torch.zeros(len(c), dtype=torch.bool)
    for top in range(0, len(e), rows):
        kept = reaches[top : top + rows].any(0)
        ever |= kept
        columns += kept.tolist()
        mass += p[top : top + rows][:, ~kept].sum().item()
        tiles += [bool(kept[part].any()) for part in order.split(width)]
    counts = (p >= eps).sum(1)
    return {
        "entries": (p >= eps).double().mean().item(),
        "tiles": sum(tiles) / len(tiles),
        "columns": sum(columns) / len(columns),
        "mass": mass / len(e),
        "row_mean": counts.double().mean().item(),
        "row_max": float(counts.max()),
        "never_kept": (~ever).double().mean().item(),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sorted_vocabulary", [False, True])
@pytest.mark.parametrize("block", [(128, 128), (32, 16), (7, 1000)])
@pytest.mark.parametrize("eps", [2.0**-3, 2.0**-7, 2.0**-12])
def test_equals_the_definitions(eps, block, sorted_vocabulary, dtype):
    e, c, _, target = make(150, 333, 5, ignored=0, scale=1.5, dtype=dtype)
    order = logits(e, c).mean(0).argsort(descending=True) if sorted_vocabulary else None
    got = softmax_sparsity(e.view(3, 50, 5), c, target.view(3, 50), eps=eps, block=block, order=order)
    expected = brute_force(e.detach().double(), c.detach().double(), target, eps, block, order)
    assert got.keys() == expected.keys()
    assert all(isinstance(value, float) for value in got.values())
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, abs=1e-12 if dtype == torch.float64 else 1e-4), key


def test_bounds_and_orders():
    e, c, _, target = make(256, 2000, 4, ignored=0, scale=2.0)
    eps = 2.0**-9
    natural = softmax_sparsity(e, c, target, eps=eps)
    by_mean = softmax_sparsity(e, c, target, eps=eps, order=logits(e, c).mean(0).argsort(descending=True))
    assert natural["row_max"] <= math.floor(1 / eps)
    assert natural["entries"] <= natural["columns"] <= natural["tiles"] <= 1
    assert by_mean["tiles"] <= natural["tiles"]
    assert {**by_mean, "tiles": 0} == {**natural, "tiles": 0}, "an order changes tiles only"
    assert 0 < natural["mass"] < eps * 2000


def test_eps_above_one_drops_everything():
    e, c, _, target = make(ignored=0)
    result = softmax_sparsity(e, c, target, eps=1.5)
    assert result["entries"] == result["tiles"] == result["columns"] == 0
    assert result["mass"] == pytest.approx(1) and result["never_kept"] == 1


def test_arguments_are_left_alone_and_no_graph_is_built():
    e, c, _, target = make(ignored=0)
    before = e.detach().clone(), c.detach().clone()
    softmax_sparsity(e, c, target, eps=0.01)
    assert torch.equal(e, before[0]) and torch.equal(c, before[1])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"eps": 0.0}, ValueError, "eps must be > 0, got 0.0"),
        ({"eps": "auto"}, TypeError, "eps must be a number, got str 'auto'"),
        ({"block": (128,)}, ValueError, r"block must be a pair \(rows, columns\), got \(128,\)"),
        ({"block": (0, 4)}, ValueError, "block must be > 0, got 0"),
        ({"block": 128}, ValueError, "block must be a pair"),
        ({"order": torch.arange(6)}, ValueError, r"order must have shape \(V,\) = \(70,\), got \(6,\)"),
        ({"order": torch.zeros(70, dtype=torch.int64)}, ValueError, "order must be a permutation"),
        ({"order": torch.arange(70.0)}, TypeError, "order must have dtype"),
        ({"target": torch.full((200,), -100)}, ValueError, r"target must lie in \[0, V\) = \[0, 70\), got -100"),
        (
            {"e": torch.zeros(0, 6, dtype=torch.float64), "target": torch.zeros(0, dtype=torch.int64)},
            ValueError,
            r"e must have at least one row, got shape \(0, 6\)",
        ),
    ],
)
def test_bad_arguments(changes, error, message):
    e, c, _, target = make(ignored=0)
    arguments = {"e": e, "c": c, "target": target, "eps": 0.01} | changes
    with pytest.raises(error, match=message):
        softmax_sparsity(**arguments)
