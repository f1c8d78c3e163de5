"""The unattended GPU run, tried without a GPU: the Triton kernels run in their interpreter."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from lossbook import bench
from lossbook.bench.gpu import driver, tuning
from lossbook.bench.process import BenchmarkError, OutOfTimeError

METHODS = ["dense", "liger", "exact", "filtered_eps12"]
COMMAND = ["gpu", "--device=cpu", "--budget=300", f"--methods={','.join(METHODS)}"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run by the command."""
    out = tmp_path_factory.mktemp("gpu") / "run.json"
    done = CliRunner().invoke(bench.cli_app, [*COMMAND, f"--out={out}"])
    assert done.exit_code == 0, done.output
    return out, done.output


@pytest.fixture
def short_phases(monkeypatch):
    """Phases that say what they are given, in place of the real ones."""
    given = []

    def phase(name, weight, records):
        def run(run, seconds):
            given.append((name, seconds))
            yield from records

        return name, driver.Phase(name, "", weight, run)

    def use(**records):
        weights = {"device": 1, "correctness": 3}
        monkeypatch.setattr(driver, "PHASES", dict(phase(name, weights[name], r) for name, r in records.items()))
        return given

    return use


def test_every_phase_is_done(finished):
    out, shown = finished
    run = bench.GPURun.load(out)
    assert {name: entry["status"] for name, entry in run.phases.items()} == dict.fromkeys(driver.PHASES, "done"), shown
    ceilings = {name: value for record in run.records("device") for name, value in record.items()}
    assert ceilings["copy_terabytes"] > 0
    assert ceilings["matrix_tflops"] > 0
    assert run.records("tuning") == [{"skipped": "the kernels are tuned on a GPU only"}]
    assert {record["variant"] for record in run.records("train")} == {"unpatched", "patched"}


def test_the_kernel_is_correct_with_every_option(finished):
    records = bench.GPURun.load(finished[0]).records("correctness")
    assert len(records) == 20
    assert [record for record in records if not record["passed"]] == []


def test_tables_cover_two_shapes_and_three_densities(finished):
    tables = bench.GPURun.load(finished[0]).tables()
    assert [(shape, report.settings["density"]) for shape, report in tables] == [
        (shape, density) for shape in ("small", "tall") for density in driver._DRY_DENSITIES
    ]
    for _, report in tables:
        assert [row.method for row in report.rows] == METHODS
        assert report.row("exact").error < 1e-4
        assert report.row("liger").not_available


def test_summary_names_device_and_versions(finished):
    shown = finished[1]
    assert "20 of 20 cases passed" in shown
    assert "6 complete" in shown
    assert "torch " in shown
    assert bench.GPURun.load(finished[0]).environment["device_name"] in shown


def test_a_run_that_is_done_is_not_repeated(finished):
    before = finished[0].read_bytes()
    begun = []
    bench.run_gpu(60, finished[0], device="cpu", methods=METHODS, on_phase=lambda *phase: begun.append(phase))
    assert begun == []
    assert finished[0].read_bytes() == before


def test_a_trial_on_a_cpu_is_no_result_for_the_book(finished):
    with pytest.raises(ValueError, match=r"path must hold a run on a GPU, got .* with device 'cpu'"):
        bench.markdown_table(finished[0].parent)


def test_an_interrupted_run_keeps_its_results(tmp_path):
    out = tmp_path / "run.json"
    command = [sys.executable, "-m", "lossbook", "bench", *COMMAND, f"--out={out}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (out.exists() and bench.GPURun.load(out).records("correctness")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "interrupted" in shown
    run = bench.GPURun.load(out)
    assert run.done("device")
    assert run.phases["correctness"]["status"] in ("interrupted", "done")
    assert run.records("correctness")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_phases_share_the_time_and_are_continued(tmp_path, short_phases):
    out = tmp_path / "run.json"
    given = short_phases(device=[{"a": 1}], correctness=[{"b": 2}])
    bench.run_gpu(100, out, device="cpu", phases=["device"])
    assert given == [("device", pytest.approx(100, rel=0.05))]
    given.clear()
    run = bench.run_gpu(100, out, device="cpu")
    assert [name for name, _ in given] == ["correctness"]
    assert run.records("device") == [{"a": 1}]
    given.clear()
    bench.run_gpu(100, tmp_path / "other.json", device="cpu")
    assert given == [("device", pytest.approx(25, rel=0.05)), ("correctness", pytest.approx(100, rel=0.05))]


@pytest.mark.parametrize(
    ("error", "status"), [(OutOfTimeError("too slow"), "out of time"), (BenchmarkError("broken"), "failed")]
)
def test_a_phase_that_does_not_end_well_does_not_stop_the_next(tmp_path, short_phases, error, status):
    def failing():
        yield {"a": 1}
        raise error

    short_phases(device=failing(), correctness=[{"b": 2}])
    run = bench.run_gpu(100, tmp_path / "run.json", device="cpu")
    assert run.phases["device"]["status"] == status
    assert run.phases["device"]["reason"] == str(error)
    assert run.records("device") == [{"a": 1}]
    assert run.done("correctness")
    assert not run.done("device")
    assert bench.GPURun.load(run.path) == run


def test_a_case_that_ends_its_process_fails_alone(tmp_path, monkeypatch):
    def worker(run, module, limit, *, skip, **spec):
        for index in range(skip, 3):
            yield {"begin": {"case": index, "dtype": "float32"}}
            if index == 1:
                raise BenchmarkError("correctness: the worker was killed by SIGSEGV\nand more")
            yield {"case": index, "dtype": "float32", "passed": True}

    monkeypatch.setattr(driver, "_worker", worker)
    run = bench.run_gpu(10, tmp_path / "run.json", device="cpu", phases=["correctness"])
    assert run.done("correctness")
    assert [record["passed"] for record in run.records("correctness")] == [True, False, True]
    assert run.records("correctness")[1]["failure"] == "correctness: the worker was killed by SIGSEGV"


def test_incomplete_tables_are_continued(tmp_path, monkeypatch, finished):
    complete = bench.GPURun.load(finished[0])
    (_, report), *_ = complete.tables()
    begun = []

    def in_turns(settings, methods, densities, **_):
        begun.append(densities)
        for density in densities:
            is_first = len(begun) == 1 and density == densities[-1]
            data = report.data | {"complete": not is_first}
            yield dataclasses.replace(report, settings=report.settings | {"density": density}, data=data)
            if is_first:
                raise OutOfTimeError("too slow")

    monkeypatch.setattr(driver, "reports_in_turns", in_turns)
    first, second, third = driver._DRY_DENSITIES
    for expected in ("out of time", "done"):
        run = bench.run_gpu(10, tmp_path / "run.json", device="cpu", phases=["tables"])
        assert run.phases["tables"]["status"] == expected
    assert begun == [[first, second, third], [first, second, third], [third]]
    assert len(run.tables()) == 6


def test_another_run_is_not_overwritten(tmp_path, short_phases):
    short_phases(device=[])
    out = tmp_path / "run.json"
    bench.run_gpu(10, out, device="cpu")
    with pytest.raises(ValueError, match=r"same settings, got .*run\.json: \['seed'\] differ"):
        bench.run_gpu(10, out, device="cpu", seed=1)
    out.write_text(json.dumps({"benchmark": "cce", "reports": []}))
    with pytest.raises(ValueError, match="path must hold a run of 'lossbook bench gpu'"):
        bench.run_gpu(10, out, device="cpu")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 0}, "budget must be > 0 seconds, got 0"),
        ({"phases": ["warm"]}, r"phases must be names out of \[.*\], got \['warm'\]"),
        ({"phases": "device"}, "phases must be names out of"),
        ({"methods": ["magic"]}, "methods must be names out of"),
        ({"device": "tpu"}, "device must be 'cpu' or 'cuda', got 'tpu'"),
    ],
)
def test_bad_arguments(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        bench.run_gpu(**{"budget": 10, "out": tmp_path / "run.json", "device": "cpu"} | wrong)
    assert os.listdir(tmp_path) == []


def test_tuning_keeps_no_infinity():
    kernel = {
        "kernel": "k",
        "best": {},
        "candidates": [{"ms": 1.5}, {"ms": float("inf")}],
    }
    assert [candidate["ms"] for candidate in tuning._with_finite_times(kernel)["candidates"]] == [1.5, None]
