"""Ranking metrics: what their docstrings display."""

import torch

from contract.base import Display
from lossbook import metrics


def labeled(generator):
    """Labels of both classes, scores with ties, and all of it as Python lists."""
    score = torch.randint(8, (30,), generator=generator).double()
    label = torch.tensor([0, 0, 1] * 10)
    return label, score, label.tolist(), score.tolist()


def apart(generator):
    """Scores of positives and negatives."""
    label, score, *_ = labeled(generator)
    return score[label == 1].tolist(), score[label == 0].tolist()


def pair(computed, expected):
    return torch.tensor(computed, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)


def share_of_pairs(pos, neg):
    return sum((p > n) + 0.5 * (p == n) for p in pos for n in neg) / (len(pos) * len(neg))


def compare_auroc(generator):
    label, score, y, s = labeled(generator)
    pos, neg = ([a for a, b in zip(s, y, strict=True) if b == c] for c in (1, 0))
    return pair(metrics.auroc(label, score), share_of_pairs(pos, neg))


def compare_auprc(generator):
    label, score, y, s = labeled(generator)
    area, last = 0.0, 0.0
    for threshold in sorted(set(s), reverse=True):
        fired = [b for a, b in zip(s, y, strict=True) if a >= threshold]
        recall, precision = sum(fired) / sum(y), sum(fired) / len(fired)
        area, last = area + (recall - last) * precision, recall
    return pair(metrics.auprc(label, score), area)


def compare_auroc_from_fpr(generator):
    label, score, y, s = labeled(generator)
    neg = [a for a, b in zip(s, y, strict=True) if b == 0]
    fpr = [sum((n > a) + 0.5 * (n == a) for n in neg) / len(neg) for a, b in zip(s, y, strict=True) if b == 1]
    return pair(metrics.auroc_from_fpr(label, score), 1 - sum(fpr) / len(fpr))


def compare_auprc_from_fpr(generator):
    label, score, y, s = labeled(generator)
    neg = [a for a, b in zip(s, y, strict=True) if b == 0]
    terms = [
        (sum(n >= a for n in neg) / len(neg)) / (sum(x >= a for x in s) / len(s))
        for a, b in zip(s, y, strict=True)
        if b == 1
    ]
    return pair(metrics.auprc_from_fpr(label, score), 1 - len(neg) / len(y) * sum(terms) / len(terms))


def compare_mistakes(generator):
    label = torch.randint(2, (40,), generator=generator)
    score = torch.rand(40, generator=generator, dtype=torch.float64)
    found = metrics.atomic_mistakes(label, score)
    y = [label[i].item() for i in score.argsort(descending=True)]
    ranks = [r for r in range(1, 40) if (y[r - 1], y[r]) == (0, 1)]
    positives = sum(y)
    expected = [(1 / (positives * (40 - positives)), (sum(y[: r - 1]) + 1) / (positives * r * (r + 1))) for r in ranks]
    return pair(list(zip(found.auroc_gain, found.auprc_gain, strict=True)), expected)


def compare_mann_whitney(generator):
    pos, neg = apart(generator)
    return pair(metrics.mann_whitney_auc(pos, neg), share_of_pairs(pos, neg))


def compare_best_f1(generator):
    pos, neg = apart(generator)
    values = []
    for threshold in {*pos, *neg}:
        true, false = (sum(x >= threshold for x in part) for part in (pos, neg))
        values.append(2 * true / (len(pos) + true + false))
    return pair(metrics.best_f1(pos, neg), max(values))


_PAIRS = r"\left( \mathbb{1}[%s > %s] + \tfrac{1}{2} \mathbb{1}[%s = %s] \right) ."

DISPLAYS = (
    Display(
        metrics.auroc,
        (
            "\\mathrm{AUROC} = \\frac{1}{N_+ N_-} \\sum_{i : y_i = 1} \\, \\sum_{j : y_j = 0}\n"
            + _PAIRS % ("s_i", "s_j", "s_i", "s_j"),
        ),
        compare_auroc,
    ),
    Display(
        metrics.auprc,
        (r"\mathrm{AUPRC} = \sum_{t} \left( R_t - R_{t-1} \right) P_t , \qquad R_0 = 0 .",),
        compare_auprc,
    ),
    Display(
        metrics.auroc_from_fpr,
        (
            "\\mathrm{AUROC} = 1 - \\frac{1}{N_+} \\sum_{i : y_i = 1} \\overline{\\mathrm{FPR}}(s_i) , \\qquad\n"
            r"\overline{\mathrm{FPR}}(s) = P(f > s \mid y = 0) + \tfrac{1}{2} P(f = s \mid y = 0) .",
        ),
        compare_auroc_from_fpr,
    ),
    Display(
        metrics.auprc_from_fpr,
        (
            "\\mathrm{AUPRC} = 1 - P(y = 0) \\, \\frac{1}{N_+} \\sum_{i : y_i = 1}\n"
            r"\frac{\mathrm{FPR}(s_i)}{P(f \ge s_i)} , \qquad \mathrm{FPR}(s) = P(f \ge s \mid y = 0) .",
        ),
        compare_auprc_from_fpr,
    ),
    Display(
        metrics.atomic_mistakes,
        (
            "\\Delta \\mathrm{AUROC} = \\frac{1}{N_+ N_-} , \\qquad\n"
            r"\Delta \mathrm{AUPRC} = \frac{k + 1}{N_+ \, r \, (r + 1)} .",
        ),
        compare_mistakes,
    ),
    Display(
        metrics.mann_whitney_auc,
        (
            "\\mathrm{AUC} = \\frac{U}{P M} = \\frac{1}{P M} \\sum_{i=1}^{P} \\sum_{j=1}^{M}\n"
            + _PAIRS % ("s^+_i", "s^-_j", "s^+_i", "s^-_j"),
        ),
        compare_mann_whitney,
    ),
    Display(
        metrics.best_f1,
        (
            "F_1^{*} = \\max_{t} \\frac{2 \\, \\mathrm{TP}(t)}{P + \\mathrm{TP}(t) + \\mathrm{FP}(t)} , \\qquad\n"
            r"\mathrm{TP}(t) = \left|\{i : s^+_i \ge t\}\right| , \quad "
            r"\mathrm{FP}(t) = \left|\{j : s^-_j \ge t\}\right| .",
        ),
        compare_best_f1,
    ),
)
