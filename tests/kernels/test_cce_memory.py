"""Peak memory, measured in a process of its own at a size where the logits dominate everything else."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROWS, VOCAB, FEATURES = 2048, 24576, 64
LOGITS = ROWS * VOCAB * 4 / 2**20  # 192 MiB
GRADIENTS = (ROWS + VOCAB) * FEATURES * 4 / 2**20  # 6.5 MiB
BUFFER = 128 * VOCAB * 4 / 2**20  # 12 MiB, the smallest chunk of whole rows

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs the high-water mark of Linux' /proc"
)


@functools.cache
def measure(method):
    probe = Path(__file__).with_name("memory_probe.py")
    command = [sys.executable, str(probe), method, *map(str, (ROWS, VOCAB, FEATURES))]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.mark.parametrize("method", ["two_pass", "grad_in_forward", "grad_in_forward_auto", "two_pass_auto"])
def test_a_sixth_of_dense_and_little_beyond_the_gradients(method):
    ours, dense = measure(method), measure("dense")
    assert dense["extra_mib"] > 1.9 * LOGITS, "the comparison must hold the logits and their gradient"
    assert ours["extra_mib"] <= dense["extra_mib"] / 6
    assert ours["extra_mib"] <= GRADIENTS + 64
    assert ours["loss"] == pytest.approx(dense["loss"], abs=1e-5)


def test_entropy_and_argmax_cost_no_memory():
    plain, entropy = measure("two_pass"), measure("entropy")
    assert entropy["extra_mib"] <= plain["extra_mib"] + 8


def test_a_frozen_side_allocates_no_gradient():
    both, no_c = measure("grad_in_forward"), measure("frozen_c")
    classifier = VOCAB * FEATURES * 4 / 2**20
    assert no_c["extra_mib"] < both["extra_mib"] - 0.5 * classifier
    assert no_c["extra_mib"] < 2 * BUFFER + 8
