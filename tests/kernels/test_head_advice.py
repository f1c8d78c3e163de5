"""What a schedule is said to cost, which one is advised, and that the kernels choose by the same rule."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.kernels import head_advice
from lossbook.kernels.cross_entropy.engines import engine
from lossbook.kernels.cross_entropy.problem import Problem

N, V, D = 8192, 256_000, 2304
LOGITS = N * V
UNIT = 2 * N * V * D
BALANCE = 184.0
MIB = 1 << 20
SIZES = {"rows": st.integers(1, 20_000), "columns": st.integers(1, 300_000), "features": st.integers(1, 8192)}
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def traffic(moved):
    return moved * BALANCE / UNIT


def test_costs_of_a_large_head_by_hand():
    """64 MiB hold no 128 rows of 256,000 logits; the others move 2 bytes a logit, and 8 to add to an accumulator."""
    costs = head_advice(N, V, D, kept=(0.2, 0.09)).costs
    assert list(costs) == ["dense", "two passes", "column map"]
    dense, two_passes, column_map = costs.values()
    assert dense.products == 3 and dense.scratch_bytes == 2 * 2 * LOGITS
    assert dense.traffic == pytest.approx(traffic(6 * 2 * LOGITS))
    assert two_passes.products == 4 and two_passes.scratch_bytes == 64 * MIB + 4 * N * D
    assert two_passes.traffic == pytest.approx(traffic(3 * 2 * LOGITS + 63 * N * D * 8))  # 62.5 buffers of 64 MiB
    assert column_map.products == pytest.approx(1 + 0.2 + 0.2 + 0.09 / 0.45)
    assert column_map.traffic == pytest.approx(traffic(0.2 * 3 * 2 * LOGITS + 13 * N * D * 8))
    assert column_map.scratch_bytes == 64 * MIB + 4 * N * D + 2 * LOGITS // (8 * 128)


@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_costs_of_row_chunks_by_hand(dtype, itemsize):
    """Float32 logits are written once and read twice; a chunk after the first adds to a gradient of the classifier."""
    columns, features, rows = 32_768, 128, 1000
    accumulator = 4 * columns * features if itemsize == 2 else 0
    # Room for 300 rows: two times 128 are used, so 1000 rows make four chunks.
    advice = head_advice(rows, columns, features, dtype, chunk_bytes=300 * 4 * columns + accumulator)
    cost = advice.costs["row chunks"]
    moved = rows * columns * (3 * 4 + 3 * itemsize) + 3 * columns * features * 8
    assert cost.products == 3
    assert cost.traffic == pytest.approx(moved * BALANCE / (2 * rows * columns * features))
    assert cost.scratch_bytes == 256 * 4 * columns + accumulator
    # All rows at once need no accumulator.
    whole = head_advice(rows, columns, features, dtype, chunk_bytes=rows * 4 * columns).costs["row chunks"]
    assert whole.scratch_bytes == rows * 4 * columns
    assert whole.traffic < cost.traffic


def test_the_column_map_between_its_limits():
    """Next to one product if nothing is kept; if everything is, it recomputes like two passes, listing besides."""
    few, all_columns = (head_advice(N, V, D, kept=share).costs for share in (1e-6, 1.0))
    assert few["column map"].products == pytest.approx(1, abs=1e-5)
    assert few["column map"].total == pytest.approx(1, abs=0.01)
    assert all_columns["column map"].products == all_columns["two passes"].products == 4
    assert all_columns["column map"].total >= all_columns["two passes"].total
    assert head_advice(N, V, D, kept=1e-6).schedule == "column map"
    assert head_advice(N, V, D, kept=1.0).schedule == "dense"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(**SIZES, shares=st.lists(st.floats(1e-4, 1), min_size=4, max_size=4), chunk_bytes=st.integers(1, 1 << 31))
def test_cost_grows_with_what_is_kept(rows, columns, features, shares, chunk_bytes):
    (low_e, high_e), (low_c, high_c) = sorted(shares[:2]), sorted(shares[2:])
    totals = [
        head_advice(rows, columns, features, kept=kept, chunk_bytes=chunk_bytes).costs["column map"].total
        for kept in ((low_e, low_c), (high_e, low_c), (high_e, high_c))
    ]
    assert totals == sorted(totals)


def test_one_share_serves_both_gradients():
    assert head_advice(N, V, D, kept=0.25).costs == head_advice(N, V, D, kept=(0.25, 0.25)).costs


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    **SIZES,
    dtype=st.sampled_from(DTYPES),
    kept=st.none() | st.floats(1e-4, 1),
    chunk_bytes=st.integers(1, 1 << 31),
    memory_bytes=st.none() | st.integers(1, 1 << 34),
    flops_per_byte=st.floats(1, 1000),
)
def test_the_cheapest_that_fits_is_advised(
    rows, columns, features, dtype, kept, chunk_bytes, memory_bytes, flops_per_byte
):
    advice = head_advice(
        rows,
        columns,
        features,
        dtype,
        kept=kept,
        chunk_bytes=chunk_bytes,
        memory_bytes=memory_bytes,
        flops_per_byte=flops_per_byte,
    )
    assert {"dense", "two passes"} <= advice.costs.keys() and ("column map" in advice.costs) == (kept is not None)
    chosen = advice.costs[advice.schedule]
    limit = memory_bytes or float("inf")
    fitting = [cost for cost in advice.costs.values() if cost.scratch_bytes <= limit]
    if fitting:
        assert chosen.scratch_bytes <= limit and chosen.total == min(cost.total for cost in fitting)
    else:
        assert chosen.scratch_bytes == min(cost.scratch_bytes for cost in advice.costs.values())
        assert "no schedule fits the memory" in advice.reason
    assert advice.reason.startswith(f"{advice.schedule}: ")
    # What a chunked schedule holds of the logits stays within the bound on it.
    if "row chunks" in advice.costs:
        assert advice.costs["row chunks"].scratch_bytes <= chunk_bytes
    assert advice.costs["two passes"].scratch_bytes <= chunk_bytes + 4 * rows * features


def test_more_memory_per_chunk_never_costs_more():
    for shape in ((8192, 128_256, 4096), (2048, 49_152, 576), (300, 1000, 64)):
        advices = [head_advice(*shape, kept=0.2, chunk_bytes=1 << power) for power in range(16, 36, 2)]
        for name in ("two passes", "column map"):
            totals = [advice.costs[name].total for advice in advices]
            assert totals == sorted(totals, reverse=True)


def test_little_memory_excludes_what_does_not_fit():
    plenty, little = (head_advice(N, V, D, memory_bytes=size) for size in (1 << 40, 1 << 30))
    assert (plenty.schedule, little.schedule) == ("dense", "two passes")
    assert "next is two passes" in plenty.reason
    assert "dense would cost less but does not fit the memory" in little.reason
    assert head_advice(N, V, D, memory_bytes=1).schedule == "two passes"


def test_a_device_that_computes_little_per_byte_pays_less_for_traffic():
    slow, fast = (head_advice(N, V, D, flops_per_byte=balance).costs["dense"] for balance in (92, 184))
    assert fast.traffic == 2 * slow.traffic and fast.products == slow.products


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the rule is that of the Triton implementation")
@settings(max_examples=100, deadline=None, derandomize=True)
@given(**SIZES, dtype=st.sampled_from(DTYPES), chunk_bytes=st.integers(1, 1 << 33))
def test_the_kernels_choose_by_the_same_rule(rows, columns, features, dtype, chunk_bytes):
    e, c = (torch.empty(size, features, dtype=dtype, device="meta") for size in (rows, columns))
    target = torch.empty(rows, dtype=torch.int64, device="meta")
    options = (None, None, None, torch.float32, chunk_bytes, 1.0, False, False, "triton")
    chosen = engine("triton").gradients_pay(Problem(e, c, None, target, None, None, *options))
    costs = head_advice(rows, columns, features, dtype, chunk_bytes=chunk_bytes).costs
    assert chosen == ("row chunks" in costs and costs["row chunks"].total < costs["two passes"].total)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"N": 0}, ValueError, "N must be > 0, got 0"),
        ({"V": -1}, ValueError, "V must be > 0, got -1"),
        ({"D": 2.0}, TypeError, "D must be an int, got float 2.0"),
        ({"N": True}, TypeError, "N must be an int, got bool True"),
        ({"chunk_bytes": 0}, ValueError, "chunk_bytes must be > 0, got 0"),
        ({"chunk_bytes": 1e6}, TypeError, "chunk_bytes must be an int, got float 1000000.0"),
        ({"memory_bytes": -5}, ValueError, "memory_bytes must be > 0, got -5"),
        ({"memory_bytes": "1G"}, TypeError, "memory_bytes must be an int, got str '1G'"),
        ({"flops_per_byte": 0}, ValueError, "flops_per_byte must be > 0, got 0"),
        ({"flops_per_byte": float("nan")}, ValueError, "flops_per_byte must be finite, got nan"),
        (
            {"dtype": torch.float64},
            ValueError,
            "dtype must be one of torch.float16, torch.bfloat16, torch.float32, got torch.float64",
        ),
        ({"kept": 0}, ValueError, "kept must be > 0, got 0"),
        ({"kept": 1.5}, ValueError, r"kept must lie in \(0, 1\], got 1.5"),
        ({"kept": (0.1, 2)}, ValueError, r"kept must lie in \(0, 1\], got 2"),
        (
            {"kept": (0.1, 0.2, 0.3)},
            ValueError,
            r"kept must be one share or a pair \(for e, for c\), got \(0.1, 0.2, 0.3\)",
        ),
        ({"kept": "0.1"}, TypeError, "kept must be a number, got str '0.1'"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        head_advice(**{"N": 8, "V": 16, "D": 4} | arguments)
