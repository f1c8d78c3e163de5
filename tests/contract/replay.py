"""Contrast with the proxies of classes and with a memory: pcr and the parts of HPCR."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from contract.base import Bad, Case, Display, Formula, Inputs, drop
from contract.contrastive import TEMPERATURE_BAD, D, labeled_inputs, low_temperature, naive_cosines, reduced
from lossbook import losses

C = 4


def proxy_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Four classes, of which the batch holds two."""
    inputs = labeled_inputs(n, dtype, generator)
    proxies = torch.randn(C, D, generator=generator, dtype=torch.float64).to(dtype)
    return {"features": inputs["features"], "proxies": proxies, "target": 2 * inputs["target"]}


def logit_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    new, old = torch.randn(2, n, C, generator=generator, dtype=torch.float64).to(dtype)
    return {"new_logits": new, "old_logits": old, "target": torch.tensor([2, 0, 2])}


def memory_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    new, old = torch.randn(2, n, D, generator=generator, dtype=torch.float64).to(dtype)
    return {"new_features": new, "old_features": old}


def dense_cosines(rows: Tensor, columns: Tensor, temperature: float) -> Tensor:
    return functional.cosine_similarity(rows[:, None], columns, dim=2) / temperature


def dense_pcr(features, proxies, target, *, temperature=0.09, reduction="mean"):
    logits = dense_cosines(features, proxies[target], temperature)  # one column for each example of the batch
    return reduced(logits.logsumexp(1) - logits.diagonal(), reduction)


def dense_pairs(features, proxies, target, *, temperature=0.09, reduction="mean"):
    to_proxies = dense_cosines(features, proxies[target], temperature)
    to_examples = dense_cosines(features, features, temperature)
    rows = []
    for i, label in enumerate(target):
        others = torch.arange(len(target)) != i
        partners = torch.cat([to_proxies[i], to_examples[i][others]])
        positive = torch.cat([target == label, (target == label)[others]])
        rows.append(partners.logsumexp(0) - partners[positive].mean())
    return reduced(torch.stack(rows), reduction)


def dense_proxy_distillation(new_logits, old_logits, target, *, reduction="mean"):
    change = torch.stack([new_logits[:, c] - old_logits[:, c].detach() for c in target], dim=1)
    return reduced((change**2).mean(1), reduction)


def dense_relation(new_features, old_features, *, temperature=0.09, reduction="mean"):
    rows = []
    for i in range(len(new_features)):
        others = torch.arange(len(new_features)) != i
        new, old = (
            dense_cosines(z[i : i + 1], z[others], temperature)[0] for z in (new_features, old_features.detach())
        )
        rows.append(-(old.softmax(0) * new.log_softmax(0)).sum())
    return reduced(torch.stack(rows), reduction)


def naive_proxy_cosines(features: Tensor, proxies: Tensor) -> list[list[float]]:
    return [row[len(features) :] for row in naive_cosines(torch.cat([features, proxies]))[: len(features)]]


def naive_pcr(features, proxies, target, *, temperature):
    s, y = naive_proxy_cosines(features, proxies), target.tolist()
    values = [
        -math.log(math.exp(s[i][y[i]] / temperature) / sum(math.exp(s[i][label] / temperature) for label in y))
        for i in range(len(y))
    ]
    return torch.tensor(values, dtype=torch.float64)


def naive_pairs(features, proxies, target, *, temperature):
    s, r, y, values = naive_proxy_cosines(features, proxies), naive_cosines(features), target.tolist(), []
    for i in range(len(y)):
        positives = [p for p in range(len(y)) if p != i and y[p] == y[i]]
        n = len(positives) + 1
        z = sum(math.exp(s[i][label] / temperature) for label in y)
        z += sum(math.exp(r[i][j] / temperature) for j in range(len(y)) if j != i)
        total = n * math.log(math.exp(s[i][y[i]] / temperature) / z)
        total += sum(math.log(math.exp(r[i][p] / temperature) / z) for p in positives)
        values.append(-total / (2 * n - 1))
    return torch.tensor(values, dtype=torch.float64)


def naive_proxy_distillation(new_logits, old_logits, target):
    rows = zip(new_logits.tolist(), old_logits.tolist(), strict=True)
    labels = target.tolist()
    values = [sum((new[y] - old[y]) ** 2 for y in labels) / len(labels) for new, old in rows]
    return torch.tensor(values, dtype=torch.float64)


def naive_relation(new_features, old_features, *, temperature):
    n = len(new_features)

    def probabilities(z):
        s = naive_cosines(z)
        e = [[math.exp(s[i][j] / temperature) if j != i else 0.0 for j in range(n)] for i in range(n)]
        return [[each / sum(row) for each in row] for row in e]

    p, q = probabilities(new_features), probabilities(old_features)
    values = [-sum(q[i][j] * math.log(p[i][j]) for j in range(n) if j != i) for i in range(n)]
    return torch.tensor(values, dtype=torch.float64)


def compare_scale(generator):
    steps = [0, 1, 77, 250, 333, 500, 1234]
    t, low, high, period = 0.1, 0.04, 0.2, 333
    expected = [t / high + (t / low - t / high) * (1 - math.cos(2 * math.pi * step / period)) / 2 for step in steps]
    computed = [losses.hpcr_scale(step, temperature=t, low=low, high=high, period=period) for step in steps]
    return torch.tensor(computed, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)


PROXY_BAD = (
    *TEMPERATURE_BAD,
    Bad("target-shape", lambda i: drop(i, "target"), r"target must have shape \(N,\) = \(6,\), got \(5,\)"),
    Bad("target-dtype", lambda i: {"target": i["target"].int()}, "target must have dtype torch.int64", TypeError),
    Bad("target-high", lambda i: {"target": i["target"] + 2}, r"target must lie in \[0, C\) = \[0, 4\), got 4"),
    Bad("target-low", lambda i: {"target": i["target"] - 1}, r"target must lie in \[0, C\) = \[0, 4\), got -1"),
    Bad("proxies-size", lambda i: drop(i, "proxies", 1), r"proxies must have shape \(C, D\) = \(\*, 5\), got \(4, 4\)"),
    Bad("proxies-dtype", lambda i: {"proxies": i["proxies"].float()}, "proxies must have the dtype of features"),
    Bad("features-1d", lambda i: {"features": i["features"][0]}, r"features must have shape \(N, D\) .*, got \(5,\)"),
    Bad("integer", lambda i: {"features": i["features"].long()}, "features must have a floating", TypeError),
)
MORE_CLASSES = {
    "classes": lambda i, g: {"target": torch.randint(C, i["target"].shape, generator=g), "temperature": 0.5},
}

PCR = Case(
    name="pcr",
    empty_mean=0,
    function=losses.pcr,
    reference=dense_pcr,
    make_inputs=proxy_inputs,
    differentiable=("features", "proxies"),
    formula=Formula(
        displayed=(
            r"\ell_i = -\log \frac{e^{s_{i y_i} / \tau}}{\sum_{j=1}^{N} e^{s_{i y_j} / \tau}} , \qquad"
            "\n"
            r"s_{ic} = \frac{z_i \cdot w_c}{\lVert z_i \rVert \lVert w_c \rVert} .",
        ),
        naive=naive_pcr,
        options=lambda i, g: {"temperature": 0.3},
    ),
    bad=PROXY_BAD,
    extreme=low_temperature,
    rowwise=False,
    options=MORE_CLASSES,
)

PAIRS = Case(
    name="pcr_with_pairs",
    function=losses.pcr_with_pairs,
    reference=dense_pairs,
    make_inputs=proxy_inputs,
    differentiable=("features", "proxies"),
    formula=Formula(
        displayed=(
            r"\ell_i = -\frac{1}{2 n_i - 1} \Bigl( n_i \log \frac{e^{s_{i y_i} / \tau}}{Z_i}"
            "\n"
            r"+ \sum_{p \in P_i} \log \frac{e^{r_{ip} / \tau}}{Z_i} \Bigr) , \qquad"
            "\n"
            r"Z_i = \sum_{j=1}^{N} e^{s_{i y_j} / \tau} + \sum_{j \ne i} e^{r_{ij} / \tau} .",
        ),
        naive=naive_pairs,
        options=lambda i, g: {"temperature": 0.3},
    ),
    bad=PROXY_BAD,
    extreme=low_temperature,
    rowwise=False,
    smallest=2,
    options=MORE_CLASSES,
)

PROXY_DISTILLATION = Case(
    name="proxy_distillation",
    function=losses.proxy_distillation,
    reference=dense_proxy_distillation,
    make_inputs=logit_inputs,
    differentiable=("new_logits",),
    formula=Formula(
        displayed=(r"\ell_i = \frac{1}{M} \sum_{m=1}^{M} (z_{i y_m} - z'_{i y_m})^2 .",),
        naive=naive_proxy_distillation,
    ),
    bad=(
        Bad(
            "shapes-differ", lambda i: drop(i, "old_logits"), r"old_logits must have shape new_logits\.shape = \(6, 4\)"
        ),
        Bad(
            "dtypes-differ", lambda i: {"old_logits": i["old_logits"].float()}, "old_logits must have the dtype of new"
        ),
        Bad("logits-1d", lambda i: {"new_logits": i["new_logits"][0]}, r"new_logits must have shape \(N, C\)"),
        Bad("target-2d", lambda i: {"target": i["target"][None]}, r"target must have shape \(M,\) .*, got \(1, 3\)"),
        Bad("target-empty", lambda i: {"target": i["target"][:0]}, r"target must have shape \(M,\) with M >= 1, got"),
        Bad("target-high", lambda i: {"target": i["target"] + 2}, r"target must lie in \[0, C\) = \[0, 4\), got 4"),
        Bad("target-dtype", lambda i: {"target": i["target"].int()}, "target must have dtype torch.int64", TypeError),
    ),
    extreme=lambda i: i | {name: 1e4 * i[name].sign() for name in ("new_logits", "old_logits")},
    rowwise=False,
    options={"more indices than rows": lambda i, g: {"target": torch.arange(40) % C}},
)

RELATION = Case(
    name="relation_distillation",
    function=losses.relation_distillation,
    reference=dense_relation,
    make_inputs=memory_inputs,
    differentiable=("new_features",),
    formula=Formula(
        displayed=(
            r"\ell_i = -\sum_{j \ne i} q_{ij} \log p_{ij} , \qquad"
            "\n"
            r"p_{ij} = \frac{e^{s_{ij} / \tau}}{\sum_{k \ne i} e^{s_{ik} / \tau}} .",
        ),
        naive=naive_relation,
        options=lambda i, g: {"temperature": 0.3},
    ),
    bad=(
        *TEMPERATURE_BAD,
        Bad(
            "shapes-differ",
            lambda i: drop(i, "old_features"),
            r"old_features must have shape .* = \(6, 5\), got \(5, 5",
        ),
        Bad(
            "dtypes-differ", lambda i: {"old_features": i["old_features"].half()}, "old_features must have the dtype of"
        ),
        Bad("features-1d", lambda i: {"new_features": i["new_features"][0]}, r"new_features must have shape \(N, D\)"),
        Bad("integer", lambda i: {"old_features": i["old_features"].long()}, "old_features must have a fl", TypeError),
    ),
    extreme=low_temperature,
    rowwise=False,
    smallest=3,
    options={"temperature": lambda i, g: {"temperature": 0.5}},
)

CASES = (PCR, PAIRS, PROXY_DISTILLATION, RELATION)
DISPLAYS = (
    Display(
        losses.hpcr_scale,
        (
            r"k(t) = \frac{\tau}{\tau_{\max}} + \Bigl( \frac{\tau}{\tau_{\min}} - \frac{\tau}{\tau_{\max}} \Bigr)"
            "\n"
            r"\frac{1 - \cos(2 \pi t / P)}{2} .",
        ),
        compare_scale,
    ),
)
