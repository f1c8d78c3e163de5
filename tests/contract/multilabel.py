"""Losses and metrics of queries with several right labels, and the soft top-k operator."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from contract.base import Bad, Case, Display, Formula, Inputs, drop
from lossbook import losses, metrics

L = 7


def label_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """A right and a wrong label for every query, and a third of the others right."""
    logits = 2 * torch.randn(n, L, generator=generator, dtype=torch.float64)
    target = torch.rand(n, L, generator=generator) < 1 / 3
    target[:, 1], target[:, 2] = True, False
    return {"logits": logits.to(dtype), "target": target}


def score_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    return {"logits": label_inputs(n, dtype, generator)["logits"]}


def extreme_labels(inputs: Inputs) -> Inputs:
    return inputs | {"logits": 1e4 * inputs["logits"].sign()}


def extreme_scores(inputs: Inputs) -> Inputs:
    """Three scores of 1e4 and four of -1e4 in an order of each row's own: two are let through."""
    order = inputs["logits"].argsort(1)
    return inputs | {"logits": torch.where(order < 3, 1e4, -1e4).to(inputs["logits"].dtype), "k": 2}


def first_row(target: Tensor, value: bool) -> Tensor:
    target = target.clone()
    target[0] = value if len(target) > 1 else target[0]
    return target


def rows_without(value: bool, dtype: torch.dtype, normalize: bool):
    """The first query with all labels right or none, and what ``target`` may hold besides booleans."""
    return lambda i, g: {"target": first_row(i["target"], not value).to(dtype), "normalize": normalize}


TARGETS = {
    "no-right-label": rows_without(True, torch.int32, True),
    "no-wrong-label": rows_without(False, torch.float32, False),
}


def reduced(values: Tensor, reduction: str) -> Tensor:
    return values if reduction == "none" else values.sum() if reduction == "sum" else values.mean()


def over_labels(log_prob, logits, target, normalize, reduction):
    """Minus the sum, or the mean, of ``log_prob(row, right labels, label)`` over the right labels of each row."""
    rows = []
    for s, y in zip(logits, target.bool().tolist(), strict=True):
        right = [j for j in range(L) if y[j]]
        total = sum((-log_prob(s, right, j) for j in right), start=0 * s.sum())
        rows.append(total / max(1, len(right)) if normalize else total)
    return reduced(torch.stack(rows) if rows else logits.sum(1), reduction)


def plain_softmax(logits, target, *, normalize=False, reduction="mean"):
    return over_labels(lambda s, right, j: s[j] - s.logsumexp(0), logits, target, normalize, reduction)


def plain_decoupled(logits, target, *, normalize=True, reduction="mean"):
    def log_q(s, right, j):
        return s[j] - s[[j] + [m for m in range(L) if m not in right]].logsumexp(0)

    return over_labels(log_q, logits, target, normalize, reduction)


def plain_threshold(logits, k, alpha):
    """The threshold by Newton's method from a solution without a gradient: its derivative is the implicit one."""
    x = logits.detach().double()
    total = torch.as_tensor(k).double().expand(len(x))[:, None]
    low, high = -x.amax(1, keepdim=True) - 50 / alpha, -x.amin(1, keepdim=True) + 50 / alpha
    for _ in range(200):
        t = (low + high) / 2
        over = torch.sigmoid(alpha * (x + t)).sum(1, keepdim=True) > total
        low, high = torch.where(over, low, t), torch.where(over, t, high)
    t = t.to(logits.dtype)
    p = torch.sigmoid(alpha * (logits + t))
    slope = (alpha * p * (1 - p)).sum(1, keepdim=True).detach()
    return t - (p.sum(1, keepdim=True) - p.sum(1, keepdim=True).detach()) / slope


def plain_log_p(logits, k=2, alpha=1.0):
    return functional.logsigmoid(alpha * (logits + plain_threshold(logits, k, alpha)))


def plain_soft_topk_loss(logits, target, *, k=2, alpha=1.0, normalize=True, reduction="mean"):
    table = plain_log_p(logits, k, alpha)
    each = -(table * target.bool()).sum(1)
    return reduced(each / target.bool().sum(1).clamp(min=1) if normalize else each, reduction)


def weighted(table: Tensor) -> Tensor:
    """A table as one number per row that tells the columns apart."""
    return (table * torch.arange(1, L + 1)).sum(1)


# Half of the default number of halvings: compiled code unrolls them, and the step after them makes up for the rest.
def weighted_soft_topk(logits, k=2, alpha=1.0):
    return weighted(losses.soft_topk(logits, k, alpha=alpha, num_iter=32))


def weighted_log_soft_topk(logits, k=2, alpha=1.0):
    return weighted(losses.log_soft_topk(logits, k, alpha=alpha, num_iter=32))


def soft_topk_loss(logits, target, *, k=2, **options):
    return losses.soft_topk_loss(logits, target, k=k, **options)


def naive_softmax(logits, target):
    values = []
    for s, y in zip(logits.tolist(), target.tolist(), strict=True):
        values.append(-sum(math.log(math.exp(s[j]) / sum(map(math.exp, s))) for j in range(L) if y[j]))
    return torch.tensor(values, dtype=torch.float64)


def naive_decoupled(logits, target):
    values = []
    for s, y in zip(logits.tolist(), target.tolist(), strict=True):
        wrong = sum(math.exp(s[m]) for m in range(L) if not y[m])
        q = [math.exp(s[j]) / (math.exp(s[j]) + wrong) for j in range(L) if y[j]]
        values.append(-sum(map(math.log, q)) / len(q))
    return torch.tensor(values, dtype=torch.float64)


def naive_p(x: list[float], k: float, alpha: float) -> list[float]:
    low, high = -100.0, 100.0
    for _ in range(200):
        t = (low + high) / 2
        p = [1 / (1 + math.exp(-alpha * (each + t))) for each in x]
        low, high = (low, t) if sum(p) > k else (t, high)
    return p


def naive_weighted(function):
    def weigh(logits, k, alpha):
        rows = [naive_p(x, k, alpha) for x in logits.tolist()]
        values = [sum(c * function(p) for c, p in enumerate(row, start=1)) for row in rows]
        return torch.tensor(values, dtype=torch.float64)

    return weigh


def naive_soft_topk_loss(logits, target, k, alpha):
    values = []
    for x, y in zip(logits.tolist(), target.tolist(), strict=True):
        right = [math.log(p) for p, is_right in zip(naive_p(x, k, alpha), y, strict=True) if is_right]
        values.append(-sum(right) / len(right))
    return torch.tensor(values, dtype=torch.float64)


LOGITS_BAD = (
    Bad("logits-1d", lambda i: {"logits": i["logits"][0]}, r"logits must have shape \(N, L\) = \(\*, \*\), got \(7,\)"),
    Bad("logits-integer", lambda i: {"logits": i["logits"].long()}, "logits must have a floating-point", TypeError),
    Bad("logits-list", lambda i: {"logits": [[1.0]]}, "logits must be a torch.Tensor, got list", TypeError),
)
TARGET_BAD = (
    Bad("target-shape", lambda i: drop(i, "target", 1), r"target must have shape \(N, L\) = \(6, 7\), got \(6, 6\)"),
    Bad("target-indices", lambda i: {"target": i["target"].long() + 1}, "target must be 0 or 1, got 2"),
    Bad("target-half", lambda i: {"target": i["target"] * 0.5}, "target must be 0 or 1, got 0.5"),
    Bad("target-negative", lambda i: {"target": -i["target"].long()}, "target must be 0 or 1, got -1"),
    Bad("target-nan", lambda i: {"target": i["target"] / 0.0}, "target must be 0 or 1, got"),
    Bad("target-list", lambda i: {"target": [0]}, "target must be a torch.Tensor, got list", TypeError),
)
TOPK_BAD = (
    Bad("k-zero", lambda i: {"k": 0}, r"k must lie in \(0, L\) = \(0, 7\), got 0"),
    Bad("k-all", lambda i: {"k": 7}, r"k must lie in \(0, L\) = \(0, 7\), got 7"),
    Bad("k-text", lambda i: {"k": "2"}, "k must be a number, got str", TypeError),
    Bad("k-shape", lambda i: {"k": torch.tensor([1, 2])}, r"k must have shape \(N,\) = \(6,\), got \(2,\)"),
    Bad("k-row", lambda i: {"k": torch.tensor([1, 2, 3, 4, 5, 7])}, r"k must lie in \(0, L\) = \(0, 7\), got 7"),
    Bad("alpha-zero", lambda i: {"alpha": 0.0}, "alpha must be > 0, got 0.0"),
    Bad("alpha-nan", lambda i: {"alpha": math.nan}, "alpha must be finite, got nan"),
)
TOPK_OPTIONS = {
    "sharp": lambda i, g: {"k": 3, "alpha": 2.5},
    "each-row": lambda i, g: {"k": torch.arange(len(i["logits"])) % (L - 1) + 1},
}
_PROBABILITY = (
    "p_{ij} = \\sigma\\bigl( \\alpha (x_{ij} + t_i) \\bigr) , \\qquad \\sum_{j} p_{ij} = k .",
    "\\frac{\\partial p_{ij}}{\\partial x_{il}} =\n"
    "\\alpha \\Bigl( v_{ij} \\mathbb{1}[j = l] - \\frac{v_{ij} v_{il}}{\\sum_{m} v_{im}} \\Bigr) .",
)

CASES = (
    Case(
        name="multilabel_softmax",
        empty_mean=0,
        function=losses.multilabel_softmax,
        reference=plain_softmax,
        make_inputs=label_inputs,
        differentiable=("logits",),
        formula=Formula(
            displayed=("\\ell_i = -\\sum_{j \\in P_i} \\log \\frac{e^{s_{ij}}}{\\sum_{l} e^{s_{il}}} .",),
            naive=naive_softmax,
        ),
        bad=(*LOGITS_BAD, *TARGET_BAD),
        options=TARGETS,
        extreme=extreme_labels,
    ),
    Case(
        name="decoupled_softmax",
        empty_mean=0,
        function=losses.decoupled_softmax,
        reference=plain_decoupled,
        make_inputs=label_inputs,
        differentiable=("logits",),
        formula=Formula(
            displayed=(
                "\\ell_i = -\\frac{1}{|P_i|} \\sum_{j \\in P_i} \\log q_{ij} , \\qquad\n"
                "q_{ij} = \\frac{e^{s_{ij}}}{e^{s_{ij}} + \\sum_{l \\notin P_i} e^{s_{il}}} .",
            ),
            naive=naive_decoupled,
        ),
        bad=(*LOGITS_BAD, *TARGET_BAD),
        options=TARGETS,
        extreme=extreme_labels,
        inductor=True,
    ),
    Case(
        name="soft_topk",
        function=weighted_soft_topk,
        reference=lambda logits, k=2, alpha=1.0: weighted(plain_log_p(logits, k, alpha).exp()),
        make_inputs=score_inputs,
        differentiable=("logits",),
        formula=Formula(
            displayed=_PROBABILITY,
            naive=naive_weighted(lambda p: p),
            options=lambda i, g: {"k": 2.5, "alpha": 0.7},
        ),
        bad=(*LOGITS_BAD, *TOPK_BAD),
        options=TOPK_OPTIONS,
        extreme=extreme_scores,
        reductions=(),
        documented=losses.soft_topk,
    ),
    Case(
        name="log_soft_topk",
        function=weighted_log_soft_topk,
        reference=lambda logits, k=2, alpha=1.0: weighted(plain_log_p(logits, k, alpha)),
        make_inputs=score_inputs,
        differentiable=("logits",),
        formula=Formula(
            displayed=(
                "\\log p_{ij} = -\\log \\bigl( 1 + e^{-\\alpha (x_{ij} + t_i)} \\bigr) , "
                "\\qquad \\sum_{j} p_{ij} = k .",
            ),
            naive=naive_weighted(math.log),
            options=lambda i, g: {"k": 2.5, "alpha": 0.7},
        ),
        bad=(*LOGITS_BAD, *TOPK_BAD),
        options=TOPK_OPTIONS,
        extreme=extreme_scores,
        reductions=(),
        documented=losses.log_soft_topk,
    ),
    Case(
        name="soft_topk_loss",
        empty_mean=0,
        function=soft_topk_loss,
        reference=plain_soft_topk_loss,
        make_inputs=label_inputs,
        differentiable=("logits",),
        formula=Formula(
            displayed=("\\ell_i = -\\frac{1}{|P_i|} \\sum_{j \\in P_i} \\log p_{ij} .",),
            naive=naive_soft_topk_loss,
            options=lambda i, g: {"k": 3, "alpha": 1.3},
        ),
        bad=(*LOGITS_BAD, *TARGET_BAD, *TOPK_BAD),
        extreme=extreme_scores,
        documented=losses.soft_topk_loss,
    ),
)


def ranked_labels(generator):
    """Scores, right labels, and the right labels in the order of the scores; the first query has none."""
    scores = torch.rand(8, 11, generator=generator, dtype=torch.float64)
    target = torch.rand(8, 11, generator=generator) < 0.3
    target[0] = False
    rows = zip(scores.tolist(), target.tolist(), strict=True)
    return scores, target, [[y for _, y in sorted(zip(s, y, strict=True), reverse=True)] for s, y in rows]


def compare_precision(generator):
    scores, target, ranked = ranked_labels(generator)
    expected = sum(sum(row[:3]) / 3 for row in ranked) / len(ranked)
    return metrics.multilabel_precision_at_k(scores, target, 3).double(), as_float32(expected)


def compare_recall(generator):
    scores, target, ranked = ranked_labels(generator)
    shares = [sum(row[:3]) / sum(row) for row in ranked if any(row)]
    return metrics.multilabel_recall_at_k(scores, target, 3).double(), as_float32(sum(shares) / len(shares))


def as_float32(value: float) -> Tensor:
    """The metrics round to torch's default dtype at the end."""
    return torch.tensor(value).double()


DISPLAYS = (
    Display(
        metrics.multilabel_precision_at_k,
        (r"\mathrm{P}_k = \frac{1}{N} \sum_{i=1}^{N} \frac{1}{k} \sum_{j \in K_i} y_{ij} .",),
        compare_precision,
    ),
    Display(
        metrics.multilabel_recall_at_k,
        (r"\mathrm{R}_k = \frac{1}{|Q|} \sum_{i \in Q} \frac{\sum_{j \in K_i} y_{ij}}{\sum_{j} y_{ij}} .",),
        compare_recall,
    ),
)
