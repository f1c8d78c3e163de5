"""How far queries lie from a gallery, against scikit-learn."""

from itertools import pairwise

import pytest
import torch
from sklearn.metrics import pairwise_distances_argmin_min
from torch.nn import functional

from lossbook import metrics


@pytest.fixture
def sets(generator):
    queries = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    return queries, torch.randn(30, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 40, 1000])
def test_equals_the_nearest_neighbors_of_scikit_learn(sets, chunk_size):
    unit = [functional.normalize(each, dim=1).numpy() for each in sets]
    nearest = pairwise_distances_argmin_min(*unit)[1]
    assert metrics.utilization(*sets, chunk_size=chunk_size) == pytest.approx((nearest**2).mean(), rel=1e-12)


def test_a_larger_gallery_can_only_lower_it(sets, generator):
    queries, gallery = sets
    mixed = gallery + gallery[torch.randperm(30, generator=generator)]
    larger = torch.cat([gallery, mixed])
    assert metrics.utilization(queries, larger) < metrics.utilization(queries, gallery)
    values = [metrics.utilization(queries, gallery[:n]) for n in range(1, 31)]
    assert all(later <= earlier + 1e-15 for earlier, later in pairwise(values))


def test_limits():
    assert metrics.utilization(torch.eye(3), 5 * torch.eye(3)) == pytest.approx(0, abs=1e-15)
    assert metrics.utilization([[1.0]], [[-1.0]]) == 4
    # Not symmetric: each query looks for its own nearest.
    near, far = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert metrics.utilization(near, far) == 0 and metrics.utilization(far, near) == 1


def test_lengths_and_dtypes_do_not_matter(sets):
    queries, gallery = sets
    assert metrics.utilization(1e-6 * queries, 1e6 * gallery) == pytest.approx(metrics.utilization(*sets), rel=1e-12)
    half = queries.bfloat16().requires_grad_()
    assert metrics.utilization(half, gallery) == metrics.utilization(half.detach().double().numpy(), gallery)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (torch.ones(2, 3), torch.ones(2, 4)),
            ValueError,
            r"gallery must have shape .* \(\*, 3\), got \(2, 4\)",
        ),
        ((torch.ones(3), torch.ones(2, 3)), ValueError, r"queries must have shape \(N, D\) with N >= 1, got \(3,\)"),
        ((torch.ones(2, 3), torch.ones(0, 3)), ValueError, r"gallery must have shape .* N >= 1, got \(0, 3\)"),
        ((torch.ones(2, 3), torch.nan * torch.ones(1, 3)), ValueError, "gallery must be finite, got nan"),
        ((torch.ones(2, 3), torch.ones(1, 3), 0), ValueError, "chunk_size must be > 0, got 0"),
        ((torch.ones(2, 3), torch.ones(1, 3), 2.0), TypeError, "chunk_size must be an int, got float"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        metrics.utilization(*arguments)
