"""Methods that take turns in one process, as on a GPU; here on the CPU, at tiny sizes."""

import itertools
import json
import os

import pytest
import torch

from lossbook import bench
from lossbook.bench import measure, side_by_side
from lossbook.bench.inputs import make_inputs
from lossbook.bench.process import OutOfTimeError
from lossbook.bench.stream import stream
from lossbook.bench.turns import reports_in_turns

SETTINGS = {
    "n": 64, "vocab": 512, "dim": 16, "dtype": "float32", "device": "cpu", "seed": 3, "data": "peaked", "impl": "torch",
    "threads": 1, "repeats": 2, "seconds": 0.0, "check_rows": 64,
}  # fmt: skip


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """Write a module that the started process can import."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(name, body):
        (tmp_path / f"{name}.py").write_text(body)

    return write


def test_two_densities_and_a_peer_that_dies(on_path):
    body = "import os\ndef linear_cross_entropy(*args, **options): os.kill(os.getpid(), 9)\n"
    on_path("cut_cross_entropy", body)
    begun = []
    methods = ["dense", "apple_cce", "filtered_eps12"]
    reports = list(reports_in_turns(SETTINGS, methods, [0.05, 0.15], timeout=100, on_method=begun.append))
    assert [report.settings["density"] for report in reports] == [0.05, 0.15]
    assert begun.count("apple_cce") == 1
    for report in reports:
        assert report.data["entry_density"] == pytest.approx(report.settings["density"], rel=0.2)
        assert report.data["complete"]
        dense, peer, ours = report.rows
        assert "killed by SIGKILL" in peer.not_available
        assert peer.device_seconds is None
        for row in (dense, ours):
            assert len(row.samples) == 2
            assert row.cpu_seconds is None
            assert row.device_seconds > row.device_seconds_forward > 0
            assert row.loss_error < 1e-5
        assert dense.error < 1e-5
        product = 2 * 64 * 512 * 16 / (report.environment["matrix_tflops"] * 1e12)
        assert dense.floor_seconds == pytest.approx(3 * product)
        f_e, f_c = ours.kept
        assert f_e == f_c
        assert ours.floor_seconds == pytest.approx(min(3, 1 + 3 * f_e) * product)
        assert report.useful_tflops(dense) == pytest.approx(6 * 64 * 512 * 16 / dense.device_seconds / 1e12)
        assert bench.CCEReport.from_dict(json.loads(json.dumps(report, default=vars))) == report


def test_a_method_that_raises_does_not_end_the_process(on_path):
    on_path("cut_cross_entropy", "def linear_cross_entropy(*args, **options): raise MemoryError('too large')\n")
    (report,) = reports_in_turns(SETTINGS, ["apple_cce", "dense"], [None], timeout=100)
    assert report.row("apple_cce").not_available == "MemoryError: too large"
    assert report.row("dense").device_seconds > 0


def test_a_density_out_of_reach_is_a_row_with_the_reason():
    out_of_reach, within = reports_in_turns(SETTINGS, ["dense"], [1e-4, 0.1], timeout=100)
    assert "density must be reachable" in out_of_reach.row("dense").not_available
    assert within.row("dense").device_seconds > 0


def test_what_was_measured_when_the_time_is_up_is_kept(on_path):
    on_path("cut_cross_entropy", "import time\ndef linear_cross_entropy(*args, **options): time.sleep(100)\n")
    reports = reports_in_turns(SETTINGS, ["dense", "apple_cce"], [None], timeout=15)
    report = next(reports)
    assert not report.data["complete"]
    assert report.row("apple_cce").not_available.startswith("not measured: lossbook.bench.side_by_side: ended after 15")
    with pytest.raises(OutOfTimeError):
        next(reports)


def test_a_failure_that_is_no_methods_fault_is_raised():
    with pytest.raises(bench.BenchmarkError, match="KeyError: 'n'"):
        list(reports_in_turns({"threads": 1, "dtype": "float32", "device": "cpu"}, ["dense"], [None], timeout=60))


def test_stream_yields_what_comes_and_hides_what_is_printed(on_path):
    on_path(
        "counting", "def records(spec):\n    for i in range(3):\n        print('noise')\n        yield spec | {'i': i}"
    )
    assert list(stream("counting", {"n": 3}, timeout=60)) == [{"n": 3, "i": i} for i in range(3)]


def test_leaving_a_stream_ends_its_process(on_path):
    body = "import os, time\ndef records(spec):\n    yield {'pid': os.getpid()}\n    time.sleep(100)"
    on_path("sleeping", body)
    records = stream("sleeping", {}, timeout=60)
    pid = next(records)["pid"]
    records.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_passes_are_timed_apart_and_gradients_are_dropped():
    leaf = torch.ones(1, requires_grad=True)
    dropped = []

    def clear():
        dropped.append(leaf.grad is not None)
        leaf.grad = None

    passes = measure.timed_passes(itertools.repeat((leaf.sum, clear)), "cpu", seconds=60, most=4)
    assert dropped == [True] * 4
    assert all(p.both == pytest.approx(p.forward + p.backward) for p in passes)
    assert len(measure.timed_passes(itertools.repeat((leaf.sum, clear)), "cpu", seconds=0, most=50)) == 2
    three = [measure.Passes(1.0, 30.0, 31.0), measure.Passes(2.0, 20.0, 22.0), measure.Passes(3.0, 10.0, 13.0)]
    assert measure.median_passes(three) == measure.Passes(2.0, 20.0, 22.0)


def test_ceilings_are_plausible():
    assert 1e8 < measure.matrix_ceiling(torch.float32, "cpu", size=64) < 1e15
    assert 1e7 < measure.copy_bandwidth("cpu", size=1 << 20) < 1e14


def test_input_sets_rotate():
    sizes = {"n": 8, "vocab": 16, "dim": 4, "dtype": torch.float32, "device": "cpu"}
    first = make_inputs(**sizes, seed=0, data="gaussian")
    inputs = [first, first.copy()]
    assert torch.equal(inputs[0].e, inputs[1].e)
    assert inputs[0].e.data_ptr() != inputs[1].e.data_ptr()
    seen = []
    steps = side_by_side._steps(lambda e, c, target: seen.append(e.data_ptr()), inputs)
    for loss, _ in itertools.islice(steps, 4):
        loss()
    assert seen == [inputs[0].e.data_ptr(), inputs[1].e.data_ptr()] * 2
