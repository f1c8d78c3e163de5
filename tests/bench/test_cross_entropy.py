"""Every method of the cross-entropy benchmark runs, is accurate, and is measured in a process of its own."""

import dataclasses
import json
import sys
import types
from contextlib import contextmanager

import pytest
import torch
from typer.testing import CliRunner

from lossbook import bench
from lossbook.bench import cross_entropy, process
from lossbook.bench.accuracy import check
from lossbook.bench.inputs import CONTEXT, PEAKED_LOSS, make_inputs
from lossbook.bench.measure import CPUGauge, sample
from lossbook.bench.methods import NotAvailableError, methods_for
from lossbook.bench.sparsity import describe_inputs

SIZES = {"n": 96, "vocab": 640, "dim": 24}
PEERS = {"apple_cce": "cut_cross_entropy", "apple_cce_exact": "cut_cross_entropy", "liger": "liger_kernel"}
# torch.compile takes half a minute of compiler time; its worker path is that of dense.
QUICK = [name for name in bench.METHODS if name not in PEERS and name != "torch_compile"]


def inputs(data="gaussian", dtype=torch.float32, **sizes):
    return make_inputs(**SIZES | sizes, dtype=dtype, device="cpu", seed=0, data=data)


@pytest.fixture(scope="module")
def report():
    """A real run: two workers."""
    return bench.cce(**SIZES, methods=["dense", "grad_in_forward"], repeats=3)


@pytest.fixture
def no_workers(monkeypatch):
    """Answer in this process, to test what surrounds the workers."""
    from lossbook.bench import worker

    @contextmanager
    def workers(threads, timeout):
        yield lambda spec: json.loads(json.dumps(worker.answer(spec)))

    monkeypatch.setattr(cross_entropy, "_workers", workers)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("data", ["gaussian", "peaked"])
def test_every_method_is_accurate(name, data):
    method = bench.METHODS[name]
    try:
        loss = method.build("torch")
    except NotAvailableError as reason:
        pytest.skip(str(reason))
    accuracy = check(loss, inputs(data), rows=SIZES["n"])
    assert accuracy.loss < 1e-6
    gradient_bound = 1e-5 if method.filter is None else 3e-2
    assert accuracy.e_gradient < gradient_bound
    assert accuracy.c_gradient < gradient_bound


def test_check_sees_a_wrong_gradient():
    accuracy = check(
        lambda e, c, target: bench.METHODS["dense"].build("torch")(e, c.detach() + 0 * c, target), inputs(), 16
    )
    assert accuracy.loss < 1e-6
    assert accuracy.e_gradient < 1e-5
    assert accuracy.c_gradient == pytest.approx(1.0)


def test_inputs_are_described_by_whole_contexts():
    given = inputs("peaked", n=2 * CONTEXT)
    filters = [bench.METHODS["filtered_auto"].filter]
    facts = json.loads(json.dumps(describe_inputs(given, filters)))
    p = torch.softmax(given.e.double() @ given.c.double().T, 1)
    assert facts["entry_density"] == pytest.approx((p >= 2**-12).double().mean().item(), abs=1e-5)
    assert facts["scale"] == given.scale
    p[torch.arange(len(p)), given.target] -= 1
    blocks = p.abs().unflatten(0, (2, CONTEXT)).amax(1)
    assert filters[0].kept(facts) == pytest.approx(
        [(blocks >= eps).double().mean().item() for eps in (2**-18, 2**-15)], abs=1e-3
    )
    assert bench.METHODS["filtered_auto_full_c"].filter.kept(facts)[1] == 1.0
    assert filters[0].kept({}) is None


@pytest.mark.parametrize("density", [0.0005, 0.001, 0.004])
def test_density_is_reached_within_a_fifth(density):
    given = inputs("peaked", n=1024, vocab=8192, dim=64, density=density)
    assert describe_inputs(given, [])["entry_density"] == pytest.approx(density, rel=0.2)


def test_density_of_many_entries_is_reached_within_a_fifth():
    """A row as unsure as 0.4 % of a large vocabulary has more entries than noise alone can give it."""
    given = inputs("peaked", n=256, vocab=64_000, dim=48, density=0.004)
    facts = describe_inputs(given, [bench.METHODS["filtered_eps12"].filter])
    assert facts["entry_density"] == pytest.approx(0.004, rel=0.2)
    assert 10 < facts["columns"][str(2**-12)] / facts["entry_density"] < 40  # 7.7 / 0.27 on a real model


def test_density_that_cannot_be_reached_is_refused():
    with pytest.raises(ValueError, match=r"density must be reachable with V = 640 and D = 24, got 0\.001; with sure"):
        inputs("peaked", density=0.001)  # below one entry a row
    with pytest.raises(ValueError, match=r"density must be reachable .* got 0\.9; without a sure target"):
        inputs("peaked", vocab=8192, density=0.9)


def test_peaked_inputs_have_the_wanted_loss_and_zipf_targets():
    given = inputs("peaked", n=2000, vocab=4000)
    loss = torch.nn.functional.cross_entropy(given.e @ given.c.T, given.target).item()
    assert loss == pytest.approx(PEAKED_LOSS, abs=0.3)  # tuned on 128 of the 2000 rows
    assert (given.target < 40).double().mean() > 0.3
    again = make_inputs(
        n=2000, vocab=4000, dim=24, dtype=torch.float32, device="cpu", seed=0, data="peaked", scale=given.scale
    )
    assert torch.equal(given.e, again.e)
    assert torch.equal(given.target, again.target)


def test_peaked_inputs_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match=r"dim must be large enough for a mean loss of 2\.5, got 1"):
        inputs("peaked", dim=1)


def test_peaked_inputs_favor_frequent_words():
    given = inputs("peaked", n=200)
    mean = (given.e @ given.c.T).mean(0)
    assert mean[:20].mean() > mean[-200:].mean() + 2


def test_report_of_a_real_run(report):
    dense, ours = report.rows
    assert dense.loss == pytest.approx(ours.loss, rel=1e-6)
    assert dense.gradient_bytes == 4 * SIZES["dim"] * (SIZES["n"] + SIZES["vocab"])
    for row in report.rows:
        assert len(row.samples) == 3
        assert row.cpu_seconds > 0
        assert row.cpu_seconds_forward > 0
        assert row.device_seconds is None
        assert max(row.loss_error, row.e_gradient_error, row.c_gradient_error) < 1e-5
    assert report.ratio("dense") == 1.0
    assert report.ratio("grad_in_forward") == ours.cpu_seconds / dense.cpu_seconds
    assert report.environment["threads"] == 1
    assert report.device_slug == "cpu"


def test_json_round_trip(report, tmp_path):
    path = report.to_json(tmp_path)
    assert path == tmp_path / "cce-cpu.json"
    assert bench.CCEReport.from_json(path) == report
    assert [entry.name for entry in tmp_path.iterdir()] == ["cce-cpu.json"]


def test_json_is_complete_or_absent(report, tmp_path):
    broken = dataclasses.replace(report, data={"scale": object()})
    with pytest.raises(TypeError):
        broken.to_json(tmp_path / "x.json")
    assert not list(tmp_path.iterdir())


def test_json_of_something_else_is_refused(tmp_path):
    for content in ("{", "[]", '{"benchmark": "gpu"}', '{"benchmark": "cce", "reports": [{"rows": [{}]}]}'):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ValueError, match=r"path must hold a benchmark report, got .*x\.json"):
            bench.CCEReport.from_json(tmp_path / "x.json")


def test_ratio_names_what_is_wrong(report):
    with pytest.raises(ValueError, match=r"method must be one of \['dense', 'grad_in_forward'\], got 'nope'"):
        report.ratio("nope")
    with pytest.raises(ValueError, match=r"what must be one of .*, got 'wall'"):
        report.ratio("dense", what="wall")
    with pytest.raises(ValueError, match="dense has no device_seconds: not measured on this device"):
        report.ratio("dense", what="device_seconds")


def test_missing_method_is_a_row_with_a_reason(monkeypatch, no_workers):
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    report = bench.cce(**SIZES, methods=["torch_chunked", "dense"])
    assert report.row("torch_chunked").not_available == "needs torch >= 2.13"
    assert report.row("dense").cpu_seconds > 0
    with pytest.raises(ValueError, match=r"torch_chunked has no cpu_seconds: needs torch >= 2\.13"):
        report.ratio("torch_chunked")
    assert "torch_chunked is not available: needs torch >= 2.13" in report.table().caption


@pytest.mark.parametrize("name", PEERS)
def test_missing_peer_is_a_row_with_a_reason(monkeypatch, no_workers, name):
    monkeypatch.setitem(sys.modules, PEERS[name], None)
    row = bench.cce(**SIZES, methods=[name, "dense"]).row(name)
    assert row.not_available.startswith("ModuleNotFoundError: ")
    assert row.seconds is None


def test_failing_peer_is_a_row_with_a_reason(monkeypatch, no_workers):
    def fail(*args, **options):
        raise RuntimeError("no kernel image\nand a long explanation")

    monkeypatch.setitem(sys.modules, "cut_cross_entropy", types.SimpleNamespace(linear_cross_entropy=fail))
    report = bench.cce(**SIZES, methods=["apple_cce", "dense"])
    assert report.row("apple_cce").not_available == "RuntimeError: no kernel image"
    assert report.row("dense").cpu_seconds > 0
    assert "apple_cce is not available: RuntimeError: no kernel image" in report.table().caption


def test_nothing_measured_is_an_error(monkeypatch, no_workers):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(bench.BenchmarkError, match="no method could be measured; liger: ModuleNotFoundError"):
        bench.cce(**SIZES, methods=["liger"])


def test_peers_are_called_as_documented(monkeypatch):
    """The peers' packages need a GPU; what they are called with does not."""
    calls = []
    apple = types.SimpleNamespace(linear_cross_entropy=lambda *args, **options: calls.append((args, options)))
    liger = types.SimpleNamespace(LigerFusedLinearCrossEntropyLoss=lambda: lambda *args: calls.append((args, {})))
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", apple)
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", liger)
    for name in PEERS:
        bench.METHODS[name].build("triton")("e", "c", "target")
    assert calls == [
        (("e", "c", "target"), {"filter_eps": 2.0**-12, "impl": "cce"}),
        (("e", "c", "target"), {"filter_eps": None, "impl": "cce"}),
        (("c", "e", "target"), {}),
    ]


def test_all_means_what_fits_the_implementation():
    torch_names, triton_names = methods_for("torch"), methods_for("triton")
    assert set(torch_names) | set(triton_names) == bench.METHODS.keys()
    assert set(torch_names) - set(triton_names) == {"two_pass", "grad_in_forward"}
    assert set(triton_names) - set(torch_names) == {"exact", "exact_2gib"}


def test_scale_is_searched_for_once(monkeypatch, no_workers):
    from lossbook.bench import inputs as module

    calls = []
    tune = module.tune_scale
    monkeypatch.setattr(module, "tune_scale", lambda *args, **options: calls.append(1) or tune(*args, **options))
    report = bench.cce(**SIZES, methods=["dense", "filtered_auto"], data="peaked", density=0.1)
    assert len(calls) == 1
    assert report.rows[0].loss == pytest.approx(report.rows[1].loss, rel=1e-6)
    assert report.data["entry_density"] == pytest.approx(0.1, rel=0.2)
    assert report.settings["density"] == 0.1
    assert report.rows[0].kept is None
    assert 0 < report.rows[1].kept[1] <= report.rows[1].kept[0] <= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_said_before_any_worker_starts():
    with pytest.raises(ValueError, match=r"device must be present, got 'cuda': PyTorch .* sees no GPU here"):
        bench.cce(**SIZES, device="cuda")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n must be an int >= 1, got 0"),
        ({"check_rows": -1}, "check_rows must be an int >= 0, got -1"),
        ({"threads": 1.5}, "threads must be an int >= 1, got 1.5"),
        ({"repeats": True}, "repeats must be an int >= 1, got True"),
        ({"dtype": "int8"}, r"dtype must be one of \['float64', .*\], got 'int8'"),
        ({"density": 2.0, "data": "peaked"}, r"density must be a fraction in \(0, 1\), got 2\.0"),
        ({"density": 0.1}, "density must be None for data 'gaussian', got 0.1"),
        ({"data": "real"}, r"data must be one of \['gaussian', 'peaked'\], got 'real'"),
        ({"device": "tpu"}, "device must be 'cpu' or 'cuda', got 'tpu'"),
        ({"methods": "dense"}, "methods must be a sequence of names, got the string 'dense'"),
        ({"methods": ["dense", "magic"]}, r"methods must be names out of .*, got \['magic'\]"),
        ({"methods": []}, r"methods must be names out of .*, got \[\]"),
        ({"methods": ["dense", "dense"]}, "methods must not repeat a name"),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        bench.cce(**wrong)


def test_errors_can_be_left_out(no_workers):
    report = bench.cce(**SIZES, methods=["dense"], check_rows=0)
    assert report.row("dense").loss_error is None
    assert report.row("dense").cpu_seconds > 0
    assert len(list(report.table().rows)) == 1


def test_a_failing_worker_is_quoted():
    spec = {"method": "dense", "threads": 1}
    with pytest.raises(bench.BenchmarkError, match=r"dense: the worker failed: KeyError: 'n'(.|\n)*Traceback"):
        process.run_worker("lossbook.bench.worker", spec, threads=1, timeout=60)


def test_a_slow_or_silent_or_killed_worker(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    bodies = {
        "slow": ("import time; time.sleep(60)", "ended after 0.5 s"),
        "silent": ("print('hello')", "printed no result, but: 'hello"),
        "killed": ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL; most likely .* out of memory"),
    }
    for name, (body, message) in bodies.items():
        (tmp_path / f"{name}_worker.py").write_text(body)
        with pytest.raises(bench.BenchmarkError, match=f"{name}_worker: .*{message}"):
            process.run_worker(f"{name}_worker", {}, threads=1, timeout=0.5 if name == "slow" else 60)


needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="forking is used on Linux only")


@needs_fork
def test_a_nursery_gives_every_measurement_its_own_process(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "pid_worker.py").write_text(
        "import os\nfrom lossbook.bench import worker\n"
        "worker.answer = lambda spec: {'pid': os.getpid(), 'threads': os.environ['OMP_NUM_THREADS']}\nworker.serve()"
    )
    with process.Nursery("pid_worker", threads=2) as nursery:
        first, second = (nursery.run({}, timeout=60) for _ in range(2))
    assert first["pid"] != second["pid"]
    assert first["threads"] == "2"


@needs_fork
def test_a_failing_or_slow_child_is_quoted(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "odd_worker.py").write_text(
        "import os, time\nfrom lossbook.bench import worker\n"
        "worker.answer = lambda spec: eval(spec['do'])\nworker.serve()"
    )
    with process.Nursery("odd_worker", threads=1) as nursery:
        with pytest.raises(bench.BenchmarkError, match=r"worker: the worker failed: ZeroDivisionError(.|\n)*Traceback"):
            nursery.run({"do": "1 / 0"}, timeout=60)
        with pytest.raises(bench.BenchmarkError, match="killed by SIGKILL"):
            nursery.run({"do": "os.kill(os.getpid(), 9)"}, timeout=60)
        assert nursery.run({"do": "{'still': 'here'}"}, timeout=60) == {"still": "here"}
    with (
        pytest.raises(bench.BenchmarkError, match=r"ended after 0\.5 s"),
        process.Nursery("odd_worker", threads=1) as nursery,
    ):
        nursery.run({"do": "time.sleep(60)"}, timeout=0.5)


def test_worker_threads_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "echo_worker.py").write_text("import json, os; print(json.dumps(os.environ['OMP_NUM_THREADS']))")
    assert process.run_worker("echo_worker", {}, threads=3, timeout=60) == "3"


def test_gauge_counts_memory_held_only_for_a_moment():
    size = 64 << 20
    gauge = CPUGauge()
    gauge.start()
    tensor = torch.ones(size // 4)
    del tensor
    assert gauge.extra_bytes() >= 0.95 * size


@pytest.mark.skipif(not CPUGauge()._can_reset, reason="the peak can only be reset on Linux")
def test_gauge_forgets_what_was_before():
    tensor = torch.ones(64 << 18)
    del tensor
    leaf = torch.ones(4, requires_grad=True)
    assert sample(leaf.sum, CPUGauge()).extra_bytes < 8 << 20


def test_importing_the_package_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, lossbook.bench; print([m for m in ('torch', 'typer', 'rich', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_command_line(tmp_path):
    runner = CliRunner()
    listed = runner.invoke(bench.cli_app, ["list"])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in [*bench.METHODS, *bench.SHAPES, "correctness"])
    sizes = ["--shape=smollm2", "--rows=96", "--vocab=640", "--features=24"]
    out = tmp_path / "results" / "run.json"
    chosen = ["--methods=dense,filtered_fast", "--density=0.1,0.15", f"--out={out}"]
    done = runner.invoke(bench.cli_app, ["cce", *sizes, *chosen])
    assert done.exit_code == 0, done.output
    first, second = bench.read_reports(out)
    assert (first.settings["density"], second.settings["density"]) == (0.1, 0.15)
    assert first.settings["repeats"] == 2
    assert first.row("dense").spread is not None
    with pytest.raises(ValueError, match="path must hold one benchmark report, got 2"):
        bench.CCEReport.from_json(out)


def test_command_line_measures_at_three_densities_by_default(monkeypatch):
    from lossbook.bench import cli

    calls = []
    monkeypatch.setattr(cli, "cce_reports", lambda *args, **options: calls.append((args, options)) or iter(()))
    for arguments in ([], ["--device=cuda", "--shape=gemma2-2b"], ["--density=loss"]):
        assert CliRunner().invoke(bench.cli_app, ["cce", *arguments]).exit_code == 0
    cpu, gpu, loss = calls
    assert cpu[0] == (2048, 49152, 576, "float32", methods_for("torch"))
    assert cpu[1]["densities"] == list(bench.DENSITIES) == [0.0002, 0.001, 0.004]
    assert gpu[0] == (8192, 256000, 2304, "bfloat16", methods_for("triton"))
    assert loss[1]["densities"] == [None]


def test_command_line_reports_errors_in_one_sentence():
    wrong = {
        "--methods=magic": "methods must be names out of",
        "--shape=gpt5": "shape must be one of",
        "--density=low": "density must be fractions separated by commas, or 'loss', got 'low'",
    }
    for argument, message in wrong.items():
        done = CliRunner().invoke(bench.cli_app, ["cce", argument])
        assert done.exit_code == 2
        assert message in " ".join(done.output.split())
        assert "Traceback" not in done.output


def test_torch_compile_says_what_it_lacks(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(NotAvailableError, match=r"needs a C\+\+ compiler .* on the PATH"):
        bench.METHODS["torch_compile"].build("torch")
