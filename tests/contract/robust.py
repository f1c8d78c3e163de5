"""Label-distributionally robust losses: ldr_kl_loss, aldr_kl_loss, ALDRKLLoss, normalize_scores, aldr_kl_lambda."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from contract.base import Bad, Case, Display, Formula, Inputs, drop
from lossbook import losses

C, SAMPLES = 7, 40


def logit_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    return {"logits": (2 * torch.randn(n, C, generator=generator, dtype=torch.float64)).to(dtype)}


def ldr_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    return logit_inputs(n, dtype, generator) | {"target": torch.randint(C, (n,), generator=generator)}


def aldr_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    lam = 0.5 + torch.rand(n, generator=generator, dtype=torch.float64) / 2
    return ldr_inputs(n, dtype, generator) | {"lam": lam.to(dtype)}


def module_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    stored = 0.5 + torch.rand(SAMPLES, generator=generator) / 2
    index = torch.randperm(SAMPLES, generator=generator)[:n]
    return ldr_inputs(n, dtype, generator) | {"index": index, "stored": stored}


def extreme_logits(inputs: Inputs) -> Inputs:
    """Scale each row so that its largest logit has magnitude 1e4."""
    return inputs | {"logits": inputs["logits"] * (1e4 / inputs["logits"].abs().amax(1, keepdim=True))}


def reduced(values: Tensor, reduction: str) -> Tensor:
    return values if reduction == "none" else values.sum() if reduction == "sum" else values.mean()


def dense_margins(logits: Tensor, target: Tensor, margin: float) -> Tensor:
    wrong = 1 - functional.one_hot(target, logits.shape[1]).to(logits.dtype)
    return (logits - logits.gather(1, target[:, None]) + margin) * wrong


def dense_ldr(logits, target, *, lam=1.0, margin=0.0, reduction="mean"):
    delta = dense_margins(logits, target, margin)
    if lam == 0:
        values = delta.max(1).values
    elif lam == math.inf:
        values = delta.mean(1)
    else:
        values = lam * ((delta / lam).logsumexp(1) - math.log(logits.shape[1]))
    return reduced(values, reduction)


def dense_aldr(logits, target, lam, *, lam0=1.0, alpha=2.0, margin=0.1, reduction="mean"):
    delta = dense_margins(logits, target, margin)
    most = math.log(logits.shape[1])
    values = lam * ((delta / lam[:, None]).logsumexp(1) - most) - alpha * most / (2 * lam0) * (lam - lam0) ** 2
    return reduced(values, reduction)


def dense_module(logits, target, index, stored, **options):
    return dense_aldr(logits, target, stored[index].to(logits.dtype), **options)


def call_module(logits, target, index, stored, **options):
    """The module at fixed temperatures, as a function of what it remembers; its update has no gradient to check."""
    loss = losses.ALDRKLLoss(SAMPLES, **options).eval()
    loss.lam.copy_(stored)
    return loss(logits, target, index)


def naive_deltas(logits, target, margin):
    rows = zip(logits.tolist(), target.tolist(), strict=True)
    return [[z - row[y] + (margin if k != y else 0.0) for k, z in enumerate(row)] for row, y in rows]


def naive_ldr(logits, target, *, lam, margin):
    """The best weights by the softmax, put into the maximand, and the closed form: both must come out."""
    values = []
    for delta in naive_deltas(logits, target, margin):
        total = sum(math.exp(d / lam) for d in delta)
        p = [math.exp(d / lam) / total for d in delta]
        worst = sum(a * d for a, d in zip(p, delta, strict=True)) - lam * sum(a * math.log(C * a) for a in p)
        closed = lam * math.log(total / C)
        assert abs(worst - closed) < 1e-12
        values.append(closed)
    return torch.tensor(values, dtype=torch.float64)


def naive_aldr(logits, target, lam, *, lam0, alpha, margin):
    values = []
    for delta, own in zip(naive_deltas(logits, target, margin), lam.tolist(), strict=True):
        soft = own * math.log(sum(math.exp(d / own) for d in delta) / C)
        values.append(soft - alpha * math.log(C) / (2 * lam0) * (own - lam0) ** 2)
    return torch.tensor(values, dtype=torch.float64)


def naive_lambda(logits, lam, *, lam0, alpha):
    values = []
    for row, own in zip(logits.tolist(), lam.tolist(), strict=True):
        total = sum(math.exp(z / own) for z in row)
        p = [math.exp(z / own) / total for z in row]
        kl = sum(a * math.log(a * C) for a in p)
        values.append(lam0 * (1 - kl / (alpha * math.log(C))))
    return torch.tensor(values, dtype=torch.float64)


def naive_module(logits, target, index, stored, **options):
    return naive_aldr(logits, target, stored[index], **options)


def naive_scores(logits):
    values = []
    for row in logits.tolist():
        soft = [math.log(1 + math.exp(z)) for z in row]
        values.append(soft[0] / (sum(soft) / C))
    return torch.tensor(values, dtype=torch.float64)


LOGITS_BAD = (
    Bad("logits-dims", lambda i: {"logits": i["logits"][0]}, r"logits must have shape \(N, C\) .*, got \(7,\)"),
    Bad("logits-integer", lambda i: {"logits": i["logits"].detach().long()}, "logits .*, got torch.int64", TypeError),
    Bad("logits-list", lambda i: {"logits": [[1.0]]}, "logits must be a torch.Tensor, got list", TypeError),
)
TARGET_BAD = (
    *LOGITS_BAD,
    Bad("target-shape", lambda i: drop(i, "target"), r"target must have shape \(N,\) = \(6,\), got \(5,\)"),
    Bad("target-high", lambda i: {"target": i["target"] + C}, r"target must lie in \[0, C\) = \[0, 7\), got \d+"),
    Bad("target-dtype", lambda i: {"target": i["target"].int()}, "target must .*int64, got torch.int32", TypeError),
    Bad("margin-below", lambda i: {"margin": -0.1}, "margin must be >= 0, got -0.1"),
    Bad("margin-infinite", lambda i: {"margin": math.inf}, "margin must be finite, got inf"),
)
NO_CLASS = Bad("no-class", lambda i: {"logits": torch.zeros(6, 0)}, r"logits must .* C >= 1, got \(6, 0\)")
ADAPTIVE_BAD = (
    *TARGET_BAD,
    Bad(
        "one-class",
        lambda i: {"logits": torch.zeros(6, 1), "target": torch.zeros(6, dtype=torch.int64)},
        r"logits must .* C >= 2, got \(6, 1\)",
    ),
    Bad("lam0-zero", lambda i: {"lam0": 0.0}, "lam0 must be > 0, got 0.0"),
    Bad("lam0-nan", lambda i: {"lam0": math.nan}, "lam0 must be finite, got nan"),
    Bad("alpha-one", lambda i: {"alpha": 1.0}, "alpha must be > 1, got 1.0"),
    Bad("alpha-nan", lambda i: {"alpha": math.nan}, "alpha must be finite, got nan"),
)

LDR_KL_LOSS = Case(
    name="ldr_kl_loss",
    function=losses.ldr_kl_loss,
    reference=dense_ldr,
    make_inputs=ldr_inputs,
    differentiable=("logits",),
    formula=Formula(
        displayed=(
            r"\ell_i = \max_{p \in \Delta_K} \sum_{k=1}^{K} p_k \delta_{ik} - \lambda\, \mathrm{KL}(p \Vert u)"
            "\n"
            r"= \lambda \log \frac{1}{K} \sum_{k=1}^{K} e^{\delta_{ik} / \lambda} , \qquad"
            "\n"
            r"\delta_{ik} = z_{ik} - z_{i y_i} + c\, [k \ne y_i] ,",
        ),
        naive=naive_ldr,
        options=lambda i, g: {"lam": 0.7, "margin": 0.3},
    ),
    bad=(
        *TARGET_BAD,
        Bad("lam-below", lambda i: {"lam": -1.0}, r"lam must lie in \[0, inf\], got -1.0"),
        Bad("lam-nan", lambda i: {"lam": math.nan}, r"lam must lie in \[0, inf\], got nan"),
        Bad("lam-tensor", lambda i: {"lam": torch.ones(6)}, "lam must be a number, got Tensor", TypeError),
    ),
    extreme=extreme_logits,
    options={
        "cold": lambda i, g: {"lam": 0.2, "margin": 0.5},
        "hot": lambda i, g: {"lam": 30.0, "margin": 0.5},
        "hinge": lambda i, g: {"lam": 0.0, "margin": 1.0},
        "symmetric": lambda i, g: {"lam": math.inf, "margin": 0.1},
    },
)

ALDR_KL_LOSS = Case(
    name="aldr_kl_loss",
    function=losses.aldr_kl_loss,
    reference=dense_aldr,
    make_inputs=aldr_inputs,
    differentiable=("logits",),
    formula=Formula(
        displayed=(
            r"\ell_i = \lambda_i \log \frac{1}{K} \sum_{k=1}^{K} e^{\delta_{ik} / \lambda_i}"
            "\n"
            r"- \frac{\alpha \log K}{2 \lambda_0} (\lambda_i - \lambda_0)^2 , \qquad"
            "\n"
            r"\delta_{ik} = z_{ik} - z_{i y_i} + c\, [k \ne y_i] .",
        ),
        naive=naive_aldr,
        options=lambda i, g: {"lam0": 1.5, "alpha": 3.0, "margin": 0.4},
    ),
    bad=(
        *ADAPTIVE_BAD,
        Bad("lam-shape", lambda i: drop(i, "lam"), r"lam must have shape \(N,\) = \(6,\), got \(5,\)"),
        Bad("lam-column", lambda i: {"lam": i["lam"][:, None]}, r"lam must have shape .*, got \(6, 1\)"),
        Bad("lam-zero", lambda i: {"lam": i["lam"] * 0}, "lam must be > 0 and finite, got 0.0"),
        Bad("lam-below", lambda i: {"lam": -i["lam"]}, "lam must be > 0 and finite, got -0"),
        Bad("lam-nan", lambda i: {"lam": i["lam"] * math.nan}, "lam must be > 0 and finite, got nan"),
        Bad("lam-number", lambda i: {"lam": 1.0}, "lam must be a torch.Tensor, got float", TypeError),
        Bad("lam-integer", lambda i: {"lam": i["target"]}, "lam must .*, got torch.int64", TypeError),
    ),
    extreme=extreme_logits,
    options={"hot": lambda i, g: {"lam": i["lam"] * 10, "lam0": 10.0, "alpha": 1.5, "margin": 0.0}},
)

ALDR_KL_MODULE = Case(
    name="ALDRKLLoss",
    function=call_module,
    documented=losses.ALDRKLLoss,
    reference=dense_module,
    make_inputs=module_inputs,
    differentiable=("logits",),
    formula=Formula(
        displayed=(
            r"\ell_i = \lambda_i \log \frac{1}{K} \sum_{k=1}^{K} e^{\delta_{ik} / \lambda_i}"
            "\n"
            r"- \frac{\alpha \log K}{2 \lambda_0} (\lambda_i - \lambda_0)^2 .",
        ),
        naive=naive_module,
        options=lambda i, g: {"lam0": 1.5, "alpha": 3.0, "margin": 0.4},
    ),
    bad=(
        *ADAPTIVE_BAD,
        Bad("index-shape", lambda i: drop(i, "index"), r"index must have shape \(N,\) = \(6,\), got \(5,\)"),
        Bad("index-high", lambda i: {"index": i["index"] + 40}, r"index must lie in \[0, num_samples\) = \[0, 40\)"),
        Bad("index-dtype", lambda i: {"index": i["index"].int()}, "index must .*int64, got torch.int32", TypeError),
    ),
    extreme=extreme_logits,
    compiles=False,
    options={"soft": lambda i, g: {"lam0": 10.0, "alpha": 1.2, "margin": 1.0}},
)

NORMALIZE_SCORES = Case(
    name="normalize_scores",
    function=lambda logits: losses.normalize_scores(logits)[:, 0],
    documented=losses.normalize_scores,
    reference=lambda logits: (functional.softplus(logits) / functional.softplus(logits).mean(1, keepdim=True))[:, 0],
    make_inputs=logit_inputs,
    differentiable=("logits",),
    formula=Formula(
        displayed=(
            r"s_{ik} = \frac{\mathrm{softplus}(z_{ik})}{\frac{1}{K} \sum_{j=1}^{K} \mathrm{softplus}(z_{ij})} ,"
            "\n"
            r"\qquad \mathrm{softplus}(x) = \log(1 + e^x) .",
        ),
        naive=naive_scores,
    ),
    bad=(*LOGITS_BAD, NO_CLASS),
    extreme=extreme_logits,
    reductions=(),
)


def compare_lambda(generator):
    inputs = aldr_inputs(5, torch.float64, generator)
    scores, lam, options = inputs["logits"], inputs["lam"], {"lam0": 1.5, "alpha": 3.0}
    return losses.aldr_kl_lambda(scores, lam, **options), naive_lambda(scores, lam, **options)


CASES = (LDR_KL_LOSS, ALDR_KL_LOSS, ALDR_KL_MODULE, NORMALIZE_SCORES)

DISPLAYS = (
    Display(
        losses.aldr_kl_lambda,
        (
            r"\lambda_i \leftarrow \lambda_0 \Big(1 - \frac{\mathrm{KL}(p_i \Vert u)}{\alpha \log K}\Big) , \qquad"
            "\n"
            r"p_i = \mathrm{softmax}(z_i / \lambda_i) .",
        ),
        compare_lambda,
    ),
)
