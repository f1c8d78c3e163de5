"""Losses of gathered embeddings give what one process gives for the joined batch."""

from pathlib import Path

import pytest
import torch
from gather_worker import LOCAL, LOSSES, everything
from processes import spawn

from lossbook.distributed import gather_with_gradient
from lossbook.losses import contrastive, metric, multilabel, replay, retrieval


@pytest.mark.parametrize("processes", [2, 3])
def test_processes(processes, tmp_path):
    spawn(everything, processes, tmp_path)


def test_every_loss_of_embeddings_takes_part():
    """A new loss of these files must say whether it needs gathering; book/data_parallel.md repeats it."""
    no_losses = {"soft_topk", "log_soft_topk", "temperature_penalty", "optimal_temperature", "mix_embeddings"}
    no_losses |= {"positivity_threshold", "hpcr_scale"}
    family = {name for module in (multilabel, retrieval, contrastive, metric, replay) for name in module.__all__}
    assert family - no_losses <= LOSSES.keys() | LOCAL.keys()
    page = (Path(__file__).resolve().parents[2] / "book" / "data_parallel.md").read_text(encoding="utf-8")
    missing = [name for name in family - no_losses if f"{{py:func}}`~lossbook.losses.{name}`" not in page]
    assert missing == []


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
