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


def shard_head(head: nn.Linear, shard: VocabParallel) -> nn.Linear:
    """The rows of ``head`` that this process holds, as a head."""
    rows, features = shard.stop - shard.start, head.in_features
    part = nn.Linear(features, rows, head.bias is not None, device="meta")
    for name, value in head.named_parameters():
        own = value.detach()[shard.start : shard.stop].clone()
        setattr(part, name, nn.Parameter(own))
    return part


def whole_gradient(part: nn.Linear) -> Tensor:
    """Gradients of all shards of a head's weight, in the order of the vocabulary, for checking."""
    pieces = [None] * dist.get_world_size()
    dist.all_gather_object(pieces, part.weight.grad.cpu())
    return torch.cat(pieces)


def spread_loss(
    hidden: Tensor,
    target: Tensor,
    part: nn.Linear,
    shard: VocabParallel,
) -> Tensor:
    """The loss over the whole vocabulary, in every process."""
    return cut_cross_entropy(
        hidden,
        part.weight,
        target,
        part.bias,
        vocab_parallel=shard,
    )


class GatherTokens(torch.autograd.Function):
    """Join the tokens of all processes; hand back their gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        """Concatenate along the sequence."""
        world = dist.get_world_size()
        pieces = [torch.empty_like(own) for _ in range(world)]
        dist.all_gather(pieces, own.contiguous())
        return torch.cat(pieces, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Add the partial gradients up; keep those of the own tokens."""
        pieces = gradient.chunk(dist.get_world_size(), dim=1)
        own = torch.empty_like(pieces[0], memory_format=torch.contiguous_format)
        dist.reduce_scatter(own, [piece.contiguous() for piece in pieces])
        return own


def own_tokens(tokens: Tensor) -> Tensor:
    """This process's share of every sequence."""
    world, length = dist.get_world_size(), tokens.shape[1]
    if length % world:
        raise ValueError(f"length must be a multiple of {world}, got {length}")
    return tokens.chunk(world, dim=1)[dist.get_rank()]


def train(device: torch.device, sequence_parallel: bool) -> dict[str, float]:
    """Train both ways for a few steps; return the largest differences."""
    torch.manual_seed(0)  # the same weights and tokens in every process
    backbone = nn.Sequential(nn.Embedding(VOCAB, FEATURES), nn.Linear(FEATURES, FEATURES), nn.Tanh()).to(device)
    head = nn.Linear(FEATURES, VOCAB, device=device)
    reference, reference_head = copy.deepcopy(backbone), copy.deepcopy(head)

    shard = VocabParallel.from_vocab(VOCAB, reduce_e_grad=not sequence_parallel)
    part = shard_head(head, shard)
    del head  # from here on no process holds all of it but for the comparison
    print(f"rank {dist.get_rank()}: rows [{shard.start}, {shard.stop}) of {VOCAB} on {device}", flush=True)

    optimizer = torch.optim.AdamW([*backbone.parameters(), *part.parameters()], lr=1e-2)
    reference_optimizer = torch.optim.AdamW([*reference.parameters(), *reference_head.parameters()], lr=1e-2)
    worst = {"loss": 0.0, "backbone gradient": 0.0, "head gradient": 0.0}
    for _ in range(STEPS):
        text = torch.randint(VOCAB, (BATCH, LENGTH + 1), device=device)
        tokens, target = text[:, :-1], text[:, 1:]
        optimizer.zero_grad()
        if sequence_parallel:
            hidden = GatherTokens.apply(backbone(own_tokens(tokens)))
        else:
            hidden = backbone(tokens)
        loss = spread_loss(hidden, target, part, shard)
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


def join() -> torch.device:
    """Join the other processes; a GPU each if there are enough."""
    if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl")
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    return device


def main() -> None:
    """Join the processes, train, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequence-parallel", action="store_true", help="also spread each sequence over the processes")
    arguments = parser.parse_args()
    device = join()
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
