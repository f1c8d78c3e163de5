"""How the op behaves as a citizen of autograd, autocast and the compiler."""

import pytest
import torch
import torch.nn.functional as F
from cce_reference import gradients, make, naive, relative
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from lossbook.kernels import cut_cross_entropy, indexed_dot, linear_logsumexp
from lossbook.kernels.cross_entropy import library, logsumexp
from lossbook.kernels.cross_entropy.engines import TorchEngine
from lossbook.kernels.cross_entropy.problem import Problem

REDUCTIONS = ["mean", "none"]  # gradients in the forward pass, and two passes


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("wanted", ["e", "c", "bias", "e c", "c bias", "e bias"])
def test_only_the_requested_gradients_are_computed(wanted, reduction):
    e, c, b, target = make(bias=True)
    leaves = {"e": e, "c": c, "bias": b}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name in wanted.split())
    cut_cross_entropy(e, c, target, b, reduction=reduction).sum().backward()
    expected = dict(zip(leaves, _all_gradients(reduction), strict=True))
    for name, leaf in leaves.items():
        if name in wanted.split():
            assert relative([leaf.grad], [expected[name]]) < 1e-12
        else:
            assert leaf.grad is None


def _all_gradients(reduction):
    e, c, b, target = make(bias=True)
    return gradients(naive(e, c, target, b, reduction=reduction).sum(), e, c, b)


def test_no_gradient_needed_computes_none(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("gradients were computed although none is needed")

    monkeypatch.setattr(TorchEngine, "loss_and_gradients", fail)
    e, c, _, target = make()
    with torch.no_grad():
        loss = cut_cross_entropy(e, c, target)
    assert not loss.requires_grad
    assert not cut_cross_entropy(e.detach(), c.detach(), target).requires_grad
    torch.testing.assert_close(loss, naive(e, c, target).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_two_backward_passes(reduction):
    e, c, _, target = make()
    loss = cut_cross_entropy(e, c, target, reduction=reduction).sum()
    (first,) = torch.autograd.grad(loss, c, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(3 * loss, c)
    assert torch.equal(first, kept)
    torch.testing.assert_close(second, 3 * kept, rtol=1e-11, atol=1e-13)


def test_accumulating_backward_passes():
    e, c, _, target = make()
    loss = cut_cross_entropy(e, c, target)
    loss.backward(retain_graph=True)
    once = c.grad.clone()
    (loss / 2).backward()
    torch.testing.assert_close(c.grad, 1.5 * once, rtol=1e-14, atol=0)
    assert relative([once], torch.autograd.grad(naive(e, c, target), c)) < 1e-12


def test_gradients_from_the_forward_are_handed_over_without_a_copy(monkeypatch):
    addresses = []
    compute = TorchEngine.loss_and_gradients

    def spy(*args, **kwargs):
        loss, computed = compute(*args, **kwargs)
        addresses.append(computed.c.data_ptr())
        return loss, computed

    monkeypatch.setattr(TorchEngine, "loss_and_gradients", spy)
    e, c, _, target = make()
    (cut_cross_entropy(e, c, target) / 4).backward()
    assert [c.grad.data_ptr()] == addresses


@pytest.mark.parametrize(
    "loss",
    [
        lambda e, c, b, t: cut_cross_entropy(e, c, t, b),
        lambda e, c, b, t: cut_cross_entropy(e, c, t, b, reduction="none").sum() * e.sum(),
        lambda e, c, b, t: cut_cross_entropy(e, c, t, b, return_lse=True)[1].sum(),
        lambda e, c, b, t: cut_cross_entropy(e, c, t, b, return_entropy=True)[1].sum(),
        lambda e, c, b, t: linear_logsumexp(e, c, b).sum(),
        lambda e, c, b, t: indexed_dot(e, c, t).sum(),
    ],
)
def test_second_derivatives_raise(loss):
    e, c, b, target = make(20, 7, 3, bias=True, ignored=0)
    (d_c,) = torch.autograd.grad(loss(e, c, b, target), c, create_graph=True)
    with pytest.raises(RuntimeError, match="impl='dense'"):
        torch.autograd.grad(d_c.sum(), e)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_penalty_through_backward_raises(reduction):
    e, c, _, target = make(20, 7, 3)
    cut_cross_entropy(e, c, target, reduction=reduction).sum().backward(create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        e.grad.square().sum().backward()


def test_dense_is_differentiable_twice():
    e, c, b, target = make(4, 5, 3, bias=True, ignored=3)
    options = {"softcap": 2.0, "temperature": 0.7, "label_smoothing": 0.1, "z_loss": 0.1, "return_entropy": True}
    assert torch.autograd.gradgradcheck(
        lambda e, c, b: cut_cross_entropy(e, c, target, b, impl="dense", **options), (e, c, b)
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_autocast(reduction):
    e, c, b, target = make(bias=True, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cut_cross_entropy(e, c, target, b, reduction=reduction)
        plain = F.cross_entropy(F.linear(e, c, b).float(), target, reduction=reduction)
    assert loss.dtype == torch.float32
    low = [value.detach().bfloat16().requires_grad_() for value in (e, c, b)]
    explicit = cut_cross_entropy(low[0], low[1], target, low[2], reduction=reduction)
    assert torch.equal(loss, explicit)
    got = gradients(loss.sum(), e, c, b)
    assert all(grad.dtype == torch.float32 for grad in got)
    exact = gradients(naive(e, c, target, b, reduction=reduction).sum(), e, c, b)
    assert relative(got, exact) <= relative(gradients(plain.sum(), e, c, b), exact)


def test_backward_inside_autocast():
    e, c, _, target = make(dtype=torch.float32)
    with torch.autocast("cpu"):
        (inside,) = torch.autograd.grad(cut_cross_entropy(e, c, target, reduction="none").sum(), c)
        loss = cut_cross_entropy(e, c, target, reduction="none").sum()
    (outside,) = torch.autograd.grad(loss, c)
    assert torch.equal(inside, outside)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "none"},
        {"return_lse": True},
        {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0},
        {"shift": 2, "filter_eps": "fast"},
        {"temperature": 0.7},
        {"temperature": 0.7, "return_entropy": True, "return_argmax": True},
        {"temperature": 0.7, "return_entropy": True, "return_argmax": True, "impl": "dense"},
        {"impl": "dense"},
        {"impl": "dense", "filter_eps": 0.01},
    ],
    ids=str,
)
def test_compiles_into_one_graph(options):
    e, c, b, target = make(bias=True, dtype=torch.float32)

    def objective(e, c, b):
        result = cut_cross_entropy(e, c, target, b, **options)
        return sum(value.sum() for value in result) if isinstance(result, tuple) else result.sum()

    torch._dynamo.reset()
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    expected, got = objective(e, c, b), compiled(e, c, b)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    assert relative(gradients(got, e, c, b), gradients(expected, e, c, b)) < 1e-6


def test_compiles_with_the_default_backend():
    e, c, b, target = make(bias=True, dtype=torch.float32)

    def objective(e, c, b):
        return cut_cross_entropy(e * 2, c, target, b) + linear_logsumexp(e, c).mean()

    torch._dynamo.reset()
    got = torch.compile(objective, fullgraph=True)(e, c, b)
    expected = objective(e, c, b)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
    assert relative(gradients(got, e, c, b), gradients(expected, e, c, b)) < 1e-5


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_checkpointing_and_offloading(reduction):
    e, c, _, target = make()

    def objective(e, c):
        return cut_cross_entropy(e, c, target, reduction=reduction).sum()

    expected = gradients(naive(e, c, target, reduction=reduction).sum(), e, c)
    recomputed = checkpoint(objective, e, c, use_reentrant=False)
    assert relative(gradients(recomputed, e, c), expected) < 1e-12
    with torch.autograd.graph.save_on_cpu():
        offloaded = objective(e, c)
    assert relative(gradients(offloaded, e, c), expected) < 1e-12
    with torch.inference_mode():
        torch.testing.assert_close(objective(e, c), offloaded.detach())


def test_torch_func_takes_the_dense_path():
    e, c, _, target = make()
    got = torch.func.grad(lambda e, c: cut_cross_entropy(e, c, target, impl="dense"), argnums=(0, 1))(e, c)
    assert relative(got, gradients(naive(e, c, target), e, c)) < 1e-12


def test_fake_tensors():
    with FakeTensorMode():
        e, c = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
        target = torch.zeros(4, dtype=torch.int64)
        results = cut_cross_entropy(
            e, c, target, reduction="none", return_lse=True, return_entropy=True, return_argmax=True
        )
        assert all(value.shape == (4,) for value in results)
        assert [value.dtype for value in results] == [torch.float32] * 3 + [torch.int64]
        cut_cross_entropy(e, c, target).backward()
        assert c.grad.shape == (9, 8)


def _problem(e, c, b, target, **changes):
    plain = Problem(e, c, b, target, None, None, None, None, None, torch.float32, 1 << 20, 1.0, False, False, "torch")
    return plain._replace(**changes)


@pytest.mark.parametrize("case", ["plain", "everything", "lse", "entropy", "argmax"])
def test_opcheck_statistics(case):
    e, c, b, target = make(40, 37, 8, bias=True, dtype=torch.float32)
    arguments = {
        "plain": _problem(e, c, b, target, valid=target >= 0),
        "everything": _problem(
            e,
            c.detach(),
            b,
            target,
            valid=target >= 0,
            class_weight=torch.ones(37),
            softcap=3.0,
            eps_e=0.1,
            eps_c=0.2,
            scale=1.5,
            want_mean=True,
            want_argmax=True,
        ),
        "lse": _problem(e, c, None, None),
        "entropy": _problem(e, c, b, target, want_mean=True),
        "argmax": _problem(e, c, b, target, want_argmax=True),
    }[case]
    torch.library.opcheck(library.linear_statistics.overload, arguments)


@pytest.mark.parametrize("needs", [(True, True, True), (True, False, False)])
def test_opcheck_loss_and_gradients(needs):
    e, c, b, target = make(40, 37, 8, bias=True, dtype=torch.float32)
    e, c, b = (value.detach().requires_grad_(need) for value, need in zip((e, c, b), needs, strict=True))
    factor = (target >= 0).float()
    problem = _problem(e, c, b, target, valid=target >= 0, class_weight=torch.ones(37))
    torch.library.opcheck(library.linear_loss_and_gradients.overload, (*problem, factor, factor, factor, *needs))


def test_opcheck_indexed_dot():
    e, c, _, target = make(40, 37, 8, dtype=torch.float32, ignored=0)
    torch.library.opcheck(logsumexp._indexed_dot.overload, (e, c, target))
