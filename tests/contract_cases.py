"""One ``Case`` for each loss and kernel: what ``test_contract.py`` and ``test_docstrings.py`` need to know about it.

To add a loss, append a ``Case`` to ``CASES``.  Needed are the function, a plain-torch reference with the same
arguments, seeded inputs of any batch size, the calls it must refuse, and the formula its docstring displays beside a
naive float64 implementation of that formula.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lossbook import kernels

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """A call that must be refused.

    Attributes:
        name: For the test's id.
        change: Maps good inputs to the arguments that spoil them.
        message: Regular expression for the message, which names the argument and what it got.
        error: Type of the exception.
    """

    name: str
    change: Callable[[Inputs], Inputs]
    message: str
    error: type[Exception] = ValueError


@dataclass(frozen=True)
class Formula:
    """The formulas a docstring displays, and one call to compare them with.

    Attributes:
        displayed: Exact text of each ``.. math::`` block of the docstring, in order.
        naive: The formula in plain Python on float64, written from the displayed text and nothing else; takes the
            inputs and returns one value per example, or a tuple if the call does.
        options: Further arguments for both, made from the inputs and a generator.
    """

    displayed: tuple[str, ...]
    naive: Callable[..., Tensor | tuple[Tensor, ...]]
    options: Callable[[Inputs, torch.Generator], Inputs] = lambda inputs, generator: {}


@dataclass(frozen=True)
class Display:
    """The formulas of a public name that is no loss, and what to compare them with.

    Attributes:
        documented: Whose docstring displays them.
        displayed: As in :class:`Formula`.
        compare: From a generator, what the code computes and what the displayed formula gives.
    """

    documented: Any
    displayed: tuple[str, ...]
    compare: Callable[[torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """One function under the contract.

    Attributes:
        name: Its public name.
        function: The function.
        reference: Plain torch, same arguments, any floating dtype.
        make_inputs: ``make_inputs(n, dtype, generator)`` gives the arguments of one call with ``n`` examples.
        differentiable: Inputs that get a gradient; the first has one row per example.
        formula: The displayed formula and its naive implementation.
        bad: Calls to refuse.
        reductions: Values of ``reduction``; empty if there is no such argument and one value per example comes out.
        options: Further arguments to run everything with, by name.
        extreme: Turns inputs into such with logits of magnitude 1e4.
        empty_mean: Mean over an empty batch.
        ignore_index: Default of ``ignore_index``; None if there is no such argument.
        rowwise: Whether an example's value depends on that example only.
        inductor: Whether to compile with the default backend too, which takes seconds.
        documented: Whose docstring displays the formula, if not that of ``function``.
        compiles: False where the function builds a module, which cannot be compiled; the module's own tests do that.
    """

    name: str
    function: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    make_inputs: Callable[[int, torch.dtype, torch.Generator], Inputs]
    differentiable: tuple[str, ...]
    formula: Formula
    bad: tuple[Bad, ...]
    extreme: Callable[[Inputs], Inputs]
    reductions: tuple[str, ...] = ("mean", "sum", "none")
    options: Mapping[str, Callable[[Inputs, torch.Generator], Inputs]] = field(default_factory=dict)
    empty_mean: float = math.nan
    ignore_index: int | None = None
    rowwise: bool = True
    inductor: bool = False
    documented: Any = None
    compiles: bool = True

    def __post_init__(self):
        object.__setattr__(self, "options", {"default": lambda inputs, generator: {}} | dict(self.options))
        object.__setattr__(self, "documented", self.documented or self.function)


def drop(inputs: Inputs, name: str, dim: int = 0) -> Inputs:
    """One input with the last entry of a dimension cut off: a wrong shape."""
    return {name: inputs[name].narrow(dim, 0, inputs[name].shape[dim] - 1)}


# --- linear head: cut_cross_entropy, linear_logsumexp, indexed_dot ------------------------------------------------

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

CASES = (CUT_CROSS_ENTROPY, LINEAR_LOGSUMEXP, INDEXED_DOT, LINEAR_CROSS_ENTROPY)


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


# --- sparse attention ----------------------------------------------------------------------------------------------

SPARSE_TOKENS = 7


def attention_inputs(generator: torch.Generator, group: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of ``2 * group`` heads, keys and values of two heads, seven tokens and six channels."""
    sizes = (3, 2 * group, 6), (3, 2, SPARSE_TOKENS, 6), (3, 2, SPARSE_TOKENS, 6)
    return tuple(torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)


def naive_attention(q: Tensor, k: Tensor, v: Tensor, tokens: list[int]) -> Tensor:
    """One query head, ``(D,)``, over some rows of its key head, ``(S, D)``."""
    weights = [math.exp(sum(a * b for a, b in zip(q.tolist(), k[t].tolist(), strict=True)) / 6**0.5) for t in tokens]
    return sum(weight * v[t] for weight, t in zip(weights, tokens, strict=True)) / sum(weights)


def naive_heads(q: Tensor, k: Tensor, v: Tensor, tokens: Callable[[int, int], list[int]]) -> Tensor:
    """Every request and query head over the tokens that ``tokens(request, head)`` lists."""
    group = q.shape[1] // k.shape[1]
    heads = [
        [naive_attention(q[b, h], k[b, h // group], v[b, h // group], tokens(b, h)) for h in range(q.shape[1])]
        for b in range(q.shape[0])
    ]
    return torch.stack([torch.stack(row) for row in heads])


def compare_importance(generator):
    q, k = (torch.randn(3, heads, 5, 4, generator=generator, dtype=torch.float64) for heads in (4, 2))
    rows = [
        [
            float((q[:, h, :, c] ** 2).sum() / 15)
            * sum(float(((x - x.sum() / 5) ** 2).sum()) / 5 for x in k[:, h // 2, :, c])
            / 3
            for c in range(4)
        ]
        for h in range(4)
    ]
    return kernels.channel_importance(q, k), torch.tensor(rows, dtype=torch.float64)


def compare_labels(generator):
    _, k, _ = attention_inputs(generator)
    labels = kernels.build_labels(k, torch.tensor([[5, 0, 2], [1, 2, 3]]), 8)
    x = torch.stack([k[:, 0, :, [5, 0, 2]], k[:, 1, :, [1, 2, 3]]], 1)
    zero = x.min(3).values.half()
    step = ((x.max(3).values - zero.double()) / 255).half()
    u = torch.floor((x - zero.double()[..., None]) / step.double()[..., None] + 0.5).clamp(0, 255)
    computed = torch.cat([part.double().flatten() for part in (labels.values, labels.scale, labels.zero)])
    return computed, torch.cat([part.double().flatten() for part in (u, step, zero)])


def compare_scores(generator):
    q, k, _ = attention_inputs(generator)
    channels = torch.tensor([[5, 0, 2], [1, 2, 3]])
    labels = kernels.build_labels(k, channels)
    kinds = ("max", "mean", "maxnorm", "sumsoftmax")
    computed = torch.stack([kernels.approx_scores(q, labels, channels, kind) for kind in kinds])
    expected = torch.empty_like(computed)
    for b in range(3):
        for h in range(2):
            queries = [q[b, 2 * h + g, channels[h]].tolist() for g in range(2)]
            keys = k[b, h][:, channels[h]].tolist()
            p = [[sum(x * y for x, y in zip(one, key, strict=True)) for key in keys] for one in queries]
            norm = [math.sqrt(sum(x * x for x in one)) for one in queries]
            total = [sum(math.exp(x / 6**0.5) for x in row) for row in p]
            for t in range(SPARSE_TOKENS):
                expected[0, b, h, t] = max(p[0][t], p[1][t])
                expected[1, b, h, t] = (p[0][t] + p[1][t]) / 2
                expected[2, b, h, t] = max(p[0][t] / norm[0], p[1][t] / norm[1])
                expected[3, b, h, t] = sum(math.exp(p[g][t] / 6**0.5) / total[g] for g in range(2))
    return computed, expected


def compare_sparse_decode(generator):
    q, k, v = attention_inputs(generator)
    index = torch.tensor([0, 3, 6, -1], dtype=torch.int32).expand(3, 4, 4)
    count = torch.full((3, 4), 3, dtype=torch.int32)
    return kernels.sparse_decode(q, k, v, index, count), naive_heads(q, k, v, lambda b, h: [0, 3, 6])


def compare_dense_decode(generator):
    q, k, v = attention_inputs(generator)
    return kernels.dense_decode(q, k, v), naive_heads(q, k, v, lambda b, h: list(range(SPARSE_TOKENS)))


def compare_double_sparse(generator):
    q, k, v = attention_inputs(generator)
    channels = torch.tensor([[5, 0], [1, 2], [3, 4], [0, 1]])

    def best(b, h):
        scores = [sum(float(q[b, h, c] * k[b, h // 2, t, c]) for c in channels[h]) for t in range(SPARSE_TOKENS)]
        return sorted(sorted(range(SPARSE_TOKENS), key=lambda t: -scores[t])[:3])

    return kernels.double_sparse_decode(q, k, v, channels, budget=3), naive_heads(q, k, v, best)


def compare_decode_bytes(generator):
    measured = kernels.decode_bytes(3, 8, 2, 100, 64, budget=20, r=5, bits=4, share_kv=True, kv_bytes=1)
    dense = 2 * 1 * 3 * 2 * 100 * 64
    total = 3 * 2 * 100 * (3 + 4) + 4 * 3 * 2 * 100 + 2 * 1 * 3 * 2 * 20 * 64
    return torch.tensor([measured["dense"], measured["total"]]), torch.tensor([dense, total])


_SOFTMAX = r"o = \sum_{t%s} \frac{e^{q \cdot k_t / \sqrt{D}}}{\sum_{t'%s} e^{q \cdot k_{t'} / \sqrt{D}}} v_t ."
_LISTED = (r" \in I", r" \in I")

SPARSE_DISPLAYS = (
    Display(
        kernels.channel_importance,
        (
            r"a_c = \frac{1}{B T} \sum_{b,t} q_{btc}^2 \;"
            "\n"
            r"\frac{1}{B} \sum_b \frac{1}{T} \sum_t \Big(k_{btc} - \frac{1}{T} \sum_{t'} k_{bt'c}\Big)^2 .",
        ),
        compare_importance,
    ),
    Display(
        kernels.LabelCache,
        (
            r"z = \min_c x_c , \qquad s = \frac{\max_c x_c - z}{2^b - 1} , \qquad"
            "\n"
            r"u_c = \Big\lfloor \frac{x_c - z}{s} + \frac{1}{2} \Big\rfloor , \qquad x_c \approx s u_c + z ,",
        ),
        compare_labels,
    ),
    Display(
        kernels.approx_scores,
        (
            r"p_{gt} = \sum_{c \in C} q_{gc} L_{tc} , \qquad"
            "\n"
            r"\mathrm{max}_t = \max_g p_{gt} , \qquad"
            "\n"
            r"\mathrm{mean}_t = \frac{1}{G} \sum_g p_{gt} , \qquad"
            "\n"
            r"\mathrm{maxnorm}_t = \max_g \frac{p_{gt}}{\lVert q_{gC} \rVert} , \qquad"
            "\n"
            r"\mathrm{sumsoftmax}_t = \sum_g \frac{e^{p_{gt} / \sqrt{D}}}{\sum_{t'} e^{p_{gt'} / \sqrt{D}}} .",
        ),
        compare_scores,
    ),
    Display(kernels.sparse_decode, (_SOFTMAX % _LISTED,), compare_sparse_decode),
    Display(kernels.dense_decode, (_SOFTMAX % ("=1}^{S", "=1}^{S"),), compare_dense_decode),
    Display(
        kernels.double_sparse_decode,
        (
            r"I = \operatorname*{top}_{k}\, \Big\{ \sum_{c \in C} q_c k_{tc} \Big\}_{t=1}^{S} , \qquad"
            "\n" + _SOFTMAX % _LISTED,
        ),
        compare_double_sparse,
    ),
    Display(
        kernels.decode_bytes,
        (
            r"\mathrm{dense} = 2 \beta B H_{kv} S D , \qquad"
            "\n"
            r"\mathrm{total} = B H S w + 4 B H S + 2 \beta B H \min(k, S) D , \qquad"
            "\n"
            r"w = \lceil r b / 8 \rceil + 4\, [b < 16] .",
        ),
        compare_decode_bytes,
    ),
)


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
    *SPARSE_DISPLAYS,
)
