"""Sparse decode attention: names with a displayed formula."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from contract.base import Display
from lossbook import kernels

SPARSE_TOKENS = 7


def attention_inputs(generator: torch.Generator, group: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of ``2 * group`` heads, keys and values of two heads, seven tokens and six channels."""
    sizes = (3, 2 * group, 6), (3, 2, SPARSE_TOKENS, 6), (3, 2, SPARSE_TOKENS, 6)
    return tuple(torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)


def naive_attention(q: Tensor, k: Tensor, v: Tensor, tokens: list[int]) -> Tensor:
    """One query head, ``(D,)``, over some rows of its key head, ``(S, D)``."""
    weights = [math.exp(sum(a * b for a, b in zip(q.tolist(), k[t].tolist(), strict=True)) / 6**0.5) for t in tokens]
    return sum(weight * v[t] for weight, t in zip(weights, tokens, strict=True)) / sum(weights)


def naive_heads(q: Tensor, k: Tensor, v: Tensor, tokens: Callable[[int, int], list[int]]) -> Tensor:
    """Every request and query head over the tokens that ``tokens(request, head)`` lists."""
    group = q.shape[1] // k.shape[1]
    heads = [
        [naive_attention(q[b, h], k[b, h // group], v[b, h // group], tokens(b, h)) for h in range(q.shape[1])]
        for b in range(q.shape[0])
    ]
    return torch.stack([torch.stack(row) for row in heads])


def compare_importance(generator):
    q, k = (torch.randn(3, heads, 5, 4, generator=generator, dtype=torch.float64) for heads in (4, 2))
    rows = [
        [
            float((q[:, h, :, c] ** 2).sum() / 15)
            * sum(float(((x - x.sum() / 5) ** 2).sum()) / 5 for x in k[:, h // 2, :, c])
            / 3
            for c in range(4)
        ]
        for h in range(4)
    ]
    return kernels.channel_importance(q, k), torch.tensor(rows, dtype=torch.float64)


def compare_labels(generator):
    _, k, _ = attention_inputs(generator)
    labels = kernels.build_labels(k, torch.tensor([[5, 0, 2], [1, 2, 3]]), 8)
    x = torch.stack([k[:, 0, :, [5, 0, 2]], k[:, 1, :, [1, 2, 3]]], 1)
    zero = x.min(3).values.half()
    step = ((x.max(3).values - zero.double()) / 255).half()
    u = torch.floor((x - zero.double()[..., None]) / step.double()[..., None] + 0.5).clamp(0, 255)
    computed = torch.cat([part.double().flatten() for part in (labels.values, labels.scale, labels.zero)])
    return computed, torch.cat([part.double().flatten() for part in (u, step, zero)])


def compare_scores(generator):
    q, k, _ = attention_inputs(generator)
    channels = torch.tensor([[5, 0, 2], [1, 2, 3]])
    labels = kernels.build_labels(k, channels)
    kinds = ("max", "mean", "maxnorm", "sumsoftmax")
    computed = torch.stack([kernels.approx_scores(q, labels, channels, kind) for kind in kinds])
    expected = torch.empty_like(computed)
    for b in range(3):
        for h in range(2):
            queries = [q[b, 2 * h + g, channels[h]].tolist() for g in range(2)]
            keys = k[b, h][:, channels[h]].tolist()
            p = [[sum(x * y for x, y in zip(one, key, strict=True)) for key in keys] for one in queries]
            norm = [math.sqrt(sum(x * x for x in one)) for one in queries]
            total = [sum(math.exp(x / 6**0.5) for x in row) for row in p]
            for t in range(SPARSE_TOKENS):
                expected[0, b, h, t] = max(p[0][t], p[1][t])
                expected[1, b, h, t] = (p[0][t] + p[1][t]) / 2
                expected[2, b, h, t] = max(p[0][t] / norm[0], p[1][t] / norm[1])
                expected[3, b, h, t] = sum(math.exp(p[g][t] / 6**0.5) / total[g] for g in range(2))
    return computed, expected


def compare_sparse_decode(generator):
    q, k, v = attention_inputs(generator)
    index = torch.tensor([0, 3, 6, -1], dtype=torch.int32).expand(3, 4, 4)
    count = torch.full((3, 4), 3, dtype=torch.int32)
    return kernels.sparse_decode(q, k, v, index, count), naive_heads(q, k, v, lambda b, h: [0, 3, 6])


def compare_dense_decode(generator):
    q, k, v = attention_inputs(generator)
    return kernels.dense_decode(q, k, v), naive_heads(q, k, v, lambda b, h: list(range(SPARSE_TOKENS)))


def compare_double_sparse(generator):
    q, k, v = attention_inputs(generator)
    channels = torch.tensor([[5, 0], [1, 2], [3, 4], [0, 1]])

    def best(b, h):
        scores = [sum(float(q[b, h, c] * k[b, h // 2, t, c]) for c in channels[h]) for t in range(SPARSE_TOKENS)]
        return sorted(sorted(range(SPARSE_TOKENS), key=lambda t: -scores[t])[:3])

    return kernels.double_sparse_decode(q, k, v, channels, budget=3), naive_heads(q, k, v, best)


def compare_decode_bytes(generator):
    measured = kernels.decode_bytes(3, 8, 2, 100, 64, budget=20, r=5, bits=4, share_kv=True, kv_bytes=1)
    dense = 2 * 1 * 3 * 2 * 100 * 64
    total = 3 * 2 * 100 * (3 + 4) + 4 * 3 * 2 * 100 + 2 * 1 * 3 * 2 * 20 * 64
    return torch.tensor([measured["dense"], measured["total"]]), torch.tensor([dense, total])


_SOFTMAX = r"o = \sum_{t%s} \frac{e^{q \cdot k_t / \sqrt{D}}}{\sum_{t'%s} e^{q \cdot k_{t'} / \sqrt{D}}} v_t ."
_LISTED = (r" \in I", r" \in I")

DISPLAYS = (
    Display(
        kernels.channel_importance,
        (
            r"a_c = \frac{1}{B T} \sum_{b,t} q_{btc}^2 \;"
            "\n"
            r"\frac{1}{B} \sum_b \frac{1}{T} \sum_t \Big(k_{btc} - \frac{1}{T} \sum_{t'} k_{bt'c}\Big)^2 .",
        ),
        compare_importance,
    ),
    Display(
        kernels.LabelCache,
        (
            r"z = \min_c x_c , \qquad s = \frac{\max_c x_c - z}{2^b - 1} , \qquad"
            "\n"
            r"u_c = \Big\lfloor \frac{x_c - z}{s} + \frac{1}{2} \Big\rfloor , \qquad x_c \approx s u_c + z ,",
        ),
        compare_labels,
    ),
    Display(
        kernels.approx_scores,
        (
            r"p_{gt} = \sum_{c \in C} q_{gc} L_{tc} , \qquad"
            "\n"
            r"\mathrm{max}_t = \max_g p_{gt} , \qquad"
            "\n"
            r"\mathrm{mean}_t = \frac{1}{G} \sum_g p_{gt} , \qquad"
            "\n"
            r"\mathrm{maxnorm}_t = \max_g \frac{p_{gt}}{\lVert q_{gC} \rVert} , \qquad"
            "\n"
            r"\mathrm{sumsoftmax}_t = \sum_g \frac{e^{p_{gt} / \sqrt{D}}}{\sum_{t'} e^{p_{gt'} / \sqrt{D}}} .",
        ),
        compare_scores,
    ),
    Display(kernels.sparse_decode, (_SOFTMAX % _LISTED,), compare_sparse_decode),
    Display(kernels.dense_decode, (_SOFTMAX % ("=1}^{S", "=1}^{S"),), compare_dense_decode),
    Display(
        kernels.double_sparse_decode,
        (
            r"I = \operatorname*{top}_{k}\, \Big\{ \sum_{c \in C} q_c k_{tc} \Big\}_{t=1}^{S} , \qquad"
            "\n" + _SOFTMAX % _LISTED,
        ),
        compare_double_sparse,
    ),
    Display(
        kernels.decode_bytes,
        (
            r"\mathrm{dense} = 2 \beta B H_{kv} S D , \qquad"
            "\n"
            r"\mathrm{total} = B H S w + 4 B H S + 2 \beta B H \min(k, S) D , \qquad"
            "\n"
            r"w = \lceil r b / 8 \rceil + 4\, [b < 16] .",
        ),
        compare_decode_bytes,
    ),
)
