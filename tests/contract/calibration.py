"""Calibration: the correctness-aware loss, and what the docstrings of its metrics display."""

import math

import torch

from contract.base import Bad, Case, Display, Formula, Inputs, drop
from lossbook import losses, metrics, nn

C = 5


def classifier_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    logits = 2 * torch.randn(n, C, generator=generator, dtype=torch.float64)
    # Two of three answers are right: both kinds occur in any batch of two, and their weights differ.
    answer = logits.to(dtype).argmax(1)
    return {"logits": logits.to(dtype), "target": (answer + (torch.arange(n) % 3 == 1)) % C}


def dense_correctness_aware(logits, target, *, balance=False, reduction="mean"):
    """What a reader would write: the means over right and over wrong answers, half each."""
    confidence, answer = logits.softmax(1).max(1)
    correct = answer == target
    each = torch.where(correct, 1 - confidence, confidence) ** 2
    if balance and correct.any() and not correct.all():
        share = correct.double().mean()
        each = each * torch.where(correct, 0.5 / share, 0.5 / (1 - share)).to(each.dtype)
    return {"mean": each.mean, "sum": each.sum, "none": lambda: each}[reduction]()


def naive_correctness_aware(logits, target, *, balance):
    assert balance
    rows = []
    for z, y in zip(logits.tolist(), target.tolist(), strict=True):
        total = sum(math.exp(z_k) for z_k in z)
        k = max(range(C), key=lambda index, z=z: z[index])
        rows.append((math.exp(z[k]) / total, 1 if k == y else 0))
    right = sum(c for _, c in rows)
    wrong = len(rows) - right
    values = [len(rows) / (2 * (right if c else wrong)) * (p - c) ** 2 for p, c in rows]
    return torch.tensor(values, dtype=torch.float64)


def extreme_logits(inputs: Inputs) -> Inputs:
    """Each row's largest logit gets magnitude 1e4."""
    logits = inputs["logits"]
    return inputs | {"logits": logits * (1e4 / logits.abs().amax(1, keepdim=True))}


CORRECTNESS_AWARE = Case(
    name="correctness_aware_loss",
    function=losses.correctness_aware_loss,
    reference=dense_correctness_aware,
    make_inputs=classifier_inputs,
    differentiable=("logits",),
    formula=Formula(
        displayed=(
            r"\ell_i = w_i \bigl( \hat p_i - c_i \bigr)^2 , \qquad"
            "\n"
            r"\hat p_i = \mathrm{softmax}(z_i)_{k_i} , \qquad"
            "\n"
            r"k_i = \arg\max_k z_{ik} , \qquad"
            "\n"
            r"c_i = \mathbb{1}[k_i = y_i] .",
            r"w_i = \frac{N}{2R} \;\text{ if } c_i = 1, \qquad w_i = \frac{N}{2W} \;\text{ if } c_i = 0,",
        ),
        naive=naive_correctness_aware,
        options=lambda i, g: {"balance": True},
    ),
    bad=(
        Bad("logits-shape", lambda i: {"logits": i["logits"][0]}, r"logits must have shape \(N, C\) .*, got \(5,\)"),
        Bad("logits-integer", lambda i: {"logits": i["logits"].detach().long()}, "logits must .*int64", TypeError),
        Bad(
            "no-class", lambda i: {"logits": i["logits"][:0, :0], "target": i["target"][:0]}, r"logits .*, got \(0, 0\)"
        ),
        Bad("target-shape", lambda i: drop(i, "target"), r"target must have shape \(N,\) = \(6,\), got \(5,\)"),
        Bad("target-dtype", lambda i: {"target": i["target"].int()}, "target must have dtype torch.int64", TypeError),
        Bad("target-high", lambda i: {"target": i["target"] + C}, r"target must lie in \[0, C\) = \[0, 5\), got \d"),
        Bad("target-negative", lambda i: {"target": i["target"] - C}, r"target must lie in \[0, C\) .*, got -\d"),
        Bad("balance-number", lambda i: {"balance": 0.5}, "balance must be a bool, got float 0.5", TypeError),
    ),
    extreme=extreme_logits,
    options={"balance": lambda i, g: {"balance": True}},
)

CASES = (CORRECTNESS_AWARE,)


def answers(generator):
    """Confidences with ties and edges of bins among them, correctness, and both as Python lists."""
    confidence = torch.rand(40, generator=generator, dtype=torch.float64)
    confidence[::4] = torch.randint(11, (10,), generator=generator) / 10
    correct = torch.rand(40, generator=generator) < confidence
    return confidence, correct, list(zip(confidence.tolist(), correct.tolist(), strict=True))


def pair(computed, expected):
    return torch.tensor(computed, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)


def compare_ece(generator):
    confidence, correct, rows = answers(generator)
    total, n = 0.0, 10
    for b in range(1, n + 1):
        inside = [(p, c) for p, c in rows if (b - 1) / n < p <= b / n or (b == 1 and p == 0)]
        total += abs(sum(p - c for p, c in inside)) / len(rows)
    return pair(metrics.expected_calibration_error(confidence, correct, n_bins=n), total)


def compare_ks(generator):
    confidence, correct, rows = answers(generator)
    values = [abs(sum(p - c for p, c in rows if p <= t)) / len(rows) for t, _ in rows]
    return pair(metrics.ks_calibration_error(confidence, correct), max(values))


def compare_brier(generator):
    confidence, correct, rows = answers(generator)
    return pair(metrics.brier_confidence(confidence, correct), sum((p - c) ** 2 for p, c in rows) / len(rows))


def compare_narrowly_wrong(generator):
    logits = torch.randn(200, C, generator=generator, dtype=torch.float64)
    target = torch.randint(C, (200,), generator=generator)
    expected = []
    for z, y in zip(logits.tolist(), target.tolist(), strict=True):
        total = sum(math.exp(z_k) for z_k in z)
        mean = sum(math.exp(z_k) / total * z_k for z_k in z)
        expected.append(z[y] != max(z) and z[y] > mean)
    assert any(expected)
    return metrics.narrowly_wrong(logits, target), torch.tensor(expected)


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def compare_temperature(generator):
    calibrator = nn.TemperatureCalibrator(3, hidden=4, t_min=0.9, t_max=1.1, generator=generator).double()
    f = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    (A, a), (w, b) = ((layer.weight.tolist(), layer.bias.tolist()) for layer in (calibrator.first, calibrator.last))
    s, expected = math.log(math.e - 1), []
    for row in f.tolist():
        hidden = [max(0.0, dot(line, row) + shift) for line, shift in zip(A, a, strict=True)]
        u = dot(w[0], hidden) + b[0]
        expected.append([min(1.1, max(0.9, math.log(1 + math.exp(u + s))))])
    assert {0.9, 1.1} < {t for (t,) in expected}
    return calibrator.temperature(f), torch.tensor(expected, dtype=torch.float64)


DISPLAYS = (
    Display(
        metrics.expected_calibration_error,
        (r"\mathrm{ECE} = \sum_{b=1}^{n} \frac{1}{N} \Bigl| \sum_{i \in B_b} (\hat p_i - c_i) \Bigr| .",),
        compare_ece,
    ),
    Display(
        metrics.ks_calibration_error,
        (r"\mathrm{KS} = \max_{t} \frac{1}{N} \Bigl| \sum_{i : \hat p_i \le t} (\hat p_i - c_i) \Bigr| ,",),
        compare_ks,
    ),
    Display(
        metrics.brier_confidence,
        (r"\mathrm{BS} = \frac{1}{N} \sum_{i=1}^{N} (\hat p_i - c_i)^2 .",),
        compare_brier,
    ),
    Display(
        metrics.narrowly_wrong,
        (
            r"\arg\max_k z_{ik} \ne y_i \quad\text{and}\quad z_{i y_i} > \bar z_i , \qquad"
            "\n"
            r"\bar z_i = \sum_k p_{ik} z_{ik} .",
        ),
        compare_narrowly_wrong,
    ),
    Display(
        nn.TemperatureCalibrator,
        (
            r"u = w \cdot \operatorname{relu}(A f + a) + b , \qquad"
            "\n"
            r"T = \min\bigl(T_{\max}, \max(T_{\min}, \log(1 + e^{u + s}))\bigr) ,",
        ),
        compare_temperature,
    ),
)
