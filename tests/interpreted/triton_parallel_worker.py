"""What each process of the vocabulary-parallel tests runs; importable, so that it can be spawned."""

import torch
from cce_reference import IGNORED
from parallel_worker import local_leaves
from triton_cases import EVERYTHING, Head, assert_close, head, outcome

from lossbook.kernels import VocabParallel

VOCAB = 300
CASES = [
    {"reduction": "mean"},
    {"reduction": "none", "z_loss": 0.05, "softcap": 4.0, "temperature": 0.7},
    {"reduction": "sum", "label_smoothing": 0.1, "softcap": 4.0, "weight": torch.linspace(0.2, 2, VOCAB)},
    {"reduction": "none", "filter_eps": 2.0**-5, "chunk_bytes": 1},
    {"reduction": "none", "filter_eps": (2.0**-4, 2.0**-8), "label_smoothing": 0.1},
    {"reduction": "none", "filter_eps": (2.0**-6, None)},
    {"reduction": "none", "filter_eps": 1.0},
]


def check_cases(heads, shard):
    rows = slice(shard.start, shard.stop)
    for options in CASES:
        own = Head(*local_leaves(heads.e, heads.c, heads.bias, shard), heads.target)
        got = outcome(own, impl="triton", vocab_parallel=shard, **EVERYTHING, **options)
        weight = options.get("weight")
        reference = {**options, "weight": None if weight is None else weight.double()}
        want = outcome(heads.double(), impl="dense", **EVERYTHING, **reference)
        d_e, d_c, d_bias = want.gradients
        assert_close(got, want._replace(gradients=[d_e, d_c[rows], d_bias[rows]]), 1e-5, options)


def everything(rank, processes):
    """An even split; then an uneven one in which all targets, and no ignored row, are the first process's."""
    heads = head(200, VOCAB, 12)
    check_cases(heads, VocabParallel.from_vocab(VOCAB))
    target = torch.where(heads.target == IGNORED, IGNORED, heads.target % 3)
    edges = [*range(0, 3 * processes, 3), VOCAB]
    check_cases(heads._replace(target=target), VocabParallel(edges[rank], edges[rank + 1]))
