"""The contract every loss and kernel keeps, checked for each ``Case`` in ``tests/contract``.

To put a new loss under the contract, add one ``Case`` there; nothing here changes.
"""

import random
import warnings

import numpy as np
import pytest
import torch
from contract import CASES, DISPLAYS, Case

import lossbook.losses
from lossbook.bench.methods import missing_compiler

EXACT = {"rtol": 1e-10, "atol": 1e-12}
N = 6

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def cases_with(predicate):
    return pytest.mark.parametrize("case", [case for case in CASES if predicate(case)], ids=lambda case: case.name)


def every_option(cases):
    pairs = [pytest.param(case, option, id=f"{case.name}-{option}") for case in cases for option in case.options]
    return pytest.mark.parametrize(("case", "option"), pairs)


every_case_and_option = every_option(CASES)


def inputs_of(case: Case, generator, n=N, dtype=torch.float64, option="default", differentiable=None):
    """Arguments of one call, with fresh leaves for the differentiable ones."""
    inputs = case.make_inputs(n, dtype, generator)
    inputs |= case.options[option](inputs, generator)
    return with_leaves(inputs, case.differentiable if differentiable is None else differentiable)


def with_leaves(inputs, names):
    return {
        name: value.detach().clone().requires_grad_(name in names) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }


def leaves(inputs):
    return {name: x for name, x in inputs.items() if isinstance(x, torch.Tensor) and x.requires_grad}


def unreduced(case: Case):
    """The keyword that asks for one value per example, where the function has it."""
    return {"reduction": "none"} if "none" in case.reductions else {}


def run(function, inputs, upstream=None, **keywords):
    """Value and gradients; ``upstream`` is the gradient of the value, drawn at random if it is a generator."""
    value = function(**inputs, **keywords)
    if isinstance(upstream, torch.Generator):
        upstream = torch.randn(value.shape, dtype=torch.float64, generator=upstream)
    upstream = torch.ones_like(value) if upstream is None else upstream.to(value.dtype)
    parts = leaves(inputs)
    gradients = torch.autograd.grad(value, list(parts.values()), upstream)
    return value.detach(), dict(zip(parts, gradients, strict=True)), upstream


def assert_same(ours, theirs, **tolerance):
    (value, gradients), (value_reference, gradients_reference) = ours[:2], theirs[:2]
    torch.testing.assert_close(value, value_reference, **tolerance)
    assert gradients.keys() == gradients_reference.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, gradients_reference[name], **tolerance, msg=lambda text, name=name: f"gradient of {name}: {text}"
        )


def assert_bitwise(ours, theirs):
    assert_same(ours, theirs, rtol=0, atol=0, equal_nan=True)


def as_double(inputs):
    names = leaves(inputs)
    return with_leaves(
        {
            name: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for name, x in inputs.items()
        },
        names,
    )


def is_exception(thing):
    return isinstance(thing, type) and issubclass(thing, BaseException)


def test_every_loss_has_a_case():
    """A name that is no loss, such as an update without a gradient, needs a Display and tests of its own."""
    covered = {case.name for case in CASES} | {shown.documented.__name__ for shown in DISPLAYS}
    names = {name for name in lossbook.losses.__all__ if not is_exception(getattr(lossbook.losses, name))}
    missing = names - covered
    assert not missing, f"add a Case in tests/contract for {sorted(missing)}"


@every_case_and_option
def test_value_and_gradient_equal_the_reference(case, option, generator):
    """Under a random gradient for each example: a uniform one hides wrong per-example gradients."""
    inputs = inputs_of(case, generator, option=option)
    for keywords in [{"reduction": reduction} for reduction in case.reductions] or [{}]:
        ours = run(case.function, inputs, generator, **keywords)
        assert_same(ours, run(case.reference, inputs, ours[2], **keywords), **EXACT)


@cases_with(lambda case: case.reductions)
def test_reductions_agree(case, generator):
    inputs = inputs_of(case, generator)
    each = case.function(**inputs, reduction="none")
    assert each.shape == (case.values * N,)
    torch.testing.assert_close(case.function(**inputs, reduction="sum"), each.sum(), **EXACT)
    torch.testing.assert_close(case.function(**inputs, reduction="mean"), each.mean(), **EXACT)
    torch.testing.assert_close(case.function(**inputs), each.mean(), **EXACT)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_no_worse_than_the_plain_path(case, dtype, generator):
    """The error against float64 stays within that of plain torch in the same dtype, plus one rounding of the result."""
    inputs = inputs_of(case, generator, n=32, dtype=dtype)
    ours = run(case.function, inputs, generator, **unreduced(case))
    exact = run(case.reference, as_double(inputs), ours[2].double(), **unreduced(case))
    plain = run(case.reference, inputs, ours[2], **unreduced(case))
    rounding = torch.finfo(dtype).eps
    for name in ("value", *ours[1]):
        got, want, other = (result[0] if name == "value" else result[1][name] for result in (ours, exact, plain))
        scale = want.norm()
        error, allowed = (got.double() - want).norm() / scale, (other.double() - want).norm() / scale + rounding
        assert error <= allowed, f"{name}: relative error {error:.2e}, plain path with one rounding {allowed:.2e}"
    assert all(gradient.dtype == dtype for gradient in ours[1].values())


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extreme_inputs_stay_finite(case, dtype, generator):
    """Logits of -1e4 and 1e4."""
    inputs = with_leaves(case.extreme(case.make_inputs(N, dtype, generator)), case.differentiable)
    ours = run(case.function, inputs, generator, **unreduced(case))
    assert ours[0].isfinite().all()
    assert all(gradient.isfinite().all() for gradient in ours[1].values())
    exact = run(case.reference, as_double(inputs), ours[2].double(), **unreduced(case))
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else EXACT
    assert_same(ours, exact, **tolerance, check_dtype=False)


@cases_with(lambda case: case.smallest)
def test_too_small_a_batch_is_refused(case, generator):
    for n in range(case.smallest):
        first = case.differentiable[0]
        with pytest.raises(ValueError, match=rf"{first} must have shape .* >= {case.smallest}, got \((?:\d+, )*{n},"):
            case.function(**inputs_of(case, generator, n=n))


@cases_with(lambda case: case.smallest == 0)
@pytest.mark.filterwarnings("ignore::lossbook.losses.NoPositivesWarning")
def test_empty_batch(case, generator):
    inputs = inputs_of(case, generator, n=0)
    value, gradients, _ = run(case.function, inputs, **unreduced(case))
    assert value.shape == (0,)
    assert all((gradient == 0).all() for gradient in gradients.values())
    for reduction, expected in (("sum", 0.0), ("mean", case.empty_mean)):
        if reduction in case.reductions:
            value, gradients, _ = run(case.function, inputs, reduction=reduction)
            torch.testing.assert_close(value, torch.tensor(expected, dtype=value.dtype), equal_nan=True)
            assert all((gradient == 0).all() for gradient in gradients.values())


@cases_with(lambda case: case.smallest <= 1)
def test_batch_of_one(case, generator):
    inputs = inputs_of(case, generator, n=1)
    ours = run(case.function, inputs, generator, **unreduced(case))
    assert ours[0].shape == (case.values,)
    assert_same(ours, run(case.reference, inputs, ours[2], **unreduced(case)), **EXACT)


@every_case_and_option
def test_non_contiguous_inputs(case, option, generator):
    def strided(tensor):
        """The same values behind a stride of two in the last dimension."""
        return tensor.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_(tensor.requires_grad)

    plain = inputs_of(case, generator, option=option)
    spread = {name: strided(x) if isinstance(x, torch.Tensor) else x for name, x in plain.items()}
    assert not any(x.is_contiguous() for x in leaves(spread).values())
    ours = run(case.function, spread, generator, **unreduced(case))
    assert_same(ours, run(case.function, plain, ours[2], **unreduced(case)), **EXACT)


@every_case
def test_each_gradient_alone(case, generator):
    """A frozen input gets no gradient and changes nobody else's."""
    inputs = inputs_of(case, generator)
    together = run(case.function, inputs, generator, **unreduced(case))
    for name in leaves(inputs):
        alone = run(case.function, with_leaves(inputs, {name}), together[2], **unreduced(case))
        torch.testing.assert_close(alone[1][name], together[1][name], **EXACT)


@every_case_and_option
def test_gradcheck(case, option, generator):
    inputs = inputs_of(case, generator, n=3, option=option)
    names = list(leaves(inputs))

    def function(*tensors):
        return case.function(**inputs | dict(zip(names, tensors, strict=True)), **unreduced(case))

    torch.autograd.gradcheck(function, [inputs[name] for name in names], fast_mode=True)


@every_option([case for case in CASES if case.compiles])
def test_compiles_without_a_graph_break(case, option, generator):
    torch.compiler.reset()
    compiled = torch.compile(case.function, fullgraph=True, backend="aot_eager", dynamic=False)
    inputs = inputs_of(case, generator, dtype=torch.float32, option=option)
    for keywords in [{"reduction": reduction} for reduction in case.reductions] or [{}]:
        ours = run(compiled, inputs, generator, **keywords)
        assert_same(ours, run(case.function, inputs, ours[2], **keywords))


@cases_with(lambda case: case.inductor)
@pytest.mark.skipif(missing_compiler() is not None, reason=f"torch.compile {missing_compiler()}")
def test_compiles_with_the_default_backend(case, generator):
    torch.compiler.reset()
    inputs = inputs_of(case, generator, dtype=torch.float32)
    ours = run(torch.compile(case.function, fullgraph=True), inputs, generator)
    assert_same(ours, run(case.function, inputs, ours[2]))


@pytest.mark.parametrize(
    ("case", "bad"),
    [pytest.param(case, bad, id=f"{case.name}-{bad.name}") for case in CASES for bad in case.bad],
)
def test_bad_argument_is_named(case, bad, generator):
    inputs = inputs_of(case, generator)
    with pytest.raises(bad.error, match=bad.message):
        case.function(**inputs | bad.change(inputs))


@cases_with(lambda case: case.reductions)
@pytest.mark.parametrize("reduction", ["median", "", None])
def test_bad_reduction_is_named(case, reduction, generator):
    with pytest.raises(ValueError, match=rf"reduction must be .*, got {reduction!r}"):
        case.function(**inputs_of(case, generator), reduction=reduction)


def global_state():
    return {
        "gradients enabled": torch.is_grad_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "default dtype": torch.get_default_dtype(),
        "random state of torch": torch.get_rng_state().tolist(),
        "random state of numpy": str(np.random.get_state(legacy=False)),  # noqa: NPY002 - the state to protect
        "random state of python": random.getstate(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "warnings filters": list(warnings.filters),
    }


@every_case
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_global_state_is_left_alone(case, mode, generator):
    inputs = inputs_of(case, generator)
    with mode():
        before = global_state()
        value = case.function(**inputs)
        assert global_state() == before
    if mode is torch.enable_grad:
        value.sum().backward()
        assert global_state() == before
    else:
        assert not value.requires_grad


@every_case_and_option
def test_no_warning(case, option, generator):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(case.function, inputs_of(case, generator, option=option), **unreduced(case))


@every_case_and_option
def test_repeats_bitwise(case, option, generator):
    inputs = inputs_of(case, generator, n=40, dtype=torch.float32, option=option)
    first = run(case.function, inputs, generator, **unreduced(case))
    assert_bitwise(first, run(case.function, inputs, first[2], **unreduced(case)))


@every_case
def test_reads_no_uninitialized_memory(case, generator, nan_empty):
    inputs = inputs_of(case, generator)
    for keywords in [{"reduction": reduction} for reduction in case.reductions] or [{}]:
        value, gradients, _ = run(case.function, inputs, generator, **keywords)
        assert all(x.isfinite().all() for x in (value, *gradients.values()))


@every_case_and_option
def test_inputs_are_not_changed(case, option, generator):
    inputs = inputs_of(case, generator, option=option)
    before = {name: x.detach().clone() for name, x in inputs.items() if isinstance(x, torch.Tensor)}
    run(case.function, inputs, generator, **unreduced(case))
    for name, copy in before.items():
        assert torch.equal(inputs[name].detach(), copy), f"{name} was changed"


@cases_with(lambda case: case.rowwise)
def test_a_nan_stays_in_its_row(case, generator):
    inputs = case.make_inputs(N, torch.float64, generator)
    clean = case.function(**inputs, **unreduced(case))
    first = case.differentiable[0]
    inputs[first] = inputs[first].clone()
    inputs[first][2, 0] = torch.nan
    spoiled = case.function(**inputs, **unreduced(case))
    others = torch.arange(N) != 2
    assert spoiled[2].isnan()
    torch.testing.assert_close(spoiled[others], clean[others], **EXACT)


@cases_with(lambda case: case.ignore_index is not None)
def test_ignored_examples_count_as_absent(case, generator):
    """Same value and gradients as without those rows; zero loss and zero gradient in them."""
    inputs = inputs_of(case, generator)
    keep = torch.tensor([True, False, True, True, False, True])
    row = case.differentiable[0]
    for index in (case.ignore_index, 3):
        target = torch.where(inputs["target"] == index, index + 1, inputs["target"])
        ignored = inputs | {"target": target.where(keep, index), "ignore_index": index}
        fewer = with_leaves(inputs | {row: inputs[row][keep], "target": target[keep]}, case.differentiable)
        for reduction in case.reductions:
            ours = run(case.function, ignored, generator, reduction=reduction)
            upstream = ours[2][keep] if reduction == "none" else ours[2]
            expected = run(case.function, fewer, upstream, reduction=reduction)
            value = ours[0][keep] if reduction == "none" else ours[0]
            assert_same((value, ours[1] | {row: ours[1][row][keep]}), expected, **EXACT)
            assert (ours[1][row][~keep] == 0).all()
            assert reduction != "none" or (ours[0][~keep] == 0).all()


@cases_with(lambda case: case.ignore_index is not None)
def test_all_examples_ignored(case, generator):
    inputs = inputs_of(case, generator)
    inputs["target"] = torch.full_like(inputs["target"], case.ignore_index)
    for reduction, expected in (("none", torch.zeros(N)), ("sum", torch.tensor(0.0))):
        value, gradients, _ = run(case.function, inputs, reduction=reduction)
        torch.testing.assert_close(value, expected.double())
        assert all((gradient == 0).all() for gradient in gradients.values())
    value = case.function(**inputs, reduction="mean")
    torch.testing.assert_close(value.detach(), torch.tensor(case.empty_mean, dtype=value.dtype), equal_nan=True)
