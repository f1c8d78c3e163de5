"""What every test runs under: one thread, fixed printing, static explorers, and reasons for what cannot run here."""

import os
import shutil
from pathlib import Path

# Read by the numerical libraries when they load, so set before the first import of torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LOSSBOOK_STATIC", "1")

import pytest
import torch

# Triton decides when it is imported whether its kernels are interpreted, so those tests run in a process of their own.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]

_CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_WILD = {torch.bool: True} | {dtype: torch.iinfo(dtype).max // 3 for dtype in _INTEGERS}


def pytest_configure(config):
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))
    torch.set_printoptions(profile="default")


def pytest_runtest_setup(item):
    if item.get_closest_marker("browser") and chromium_path() is None:
        pytest.skip("no Chromium on the PATH; install it with: apt-get install chromium")
    if marker := item.get_closest_marker("model"):
        problem = _model_problem(*marker.args)
        if problem and os.environ.get("CI") == "true":
            pytest.fail(f"continuous integration must have the models: {problem}", pytrace=False)
        if problem:
            pytest.skip(problem)


def chromium_path():
    """Path of an installed Chromium, or None."""
    return next((Path(path) for name in _CHROMIUM_NAMES if (path := shutil.which(name))), None)


def _model_problem(*names):
    """Why one of the assets, by default SmolLM2, cannot be used, or None."""
    from lossbook import data

    states = {asset.name: asset for asset in data.status()}
    needed = [states[name] for name in names or ("smollm2",)]
    return next((f"{asset.name} is {asset.state}; {asset.fix}" for asset in needed if asset.state != "ok"), None)


@pytest.fixture
def chromium():
    """Path of the installed Chromium; tests that use it carry the marker ``browser``."""
    return chromium_path()


@pytest.fixture
def generator():
    """A seeded generator, so that no test touches or depends on the global random state."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def nan_empty(monkeypatch):
    """Fill new uninitialized tensors with NaN or wild integers: a read before the first write shows in the result."""

    def poisoned(make):
        def call(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else _WILD[tensor.dtype])

        return call

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
