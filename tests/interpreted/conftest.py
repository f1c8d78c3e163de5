"""The Triton kernels in Triton's interpreter, which the environment must ask for before Triton is imported."""

import sys
from pathlib import Path

import pytest

# The reference and the multi-process launcher of the other kernel tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))


@pytest.fixture
def pretend(monkeypatch):
    """Make the kernels take the configurations of a named architecture."""
    from lossbook.kernels.cross_entropy.triton import config, operands

    def apply(name):
        for module in (config, operands):
            monkeypatch.setattr(module, "architecture", lambda device: name)

    return apply
