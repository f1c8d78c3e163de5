"""Losses of gathered embeddings give what one process gives for the joined batch."""

import pytest
import torch
from gather_worker import everything
from processes import spawn

from lossbook.distributed import gather_with_gradient


@pytest.mark.parametrize("processes", [2, 3])
def test_processes(processes, tmp_path):
    spawn(everything, processes, tmp_path)


def test_without_a_process_group_the_tensor_comes_back():
    own = torch.ones(3, 2, requires_grad=True)
    assert gather_with_gradient(own) is own


@pytest.mark.parametrize(
    ("tensor", "error", "message"),
    [
        ([1.0], TypeError, "tensor must be a torch.Tensor, got list"),
        (torch.tensor(1.0), ValueError, "tensor must have 1 to 8 dimensions, got 0"),
        (torch.ones(2, dtype=torch.complex64), ValueError, "tensor must have a real .* dtype, got torch.complex64"),
    ],
)
def test_bad_tensors_are_named(tensor, error, message):
    with pytest.raises(error, match=message):
        gather_with_gradient(tensor)
