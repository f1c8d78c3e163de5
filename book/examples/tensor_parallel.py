"""A language model whose vocabulary head is spread over processes, compared with the same model in one process.

Start it with ``torchrun --nproc-per-node 2 tensor_parallel.py``, on a CPU or with one GPU for each process.
"""

import argparse
import copy
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lossbook.kernels import VocabParallel, cut_cross_entropy

VOCAB, FEATURES, BATCH, LENGTH, STEPS = 10_001, 64, 4, 32, 3


# start: shard
def shard_head(head: nn.Linear, shard: VocabParallel) -> nn.Linear:
    """The rows of ``head`` that belong to this process, as a head of its own."""
    rows = slice(shard.start, shard.stop)
    part = nn.Linear(head.in_features, head.out_features, head.bias is not None, device="meta")
    part.out_features = shard.stop - shard.start
    for name, parameter in head.named_parameters():
        setattr(part, name, nn.Parameter(parameter.detach()[rows].clone()))
    return part


# end: shard
def whole_gradient(part: nn.Linear) -> Tensor:
    """Gradients of all shards of a head's weight, in the order of the vocabulary, for checking."""
    pieces = [None] * dist.get_world_size()
    dist.all_gather_object(pieces, part.weight.grad.cpu())
    return torch.cat(pieces)


# start: loss
def spread_loss(backbone: nn.Module, part: nn.Linear, shard: VocabParallel, tokens: Tensor, target: Tensor) -> Tensor:
    """The loss over the whole vocabulary; every process has the whole batch."""
    return cut_cross_entropy(backbone(tokens), part.weight, target, part.bias, vocab_parallel=shard)


# end: loss
# start: sequence
class GatherTokens(torch.autograd.Function):
    """Joins the tokens of all processes; backward, sums their gradients and hands each process its own tokens'."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        """Concatenate along the sequence."""
        pieces = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, own.contiguous())
        return torch.cat(pieces, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Add up what each process contributes to the gradient."""
        pieces = [piece.contiguous() for piece in gradient.chunk(dist.get_world_size(), dim=1)]
        own = torch.empty_like(pieces[0])
        dist.reduce_scatter(own, pieces)
        return own


def sequence_loss(backbone: nn.Module, part: nn.Linear, shard: VocabParallel, tokens: Tensor, target: Tensor) -> Tensor:
    """The same, with the backbone run on this process's share of every sequence; ``shard`` has reduce_e_grad=False."""
    processes = dist.get_world_size()
    if tokens.shape[1] % processes:
        raise ValueError(f"the sequence length must be a multiple of {processes} processes, got {tokens.shape[1]}")
    own = tokens.chunk(processes, dim=1)[dist.get_rank()]
    return cut_cross_entropy(GatherTokens.apply(backbone(own)), part.weight, target, part.bias, vocab_parallel=shard)


# end: sequence
def train(device: torch.device, sequence_parallel: bool) -> dict[str, float]:
    """Train both ways for a few steps; return the largest differences."""
    torch.manual_seed(0)  # the same weights and tokens in every process
    backbone = nn.Sequential(nn.Embedding(VOCAB, FEATURES), nn.Linear(FEATURES, FEATURES), nn.Tanh()).to(device)
    head = nn.Linear(FEATURES, VOCAB, device=device)
    reference, reference_head = copy.deepcopy(backbone), copy.deepcopy(head)

    shard = VocabParallel.from_vocab(VOCAB, reduce_e_grad=not sequence_parallel)
    part = shard_head(head, shard)
    del head  # from here on no process holds all of it but for the comparison
    loss_of = sequence_loss if sequence_parallel else spread_loss
    print(f"rank {dist.get_rank()}: rows [{shard.start}, {shard.stop}) of {VOCAB} on {device}", flush=True)

    optimizer = torch.optim.AdamW([*backbone.parameters(), *part.parameters()], lr=1e-2)
    reference_optimizer = torch.optim.AdamW([*reference.parameters(), *reference_head.parameters()], lr=1e-2)
    worst = {"loss": 0.0, "backbone gradient": 0.0, "head gradient": 0.0}
    for _ in range(STEPS):
        text = torch.randint(VOCAB, (BATCH, LENGTH + 1), device=device)
        tokens, target = text[:, :-1], text[:, 1:]
        optimizer.zero_grad()
        loss = loss_of(backbone, part, shard, tokens, target)
        loss.backward()
        if sequence_parallel:  # each process has seen a part of the tokens
            for parameter in backbone.parameters():
                dist.all_reduce(parameter.grad)

        reference_optimizer.zero_grad()
        expected = nn.functional.cross_entropy(reference_head(reference(tokens)).flatten(0, 1), target.flatten())
        expected.backward()
        pairs = {
            "loss": [(loss.detach(), expected.detach())],
            "backbone gradient": [
                (p.grad, q.grad) for p, q in zip(backbone.parameters(), reference.parameters(), strict=True)
            ],
            "head gradient": [(whole_gradient(part), reference_head.weight.grad.cpu())],
        }
        for name, values in pairs.items():
            worst[name] = max(worst[name], *(((a - b).norm() / b.norm()).item() for a, b in values))
        optimizer.step()
        reference_optimizer.step()
    return worst


def main() -> None:
    """Join the processes, train, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequence-parallel", action="store_true", help="also spread each sequence over the processes")
    arguments = parser.parse_args()
    # start: device
    local = int(os.environ["LOCAL_RANK"])
    if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
        device, backend = torch.device("cuda", local), "nccl"
        torch.cuda.set_device(device)
    else:
        device, backend = torch.device("cpu"), "gloo"
    dist.init_process_group(backend)
    # end: device
    try:
        worst = train(device, arguments.sequence_parallel)
        if dist.get_rank() == 0:
            for name, error in worst.items():
                print(f"{name}: relative difference from one process {error:.1e}")
            if max(worst.values()) > 1e-5:
                raise SystemExit("the processes together do not compute what one does")
            print("equal to rounding")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
