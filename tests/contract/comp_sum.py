"""The comp-sum family, its adversarial relatives and its consistency bounds."""

import math

import torch
from torch import Tensor

from contract.base import Bad, Case, Display, Formula, Inputs, drop
from lossbook import losses, theory

C = 5


def classification_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    logits = 2 * torch.randn(n, C, generator=generator, dtype=torch.float64)
    return {"logits": logits.to(dtype), "target": torch.randint(C, (n,), generator=generator)}


def adversarial_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    inputs = classification_inputs(n, dtype, generator)
    step = torch.randn(n, C, generator=generator, dtype=torch.float64)
    return inputs | {"logits_adv": (inputs["logits"].double() + step).to(dtype)}


def extreme_logits(inputs: Inputs) -> Inputs:
    """Signs of the logits times 1e4."""
    return inputs | {name: 1e4 * x.sign() for name, x in inputs.items() if name != "target"}


def with_tau(**parameters: float):
    return lambda inputs, generator: parameters


def reduced(values: Tensor, reduction: str) -> Tensor:
    return {"mean": values.mean, "sum": values.sum, "none": lambda: values}[reduction]()


def plain_phi(u: Tensor, tau: float) -> Tensor:
    return u.log1p() if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)


def plain_margins(logits, target):
    other = torch.arange(logits.shape[1]) != target[:, None]
    return (logits.gather(1, target[:, None]) - logits)[other].view(len(logits), logits.shape[1] - 1)


def plain_loss(logits, target, *, tau=1.0, reduction="mean"):
    if tau == 1:
        return torch.nn.functional.cross_entropy(logits, target, reduction=reduction)
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    return reduced((1 - p ** (tau - 1)) / (tau - 1), reduction)


def plain_rho_margin(logits, target, *, tau=1.0, rho=1.0, reduction="mean"):
    u = (1 - plain_margins(logits, target) / rho).clamp(0, 1).sum(1)
    return reduced(plain_phi(u, tau), reduction)


def plain_adversarial(logits, logits_adv, target, *, tau=1.0, rho=1.0, nu=1.0, reduction="mean"):
    moved = plain_margins(logits_adv, target) - plain_margins(logits, target)
    return reduced(plain_loss(logits / rho, target, tau=tau, reduction="none") + nu * moved.norm(dim=1), reduction)


def weighted_margins(logits, target):
    """The margins as one number per example that tells their order."""
    margins = losses.class_margins(logits, target)
    return (margins * torch.arange(1, margins.shape[1] + 1)).sum(1)


def plain_weighted_margins(logits, target):
    margins = plain_margins(logits, target)
    return (margins * torch.arange(1, margins.shape[1] + 1)).sum(1)


def others(y: int) -> list[int]:
    return [c for c in range(C) if c != y]


def naive_phi(u: float, tau: float) -> float:
    return ((1 + u) ** (1 - tau) - 1) / (1 - tau)


def naive_loss(logits, target, *, tau):
    rows = zip(logits.tolist(), target.tolist(), strict=True)
    values = [naive_phi(sum(math.exp(z[c] - z[y]) for c in others(y)), tau) for z, y in rows]
    return torch.tensor(values, dtype=torch.float64)


def naive_rho_margin(logits, target, *, tau, rho):
    rows = zip(logits.tolist(), target.tolist(), strict=True)
    values = [naive_phi(sum(min(1, max(0, 1 - (z[y] - z[c]) / rho)) for c in others(y)), tau) for z, y in rows]
    return torch.tensor(values, dtype=torch.float64)


def naive_adversarial(logits, target, logits_adv, *, tau, rho, nu):
    values = []
    for z, moved, y in zip(logits.tolist(), logits_adv.tolist(), target.tolist(), strict=True):
        d, d_moved = ([row[y] - row[c] for c in others(y)] for row in (z, moved))
        norm = math.sqrt(sum((b - a) ** 2 for a, b in zip(d, d_moved, strict=True)))
        values.append(naive_phi(sum(math.exp(-a / rho) for a in d), tau) + nu * norm)
    return torch.tensor(values, dtype=torch.float64)


def naive_weighted_margins(logits, target):
    rows = zip(logits.tolist(), target.tolist(), strict=True)
    values = [sum(k * (z[y] - z[c]) for k, c in enumerate(others(y), start=1)) for z, y in rows]
    return torch.tensor(values, dtype=torch.float64)


CLASSIFICATION_BAD = (
    Bad("logits-dims", lambda i: {"logits": i["logits"][0]}, r"logits must have shape \(N, C\).*, got \(5,\)"),
    Bad("logits-integer", lambda i: {"logits": i["logits"].detach().long()}, "logits must .*torch.int64", TypeError),
    Bad("logits-list", lambda i: {"logits": [1.0]}, "logits must be a torch.Tensor, got list", TypeError),
    Bad("target-shape", lambda i: drop(i, "target"), r"target must have shape \(N,\) = \(6,\), got \(5,\)"),
    Bad("target-dims", lambda i: {"target": i["target"][:, None]}, r"target must have shape .*got \(6, 1\)"),
    Bad("target-high", lambda i: {"target": i["target"] + C}, r"target must lie in \[0, C\) = \[0, 5\), got \d+"),
    Bad("target-negative", lambda i: {"target": i["target"] - C}, r"target must lie in \[0, C\) = \[0, 5\), got -\d+"),
    Bad("target-float", lambda i: {"target": i["target"].double()}, "target must have dtype torch.int64", TypeError),
)
TAU_BAD = (
    Bad("tau-negative", lambda i: {"tau": -0.1}, "tau must be >= 0, got -0.1"),
    Bad("tau-nan", lambda i: {"tau": math.nan}, "tau must be finite, got nan"),
    Bad("tau-text", lambda i: {"tau": "1"}, "tau must be a number, got str '1'", TypeError),
)
RHO_BAD = (
    Bad("rho-zero", lambda i: {"rho": 0}, "rho must be > 0, got 0"),
    Bad("rho-nan", lambda i: {"rho": math.nan}, "rho must be finite, got nan"),
)
MEMBERS = {
    name: with_tau(tau=tau) for name, tau in (("sum-exponential", 0), ("gce", 1.5), ("mae", 2.0), ("steep", 3.0))
}

CASES = (
    Case(
        name="comp_sum_loss",
        function=losses.comp_sum_loss,
        reference=plain_loss,
        make_inputs=classification_inputs,
        differentiable=("logits",),
        formula=Formula(
            displayed=(
                "\\ell_i = \\Phi_\\tau(u_i), \\qquad\n"
                "\\Phi_\\tau(u) = \\frac{(1 + u)^{1 - \\tau} - 1}{1 - \\tau}, \\qquad\n"
                "u_i = \\sum_{c \\ne y_i} \\exp(z_{ic} - z_{i y_i}) ,",
            ),
            naive=naive_loss,
            options=with_tau(tau=1.3),
        ),
        bad=(*CLASSIFICATION_BAD, *TAU_BAD),
        options=MEMBERS,
        extreme=extreme_logits,
        inductor=True,
    ),
    Case(
        name="comp_sum_rho_margin_loss",
        function=losses.comp_sum_rho_margin_loss,
        reference=plain_rho_margin,
        make_inputs=classification_inputs,
        differentiable=("logits",),
        formula=Formula(
            displayed=(
                "\\ell_i = \\Phi_\\tau\\Bigl( \\sum_{c \\ne y_i} "
                "\\min\\bigl(1, \\max(0, 1 - (z_{i y_i} - z_{ic}) / \\rho)\\bigr) \\Bigr) .",
            ),
            naive=naive_rho_margin,
            options=with_tau(tau=0.7, rho=1.7),
        ),
        bad=(*CLASSIFICATION_BAD, *TAU_BAD, *RHO_BAD),
        options=MEMBERS | {"wide": with_tau(rho=4.0)},
        extreme=extreme_logits,
    ),
    Case(
        name="adversarial_comp_sum_loss",
        function=losses.adversarial_comp_sum_loss,
        reference=plain_adversarial,
        make_inputs=adversarial_inputs,
        differentiable=("logits", "logits_adv"),
        formula=Formula(
            displayed=(
                "\\ell_i = \\Phi_\\tau\\Bigl( \\sum_{c \\ne y_i} \\exp(-D_{ic} / \\rho) \\Bigr)\n"
                "+ \\nu \\sqrt{\\textstyle\\sum_{c \\ne y_i} (D'_{ic} - D_{ic})^2} .",
            ),
            naive=naive_adversarial,
            options=with_tau(tau=1.4, rho=0.6, nu=0.3),
        ),
        bad=(
            *CLASSIFICATION_BAD,
            *TAU_BAD,
            *RHO_BAD,
            Bad("nu-negative", lambda i: {"nu": -1.0}, "nu must be >= 0, got -1.0"),
            Bad(
                "adv-shape", lambda i: drop(i, "logits_adv", 1), r"logits_adv must have shape .*\(6, 5\), got \(6, 4\)"
            ),
            Bad(
                "adv-dtype",
                lambda i: {"logits_adv": i["logits_adv"].float()},
                "logits_adv must have the dtype of logits",
            ),
            Bad("adv-integer", lambda i: {"logits_adv": i["logits_adv"].long()}, "logits_adv must .*int64", TypeError),
        ),
        options={"gce": with_tau(tau=1.5, rho=0.5, nu=0.5), "mae": with_tau(tau=2.0, rho=2.0, nu=3.0)},
        extreme=extreme_logits,
    ),
    Case(
        name="class_margins",
        function=weighted_margins,
        reference=plain_weighted_margins,
        make_inputs=classification_inputs,
        differentiable=("logits",),
        formula=Formula(displayed=("D_{ic} = z_{i y_i} - z_{ic} .",), naive=naive_weighted_margins),
        bad=CLASSIFICATION_BAD,
        extreme=extreme_logits,
        reductions=(),
        documented=losses.class_margins,
    ),
)


def compare_transform(generator):
    arguments = [(0.6, 0.3, 4), (1.6, 0.7, 4), (0.2, 1.0, 3), (1.9, 0.05, 7)]
    naive = []
    for tau, b, classes in arguments:
        a, k = 1 / (2 - tau), 2 if tau < 1 else classes
        mean = (1 + b) ** a / 2 + (1 - b) ** a / 2
        naive.append((mean ** (2 - tau) - 1) / ((tau - 1) * k ** (tau - 1)))
    computed = [theory.h_consistency_transform(b, tau=tau, num_classes=n) for tau, b, n in arguments]
    return torch.tensor(computed, dtype=torch.float64), torch.tensor(naive, dtype=torch.float64)


def compare_risk(generator):
    p = torch.rand(20, 6, generator=generator, dtype=torch.float64)
    p = p / p.sum(1, keepdim=True)
    tau = 1.2
    naive = [(sum(x ** (1 / (2 - tau)) for x in row) ** (2 - tau) - 1) / (1 - tau) for row in p.tolist()]
    return theory.best_conditional_risk(p, tau=tau), torch.tensor(naive, dtype=torch.float64)


DISPLAYS = (
    Display(
        documented=theory.h_consistency_transform,
        displayed=(
            "T_\\tau(\\beta) = \\frac{1}{(\\tau - 1) k^{\\tau - 1}}\n"
            "\\Bigl[ \\Bigl( \\tfrac12 (1 + \\beta)^a + \\tfrac12 (1 - \\beta)^a \\Bigr)^{2 - \\tau} - 1 \\Bigr], "
            "\\qquad\n"
            "k = \\begin{cases} 2 & \\tau < 1 \\\\ C & \\tau > 1 \\end{cases}",
        ),
        compare=compare_transform,
    ),
    Display(
        documented=theory.best_conditional_risk,
        displayed=("\\mathcal{C}^*_\\tau(p) = \\frac{\\bigl( \\sum_c p_c^a \\bigr)^{2 - \\tau} - 1}{1 - \\tau}",),
        compare=compare_risk,
    ),
)
