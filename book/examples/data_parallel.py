"""Losses under data parallelism, with batches of unequal size, compared with one process on the joined batch.

Start it with ``torchrun --nproc-per-node 2 data_parallel.py``, on a CPU or with one GPU for each process.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from tensor_parallel import join
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from lossbook.distributed import gather_with_gradient
from lossbook.losses import info_nce

FEATURES, WIDTH, CLASSES, STEPS = 16, 32, 5, 3
IGNORED = -100


class TwoTowers(nn.Module):
    """Unit embeddings of queries and passages, and the class of each query."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.passage = nn.Linear(FEATURES, WIDTH), nn.Linear(FEATURES, WIDTH)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, query: Tensor, passage: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embed both and classify the queries."""
        embedded = functional.normalize(self.query(query), dim=1)
        return embedded, functional.normalize(self.passage(passage), dim=1), self.classifier(embedded)


def label_loss(logits: Tensor, target: Tensor) -> Tensor:
    """This process's share of the joint mean, times the processes."""
    count = (target != IGNORED).sum()
    dist.all_reduce(count)
    options = {"ignore_index": IGNORED, "reduction": "sum"}
    total = functional.cross_entropy(logits, target, **options)
    return total * dist.get_world_size() / count


def retrieval_loss(query: Tensor, passage: Tensor) -> Tensor:
    """The loss of the joined batch, the same in every process."""
    query = gather_with_gradient(query)
    passage = gather_with_gradient(passage)
    return info_nce(query @ passage.T, temperature=0.1)


def joined(query: Tensor, passage: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Both losses, right under data parallelism."""
    return label_loss(logits, target) + retrieval_loss(query, passage)


def local(query: Tensor, passage: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Both losses as one process computes them: each sees its own examples only."""
    labels = functional.cross_entropy(logits, target, ignore_index=IGNORED)
    return labels + info_nce(query @ passage.T, temperature=0.1)


def own_rows() -> slice:
    """This process's examples: four for the first, six for the second, eight for the third, ..."""
    rank = dist.get_rank()
    return slice(rank * (rank + 3), (rank + 1) * (rank + 4))


def compare(loss_of: Callable[..., Tensor], device: torch.device) -> float:
    """Largest relative difference of a gradient from that of one process, while the model trains."""
    torch.manual_seed(0)  # the same weights and examples in every process
    world, rows = dist.get_world_size(), own_rows()
    model, alone = TwoTowers().to(device), TwoTowers().to(device)
    alone.load_state_dict(model.state_dict())
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    worst = 0.0
    for _ in range(STEPS):
        query, passage = torch.randn(2, world * (world + 3), FEATURES, device=device)
        target = torch.randint(CLASSES, (len(query),), device=device)
        target[1::3] = IGNORED
        optimizer.zero_grad()
        loss_of(*parallel(query[rows], passage[rows]), target[rows]).backward()
        alone.zero_grad()
        local(*alone(query, passage), target).backward()
        for ours, expected in zip(model.parameters(), alone.parameters(), strict=True):
            worst = max(worst, ((ours.grad - expected.grad).norm() / expected.grad.norm()).item())
        optimizer.step()
        alone.load_state_dict(model.state_dict())
    return worst


def main() -> None:
    """Join the processes, compare, and report."""
    device = join()
    try:
        exact, naive = compare(joined, device), compare(local, device)
        if dist.get_rank() == 0:
            print(f"joined losses: relative difference of the gradients from one process {exact:.1e}")
            print(f"local losses: relative difference of the gradients from one process {naive:.1e}")
            if exact > 1e-5:
                raise SystemExit("the processes together do not compute what one does")
            print("equal to rounding")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
