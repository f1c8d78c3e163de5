"""Bad arguments: the error names the argument, what was expected and what came."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor

from lossbook.kernels import (
    ImplementationUnavailableError,
    LinearCrossEntropy,
    VocabParallel,
    _implementations,
    cut_cross_entropy,
    indexed_dot,
    linear_logsumexp,
)
from lossbook.kernels.cross_entropy import arguments

E, C, TARGET, BIAS = torch.zeros(2, 4, 3), torch.zeros(7, 3), torch.zeros(2, 4, dtype=torch.int64), torch.zeros(7)


def call(e=E, c=C, target=TARGET, bias=None, **options):
    return cut_cross_entropy(e, c, target, bias, **options)


def with_target(value):
    target = TARGET.clone()
    target[1, 2] = value
    return target


VALUE_ERRORS = [
    ({"c": torch.zeros(7, 4)}, r"c must have shape \(V, D\) = \(\*, 3\), got \(7, 4\)"),
    ({"c": torch.zeros(7)}, r"c must have shape \(V, D\) = \(\*, 3\), got \(7,\)"),
    ({"c": torch.zeros(0, 3)}, r"c must have at least one row, got shape \(0, 3\)"),
    ({"e": torch.zeros(())}, r"e must have shape \(..., D\), got \(\)"),
    ({"target": TARGET[0]}, r"target must have shape e.shape\[:-1\] = \(2, 4\), got \(4,\)"),
    ({"bias": torch.zeros(6)}, r"bias must have shape \(V,\) = \(7,\), got \(6,\)"),
    ({"weight": torch.zeros(7, 1)}, r"weight must have shape \(V,\) = \(7,\), got \(7, 1\)"),
    ({"c": C.double()}, r"c must have the dtype of e, torch.float32, got torch.float64"),
    ({"bias": BIAS.half()}, r"bias must have the dtype of e, torch.float32, got torch.float16"),
    ({"c": C.to("meta")}, r"c must be on the device of e, cpu, got meta"),
    ({"target": TARGET.to("meta")}, r"target must be on the device of e, cpu, got meta"),
    ({"weight": BIAS.to("meta")}, r"weight must be on the device of e, cpu, got meta"),
    ({"target": with_target(7)}, r"target must lie in \[0, V\) = \[0, 7\) or equal ignore_index = -100, got 7"),
    ({"target": with_target(-1)}, r"target must lie in \[0, V\) = \[0, 7\) or equal ignore_index = -100, got -1"),
    ({"target": with_target(-100), "ignore_index": 2}, r"or equal ignore_index = 2, got -100"),
    ({"reduction": "avg"}, r"reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
    ({"impl": "cuda"}, r"impl must be one of 'auto', 'torch', 'triton', 'dense', got 'cuda'"),
    ({"softcap": 0.0}, r"softcap must be > 0, got 0.0"),
    ({"softcap": -1}, r"softcap must be > 0, got -1"),
    ({"softcap": float("inf")}, r"softcap must be finite, got inf"),
    ({"temperature": 0.0}, r"temperature must be > 0, got 0.0"),
    ({"temperature": -0.5}, r"temperature must be > 0, got -0.5"),
    ({"temperature": float("nan")}, r"temperature must be finite, got nan"),
    ({"temperature": float("inf")}, r"temperature must be finite, got inf"),
    ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
    ({"label_smoothing": -0.1}, r"label_smoothing must lie in \[0, 1\), got -0.1"),
    ({"z_loss": -1e-4}, r"z_loss must be >= 0, got -0.0001"),
    ({"shift": -1}, r"shift must be >= 0, got -1"),
    ({"shift": 4}, r"shift must lie in \[0, sequence length\) = \[0, 4\), got 4"),
    ({"e": E[0, 0], "target": TARGET[0, 0], "shift": 1}, r"shift must be 0 for a single token, got 1"),
    ({"filter_eps": 0.0}, r"filter_eps must be > 0, got 0.0"),
    ({"filter_eps": (1e-3, -1.0)}, r"filter_eps must be > 0, got -1.0"),
    ({"filter_eps": "tight"}, r"filter_eps must be None, 'auto', 'fast', a number or a pair .*, got 'tight'"),
    ({"filter_eps": (1e-3,)}, r"filter_eps must be a pair \(eps_e, eps_c\), got 1 values"),
    ({"chunk_bytes": 0}, r"chunk_bytes must be > 0, got 0"),
    ({"accum_dtype": torch.bfloat16}, r"accum_dtype must be one of torch.float32, torch.float64, got torch.bfloat16"),
    ({"vocab_parallel": VocabParallel(0, 5)}, r"c must have the rows of its shard, .* = 5, got 7"),
    ({"vocab_parallel": VocabParallel(0, 7), "impl": "dense"}, r"vocab_parallel must be None for impl='dense'"),
    ({"vocab_parallel": VocabParallel(7, 14)}, r"shards of vocab_parallel must cover the vocabulary"),
]

TYPE_ERRORS = [
    ({"e": [[1.0]]}, r"e must be a torch.Tensor, got list"),
    ({"e": E.long()}, r"e must have a floating-point dtype, got torch.int64"),
    ({"c": C.to(torch.complex64)}, r"c must have a floating-point dtype, got torch.complex64"),
    ({"weight": BIAS.long()}, r"weight must have a floating-point dtype, got torch.int64"),
    ({"target": TARGET.int()}, r"target must have dtype torch.int64, got torch.int32"),
    ({"target": TARGET.float()}, r"target must have dtype torch.int64, got torch.float32"),
    ({"softcap": "30"}, r"softcap must be a number, got str '30'"),
    ({"temperature": torch.tensor(1.0)}, r"temperature must be a number, got Tensor"),
    ({"temperature": None}, r"temperature must be a number, got NoneType None"),
    ({"label_smoothing": None}, r"label_smoothing must be a number, got NoneType None"),
    ({"shift": 1.0}, r"shift must be an int, got float 1.0"),
    ({"ignore_index": "pad"}, r"ignore_index must be an int, got str 'pad'"),
    ({"chunk_bytes": 1e6}, r"chunk_bytes must be an int, got float"),
    ({"filter_eps": object()}, r"filter_eps must be a number, got object"),
    ({"vocab_parallel": (0, 7)}, r"vocab_parallel must be a VocabParallel, got tuple"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), VALUE_ERRORS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_value_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        call(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"), TYPE_ERRORS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_type_errors(arguments, message):
    with pytest.raises(TypeError, match=message):
        call(**arguments)


@pytest.mark.parametrize(
    ("interpret", "changes", "reason"),
    [
        ("0", {}, r"e must be on a GPU, or on the CPU with TRITON_INTERPRET=1 set .*, got cpu"),
        ("1", {"e": E.double(), "c": C.double()}, r"e must have dtype torch.float16, .*, got torch.float64"),
        ("1", {"accum_dtype": torch.float64}, r"accum_dtype must be torch.float32, got torch.float64"),
    ],
)
def test_triton_says_why_it_cannot_run_and_what_can(interpret, changes, reason, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    monkeypatch.setattr(_implementations, "_TRITON_IS_INSTALLED", True)
    with pytest.raises(ImplementationUnavailableError, match=f"{reason}; use impl='torch'") as caught:
        call(impl="triton", **changes)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, RuntimeError)
    assert call(impl="auto", **changes).isfinite()


def test_triton_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(_implementations, "_TRITON_IS_INSTALLED", False)
    with pytest.raises(ImplementationUnavailableError, match="triton is not installed; use impl='torch'"):
        call(impl="triton")
    assert arguments.resolve_impl("auto", E, torch.float32) == "torch"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_auto_takes_triton_on_a_gpu_where_it_can(dtype, monkeypatch):
    monkeypatch.setattr(_implementations, "_TRITON_IS_INSTALLED", True)
    with FakeTensorMode():
        e = torch.empty(2, 3, dtype=dtype, device="cuda")
        got = arguments.resolve_impl("auto", e, torch.promote_types(dtype, torch.float32))
        assert got == ("torch" if dtype == torch.float64 else "triton")
        assert arguments.resolve_impl("auto", e, torch.float64) == "torch"
    assert arguments.resolve_impl("auto", E.to(dtype), torch.float32) == "torch"


def test_shift_on_an_empty_sequence():
    with pytest.raises(ValueError, match=r"shift must lie in \[0, sequence length\) = \[0, 0\), got 1"):
        call(E[:, :0], C, TARGET[:, :0], shift=1)


def test_mixed_dtypes_are_fine_under_autocast():
    with torch.autocast("cpu"):
        assert call(c=C.bfloat16()).isfinite()
    with torch.autocast("cpu"), pytest.raises(ValueError, match="c must have the dtype of e"):
        call(c=C.double())


def test_dtensor_says_what_to_do():
    # Only its type matters here; a real one would need a process group.
    tensor = torch.Tensor._make_subclass(DTensor, C)
    with pytest.raises(
        ValueError, match=r"c must be a plain tensor, got a DTensor; pass c.to_local\(\).*vocab_parallel"
    ):
        call(c=tensor)


@pytest.mark.parametrize("function", [linear_logsumexp, lambda e, c, **_: indexed_dot(e, c, TARGET)])
def test_the_smaller_functions_check_the_same_way(function):
    with pytest.raises(ValueError, match=r"c must have shape \(V, D\) = \(\*, 3\), got \(7, 4\)"):
        function(E, torch.zeros(7, 4))
    with pytest.raises(TypeError, match="e must have a floating-point dtype"):
        function(E.int(), C)


def test_arguments_of_the_smaller_functions():
    with pytest.raises(ValueError, match="softcap must be > 0, got -2"):
        linear_logsumexp(E, C, softcap=-2)
    with pytest.raises(ValueError, match=r"index must have shape e.shape\[:-1\] = \(2, 4\), got \(2,\)"):
        indexed_dot(E, C, TARGET[:, 0])
    with pytest.raises(ValueError, match=r"index must lie in \[0, V\) = \[0, 7\), got -100"):
        indexed_dot(E, C, with_target(-100))
    with pytest.raises(TypeError, match="index must have dtype"):
        indexed_dot(E, C, TARGET.int())


def test_module_rejects_options_when_it_is_made():
    with pytest.raises(ValueError, match="softcap must be > 0, got -1"):
        LinearCrossEntropy(3, 7, softcap=-1)
    with pytest.raises(ValueError, match="out_features must be > 0, got 0"):
        LinearCrossEntropy(3, 0)
    with pytest.raises(TypeError, match="in_features must be an int, got float"):
        LinearCrossEntropy(3.0, 7)
    with pytest.raises(ValueError, match="filter_eps must be > 0"):
        LinearCrossEntropy(3, 7, filter_eps=-1.0)
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        LinearCrossEntropy(3, 7, temperature=0)


def test_module_asks_for_triton_when_it_is_called(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    head = LinearCrossEntropy(3, 7, impl="triton")
    with pytest.raises(ImplementationUnavailableError, match="impl='triton' cannot run"):
        head(E, TARGET)


def test_shards():
    with pytest.raises(ValueError, match="0 <= start < stop, got 5 and 5"):
        VocabParallel(5, 5)
    with pytest.raises(TypeError, match="stop must be an int"):
        VocabParallel(0, 5.0)
    with pytest.raises(ValueError, match="vocab_size must be > 0, got 0"):
        VocabParallel.from_vocab(0)


def test_import_loads_neither_triton_nor_the_compiler():
    code = (
        "import sys, torch, lossbook.kernels as k\n"
        "e, c = torch.ones(2, 3, requires_grad=True), torch.ones(4, 3)\n"
        "k.cut_cross_entropy(e, c, torch.tensor([0, 1])).backward()\n"
        "k.linear_logsumexp(e, c).sum().backward()\n"
        "print([name for name in ('triton', 'torch._dynamo') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
