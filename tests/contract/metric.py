"""Metric losses of pairs that may be half alike, and what they are made of."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from contract.base import Bad, Case, Display, Formula, Inputs, drop
from lossbook import losses

D, V = 4, 5


def pair_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    sim = 2 * torch.rand(n, V, generator=generator, dtype=torch.float64) - 1
    label = torch.rand(n, V, generator=generator, dtype=torch.float64)
    return {"sim": sim.to(dtype), "label": label.to(dtype)}


def labeled_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    embeddings = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return {"embeddings": embeddings.to(dtype), "labels": torch.arange(n) % 2}


def mixed_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """The partner is the next of the class; at the end of the batch the anchor itself."""
    inputs = labeled_inputs(n, dtype, generator)
    partner = torch.arange(n) + 2
    return inputs | {"lam": 0.3, "partner": torch.where(partner < n, partner, torch.arange(n))}


def with_options(**options):
    return lambda inputs, generator: options


def hard_pairs(inputs: Inputs, generator: torch.Generator) -> Inputs:
    return {"label": inputs["label"].round()}


def masked_pairs(inputs: Inputs, generator: torch.Generator) -> Inputs:
    mask = torch.rand(inputs["sim"].shape, generator=generator) < 0.6
    mask[: len(mask) // 3] = False
    return {"mask": mask}


def extreme_similarities(inputs: Inputs) -> Inputs:
    """Similarities of -1e4 and 1e4, with labels of 0 and 1 among the pairs."""
    label = inputs["label"].clone()
    label[:, 0], label[:, 1] = 0, 1
    return inputs | {"sim": 1e4 * inputs["sim"].sign(), "label": label}


def sharp(inputs: Inputs) -> Inputs:
    """Exponents of magnitude 1e4, of embeddings whose lengths must not matter."""
    return inputs | {"embeddings": 1e4 * inputs["embeddings"], "beta": 1e4, "gamma": 1e4}


def reduced(values: Tensor, reduction: str) -> Tensor:
    return {"mean": values.mean, "sum": values.sum, "none": lambda: values}[reduction]()


def log_terms(weight: Tensor, exponent: Tensor) -> Tensor:
    """Logarithms of the terms of 1 + sum of weight exp(exponent), for logsumexp."""
    logs = torch.where(weight > 0, weight, 1).log() + exponent
    logs = torch.where(weight > 0, logs, -torch.inf)
    return torch.cat([logs, logs.new_zeros(len(logs), 1)], 1)


def plain_pairs(sim, label, *, kind="multi_similarity", mask=None, margin=0.5, beta=2.0, gamma=50.0, reduction="mean"):
    exists = torch.ones_like(sim) if mask is None else mask.to(sim.dtype)
    positive, negative = exists * label, exists * (1 - label)
    u = sim - margin
    if kind == "multi_similarity":
        attract = log_terms(positive, -beta * u).logsumexp(1) / beta
        return reduced(attract + log_terms(negative, gamma * u).logsumexp(1) / gamma, reduction)
    if kind == "contrastive":
        return reduced((negative * u.clamp(min=0) - positive * sim).sum(1), reduction)
    attract, repel = functional.softplus(-beta * u, threshold=40), functional.softplus(gamma * u, threshold=40)
    return reduced((positive * attract + negative * repel).sum(1), reduction)


def plain_metric(embeddings, labels, **options):
    same = labels[:, None] == labels
    mask = ~torch.eye(len(labels), dtype=torch.bool)
    unit = functional.normalize(embeddings, dim=1)
    return plain_pairs(unit @ unit.T, same.to(embeddings.dtype), mask=mask, **options)


def plain_metrix(embeddings, labels, *, lam, partner, weight=0.4, reduction="mean", **options):
    """With every mixed embedding formed."""
    unit = functional.normalize(embeddings, dim=1)
    mixed = functional.normalize(lam * unit[partner][:, None] + (1 - lam) * unit, dim=2)
    sim = (unit[:, None] * mixed).sum(2)
    other = labels[:, None] != labels
    clean = plain_metric(embeddings, labels, reduction="none", **options)
    soft = plain_pairs(sim, torch.full_like(sim, lam), mask=other, reduction="none", **options)
    return reduced(clean + weight * soft, reduction)


def naive_log(terms: list[float], sharpness: float) -> float:
    return math.log(1 + sum(terms)) / sharpness


def naive_multi_similarity(sim, label, *, margin=0.5, beta=2.0, gamma=50.0):
    values = []
    for s, y in zip(sim.tolist(), label.tolist(), strict=True):
        pairs = list(zip(s, y, strict=True))
        attract = naive_log([b * math.exp(-beta * (a - margin)) for a, b in pairs], beta)
        values.append(attract + naive_log([(1 - b) * math.exp(gamma * (a - margin)) for a, b in pairs], gamma))
    return torch.tensor(values, dtype=torch.float64)


def naive_contrastive(sim, label, margin):
    rows = zip(sim.tolist(), label.tolist(), strict=True)
    values = [sum(-y * s + (1 - y) * max(0, s - margin) for s, y in zip(*row, strict=True)) for row in rows]
    return torch.tensor(values, dtype=torch.float64)


def naive_deviance(sim, label, margin, beta, gamma):
    def pair(s, y):
        return y * math.log(1 + math.exp(-beta * (s - margin))) + (1 - y) * math.log(1 + math.exp(gamma * (s - margin)))

    rows = zip(sim.tolist(), label.tolist(), strict=True)
    return torch.tensor([sum(pair(s, y) for s, y in zip(*row, strict=True)) for row in rows], dtype=torch.float64)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def naive_unit(row: list[float]) -> list[float]:
    return [x / math.sqrt(dot(row, row)) for x in row]


def naive_metric(embeddings, labels, *, margin=0.5, beta=2.0, gamma=50.0):
    u, c = [naive_unit(row) for row in embeddings.tolist()], labels.tolist()
    values = []
    for i in range(len(c)):
        alike = [math.exp(-beta * (dot(u[i], u[j]) - margin)) for j in range(len(c)) if j != i and c[j] == c[i]]
        other = [math.exp(gamma * (dot(u[i], u[j]) - margin)) for j in range(len(c)) if c[j] != c[i]]
        values.append(naive_log(alike, beta) + naive_log(other, gamma))
    return torch.tensor(values, dtype=torch.float64)


def naive_metrix(embeddings, labels, *, lam, partner, weight, margin=0.5, beta=2.0, gamma=50.0):
    u, c, p = [naive_unit(row) for row in embeddings.tolist()], labels.tolist(), partner.tolist()
    clean = naive_metric(embeddings, labels, margin=margin, beta=beta, gamma=gamma).tolist()
    values = []
    for i in range(len(c)):
        mixed = [
            naive_unit([lam * a + (1 - lam) * b for a, b in zip(u[p[i]], u[j], strict=True)])
            for j in range(len(c))
            if c[j] != c[i]
        ]
        s = [dot(u[i], v) for v in mixed]
        attract = naive_log([lam * math.exp(-beta * (a - margin)) for a in s], beta)
        repel = naive_log([(1 - lam) * math.exp(gamma * (a - margin)) for a in s], gamma)
        values.append(clean[i] + weight * (attract + repel))
    return torch.tensor(values, dtype=torch.float64)


MULTI_SIMILARITY = (
    "\\ell_a = \\frac{1}{\\beta} \\log \\Bigl( 1 + \\sum_{v \\in V_a} y_{av} e^{-\\beta (s_{av} - m)} \\Bigr)\n"
    "+ \\frac{1}{\\gamma} \\log \\Bigl( 1 + \\sum_{v \\in V_a} (1 - y_{av}) e^{\\gamma (s_{av} - m)} \\Bigr) ,"
)
CONTRASTIVE = r"\ell_a = \sum_{v \in V_a} \bigl[ -y_{av} s_{av} + (1 - y_{av}) \max(0, s_{av} - m) \bigr] ,"
DEVIANCE = (
    "\\ell_a = \\sum_{v \\in V_a} \\bigl[ y_{av} \\log(1 + e^{-\\beta (s_{av} - m)})\n"
    "+ (1 - y_{av}) \\log(1 + e^{\\gamma (s_{av} - m)}) \\bigr] ."
)
PAIR_FORMULAS = (MULTI_SIMILARITY, CONTRASTIVE, DEVIANCE)

PARAMETER_BAD = (
    Bad(
        "kind-unknown",
        lambda i: {"kind": "triplet"},
        "kind must be one of 'contrastive', 'multi_similarity', 'binomial_deviance', got 'triplet'",
    ),
    Bad("margin-text", lambda i: {"margin": "0.5"}, "margin must be a number, got str", TypeError),
    Bad("margin-nan", lambda i: {"margin": math.nan}, "margin must be finite, got nan"),
    Bad("beta-zero", lambda i: {"beta": 0.0}, "beta must be > 0, got 0.0"),
    Bad("gamma-negative", lambda i: {"gamma": -1}, "gamma must be > 0, got -1"),
)
BATCH_BAD = (
    Bad("labels-shape", lambda i: drop(i, "labels"), r"labels must have shape \(N,\) = \(6,\), got \(5,\)"),
    Bad("labels-dtype", lambda i: {"labels": i["labels"].int()}, "labels must have dtype torch.int64", TypeError),
    Bad(
        "embeddings-1d",
        lambda i: {"embeddings": i["embeddings"][0]},
        r"embeddings must have shape \(N, D\) .*, got \(4,\)",
    ),
    Bad("integer", lambda i: {"embeddings": i["embeddings"].long()}, "embeddings must have a floating", TypeError),
)
KIND_OPTIONS = {
    "contrastive": with_options(kind="contrastive", margin=0.1),
    "deviance": with_options(kind="binomial_deviance", gamma=5.0),
    "blunt": with_options(beta=1.0, gamma=3.0, margin=-0.2),
}

CASES = (
    Case(
        name="pair_loss",
        empty_mean=0,
        function=losses.pair_loss,
        reference=plain_pairs,
        make_inputs=pair_inputs,
        differentiable=("sim",),
        formula=Formula(
            displayed=PAIR_FORMULAS,
            naive=naive_multi_similarity,
            options=with_options(margin=0.3, beta=1.7, gamma=6.0),
        ),
        bad=(
            *PARAMETER_BAD,
            Bad("sim-1d", lambda i: {"sim": i["sim"][0]}, r"sim must have shape \(A, V\) .*, got \(5,\)"),
            Bad("sim-integer", lambda i: {"sim": i["sim"].long()}, "sim must have a floating-point dtype", TypeError),
            Bad("label-shape", lambda i: drop(i, "label", 1), r"label must have shape .*\(6, 5\), got \(6, 4\)"),
            Bad("label-list", lambda i: {"label": [1.0]}, "label must be a torch.Tensor, got list", TypeError),
            Bad("label-high", lambda i: {"label": i["label"] + 1}, r"label must lie in \[0, 1\], got 1\.\d+"),
            Bad("label-low", lambda i: {"label": i["label"] - 1}, r"label must lie in \[0, 1\], got -0\.\d+"),
            Bad("label-nan", lambda i: {"label": i["label"] * math.nan}, r"label must lie in \[0, 1\], got nan"),
            Bad(
                "mask-shape",
                lambda i: {"mask": torch.ones(6, 1, dtype=torch.bool)},
                r"mask must have shape .*\(6, 5\), got \(6, 1\)",
            ),
            Bad("mask-float", lambda i: {"mask": torch.ones(6, V)}, "mask must have dtype torch.bool", TypeError),
        ),
        options=KIND_OPTIONS | {"hard": hard_pairs, "mask": masked_pairs},
        extreme=extreme_similarities,
        inductor=True,
    ),
    Case(
        name="metric_loss",
        empty_mean=0,
        function=losses.metric_loss,
        reference=plain_metric,
        make_inputs=labeled_inputs,
        differentiable=("embeddings",),
        formula=Formula(
            displayed=(
                "\\ell_i = \\frac{1}{\\beta} \\log \\Bigl( 1 + \\sum_{j \\ne i : c_j = c_i} "
                "e^{-\\beta (s_{ij} - m)} \\Bigr)\n"
                "+ \\frac{1}{\\gamma} \\log \\Bigl( 1 + \\sum_{j : c_j \\ne c_i} e^{\\gamma (s_{ij} - m)} \\Bigr) ,\n"
                "\\qquad s_{ij} = \\frac{e_i \\cdot e_j}{\\lVert e_i \\rVert \\lVert e_j \\rVert} ,",
            ),
            naive=naive_metric,
            options=with_options(margin=0.3, beta=1.7, gamma=6.0),
        ),
        bad=(*PARAMETER_BAD, *BATCH_BAD),
        options=KIND_OPTIONS | {"alone": lambda i, g: {"labels": torch.tensor([3] + [1] * (len(i["labels"]) - 1))}},
        extreme=sharp,
        rowwise=False,
    ),
    Case(
        name="metrix_embed_loss",
        empty_mean=0,
        function=losses.metrix_embed_loss,
        reference=plain_metrix,
        make_inputs=mixed_inputs,
        differentiable=("embeddings",),
        formula=Formula(
            displayed=(
                "\\ell_i = \\ell^\\text{clean}_i + w \\Bigl[\n"
                "\\frac{1}{\\beta} \\log \\Bigl( 1 + \\sum_{j : c_j \\ne c_i} "
                "\\lambda e^{-\\beta (s_{ij} - m)} \\Bigr)\n"
                "+ \\frac{1}{\\gamma} \\log \\Bigl( 1 + \\sum_{j : c_j \\ne c_i} "
                "(1 - \\lambda) e^{\\gamma (s_{ij} - m)} \\Bigr) \\Bigr] ,",
                "s_{ij} = \\Bigl\\langle u_i, \\frac{\\lambda u_{p_i} + (1 - \\lambda) u_j}\n"
                "{\\lVert \\lambda u_{p_i} + (1 - \\lambda) u_j \\rVert} \\Bigr\\rangle , "
                "\\qquad u_i = \\frac{e_i}{\\lVert e_i \\rVert} ,",
            ),
            naive=naive_metrix,
            options=with_options(margin=0.3, beta=1.7, gamma=6.0, weight=0.7),
        ),
        bad=(
            *PARAMETER_BAD,
            *BATCH_BAD,
            Bad("lam-high", lambda i: {"lam": 1.5}, r"lam must lie in \[0, 1\], got 1.5"),
            Bad("lam-negative", lambda i: {"lam": -0.1}, r"lam must lie in \[0, 1\], got -0.1"),
            Bad("lam-tensor", lambda i: {"lam": torch.tensor(0.5)}, "lam must be a number, got Tensor", TypeError),
            Bad("weight-negative", lambda i: {"weight": -1.0}, "weight must be >= 0, got -1.0"),
            Bad("partner-shape", lambda i: drop(i, "partner"), r"partner must have shape \(N,\) = \(6,\), got \(5,\)"),
            Bad("partner-high", lambda i: {"partner": i["partner"] + 6}, r"partner must lie in \[0, N\) = \[0, 6\)"),
            Bad("partner-float", lambda i: {"partner": i["partner"].double()}, "partner must have dtype", TypeError),
            Bad(
                "partner-class",
                lambda i: {"partner": i["partner"].index_fill(0, torch.tensor([2]), 1)},
                "partner must be of the class of its anchor, 0 for row 2, got row 1 of class 1",
            ),
        ),
        options=KIND_OPTIONS
        | {
            "anchors": lambda i, g: {"partner": torch.arange(len(i["labels"]))},
            "no-positive-share": with_options(lam=0),
            "no-negative-share": with_options(lam=1, weight=1),
        },
        extreme=sharp,
        rowwise=False,
    ),
)


def compared_pairs(naive, **options):
    def compare(generator):
        inputs = pair_inputs(7, torch.float64, generator)
        kind = "contrastive" if naive is naive_contrastive else "binomial_deviance"
        return losses.pair_loss(**inputs, kind=kind, reduction="none", **options), naive(**inputs, **options)

    return compare


def compare_mix(generator):
    x, y = torch.randn(2, 6, D, generator=generator, dtype=torch.float64)
    mixed = [
        naive_unit([0.3 * a + 0.7 * b for a, b in zip(*rows, strict=True)])
        for rows in zip(x.tolist(), y.tolist(), strict=True)
    ]
    return losses.mix_embeddings(x, y, 0.3), torch.tensor(mixed, dtype=torch.float64)


def compare_threshold(generator):
    lams = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    ours = [losses.positivity_threshold(lam, margin=0.2, beta=1.5, gamma=7.0) for lam in lams]
    naive = [0.2 + 1 / (1.5 + 7.0) * math.log(lam / (1 - lam)) for lam in lams]
    return torch.tensor(ours, dtype=torch.float64), torch.tensor(naive, dtype=torch.float64)


DISPLAYS = (
    Display(losses.pair_loss, PAIR_FORMULAS, compared_pairs(naive_contrastive, margin=0.1)),
    Display(losses.pair_loss, PAIR_FORMULAS, compared_pairs(naive_deviance, margin=0.2, beta=1.5, gamma=7.0)),
    Display(
        losses.mix_embeddings,
        (r"v = \frac{\lambda x + (1 - \lambda) y}{\lVert \lambda x + (1 - \lambda) y \rVert} .",),
        compare_mix,
    ),
    Display(
        losses.positivity_threshold,
        (r"s \le m + \frac{1}{\beta + \gamma} \log \frac{\lambda}{1 - \lambda} .",),
        compare_threshold,
    ),
)
