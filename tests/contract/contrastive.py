"""Embeddings contrasted within a batch: nt_xent and its relatives with several heads, sup_con."""

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


def head_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Two heads, and temperatures between 0.2 and 1 for each pair."""
    views = view_inputs(2 * n, dtype, generator)
    tau = 0.2 + 0.8 * torch.rand(2, n, n, generator=generator, dtype=torch.float64)
    return {name: z.view(2, n, D) for name, z in views.items()} | {"tau": tau.to(dtype)}


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


def dense_scores(z_a: Tensor, z_b: Tensor, temperature: Tensor | float) -> Tensor:
    return functional.cosine_similarity(z_a[..., :, None, :], z_b[..., None, :, :], dim=-1) / temperature


def dense_decoupled(z_a, z_b, *, temperature=0.5, reduction="mean"):
    scores = dense_scores(z_a, z_b, temperature)
    rows = [torch.cat([row[:i], row[i + 1 :]]).logsumexp(0) - row[i] for i, row in enumerate(scores)]
    return reduced(torch.stack(rows), reduction)


def dense_penalty(tau, dim):
    return dim * tau.log() / 2 + 1 / tau


def dense_optimum(sim, *, beta, dim):
    return 2 * (beta - sim) / (beta * dim)


def dense_amcl(z_a, z_b, tau, *, beta=0.1, negatives="logsumexp", dim=None, symmetric=False, reduction="mean"):
    if symmetric:
        options = {"beta": beta, "negatives": negatives, "dim": dim, "reduction": "none"}
        return reduced(
            torch.cat([dense_amcl(z_a, z_b, tau, **options), dense_amcl(z_b, z_a, tau.mT, **options)]), reduction
        )
    dim = z_a.shape[2] if dim is None else dim
    losses = []
    for cosines, temperatures in zip(dense_scores(z_a, z_b, 1.0), tau.expand(2, *[z_a.shape[1]] * 2), strict=True):
        u = cosines / temperatures - beta * dense_penalty(temperatures, dim)
        for i, row in enumerate(u):
            others = [j for j in range(len(row)) if j != i]
            hardest = max(others, key=lambda j: cosines[i, j].item())
            losses.append((row[others].logsumexp(0) if negatives == "logsumexp" else row[hardest]) - row[i])
    return reduced(torch.stack(losses).view(2, -1).sum(0), reduction)


def naive_pairs(z_a, z_b) -> list[list[float]]:
    both = naive_cosines(torch.cat([z_a, z_b]))
    return [row[len(z_a) :] for row in both[: len(z_a)]]


def naive_decoupled(z_a, z_b, *, temperature):
    s, n = naive_pairs(z_a, z_b), len(z_a)
    values = [
        -s[i][i] / temperature + math.log(sum(math.exp(s[i][j] / temperature) for j in range(n) if j != i))
        for i in range(n)
    ]
    return torch.tensor(values, dtype=torch.float64)


def naive_omega(tau: float, d: int) -> float:
    return d / 2 * math.log(tau) + 1 / tau


def naive_penalty(tau, dim):
    return torch.tensor([naive_omega(each, dim) for each in tau.tolist()], dtype=torch.float64)


def naive_optimum(sim, *, beta, dim):
    return torch.tensor([2 * (beta - s) / (beta * dim) for s in sim.tolist()], dtype=torch.float64)


def naive_amcl(z_a, z_b, tau, *, beta):
    heads, n, d = z_a.shape
    values = [0.0] * n
    for c in range(heads):
        s = naive_pairs(z_a[c], z_b[c])
        u = [
            [s[i][j] / t - beta * naive_omega(t, d) for j, t in enumerate(row)] for i, row in enumerate(tau[c].tolist())
        ]
        for i in range(n):
            values[i] += math.log(sum(math.exp(u[i][j]) for j in range(n) if j != i)) - u[i][i]
    return torch.tensor(values, dtype=torch.float64)


TEMPERATURE_BAD = (
    Bad("temperature-zero", lambda i: {"temperature": 0.0}, "temperature must be > 0, got 0.0"),
    Bad("temperature-text", lambda i: {"temperature": "cold"}, "temperature must be a number, got str", TypeError),
)
VIEWS_BAD = (
    *TEMPERATURE_BAD,
    Bad("views-differ", lambda i: drop(i, "z_b"), r"z_b must have shape z_a\.shape = \(6, 5\), got \(5, 5\)"),
    Bad("views-3d", lambda i: {"z_a": i["z_a"][None]}, r"z_a must have shape \(B, D\) = \(\*, \*\), got \(1, 6, 5\)"),
    Bad("dtypes-differ", lambda i: {"z_b": i["z_b"].float()}, "z_b must have the dtype of z_a, torch.float64, got"),
    Bad("integer", lambda i: {"z_a": i["z_a"].long()}, "z_a must have a floating-point dtype", TypeError),
)
DIM_BAD = (
    Bad("dim-zero", lambda i: {"dim": 0}, "dim must be >= 1, got 0"),
    Bad("dim-float", lambda i: {"dim": 2.0}, "dim must be an int, got float 2.0", TypeError),
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
    bad=VIEWS_BAD,
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

DECOUPLED = Case(
    name="nt_xent_decoupled",
    function=losses.nt_xent_decoupled,
    reference=dense_decoupled,
    make_inputs=view_inputs,
    differentiable=("z_a", "z_b"),
    formula=Formula(
        displayed=(
            r"\ell_i = -\frac{s_{ii}}{\tau} + \log \sum_{j \ne i} e^{s_{ij} / \tau} , \qquad"
            "\n"
            r"s_{ij} = \frac{a_i \cdot b_j}{\lVert a_i \rVert \lVert b_j \rVert} .",
        ),
        naive=naive_decoupled,
        options=lambda i, g: {"temperature": 0.3},
    ),
    bad=VIEWS_BAD,
    extreme=low_temperature,
    rowwise=False,
    smallest=2,
    options={"temperature": lambda i, g: {"temperature": 0.1}},
)

PENALTY = Case(
    name="temperature_penalty",
    function=losses.temperature_penalty,
    reference=dense_penalty,
    make_inputs=lambda n, dtype, g: {
        "tau": (0.05 + torch.rand(n, generator=g, dtype=torch.float64)).to(dtype),
        "dim": 16,
    },
    differentiable=("tau",),
    formula=Formula(displayed=(r"\Omega(\tau) = \frac{d}{2} \log \tau + \frac{1}{\tau} .",), naive=naive_penalty),
    bad=(
        *DIM_BAD,
        Bad("tau-zero", lambda i: {"tau": 0 * i["tau"]}, "tau must be > 0, got 0"),
        Bad("tau-number", lambda i: {"tau": -1.5}, "tau must be > 0, got -1.5"),
        Bad("tau-integer", lambda i: {"tau": i["tau"].long()}, "tau must have a floating-point dtype", TypeError),
        Bad("tau-text", lambda i: {"tau": "hot"}, "tau must be a number, got str 'hot'", TypeError),
    ),
    extreme=lambda i: i | {"tau": torch.where(i["tau"] > 0.5, 1e4, 1e-4).to(i["tau"].dtype)},
    reductions=(),
    rowwise=False,
    options={"dim": lambda i, g: {"dim": 1}},
)

OPTIMUM = Case(
    name="optimal_temperature",
    function=losses.optimal_temperature,
    reference=dense_optimum,
    make_inputs=lambda n, dtype, g: {
        "sim": (0.09 - torch.rand(n, generator=g, dtype=torch.float64)).to(dtype),
        "beta": 0.1,
        "dim": 16,
    },
    differentiable=("sim",),
    formula=Formula(displayed=(r"\tau^{*} = \frac{2 (\beta - s)}{\beta d} ,",), naive=naive_optimum),
    bad=(
        *DIM_BAD,
        Bad("sim-alike", lambda i: {"sim": i["sim"] * 0 + 0.1}, r"sim must be < beta = 0\.1, .* minimum, got 0\.1"),
        Bad("beta-zero", lambda i: {"beta": 0.0}, "beta must be > 0, got 0.0"),
        Bad("sim-integer", lambda i: {"sim": i["sim"].long()}, "sim must have a floating-point dtype", TypeError),
    ),
    extreme=lambda i: i | {"sim": torch.full_like(i["sim"], -1e4)},
    reductions=(),
    rowwise=False,
    options={"beta": lambda i, g: {"beta": 1.0, "dim": 3}},
)

AMCL = Case(
    name="amcl",
    function=losses.amcl,
    reference=dense_amcl,
    make_inputs=head_inputs,
    differentiable=("z_a", "z_b", "tau"),
    formula=Formula(
        displayed=(
            r"\ell_i = \sum_{c=1}^{C} \Bigl( \log \sum_{j \ne i} e^{u^c_{ij}} - u^c_{ii} \Bigr) , \qquad"
            "\n"
            r"u^c_{ij} = \frac{s^c_{ij}}{\tau^c_{ij}} - \beta \, \Omega(\tau^c_{ij}) .",
        ),
        naive=naive_amcl,
        options=lambda i, g: {"beta": 0.7},
    ),
    bad=(
        *DIM_BAD,
        Bad("views-2d", lambda i: {"z_a": i["z_a"][0]}, r"z_a must have shape \(C, B, D\) .*, got \(6, 5\)"),
        Bad("views-differ", lambda i: drop(i, "z_b"), r"z_b must have shape z_a\.shape = \(2, 6, 5\), got \(1, 6, 5\)"),
        Bad("dtypes-differ", lambda i: {"z_b": i["z_b"].float()}, "z_b must have the dtype of z_a, torch.float64, got"),
        Bad("integer", lambda i: {"z_b": i["z_b"].long()}, "z_b must have a floating-point dtype", TypeError),
        Bad("tau-zero", lambda i: {"tau": i["tau"] * 0}, "tau must be > 0, got 0"),
        Bad("tau-number", lambda i: {"tau": 0.0}, "tau must be > 0, got 0"),
        Bad(
            "tau-shape",
            lambda i: drop(i, "tau", 2),
            r"tau must be broadcastable to \(C, B, B\) = \(2, 6, 6\), got shape \(2, 6, 5\)",
        ),
        Bad("tau-4d", lambda i: {"tau": i["tau"][None]}, r"tau must be broadcastable .*, got shape \(1, 2, 6, 6\)"),
        Bad("beta-negative", lambda i: {"beta": -0.1}, "beta must be >= 0, got -0.1"),
        Bad("negatives", lambda i: {"negatives": "hard"}, "negatives must be one of 'logsumexp', 'max', got 'hard'"),
    ),
    extreme=lambda i: i | {"z_a": 1e4 * i["z_a"], "tau": torch.where(i["tau"] > 0.5, 1e4, 1e-4).to(i["tau"].dtype)},
    rowwise=False,
    smallest=2,
    options={
        "max": lambda i, g: {"negatives": "max", "beta": 1.0},
        "broadcast": lambda i, g: {"tau": i["tau"][:, :, :1].clone(), "dim": 9},
        "symmetric": lambda i, g: {"symmetric": True},
        "symmetric-max": lambda i, g: {"symmetric": True, "negatives": "max"},
    },
)

CASES = (NT_XENT, DECOUPLED, PENALTY, OPTIMUM, AMCL, SUP_CON)
