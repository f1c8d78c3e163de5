"""Pairs of a positive and a negative score, within a query and across queries."""

import math

import torch
from torch import Tensor

from contract.base import Bad, Case, Display, Formula, Inputs
from contract.retrieval import (
    SIMILARITY_BAD,
    extreme_similarities,
    new_mask,
    ranked_relevance,
    reduced,
    similarity_inputs,
)
from lossbook import losses, metrics

NEGATIVES = 5


def score_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    pos = torch.randn(n, generator=generator, dtype=torch.float64) + 1
    return {"pos": pos.to(dtype), "neg": torch.randn(NEGATIVES, generator=generator, dtype=torch.float64).to(dtype)}


def extreme_scores(inputs: Inputs) -> Inputs:
    return {name: 1e4 * x.sign() for name, x in inputs.items()}


def flat_mann_whitney(pos, neg, *, reduction="mean", **options):
    """The P M losses of ``"none"`` in one row."""
    value = losses.mann_whitney(pos, neg, reduction=reduction, **options)
    return value.flatten() if reduction == "none" else value


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def dense_mann_whitney(pos, neg, *, temperature=1.0, reduction="mean", chunk_size=None):
    return reduced(softplus((neg - pos[:, None]) / temperature).flatten(), reduction)


def allowed(sim: Tensor, mask: Tensor | None) -> Tensor:
    others = ~torch.eye(*sim.shape, dtype=torch.bool)
    return others if mask is None else others & mask


def dense_mann_whitney_retrieval(sim, *, temperature=0.05, mask=None, reduction="mean"):
    negatives = sim[allowed(sim, mask)]
    return reduced(softplus((negatives - sim.diagonal()[:, None]) / temperature).mean(1), reduction)


def dense_ranknet(sim, *, temperature=0.05, mask=None, reduction="mean"):
    kept = allowed(sim, mask)
    pairs = softplus((sim - sim.diagonal()[:, None]) / temperature)
    if reduction == "mean":
        return pairs[kept].mean()
    return reduced((pairs * kept).sum(1) / kept.sum(1).clamp(min=1), reduction)


def dense_siglip(sim, *, temperature=0.05, bias=-10.0, mask=None, reduction="mean"):
    logits = sim / temperature + bias
    return reduced(softplus(-logits.diagonal()) + (softplus(logits) * allowed(sim, mask)).sum(1), reduction)


def naive_mann_whitney(pos, neg, *, temperature):
    values = [math.log(1 + math.exp(-(p - n) / temperature)) for p in pos.tolist() for n in neg.tolist()]
    return torch.tensor(values, dtype=torch.float64)


def naive_mann_whitney_retrieval(sim, *, temperature, mask):
    s, keep = sim.tolist(), mask.tolist()
    pairs = [(k, j) for k in range(len(s)) for j in range(len(s[0])) if j != k and keep[k][j]]
    values = [
        sum(math.log(1 + math.exp(-(s[i][i] - s[k][j]) / temperature)) for k, j in pairs) / len(pairs)
        for i in range(len(s))
    ]
    return torch.tensor(values, dtype=torch.float64)


def naive_ranknet(sim, *, temperature, mask):
    values = []
    for i, row in enumerate(sim.tolist()):
        others = [j for j in range(len(row)) if j != i and mask[i, j]]
        total = sum(math.log(1 + math.exp(-(row[i] - row[j]) / temperature)) for j in others)
        values.append(total / len(others) if others else 0.0)
    return torch.tensor(values, dtype=torch.float64)


def naive_siglip(sim, *, temperature, bias, mask):
    values = []
    for i, row in enumerate(sim.tolist()):
        others = [j for j in range(len(row)) if j != i and mask[i, j]]
        total = math.log(1 + math.exp(-(row[i] / temperature + bias)))
        values.append(total + sum(math.log(1 + math.exp(row[j] / temperature + bias)) for j in others))
    return torch.tensor(values, dtype=torch.float64)


def masked(inputs: Inputs, generator: torch.Generator) -> Inputs:
    return {"temperature": 0.3, "mask": new_mask(inputs, generator)}


MASKS = {"mask": lambda i, g: {"mask": new_mask(i, g)}, "warm": masked}

CASES = (
    Case(
        name="mann_whitney",
        function=flat_mann_whitney,
        reference=dense_mann_whitney,
        make_inputs=score_inputs,
        differentiable=("pos", "neg"),
        formula=Formula(
            displayed=(r"\ell_{ij} = \log \bigl( 1 + e^{-(s^+_i - s^-_j) / \tau} \bigr) .",),
            naive=naive_mann_whitney,
            options=lambda i, g: {"temperature": 0.4},
        ),
        bad=(
            Bad("pos-2d", lambda i: {"pos": i["pos"][None]}, r"pos must have shape \(P,\) = \(\*,\), got \(1, 6\)"),
            Bad("neg-2d", lambda i: {"neg": i["neg"][None]}, r"neg must have shape \(M,\) = \(\*,\), got \(1, 5\)"),
            Bad("pos-empty", lambda i: {"pos": i["pos"][:0]}, r"pos must have shape \(P,\) with P >= 1, got \(0,\)"),
            Bad("neg-empty", lambda i: {"neg": i["neg"][:0]}, r"neg must have shape \(M,\) with M >= 1, got \(0,\)"),
            Bad("neg-dtype", lambda i: {"neg": i["neg"].float()}, "neg must have the dtype of pos, torch.float64, got"),
            Bad("pos-integer", lambda i: {"pos": i["pos"].long()}, "pos must have a floating-point dtype", TypeError),
            Bad("temperature-zero", lambda i: {"temperature": 0.0}, "temperature must be > 0, got 0.0"),
            Bad("chunk-zero", lambda i: {"chunk_size": 0}, "chunk_size must be > 0, got 0"),
            Bad("chunk-float", lambda i: {"chunk_size": 2.0}, "chunk_size must be an int, got float", TypeError),
        ),
        extreme=extreme_scores,
        options={"cold": lambda i, g: {"temperature": 0.1}, "chunks": lambda i, g: {"chunk_size": 4}},
        smallest=1,
        values=NEGATIVES,
        rowwise=False,
        documented=losses.mann_whitney,
    ),
    Case(
        name="mann_whitney_retrieval",
        empty_mean=0,
        function=losses.mann_whitney_retrieval,
        reference=dense_mann_whitney_retrieval,
        make_inputs=similarity_inputs,
        differentiable=("sim",),
        formula=Formula(
            displayed=(
                r"\ell_i = \frac{1}{|M|} \sum_{(k, j) \in M} \log \bigl( 1 + e^{-(s_{ii} - s_{kj}) / \tau} \bigr) .",
            ),
            naive=naive_mann_whitney_retrieval,
            options=masked,
        ),
        bad=SIMILARITY_BAD,
        extreme=extreme_similarities,
        options=MASKS,
        rowwise=False,
        inductor=True,
    ),
    Case(
        name="ranknet_retrieval",
        empty_mean=0,
        function=losses.ranknet_retrieval,
        reference=dense_ranknet,
        make_inputs=similarity_inputs,
        differentiable=("sim",),
        formula=Formula(
            displayed=(
                r"\ell_i = \frac{1}{|M_i|} \sum_{j \in M_i} \log \bigl( 1 + e^{-(s_{ii} - s_{ij}) / \tau} \bigr) .",
            ),
            naive=naive_ranknet,
            options=masked,
        ),
        bad=SIMILARITY_BAD,
        extreme=extreme_similarities,
        options=MASKS,
    ),
    Case(
        name="siglip",
        empty_mean=0,
        function=losses.siglip,
        reference=dense_siglip,
        make_inputs=similarity_inputs,
        differentiable=("sim",),
        formula=Formula(
            displayed=(
                "\\ell_i = \\log \\bigl( 1 + e^{-(s_{ii} / \\tau + b)} \\bigr)\n"
                "+ \\sum_{j \\in M_i} \\log \\bigl( 1 + e^{s_{ij} / \\tau + b} \\bigr) .",
            ),
            naive=naive_siglip,
            options=lambda i, g: masked(i, g) | {"bias": -1.5},
        ),
        bad=(
            *SIMILARITY_BAD,
            Bad("bias-nan", lambda i: {"bias": math.nan}, "bias must be finite, got nan"),
            Bad("bias-text", lambda i: {"bias": "-10"}, "bias must be a number, got str", TypeError),
            Bad("bias-1d", lambda i: {"bias": torch.zeros(1)}, r"bias must have shape \(\) = \(\), got \(1,\)"),
            Bad("bias-integer", lambda i: {"bias": torch.tensor(-10)}, "bias must have a floating-point", TypeError),
        ),
        extreme=extreme_similarities,
        options=MASKS | {"bias": lambda i, g: {"bias": -2}},
    ),
)


def compare_pooled_auc(generator):
    scores, relevance, _ = ranked_relevance(generator)
    positives, negatives = [], []
    for s, g in zip(scores.tolist(), relevance.tolist(), strict=True):
        positives += [a for a, b in zip(s, g, strict=True) if b]
        negatives += sorted((a for a, b in zip(s, g, strict=True) if not b), reverse=True)[:4]
    won = sum((a > b) + 0.5 * (a == b) for a in positives for b in negatives)
    expected = torch.tensor(won / (len(positives) * len(negatives)))
    return torch.tensor(metrics.pooled_retrieval_auc(scores, relevance, top_negatives=4)), expected


DISPLAYS = (
    Display(
        metrics.pooled_retrieval_auc,
        (
            r"\mathrm{AUC} = \frac{1}{|S^+| \, |S^-|} \sum_{a \in S^+} \sum_{b \in S^-}"
            "\n"
            r"\left( \mathbb{1}[a > b] + \tfrac{1}{2} \mathbb{1}[a = b] \right) .",
        ),
        compare_pooled_auc,
    ),
)
