"""The shared checks: one form of message, and values read only where that is allowed."""

import pytest
import torch

from lossbook import _validation as v


def test_shape_messages():
    with pytest.raises(ValueError, match=r"^target must have shape \(N,\) = \(4,\), got \(5,\)$"):
        v.check_shape("target", torch.zeros(5), "(N,)", (4,))
    with pytest.raises(ValueError, match=r"^logits must have shape \(N, C\) = \(4, \*\), got \(4,\)$"):
        v.check_shape("logits", torch.zeros(4), "(N, C)", (4, None))
    v.check_shape("logits", torch.zeros(4, 9), "(N, C)", (4, None))
    v.check_shape("scalar", torch.zeros(()), "()", ())


@pytest.mark.parametrize(
    ("check", "arguments", "error", "message"),
    [
        (v.check_positive, ("tau", 0), ValueError, "tau must be > 0, got 0"),
        (v.check_positive, ("tau", float("nan")), ValueError, "tau must be finite, got nan"),
        (v.check_positive, ("tau", True), TypeError, "tau must be a number, got bool True"),
        (v.check_non_negative, ("gamma", -1), ValueError, "gamma must be >= 0, got -1"),
        (v.check_range, ("alpha", 1, 0, 1), ValueError, r"alpha must lie in \[0, 1\), got 1"),
        (v.check_integer, ("shift", True), TypeError, "shift must be an int, got bool True"),
        (v.check_choice, ("impl", 3, ("a", "b")), ValueError, "impl must be one of 'a', 'b', got 3"),
        (v.check_tensor, ("e", None), TypeError, "e must be a torch.Tensor, got NoneType"),
    ],
)
def test_messages(check, arguments, error, message):
    with pytest.raises(error, match=message):
        check(*arguments)


def test_accepted_values_pass():
    v.check_positive("tau", 1e-9)
    v.check_non_negative("gamma", 0)
    v.check_range("alpha", 0, 0, 1)
    v.check_integer("shift", -3)
    v.check_choice("impl", "a", ("a", "b"))
    v.check_target_range("target", torch.tensor([0, 4]), 5)
    v.check_target_range("target", torch.tensor([-100, 4]), 5, ignore_index=-100)
    v.check_target_range("target", torch.tensor([], dtype=torch.int64), 5)


def test_target_messages():
    with pytest.raises(ValueError, match=r"target must lie in \[0, C\) = \[0, 5\), got 5"):
        v.check_target_range("target", torch.tensor([[0, 5], [7, 1]]), 5)
    with pytest.raises(ValueError, match=r"= \[0, 5\) or equal ignore_index = -1, got -100"):
        v.check_target_range("target", torch.tensor(-100), 5, ignore_index=-1)


def test_values_are_not_read_off_the_cpu_unless_asked(monkeypatch):
    # Any device that is neither the CPU nor without values stands for a GPU.
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda"))
    target = torch.zeros(1)
    monkeypatch.delenv(v.DEBUG_VARIABLE, raising=False)
    assert not v.values_are_readable(target)
    monkeypatch.setenv(v.DEBUG_VARIABLE, "1")
    assert v.values_are_readable(target)
    monkeypatch.undo()
    assert v.values_are_readable(target)
    assert not v.values_are_readable(torch.zeros(1, device="meta"))


def test_values_are_not_read_while_compiling():
    @torch.compile(fullgraph=True, backend="eager")
    def checked(target):
        v.check_target_range("target", target, 5)
        return target + 1

    assert checked(torch.tensor([9])).item() == 10
