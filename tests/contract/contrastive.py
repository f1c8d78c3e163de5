"""Embeddings contrasted within a batch: nt_xent, sup_con."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from contract.base import Bad, Case, Formula, Inputs, drop
from lossbook import losses

D = 5


def view_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    first = torch.randn(n, D, generator=generator, dtype=torch.float64)
    second = first + torch.randn(n, D, generator=generator, dtype=torch.float64) / 2
    return {"z_a": first.to(dtype), "z_b": second.to(dtype)}


def labeled_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Two classes, which leaves no anchor alone from four examples on."""
    features = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return {"features": features.to(dtype), "target": torch.arange(n) % 2}


def low_temperature(inputs: Inputs) -> Inputs:
    """Logits of magnitude 1e4: cosines divided by 1e-4, of embeddings whose lengths must not matter."""
    scaled = {name: x * 1e4 if x.is_floating_point() else x for name, x in inputs.items()}
    return scaled | {"temperature": 1e-4}


def reduced(values: Tensor, reduction: str) -> Tensor:
    return values if reduction == "none" else values.sum() if reduction == "sum" else values.mean()


def dense_log_p(z: Tensor, temperature: float) -> Tensor:
    """Log-probability of finding each other row from each row; -inf for a row itself."""
    logits = functional.cosine_similarity(z[:, None], z, dim=2) / temperature
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    return logits - logits.logsumexp(1, keepdim=True)


def dense_nt_xent(z_a, z_b, *, temperature=0.5, reduction="mean"):
    log_p = dense_log_p(torch.cat([z_a, z_b]), temperature)
    n = len(z_a)
    return reduced(-torch.cat([log_p[:n, n:].diagonal(), log_p[n:, :n].diagonal()]), reduction)


def dense_sup_con(features, target, *, temperature=0.09, reduction="mean"):
    log_p = dense_log_p(features, temperature)
    rows = [
        torch.stack([-log_p[i, j] for j in range(len(target)) if j != i and target[j] == target[i]]).mean()
        for i in range(len(target))
        if (target == target[i]).sum() > 1
    ]
    return reduced(torch.stack(rows), reduction) if len(rows) == len(target) else _with_zeros(rows, target, reduction)


def _with_zeros(rows: list[Tensor], target: Tensor, reduction: str) -> Tensor:
    """Anchors alone in their class: zero, and left out of the mean."""
    if reduction != "none":
        return reduced(torch.stack(rows), reduction)
    rest = iter(rows)
    zero = rows[0].detach() * 0
    return torch.stack([next(rest) if (target == label).sum() > 1 else zero for label in target])


def naive_cosines(z: Tensor) -> list[list[float]]:
    rows = z.tolist()
    norms = [math.sqrt(sum(x * x for x in row)) for row in rows]
    return [
        [sum(a * b for a, b in zip(p, q, strict=True)) / (m * n) for q, n in zip(rows, norms, strict=True)]
        for p, m in zip(rows, norms, strict=True)
    ]


def naive_ratio(s: list[list[float]], i: int, p: int, tau: float) -> float:
    return math.exp(s[i][p] / tau) / sum(math.exp(s[i][j] / tau) for j in range(len(s)) if j != i)


def naive_nt_xent(z_a, z_b, *, temperature):
    s, n = naive_cosines(torch.cat([z_a, z_b])), len(z_a)
    other = [i + n if i < n else i - n for i in range(2 * n)]
    values = [-math.log(naive_ratio(s, i, other[i], temperature)) for i in range(2 * n)]
    return torch.tensor(values, dtype=torch.float64)


def naive_sup_con(features, target, *, temperature):
    s, y, values = naive_cosines(features), target.tolist(), []
    for i in range(len(y)):
        positives = [p for p in range(len(y)) if p != i and y[p] == y[i]]
        values.append(-sum(math.log(naive_ratio(s, i, p, temperature)) for p in positives) / len(positives))
    return torch.tensor(values, dtype=torch.float64)


TEMPERATURE_BAD = (
    Bad("temperature-zero", lambda i: {"temperature": 0.0}, "temperature must be > 0, got 0.0"),
    Bad("temperature-text", lambda i: {"temperature": "cold"}, "temperature must be a number, got str", TypeError),
)
_COSINE = r"s_{ij} = \frac{z_i \cdot z_j}{\lVert z_i \rVert \lVert z_j \rVert} ."

NT_XENT = Case(
    name="nt_xent",
    function=losses.nt_xent,
    reference=dense_nt_xent,
    make_inputs=view_inputs,
    differentiable=("z_a", "z_b"),
    formula=Formula(
        displayed=(
            r"\ell_i = -\log \frac{e^{s_{ii'} / \tau}}{\sum_{j \ne i} e^{s_{ij} / \tau}} , \qquad"
            "\n" + _COSINE,
        ),
        naive=naive_nt_xent,
        options=lambda i, g: {"temperature": 0.3},
    ),
    bad=(
        *TEMPERATURE_BAD,
        Bad("views-differ", lambda i: drop(i, "z_b"), r"z_b must have shape z_a\.shape = \(6, 5\), got \(5, 5\)"),
        Bad(
            "views-3d", lambda i: {"z_a": i["z_a"][None]}, r"z_a must have shape \(N, D\) = \(\*, \*\), got \(1, 6, 5\)"
        ),
        Bad("dtypes-differ", lambda i: {"z_b": i["z_b"].float()}, "z_b must have the dtype of z_a, torch.float64, got"),
        Bad("integer", lambda i: {"z_a": i["z_a"].long()}, "z_a must have a floating-point dtype", TypeError),
    ),
    extreme=low_temperature,
    rowwise=False,
    smallest=2,
    values=2,
    options={"temperature": lambda i, g: {"temperature": 0.1}},
)

SUP_CON = Case(
    name="sup_con",
    function=losses.sup_con,
    reference=dense_sup_con,
    make_inputs=labeled_inputs,
    differentiable=("features",),
    formula=Formula(
        displayed=(
            r"\ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i}"
            r" \log \frac{e^{s_{ip} / \tau}}{\sum_{j \ne i} e^{s_{ij} / \tau}} ,"
            "\n"
            r"\qquad " + _COSINE,
        ),
        naive=naive_sup_con,
        options=lambda i, g: {"temperature": 0.3},
    ),
    bad=(
        *TEMPERATURE_BAD,
        Bad("target-shape", lambda i: drop(i, "target"), r"target must have shape \(N,\) = \(6,\), got \(5,\)"),
        Bad("target-dtype", lambda i: {"target": i["target"].int()}, "target must have dtype torch.int64", TypeError),
        Bad(
            "features-1d", lambda i: {"features": i["features"][0]}, r"features must have shape \(N, D\) .*, got \(5,\)"
        ),
        Bad("integer", lambda i: {"features": i["features"].long()}, "features must have a floating", TypeError),
    ),
    extreme=low_temperature,
    rowwise=False,
    smallest=2,
    options={
        "temperature": lambda i, g: {"temperature": 0.5},
        "alone": lambda i, g: {"target": torch.tensor([3] + [1] * (len(i["target"]) - 1))},
    },
)

CASES = (NT_XENT, SUP_CON)
