"""The linear head: cut_cross_entropy, linear_logsumexp, indexed_dot, LinearCrossEntropy and what goes with them."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from contract.base import Bad, Case, Display, Formula, Inputs, drop
from lossbook import kernels

V, D = 11, 5


def head_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    e = torch.randn(n, D, generator=generator, dtype=torch.float64)
    c = torch.randn(V, D, generator=generator, dtype=torch.float64)
    return {"e": e.to(dtype), "c": c.to(dtype)}


def cross_entropy_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    return head_inputs(n, dtype, generator) | {"target": torch.randint(V, (n,), generator=generator)}


def indexed_inputs(n: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    return head_inputs(n, dtype, generator) | {"index": torch.randint(V, (n,), generator=generator)}


def extreme_head(inputs: Inputs) -> Inputs:
    """Scale the hidden states so that each row's largest logit has magnitude 1e4."""
    largest = (inputs["e"] @ inputs["c"].T).abs().amax(1, keepdim=True)
    return inputs | {"e": inputs["e"] * (1e4 / largest)}


def new_bias(inputs: Inputs, generator: torch.Generator) -> Tensor:
    return torch.randn(V, generator=generator, dtype=torch.float64).to(inputs["c"].dtype)


def new_weight(inputs: Inputs, generator: torch.Generator) -> Tensor:
    return (0.5 + torch.rand(V, generator=generator, dtype=torch.float64)).to(inputs["c"].dtype)


def head_logits(e, c, bias=None, softcap=None, temperature=1.0):
    logits = e @ c.T if bias is None else e @ c.T + bias
    return (logits if softcap is None else softcap * torch.tanh(logits / softcap)) / temperature


def dense_cross_entropy(
    e,
    c,
    target,
    bias=None,
    *,
    ignore_index=-100,
    softcap=None,
    temperature=1.0,
    reduction="mean",
    label_smoothing=0.0,
    z_loss=0.0,
    weight=None,
    **without_influence,
):
    """What a model without the kernel would write; the arguments swallowed last change no value."""
    logits = head_logits(e, c, bias, softcap, temperature)
    valid = target != ignore_index
    loss = functional.cross_entropy(
        logits, target, weight, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
    )
    loss = loss + z_loss * logits.logsumexp(1).square() * valid
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / (valid.sum() if weight is None else (weight[target.where(valid, 0)] * valid).sum())


def dense_logsumexp(e, c, bias=None, *, softcap=None):
    return head_logits(e, c, bias, softcap).logsumexp(1)


def dense_indexed_dot(e, c, index):
    return (e * c[index]).sum(1)


def naive_logits(e, c, bias, softcap=None, temperature=1.0):
    """Each z_iv by a Python sum, as a list of lists."""
    rows = []
    for state in e.tolist():
        z = [sum(a * b for a, b in zip(state, entry, strict=True)) for entry in c.tolist()]
        z = z if bias is None else [a + b for a, b in zip(z, bias.tolist(), strict=True)]
        z = z if softcap is None else [softcap * math.tanh(a / softcap) for a in z]
        rows.append([a / temperature for a in z])
    return rows


def naive_logsumexp(e, c, bias=None, *, softcap=None):
    values = [math.log(sum(math.exp(z) for z in row)) for row in naive_logits(e, c, bias, softcap)]
    return torch.tensor(values, dtype=torch.float64)


def naive_indexed_dot(e, c, index):
    rows = zip(e.tolist(), index.tolist(), strict=True)
    values = [sum(e_id * c[x_i, d].item() for d, e_id in enumerate(row)) for row, x_i in rows]
    return torch.tensor(values, dtype=torch.float64)


def naive_losses(z, target, *, label_smoothing=0.0, z_loss=0.0, weight=None):
    w, alpha = [1.0] * V if weight is None else weight.tolist(), label_smoothing
    values = []
    for z_i, x in zip(z, target.tolist(), strict=True):
        lse = math.log(sum(math.exp(z_iv) for z_iv in z_i))
        smooth = alpha / V * sum(w[v] * (lse - z_i[v]) for v in range(V))
        values.append((1 - alpha) * w[x] * (lse - z_i[x]) + smooth + z_loss * lse**2)
    return torch.tensor(values, dtype=torch.float64)


def naive_entropies(z):
    values = []
    for z_i in z:
        lse = math.log(sum(math.exp(z_iv) for z_iv in z_i))
        values.append(-sum(math.exp(z_iv - lse) * math.log(math.exp(z_iv - lse)) for z_iv in z_i))
    return torch.tensor(values, dtype=torch.float64)


def naive_cross_entropy(e, c, target, bias, *, softcap, temperature, return_entropy, **options):
    assert return_entropy
    z = naive_logits(e, c, bias, softcap, temperature)
    return naive_losses(z, target, **options), naive_entropies(z)


HEAD_BAD = (
    Bad("c-width", lambda i: drop(i, "c", 1), r"c must have shape \(V, D\).*, got \(11, 4\)"),
    Bad("c-dims", lambda i: {"c": i["c"][0]}, r"c must have shape .*, got \(5,\)"),
    Bad("c-dtype", lambda i: {"c": i["c"].detach().float()}, r"c must have .*float64.*, got torch.float32"),
    Bad("e-integer", lambda i: {"e": i["e"].detach().long()}, "e must .*, got torch.int64", TypeError),
    Bad("e-list", lambda i: {"e": [1.0]}, "e must be a torch.Tensor, got list", TypeError),
)
TARGET_BAD = (
    Bad("target-shape", lambda i: drop(i, "target"), r"target must have shape .*\(6,\), got \(5,\)"),
    Bad("target-high", lambda i: {"target": i["target"] + V}, r"target must lie in \[0, V\) = \[0, 11\).*, got \d+"),
    Bad("target-negative", lambda i: {"target": i["target"] - V}, r"target must lie in \[0, V\) .*, got -\d+"),
    Bad("target-dtype", lambda i: {"target": i["target"].int()}, "target must .*int64, got torch.int32", TypeError),
)
CROSS_ENTROPY_BAD = (
    Bad("bias-shape", lambda i: {"bias": i["c"][:4, 0]}, r"bias must have shape \(V,\) = \(11,\), got \(4,\)"),
    Bad("weight-shape", lambda i: {"weight": i["c"][:4, 0]}, r"weight must have shape \(V,\) = \(11,\), got \(4,\)"),
    Bad("softcap-zero", lambda i: {"softcap": 0.0}, "softcap must be > 0, got 0.0"),
    Bad("temperature-zero", lambda i: {"temperature": 0.0}, "temperature must be > 0, got 0.0"),
    Bad("filter-zero", lambda i: {"filter_eps": 0.0}, "filter_eps must .*, got 0.0"),
    Bad("filter-word", lambda i: {"filter_eps": "slow"}, "filter_eps must .*, got 'slow'"),
    Bad("smoothing-one", lambda i: {"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
    Bad("smoothing-below", lambda i: {"label_smoothing": -0.1}, r"label_smoothing must lie in \[0, 1\), got -0.1"),
    Bad("shift-negative", lambda i: {"shift": -1}, "shift must .*, got -1"),
    Bad("shift-long", lambda i: {"shift": 6}, "shift must .*, got 6"),
    Bad("impl", lambda i: {"impl": "magic"}, "impl must be one of .*, got 'magic'"),
)

CUT_CROSS_ENTROPY = Case(
    name="cut_cross_entropy",
    function=kernels.cut_cross_entropy,
    reference=dense_cross_entropy,
    make_inputs=cross_entropy_inputs,
    differentiable=("e", "c", "bias"),
    formula=Formula(
        displayed=(
            r"z_{iv} &= \frac{s}{\tau} \tanh\!\big((e_i \cdot c_v + b_v) / s\big), \qquad"
            "\n"
            r"\mathrm{lse}_i = \log \sum_{v=1}^{V} e^{z_{iv}}, \\"
            "\n"
            r"\ell_i &= (1 - \alpha)\, w_{x_i} (\mathrm{lse}_i - z_{i x_i})"
            "\n"
            r"+ \frac{\alpha}{V} \sum_{v=1}^{V} w_v (\mathrm{lse}_i - z_{iv})"
            "\n"
            r"+ \zeta\, \mathrm{lse}_i^2 , \\"
            "\n"
            r"H_i &= -\sum_{v=1}^{V} p_{iv} \log p_{iv} , \qquad p_{iv} = e^{z_{iv} - \mathrm{lse}_i} .",
        ),
        naive=naive_cross_entropy,
        options=lambda i, g: {
            "bias": new_bias(i, g),
            "softcap": 2.0,
            "temperature": 0.6,
            "label_smoothing": 0.3,
            "z_loss": 0.05,
            "weight": new_weight(i, g),
            "return_entropy": True,
        },
    ),
    bad=(*HEAD_BAD, *TARGET_BAD, *CROSS_ENTROPY_BAD),
    extreme=extreme_head,
    ignore_index=-100,
    inductor=True,
    options={
        "bias": lambda i, g: {"bias": new_bias(i, g)},
        "softcap": lambda i, g: {"softcap": 2.0, "bias": new_bias(i, g)},
        "temperature": lambda i, g: {"temperature": 0.7, "softcap": 2.0, "bias": new_bias(i, g)},
        "weight": lambda i, g: {"weight": new_weight(i, g)},
        "label_smoothing": lambda i, g: {"label_smoothing": 0.1},
        "smoothing_softcap_weight": lambda i, g: {"label_smoothing": 0.2, "softcap": 3.0, "weight": new_weight(i, g)},
        "z_loss": lambda i, g: {"z_loss": 0.01},
        "dense": lambda i, g: {"impl": "dense", "bias": new_bias(i, g)},
        "small_chunks": lambda i, g: {"chunk_bytes": 64},
    },
)

LINEAR_LOGSUMEXP = Case(
    name="linear_logsumexp",
    function=kernels.linear_logsumexp,
    reference=dense_logsumexp,
    make_inputs=head_inputs,
    differentiable=("e", "c", "bias"),
    formula=Formula(
        displayed=(r"\mathrm{lse} = \log \sum_{v=1}^{V} e^{z_v} ,",),
        naive=naive_logsumexp,
        options=lambda i, g: {"softcap": 2.0, "bias": new_bias(i, g)},
    ),
    bad=(
        *HEAD_BAD,
        Bad("bias-shape", lambda i: {"bias": i["c"][:4, 0]}, r"bias must have shape \(V,\) = \(11,\), got \(4,\)"),
        Bad("softcap-negative", lambda i: {"softcap": -1.0}, "softcap must be > 0, got -1.0"),
    ),
    extreme=extreme_head,
    reductions=(),
    options={
        "bias": lambda i, g: {"bias": new_bias(i, g)},
        "softcap": lambda i, g: {"softcap": 2.0, "bias": new_bias(i, g)},
    },
)

INDEXED_DOT = Case(
    name="indexed_dot",
    function=kernels.indexed_dot,
    reference=dense_indexed_dot,
    make_inputs=indexed_inputs,
    differentiable=("e", "c"),
    formula=Formula(displayed=(r"o_i = \sum_{d=1}^{D} e_{id}\, c_{x_i d}",), naive=naive_indexed_dot),
    bad=(
        *HEAD_BAD,
        Bad("index-shape", lambda i: drop(i, "index"), r"index must have shape .*\(6,\), got \(5,\)"),
        Bad("index-high", lambda i: {"index": i["index"] + V}, r"index must lie in \[0, V\) = \[0, 11\), got \d+"),
        Bad("index-dtype", lambda i: {"index": i["index"].int()}, "index must .*int64, got torch.int32", TypeError),
    ),
    extreme=extreme_head,
    reductions=(),
)


def call_linear_cross_entropy(e, c, target, bias=None, **options):
    """The module as a function of its parameters; on the meta device it draws no random numbers for its own."""
    head = kernels.LinearCrossEntropy(D, V, bias is not None, device="meta", **options)
    parameters = {"weight": c} if bias is None else {"weight": c, "bias": bias}
    return torch.func.functional_call(head, parameters, (e, target))


LINEAR_CROSS_ENTROPY = Case(
    name="LinearCrossEntropy",
    function=call_linear_cross_entropy,
    documented=kernels.LinearCrossEntropy,
    reference=dense_cross_entropy,
    make_inputs=cross_entropy_inputs,
    differentiable=("e", "c", "bias"),
    formula=Formula(
        displayed=(r"\ell_i = \log \sum_v e^{z_{iv}} - z_{i,x_i} , \qquad z_{iv} = e_i \cdot c_v + b_v .",),
        naive=lambda e, c, target, bias: naive_losses(naive_logits(e, c, bias), target),
        options=lambda i, g: {"bias": new_bias(i, g)},
    ),
    bad=TARGET_BAD,
    extreme=extreme_head,
    ignore_index=-100,
    compiles=False,
    options={"all": lambda i, g: {"bias": new_bias(i, g), "softcap": 2.0, "label_smoothing": 0.1, "z_loss": 0.01}},
)


def compare_sparsity(generator):
    inputs = cross_entropy_inputs(9, torch.float64, generator)
    eps, rows = 0.2, 3
    p = torch.tensor(naive_logits(inputs["e"], inputs["c"], None, None), dtype=torch.float64).softmax(1)
    delta = functional.one_hot(inputs["target"], V)
    kept = [(p - delta)[top : top + rows].abs().max(0).values >= eps for top in range(0, 9, rows)]
    measured = kernels.softmax_sparsity(**inputs, eps=eps, block=(rows, 2))
    return torch.tensor(measured["columns"], dtype=torch.float64), torch.stack(kept).double().mean()


def compare_parallel(generator):
    inputs = head_inputs(6, torch.float64, generator)
    parts = torch.stack([kernels.linear_logsumexp(inputs["e"], part) for part in inputs["c"].split([4, 5, 2])])
    top = parts.max(0).values
    return kernels.linear_logsumexp(**inputs), top + (parts - top).exp().sum(0).log()


def compare_advice(generator):
    """Traffic of a plain loss: six numbers of two bytes moved per logit."""
    rows, columns, features, balance = 128, 1000, 64, 200.0
    advice = kernels.head_advice(rows, columns, features, torch.bfloat16, flops_per_byte=balance)
    moved = 12 * rows * columns
    expected = balance * moved / (2 * rows * columns * features)
    return torch.tensor(advice.costs["dense"].traffic), torch.tensor(expected)


CASES = (CUT_CROSS_ENTROPY, LINEAR_LOGSUMEXP, INDEXED_DOT, LINEAR_CROSS_ENTROPY)

DISPLAYS = (
    Display(
        kernels.softmax_sparsity,
        (r"\max_{i \in B} |p_{iv} - \delta_{iv}| \ge \varepsilon ,",),
        compare_sparsity,
    ),
    Display(
        kernels.VocabParallel,
        (r"\mathrm{lse}_i = M_i + \log \sum_r e^{\mathrm{lse}^{(r)}_i - M_i} .",),
        compare_parallel,
    ),
    Display(kernels.head_advice, (r"\mathrm{traffic} = \frac{\beta\, M}{2 N V D} .",), compare_advice),
)
