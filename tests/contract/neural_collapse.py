"""Neural collapse: the formulas that the metrics NC1 to NC4 and the unconstrained feature model display."""

import math

import torch
from torch import Tensor

from contract.base import Display
from lossbook import metrics, nn

N, K, D = 12, 3, 4


def sample(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, labels with every class, a classifier and a bias."""
    labels = torch.arange(N) % K
    shapes = ((N, D), (K, D), (K,))
    features, weights, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return features, labels, weights, bias


def means_of(features: Tensor, labels: Tensor) -> list[Tensor]:
    return [
        sum(h for h, y in zip(features, labels, strict=True) if y == k) / int((labels == k).sum()) for k in range(K)
    ]


def value(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64)


def compare_nc1(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    features, labels, _, _ = sample(generator)
    m = means_of(features, labels)
    center = sum(m) / K
    within = sum(torch.outer(h - m[y], h - m[y]) for h, y in zip(features, labels, strict=True)) / N
    between = sum(torch.outer(m_k - center, m_k - center) for m_k in m) / K
    return value(metrics.nc1(features, labels)), torch.trace(within @ torch.linalg.pinv(between)) / K


def scaled_distance(product: list[list[float]], ideal: list[list[float]]) -> Tensor:
    def norm(matrix):
        return math.sqrt(sum(x * x for row in matrix for x in row))

    a, t = norm(product), norm(ideal)
    return value(
        norm([[x / a - y / t for x, y in zip(*rows, strict=True)] for rows in zip(product, ideal, strict=True)])
    )


def simplex() -> list[list[float]]:
    return [[(i == j) - 1 / K for j in range(K)] for i in range(K)]


def compare_nc2(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    _, _, rows, _ = sample(generator)
    gram = [[float(a @ b) for b in rows] for a in rows]
    return value(metrics.nc2(rows)), scaled_distance(gram, simplex())


def compare_nc3(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    features, _, rows, _ = sample(generator)
    lengths = [1.0, 2.0, 5.0]
    product = [[float(a @ b) for b in features[:K]] for a in rows]
    ideal = [[lengths[i] * (i == j) for j in range(K)] for i in range(K)]
    return value(metrics.nc3(rows, features[:K], "gof", lengths)), scaled_distance(product, ideal)


def compare_nc4(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    features, labels, weights, bias = sample(generator)
    m = means_of(features, labels)
    wrong = 0
    for h in features:
        scores = [float(weights[k] @ h + bias[k]) for k in range(K)]
        distances = [float((h - m[k]).norm()) for k in range(K)]
        wrong += scores.index(max(scores)) != distances.index(min(distances))
    return value(metrics.nc4(features, labels, weights, bias)), value(wrong / N)


def compare_threshold(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    depths = (1, 2, 3, 7)
    expected = [1.0, *((depth - 1) ** ((depth - 1) / depth) / depth**2 for depth in depths[1:])]
    return value([nn.collapse_threshold(depth) for depth in depths]), value(expected)


def compare_geometry(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The lengths, and the strengths as minima of the displayed problem: no point of a fine grid is lower."""
    counts, lambda_w, lambda_h = [40, 9, 3], [0.02, 0.05], 0.03
    found = nn.ufm_mse_geometry(counts, lambda_w, lambda_h)
    samples, depth, mean = sum(counts), 2, (0.02 * 0.05 * 0.03) ** (1 / 3)

    def misfit(z, count):
        return (z - math.sqrt(count)) ** 2 / (2 * samples) + (depth + 1) / 2 * mean * z ** (2 / (depth + 1))

    ours, expected = [], []
    for k, (z, count) in enumerate(zip(found.singular_values.tolist(), counts, strict=True)):
        least = min(misfit(math.sqrt(count) * step / 20000, count) for step in range(20001))
        ours += [min(misfit(z, count), least), found.weight_sq_norms[k], found.feature_sq_norms[k]]
        paid = mean * z ** (2 / (depth + 1))
        expected += [misfit(z, count), paid / lambda_w[-1], paid / (lambda_h * count)]
    return value(ours), value(expected)


def compare_margin(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    classes, per_class, decays = 4, 6, (0.004, 0.002, 0.003)
    mean, power = (0.004 * 0.002 * 0.003) ** (1 / 3), 2 / 3

    def misfit(c):
        fit = math.log(1 + (classes - 1) * math.exp(-c))
        return fit + 1.5 * mean * (classes - 1) * (c * math.sqrt(per_class)) ** power

    found = misfit(nn.ufm_ce_margin(classes, per_class, decays[:2], decays[2]))
    return value(found), value(min(found, *(misfit(step / 1000) for step in range(20000))))


def compare_objective(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    model = nn.UnconstrainedFeatureModel([3, 2], 4, lambda_w=[0.1, 0.2], lambda_h=0.3, bias=True)
    model.bias.data.copy_(torch.tensor([0.5, -0.25]))
    h, (first, second), b = model.features.detach().T, [w.detach() for w in model.weights], model.bias.detach()
    onehot = value([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]])
    z = second @ first @ h + b[:, None] @ torch.ones(1, 5, dtype=torch.float64)
    penalty = 0.1 / 2 * (first**2).sum() + 0.2 / 2 * (second**2).sum() + 0.3 / 2 * (h**2).sum()
    return model.objective().detach(), ((z - onehot) ** 2).sum() / (2 * 5) + penalty


DISPLAYS = (
    Display(
        metrics.nc1,
        (
            r"\mathrm{NC1} = \frac{1}{K} \operatorname{tr}(S_W S_B^{+}) , \quad"
            "\n"
            r"S_W = \frac{1}{N} \sum_{i=1}^{N} (h_i - m_{y_i})(h_i - m_{y_i})^\top , \quad"
            "\n"
            r"S_B = \frac{1}{K} \sum_{k=1}^{K} (m_k - \bar m)(m_k - \bar m)^\top .",
        ),
        compare_nc1,
    ),
    Display(
        metrics.nc2,
        (
            r"\mathrm{NC2} = \left\lVert \frac{A A^\top}{\lVert A A^\top \rVert_F}"
            "\n"
            r"- \frac{T}{\lVert T \rVert_F} \right\rVert_F .",
        ),
        compare_nc2,
    ),
    Display(
        metrics.nc3,
        (
            r"\mathrm{NC3} = \left\lVert \frac{W A^\top}{\lVert W A^\top \rVert_F}"
            "\n"
            r"- \frac{T}{\lVert T \rVert_F} \right\rVert_F .",
        ),
        compare_nc3,
    ),
    Display(
        metrics.nc4,
        (
            r"\mathrm{NC4} = \frac{1}{N} \sum_{i=1}^{N} \mathbb{1}\Bigl[ \arg\max_k \, (w_k \cdot h_i + b_k)"
            "\n"
            r"\ne \arg\min_k \lVert h_i - m_k \rVert \Bigr]",
        ),
        compare_nc4,
    ),
    Display(
        nn.collapse_threshold,
        (r"\tau_M = \frac{(M - 1)^{(M - 1)/M}}{M^2} , \qquad \tau_1 = 1 .",),
        compare_threshold,
    ),
    Display(
        nn.ufm_mse_geometry,
        (
            r"z_k = \arg\min_{z \ge 0} \; \frac{(z - \sqrt{n_k})^2}{2 N} + \frac{M + 1}{2} \Lambda z^{2/(M+1)} ,",
            r"\lVert w_k \rVert^2 = \frac{\Lambda z_k^{2/(M+1)}}{\lambda_{W_M}} , \qquad"
            "\n"
            r"\lVert h_k \rVert^2 = \frac{\Lambda z_k^{2/(M+1)}}{\lambda_H n_k} .",
        ),
        compare_geometry,
    ),
    Display(
        nn.ufm_ce_margin,
        (
            r"c = \arg\min_{c \ge 0} \; \log\bigl(1 + (K - 1) e^{-c}\bigr)"
            "\n"
            r"+ \frac{M + 1}{2} \Lambda (K - 1) (c \sqrt{n})^{2/(M+1)} .",
        ),
        compare_margin,
    ),
    Display(
        nn.UnconstrainedFeatureModel,
        (
            r"\frac{1}{2N} \lVert Z - Y \rVert_F^2 + \sum_{m=1}^{M} \frac{\lambda_{W_m}}{2} \lVert W_m \rVert_F^2"
            "\n"
            r"+ \frac{\lambda_H}{2} \lVert H \rVert_F^2 ,",
        ),
        compare_objective,
    ),
)
