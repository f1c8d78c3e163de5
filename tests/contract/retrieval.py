"""Similarities of queries and passages: info_nce, and the metrics of retrieval and of embeddings."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from contract.base import Bad, Case, Display, Formula, Inputs, drop
from lossbook import losses, metrics

EXTRA = 4


def similarity_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Cosines of n queries with n passages and some hard negatives."""
    return {"sim": torch.rand(n, n + EXTRA, generator=generator, dtype=torch.float64).mul(2).sub(1).to(dtype)}


def new_mask(inputs: Inputs, generator: torch.Generator) -> Tensor:
    """A third of the negatives dropped, and all of one row; what it says of the positives does not count."""
    mask = torch.rand(inputs["sim"].shape, generator=generator) > 1 / 3
    if len(mask) > 1:
        mask[1] = False
    return mask


def extreme_similarities(inputs: Inputs) -> Inputs:
    """Scale each row so that its largest logit has magnitude 1e4."""
    return {"sim": inputs["sim"] * (1e4 / inputs["sim"].abs().amax(1, keepdim=True)), "temperature": 1.0}


def reduced(values: Tensor, reduction: str) -> Tensor:
    return values if reduction == "none" else values.sum() if reduction == "sum" else values.mean()


def dense_info_nce(sim, *, temperature=0.05, mask=None, reduction="mean"):
    logits = sim / temperature
    own = functional.one_hot(torch.arange(len(sim)), sim.shape[1]).bool()
    if mask is not None:
        logits = logits.where(mask | own, torch.tensor(-torch.inf, dtype=sim.dtype))
    return reduced(logits.logsumexp(1) - logits.diagonal(), reduction)


def naive_info_nce(sim, *, temperature, mask):
    values = []
    for i, row in enumerate(sim.tolist()):
        own = math.exp(row[i] / temperature)
        others = sum(math.exp(s / temperature) for j, s in enumerate(row) if j != i and mask[i, j])
        values.append(-math.log(own / (own + others)))
    return torch.tensor(values, dtype=torch.float64)


_SHAPE = r"mask must have shape \(B, K\) = \(6, 10\), got \(6, 9\)"
SIMILARITY_BAD = (
    Bad("sim-1d", lambda i: {"sim": i["sim"][0]}, r"sim must have shape \(B, K\) = \(\*, \*\), got \(10,\)"),
    Bad("sim-narrow", lambda i: {"sim": i["sim"][:, :5]}, r"sim must have shape \(B, K\) with K >= B, got \(6, 5\)"),
    Bad("sim-integer", lambda i: {"sim": i["sim"].long()}, "sim must have a floating-point dtype", TypeError),
    Bad("sim-alone", lambda i: {"sim": i["sim"][:1, :1]}, r"sim must have a negative.*, got shape \(1, 1\)"),
    Bad("temperature-zero", lambda i: {"temperature": 0.0}, "temperature must be > 0, got 0.0"),
    Bad("temperature-negative", lambda i: {"temperature": -1}, "temperature must be > 0, got -1"),
    Bad("mask-shape", lambda i: {"mask": drop(i, "sim", 1)["sim"] > 0}, _SHAPE),
    Bad("mask-dtype", lambda i: {"mask": i["sim"]}, "mask must have dtype torch.bool, got torch.float64", TypeError),
    Bad("mask-empty", lambda i: {"mask": torch.eye(6, 10).bool()}, "mask must leave a negative.*, got none in 6 rows"),
)

INFO_NCE = Case(
    name="info_nce",
    empty_mean=0,
    function=losses.info_nce,
    reference=dense_info_nce,
    make_inputs=similarity_inputs,
    differentiable=("sim",),
    formula=Formula(
        displayed=(
            r"\ell_i = -\log \frac{e^{s_{ii} / \tau}}{e^{s_{ii} / \tau} + \sum_{j \in M_i} e^{s_{ij} / \tau}} .",
        ),
        naive=naive_info_nce,
        options=lambda i, g: {"temperature": 0.3, "mask": new_mask(i, g)},
    ),
    bad=SIMILARITY_BAD,
    extreme=extreme_similarities,
    options={
        "mask": lambda i, g: {"mask": new_mask(i, g)},
        "temperature": lambda i, g: {"temperature": 1, "mask": new_mask(i, g)},
    },
)


def embeddings_and_labels(generator):
    z = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    return z, [0, 1, 2, 0, 1, 2, 0, 1, 3]


def squared_distances(z):
    unit = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in z.tolist()]
    return [[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in unit] for p in unit]


def compare_recall(generator):
    z, labels = embeddings_and_labels(generator)
    far = squared_distances(z)
    expected = []
    for k in (1, 3):
        nearest = [sorted((far[i][j], labels[j]) for j in range(9) if j != i)[:k] for i in range(9)]
        expected.append(sum(any(label == labels[i] for _, label in nearest[i]) for i in range(9)) / 9)
    return torch.tensor(list(metrics.retrieval_recall_at_k(z, labels, ks=(1, 3)).values())), torch.tensor(expected)


def ranked_relevance(generator):
    """Scores, relevance, and the relevance in the order of the scores."""
    scores = torch.rand(7, 12, generator=generator, dtype=torch.float64)
    relevance = torch.rand(7, 12, generator=generator) < 0.2
    relevance[0] = False
    rows = zip(scores.tolist(), relevance.tolist(), strict=True)
    return scores, relevance, [[g for _, g in sorted(zip(s, g, strict=True), reverse=True)] for s, g in rows]


def compare_mrr(generator):
    scores, relevance, ranked = ranked_relevance(generator)
    first = [next((1 / r for r, g in enumerate(row[:4], 1) if g), 0.0) for row in ranked]
    return torch.tensor(metrics.mrr_at_k(scores, relevance, k=4)), torch.tensor(sum(first) / 7)


def compare_ndcg(generator):
    scores, relevance, ranked = ranked_relevance(generator)
    values = []
    for row in ranked:
        ideal = sum(1 / math.log2(r + 1) for r in range(1, min(4, sum(row)) + 1))
        gain = sum(g / math.log2(r + 1) for r, g in enumerate(row[:4], 1))
        values.append(gain / ideal if ideal else 0.0)
    return torch.tensor(metrics.ndcg_at_k(scores, relevance, k=4)), torch.tensor(sum(values) / 7)


def compare_alignment(generator):
    z, labels = embeddings_and_labels(generator)
    far = squared_distances(z)
    same = [far[i][j] for i in range(9) for j in range(i) if labels[i] == labels[j]]
    return torch.tensor(metrics.alignment(z, labels)), torch.tensor(sum(same) / len(same))


def compare_uniformity(generator):
    z, _ = embeddings_and_labels(generator)
    far = squared_distances(z)
    potentials = [math.exp(-3 * far[i][j]) for i in range(9) for j in range(i)]
    return torch.tensor(metrics.uniformity(z, t=3)), torch.tensor(math.log(sum(potentials) / len(potentials)))


CASES = (INFO_NCE,)

DISPLAYS = (
    Display(
        metrics.retrieval_recall_at_k,
        (r"R_k = \frac{1}{N} \sum_{i=1}^{N} \max_{j \in K_i} \mathbb{1}[y_j = y_i] .",),
        compare_recall,
    ),
    Display(
        metrics.mrr_at_k,
        (r"\mathrm{MRR}_k = \frac{1}{Q} \sum_{q=1}^{Q} \frac{\mathbb{1}[r_q \le k]}{r_q} .",),
        compare_mrr,
    ),
    Display(
        metrics.ndcg_at_k,
        (
            r"\mathrm{nDCG}_k = \frac{1}{Q} \sum_{q=1}^{Q}"
            "\n"
            r"\frac{\sum_{r=1}^{k} g_{qr} / \log_2(r + 1)}{\sum_{r=1}^{\min(k, n_q)} 1 / \log_2(r + 1)} .",
        ),
        compare_ndcg,
    ),
    Display(
        metrics.alignment,
        (r"\frac{1}{|S|} \sum_{(i, j) \in S} \lVert z_i - z_j \rVert^2 .",),
        compare_alignment,
    ),
    Display(
        metrics.uniformity,
        (r"\log \frac{1}{|A|} \sum_{(i, j) \in A} e^{-t \lVert z_i - z_j \rVert^2} .",),
        compare_uniformity,
    ),
)
