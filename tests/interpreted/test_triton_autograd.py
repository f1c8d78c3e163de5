"""How the Triton implementation behaves as a citizen of autograd, autocast and the compiler."""

import pytest
import torch
from cce_reference import logits
from triton_cases import (
    EVERYTHING,
    TOLERANCES,
    Head,
    Outcome,
    assert_close,
    assert_equals_dense,
    head,
    outcome,
    problem,
)

from lossbook.kernels import ImplementationUnavailableError, cut_cross_entropy
from lossbook.kernels.cross_entropy import library
from lossbook.kernels.cross_entropy.triton import backward, engine

SCHEDULES = [
    {},
    {"reduction": "none", "return_lse": True},
    {"reduction": "none", "filter_eps": 2.0**-6},
    {"filter_eps": (2.0**-7, None), "softcap": 5.0, **EVERYTHING},
    {"label_smoothing": 0.1, "z_loss": 0.01, "temperature": 0.7},
]


@pytest.mark.parametrize("filter_eps", [None, 2.0**-6])
@pytest.mark.parametrize("wanted", ["e", "c", "bias", "e+c", "c+bias", "e+bias"])
def test_only_the_requested_gradients_are_computed(wanted, filter_eps, monkeypatch):
    asked = []
    compute = backward.backward_statistics

    def spy(*arguments, **needs):
        asked.append([name for name, need in zip(("e", "c", "bias"), needs.values(), strict=True) if need])
        return compute(*arguments, **needs)

    monkeypatch.setattr(backward, "backward_statistics", spy)
    heads = head()
    for name, leaf in zip(("e", "c", "bias"), heads[:3], strict=True):
        leaf.requires_grad_(name in wanted.split("+"))
    assert_equals_dense(heads, reduction="none", filter_eps=filter_eps)
    assert asked == [wanted.split("+")]


def test_no_gradient_needed_records_no_map(monkeypatch):
    shapes = []
    monkeypatch.setattr(engine.forward, "_keep_all_of_broken_", lambda *arguments: shapes.append(arguments))
    heads = head()
    with torch.no_grad():
        loss = cut_cross_entropy(*heads[:2], heads.target, heads.bias, impl="triton", filter_eps="auto")
    assert not shapes and not loss.requires_grad


@pytest.mark.parametrize("options", SCHEDULES, ids=str)
def test_compiles_into_one_graph(options):
    heads = head(150, 100, 12)

    def objective(e, c, b):
        result = cut_cross_entropy(e, c, heads.target, b, impl="triton", **options)
        return sum(value.sum() for value in result) if isinstance(result, tuple) else result.sum()

    torch._dynamo.reset()
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    results = [
        (value, torch.autograd.grad(value, heads[:3])) for value in (f(*heads[:3]) for f in (objective, compiled))
    ]
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", SCHEDULES, ids=str)
def test_autocast(options):
    heads = head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = outcome(heads, impl="triton", **options)
    rounded = Head(*(value.detach().bfloat16().double().requires_grad_() for value in heads[:3]), heads.target)
    assert all(gradient.dtype == torch.float32 for gradient in got.gradients)
    assert_close(got, outcome(rounded, impl="dense", **options), TOLERANCES[torch.bfloat16])


@pytest.mark.parametrize("options", SCHEDULES, ids=str)
def test_second_derivatives_raise(options):
    heads = head(20, 12, 4)
    result = cut_cross_entropy(*heads[:2], heads.target, heads.bias, impl="triton", **options)
    result = result[0] if isinstance(result, tuple) else result
    (d_c,) = torch.autograd.grad(result.sum(), heads.c, create_graph=True)
    with pytest.raises(RuntimeError, match="impl='dense'"):
        torch.autograd.grad(d_c.sum(), heads.e)


@pytest.mark.parametrize("case", ["plain", "everything", "filtered", "lse", "entropy"])
def test_opcheck_statistics(case):
    heads = head(140, 37, 8)
    arguments = {
        "plain": problem(heads),
        "everything": problem(
            heads._replace(c=heads.c.detach()),
            class_weight=torch.ones(37),
            softcap=3.0,
            eps_e=0.1,
            eps_c=0.2,
            scale=1.5,
            want_mean=True,
            want_argmax=True,
        ),
        "filtered": problem(heads, eps_e=0.01, eps_c=0.1),
        "lse": problem(heads, target=None, bias=None, valid=None),
        "entropy": problem(heads, want_mean=True),
    }[case]
    torch.library.opcheck(library.linear_statistics.overload, arguments)


@pytest.mark.parametrize("needs", [(True, True, True), (True, False, False), (False, True, True)])
def test_opcheck_loss_and_gradients(needs):
    heads = head(140, 37, 8)
    leaves = (value.detach().requires_grad_(need) for value, need in zip(heads[:3], needs, strict=True))
    factor = (heads.target >= 0).float()
    arguments = problem(Head(*leaves, heads.target), class_weight=torch.ones(37))
    torch.library.opcheck(library.linear_loss_and_gradients.overload, (*arguments, factor, factor, factor, *needs))


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_log_sum_exp_alone(softcap):
    heads = head()
    exact = heads.double()
    lse, *_ = library.linear_statistics(*problem(heads, target=None, valid=None, softcap=softcap))
    want = logits(*exact[:3], softcap).logsumexp(1)
    upstream = torch.rand_like(want) + 0.5
    got = Outcome([lse], torch.autograd.grad(lse, heads[:3], upstream.float()), [])
    assert_close(got, Outcome([want], torch.autograd.grad(want, exact[:3], upstream), []), TOLERANCES[torch.float32])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accum_dtype": torch.float64}, "accum_dtype must be torch.float32, got torch.float64"),
        (
            {"dtype": torch.float64},
            "e must have dtype torch.float16, torch.bfloat16 or torch.float32, got torch.float64",
        ),
    ],
    ids=["accum_dtype", "dtype"],
)
def test_what_it_cannot_do(change, message):
    change = dict(change)
    heads = head(dtype=change.pop("dtype", torch.float32))
    with pytest.raises(ImplementationUnavailableError, match=message):
        cut_cross_entropy(*heads[:2], heads.target, impl="triton", **change)
