"""Random features, their readouts, and the height of a peak."""

import torch

from contract.base import Display
from lossbook import metrics, nn

FEATURES, OUTPUTS = 4, 2


def problem(generator):
    return (torch.randn(6, size, generator=generator, dtype=torch.float64) for size in (FEATURES, OUTPUTS))


def compare_features(generator):
    layer = nn.RandomFeatures(3, 5, activation="tanh")
    X = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    rows = [[torch.tanh(w @ x + b) / 5**0.5 for w, b in zip(layer.weight, layer.bias, strict=True)] for x in X]
    return layer(X), torch.tensor(rows, dtype=torch.float64)


def compare_filter(generator):
    rates = 2 * torch.rand(7, generator=generator, dtype=torch.float64)
    return nn.descent_filter(rates, 5), torch.tensor([1 - (1 - r) ** 5 for r in rates.tolist()], dtype=torch.float64)


def in_singular_directions(Z, Y, start, share):
    """The start plus, direction by direction, the given share of what would fit its residual exactly."""
    U, s, Vh = torch.linalg.svd(Z, full_matrices=False)
    readout = start.clone()
    for i in range(len(s)):
        residual = U[:, i] @ (Y - Z @ start)
        readout += share(float(s[i]), float(s[0])) / s[i] * torch.outer(Vh[i], residual)
    return readout


def compare_readout(generator):
    Z, Y = problem(generator)
    start, lr = torch.randn(FEATURES, OUTPUTS, generator=generator, dtype=torch.float64), 0.2
    expected = in_singular_directions(Z, Y, start, lambda s, largest: 1 - (1 - lr * s**2 / 6) ** 7)
    return nn.gd_readout(Z, Y, steps=7, lr=lr, init=start), expected


def compare_preconditioned(generator):
    Z, Y = problem(generator)
    eps = 0.3

    def share(s, largest):
        return 1 - (1 - (1 + eps) * s**2 / (s**2 + eps * largest**2)) ** 7

    expected = in_singular_directions(Z, Y, torch.zeros(FEATURES, OUTPUTS, dtype=torch.float64), share)
    return nn.preconditioned_gd_readout(Z, Y, steps=7, damping=eps), expected


def compare_condition_number(generator):
    Z, _ = problem(generator)
    eigenvalues = torch.linalg.eigvalsh(Z.T @ Z)
    return torch.tensor(nn.condition_number(Z)), (eigenvalues[-1] / eigenvalues[0]).sqrt().float()


def compare_widths(generator):
    nets = nn.WidthSweepMLP(3, [2, 4], 2).double()
    x = torch.randn(3, generator=generator, dtype=torch.float64)
    rows = []
    for b, width in enumerate((2, 4)):
        hidden = torch.relu(nets.weight1[b, :width] @ x + nets.bias1[b, :width])
        rows.append(nets.weight2[b, :, :width] @ hidden + nets.bias2[b])
    return nets(x[None])[:, 0], torch.stack(rows)


def compare_peak(generator):
    sizes, losses = [20, 59, 60, 100, 170, 171, 400], torch.rand(7, generator=generator).tolist()
    expected = max(losses[2:5]) / max(min(losses[:2]), min(losses[5:]))
    return torch.tensor(metrics.peak_height(sizes, losses, 100)), torch.tensor(expected)


_SHARE = r"\frac{1 - (1 - %s)^T}{s_i} \Big]\, U^\top "

DISPLAYS = (
    Display(
        nn.RandomFeatures,
        (
            r"z = \frac{1}{\sqrt{p}}\, \phi(W x + b) , \qquad W_{jk} \sim \mathcal{N}(0, \sigma_w^2) , \quad"
            "\n"
            r"b_j \sim \mathcal{N}(0, \sigma_b^2) .",
        ),
        compare_features,
    ),
    Display(nn.descent_filter, (r"f_i = 1 - (1 - r_i)^T ,",), compare_filter),
    Display(
        nn.gd_readout,
        (r"A_T = A_0 + V\, \mathrm{diag}\Big[ " + _SHARE % r"\eta \lambda_i" + "(Y - Z A_0) .",),
        compare_readout,
    ),
    Display(
        nn.preconditioned_gd_readout,
        (
            r"A_T = V\, \mathrm{diag}\Big[ " + _SHARE % "r_i" + r"Y , \qquad"
            "\n"
            r"r_i = \frac{(1 + \epsilon) \lambda_i}{\lambda_i + \epsilon \lambda_{\max}} .",
        ),
        compare_preconditioned,
    ),
    Display(
        nn.condition_number,
        (r"\kappa(Z) = s_{\max} / s_{\min} , \qquad s_{\min} = s_{\min(n, p)} .",),
        compare_condition_number,
    ),
    Display(
        nn.WidthSweepMLP,
        (r"f_b(x) = W_2^{(b)}\, \mathrm{relu}(W_1^{(b)} x + b_1^{(b)}) + b_2^{(b)}",),
        compare_widths,
    ),
    Display(
        metrics.peak_height,
        (
            r"h = \frac{\max_{an \le p \le bn} L(p)}"
            r"{\max\big(\min_{p < an} L(p),\, \min_{p > bn} L(p)\big)} .",
        ),
        compare_peak,
    ),
)
