"""The benchmark of decode attention: right before fast, whatever happens to a method, no number typed by hand."""

import dataclasses
import json
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from lossbook import bench
from lossbook.bench import measure, report, restarts, sparse_attention
from lossbook.bench.process import BenchmarkError, OutOfTimeError
from lossbook.bench.sparse_attention import decode_reports, sparse_attention_reports, worker
from lossbook.bench.sparse_attention.cases import DECODE_METHODS, DECODE_SHAPES, DecodeShape, Sparsity
from lossbook.bench.sparse_attention.report import decode_floors_table, decode_table
from lossbook.bench.sparse_attention.results import STAGES, STEP, read_sparse_reports, write_sparse_reports
from lossbook.kernels import decode_bytes

TINY = DecodeShape(2, 4, 2, 64, 16)
SETTINGS = {
    "device": "cpu", "dtype": "float32", "impl": "torch", "repeats": 2, "seconds": 0.0, "threads": 1, "seed": 3,
}  # fmt: skip
NOT_ON_A_CPU = {"sdpa_cudnn", "sdpa_efficient"}


@pytest.fixture(scope="module")
def measured():
    """A real run: a worker, all methods, two shapes."""
    shapes = {"tiny": TINY, "tiny-mha": dataclasses.replace(TINY, batch=1, key_heads=4)}
    return list(decode_reports(SETTINGS, shapes, list(DECODE_METHODS), timeout=120))


@pytest.fixture
def answers(monkeypatch):
    """Answer in place of the worker: what each of its processes says, and how it ends."""

    def use(*processes):
        remaining = iter(processes)

        def stream(module, spec, **_):
            records, error = next(remaining)
            yield {"environment": {}, "bandwidth": 1e9}
            for record in records:
                if record.get("method", record.get("begin")) in (*spec["methods"], None):
                    yield record
            if error is not None:
                raise error

        monkeypatch.setattr(restarts, "stream", stream)

    return use


def answer(method, *seconds):
    yield {"begin": method}
    yield {
        "method": method,
        "answer": {"error": 1e-7, "score_error": None, "bytes": {STEP: 1000}, "graphs": {STEP: True}},
    }
    for value in seconds:
        yield {"method": method, "samples": {STEP: value}}


def test_every_method_that_can_run_is_right(measured):
    for result in measured:
        assert result.complete
        assert {row.method for row in result.rows if row.not_available} <= NOT_ON_A_CPU
        for row in result.rows:
            if row.parts:
                assert row.error < 2e-6
                assert set(row.parts) - {STEP} <= set(STAGES)
                assert all(len(times) == 2 for times in row.samples.values())
                assert row.graphs is False


def test_bytes_and_floors(measured):
    """Those of ``decode_bytes``, over the bandwidth of the run."""
    result = measured[0]
    assert result.sizes == TINY
    rows = {row.method: row for row in result.rows}
    counted = decode_bytes(2, 4, 2, 64, 16, budget=4, r=16, bits=4, share_kv=True, kv_bytes=4)
    parts = rows["shared_r16_int4"].parts
    assert [parts[name].bytes for name in (STEP, *STAGES)] == [
        counted["total"], None, counted["labels"] + counted["scores"], counted["scores"], counted["kv"],
    ]  # fmt: skip
    bandwidth = result.environment["copy_terabytes"] * 1e12
    assert parts[STEP].floor_seconds == pytest.approx(counted["total"] / bandwidth)
    assert parts[STEP].floor_ratio == pytest.approx(parts[STEP].seconds / parts[STEP].floor_seconds)
    assert rows["dense_decode"].parts[STEP].bytes == counted["dense"]
    assert rows["window"].parts["attend"].bytes == counted["kv"]
    assert rows["quest"].parts["attend"].bytes == 2 * counted["kv"]


def test_ratios_are_to_the_fastest_dense_method(measured):
    result = measured[0]
    best = result.best_dense()
    dense = [row for row in result.rows if row.parts and DECODE_METHODS[row.method].dense]
    assert len(dense) == 3
    assert best.parts[STEP].seconds == min(row.parts[STEP].seconds for row in dense)
    assert result.ratio(best) == 1.0
    assert all(result.ratio(row) is None for row in result.rows if row.not_available)


def test_reports_survive_a_file(measured, tmp_path):
    path = write_sparse_reports(measured, tmp_path)
    assert path.name == "sparse-attention-cpu.json"
    assert read_sparse_reports(path) == [type(result).from_dict(dataclasses.asdict(result)) for result in measured]
    path.write_text(json.dumps({"benchmark": "cce"}))
    with pytest.raises(ValueError, match="path must hold a report of 'lossbook bench sparse-attention'"):
        read_sparse_reports(path)
    with pytest.raises(ValueError, match="content must be that of a benchmark report"):
        type(measured[0]).from_dict({"rows": []})


def test_a_wrong_selection_is_not_timed(monkeypatch):
    spec = SETTINGS | {"shapes": {"tiny": dataclasses.asdict(TINY)}, "methods": ["shared_r16_int4"]}
    right, calls = worker.select_tokens, []

    def first_call_is_off_by_one(*args, **options):
        index, count = right(*args, **options)
        calls.append(index)
        return (index - 1).clamp(min=0) if len(calls) == 1 else index, count

    monkeypatch.setattr(worker, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(worker, "select_tokens", first_call_is_off_by_one)
    [said] = [record["not_available"] for record in worker.records(spec) if "not_available" in record]
    assert said == "WrongResultError: its selection is not that of a stable sort"


def test_too_large_an_error_is_no_result(monkeypatch):
    monkeypatch.setattr(worker, "TOLERANCES", {"float32": 1e-12})
    monkeypatch.setattr(worker, "copy_bandwidth", lambda device: 1e9)
    spec = SETTINGS | {"shapes": {"tiny": dataclasses.asdict(TINY)}, "methods": ["dense_decode"]}
    [said] = [record["not_available"] for record in worker.records(spec) if "not_available" in record]
    assert said.startswith("WrongResultError: its relative error is ")
    assert said.endswith("above 1e-12")


def test_a_method_that_ends_the_process_loses_its_row(answers):
    first = [{"shape": "tiny"}, *answer("dense_decode"), {"begin": "window"}]
    second = [{"shape": "tiny"}, *answer("dense_decode", 1.0, 3.0), {"shape": "tiny", "done": True}]
    answers((first, BenchmarkError("worker: killed by SIGSEGV\nmore")), (second, None))
    [result] = decode_reports(SETTINGS, {"tiny": TINY}, ["dense_decode", "window"], timeout=10)
    assert result.rows[0].parts[STEP].seconds == 2.0
    assert result.rows[0].parts[STEP].spread == 1.0
    assert result.rows[0].parts[STEP].floor_seconds == 1e-6
    assert result.rows[1].not_available == "worker: killed by SIGSEGV"
    assert result.complete


def test_what_is_measured_when_the_time_is_up_is_kept(answers):
    answers(([{"shape": "tiny"}, *answer("dense_decode", 1.0)], OutOfTimeError("too slow")))
    results = decode_reports(SETTINGS, {"tiny": TINY}, ["dense_decode", "window"], timeout=10)
    result = next(results)
    assert not result.complete
    assert result.rows[0].parts[STEP].seconds == 1.0
    assert result.rows[1].not_available == "not measured: too slow"
    with pytest.raises(OutOfTimeError):
        next(results)


def test_a_process_that_fails_before_any_method(answers):
    answers(([], BenchmarkError("no memory")))
    with pytest.raises(BenchmarkError, match="no memory"):
        next(decode_reports(SETTINGS, {"tiny": TINY}, ["window"], timeout=10))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shapes": ["huge"]}, r"shapes must be names out of \[.*\], got \['huge'\]"),
        ({"shapes": []}, r"shapes must be names out of \[.*\], got \[\]"),
        ({"methods": "window"}, "methods must be names out of"),
        ({"methods": ["magic"]}, r"methods must be names out of \[.*\], got \['magic'\]"),
        ({"dtype": "float64"}, "dtype must be one of .*, got 'float64'"),
        ({"repeats": 0}, "repeats must be an int >= 1, got 0"),
        ({"threads": 1.5}, "threads must be an int >= 1, got 1.5"),
        ({"device": "tpu"}, "device must be 'cpu' or 'cuda', got 'tpu'"),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        next(sparse_attention_reports(**{"shapes": ["small-mha"]} | wrong))


def test_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sparse_attention, "DECODE_SHAPES", {"small-mha": TINY})
    command = ["sparse-attention", "--shapes=small-mha", "--methods=dense_decode,window", "--seconds=0"]
    done = CliRunner().invoke(bench.cli_app, [*command, "--repeats=1", f"--out={tmp_path / 'r.json'}"])
    assert done.exit_code == 0, done.output
    assert "small-mha: B=2 Hq=4 Hkv=2 S=64 D=16 float32" in done.output
    [result] = read_sparse_reports(tmp_path / "r.json")
    assert [row.method for row in result.rows] == ["dense_decode", "window"]
    failed = CliRunner().invoke(bench.cli_app, ["sparse-attention", "--shapes=huge"])
    assert failed.exit_code == 2
    listed = CliRunner().invoke(bench.cli_app, ["list"]).output
    assert "shared_r16_int4" in listed
    assert "llama3-8b-4x128k" in listed


def test_a_cpu_shows_ratios_only(measured, tmp_path):
    write_sparse_reports(measured, tmp_path)
    text = decode_table(tmp_path)
    assert "awaiting a GPU run" in text
    assert "ratios to the fastest dense method" in text
    assert " ms |" not in text
    assert f"| `{measured[0].best_dense().method}` | " in text
    assert "awaiting a GPU run" in report.markdown_table(tmp_path)  # not a file of the other benchmark, and no error


def test_a_gpu_shows_times(measured, tmp_path):
    gpu = dataclasses.replace(
        measured[0], environment=measured[0].environment | {"gpu": "NVIDIA H200", "device_name": "NVIDIA H200"}
    )
    path = write_sparse_reports([gpu], tmp_path)
    assert path.name == "sparse-attention-nvidia-h200.json"
    text = decode_table(tmp_path)
    assert "awaiting" not in text
    assert "NVIDIA H200, torch" in text
    step = next(row for row in gpu.rows if row.method == "window").parts[STEP]
    assert f"{1e3 * step.seconds:.4f} | {step.spread:.1%}" in text
    path.unlink()
    phases = {"sparse attention": {"status": "done", "records": [{"shape": "t", "report": dataclasses.asdict(gpu)}]}}
    steps = [{"variant": "sdpa", "samples": [0.002, 0.004]}, {"variant": "double_sparsity", "not_available": "no_x"}]
    run = bench.GPURun({"device": "cuda"}, {"device_name": "H"}, "2026-01-31", tmp_path / "gpu.json", phases)
    run.save()
    assert decode_table(tmp_path) == text
    run.phases["decode"] = {"status": "done", "records": steps}
    run.save()
    assert "| `sdpa` | 3.00 |\n| `double_sparsity` | not available: no\\_x |" in decode_table(tmp_path)


def test_floors_by_hand():
    """Llama 2 7B, one request of 8192 tokens; and the shared labels of Llama 3 8B."""
    lines = decode_floors_table().splitlines()
    [first] = [line for line in lines if line.startswith("| llama2-7b-1x8k |")]
    assert first.startswith("| llama2-7b-1x8k | 134 | 31 | 3 (9.8x) | 4 (7.5x) | 3 (10.7x) | 2 (16.0x) |")
    [grouped] = [line for line in lines if line.startswith("| llama3-8b-8x16k |")]
    assert grouped.startswith("| llama3-8b-8x16k | 537 | 125 | 51 (2.5x) | 66 (1.9x) | 12 (10.7x) | 8 (16.0x) |")
    assert len(lines) == 4 + sum(not name.startswith("small") for name in DECODE_SHAPES)


def test_labels_of_sixteen_bits_are_numbers_of_the_cache():
    sparsity = Sparsity(16, 8, 16, True)
    half, single = sparsity.bytes(TINY, 2), sparsity.bytes(TINY, 4)
    assert half["labels"] == 2 * 2 * 64 * 8 * 2
    assert {name: single[name] // half[name] for name in ("dense", "labels", "scores", "kv")} == {
        "dense": 2, "labels": 2, "scores": 1, "kv": 2,
    }  # fmt: skip
    assert single["total"] == single["labels"] + single["scores"] + single["kv"]


def test_a_budget_is_at_least_one_token():
    assert Sparsity(16, 8, 16, True).budget(5) == 1
    assert Sparsity(16, 8, 16, True).budget(8192) == 512


def test_timed_calls_make_two_calls_at_least():
    calls = []
    assert len(measure.timed_calls(lambda: calls.append(0), "cpu", seconds=0.0, most=9)) == 2
    assert len(measure.timed_calls(lambda: calls.append(0), "cpu", seconds=60.0, most=5)) == 5
    assert len(calls) == 7


@pytest.mark.parametrize("can_be_captured", [True, False])
def test_calls_on_a_gpu_take_turns_in_one_graph(monkeypatch, can_be_captured):
    """Without a GPU: what is warmed up, captured and replayed, and what happens where nothing can be captured."""
    made, captured = [], []

    class Graph:
        def replay(self):
            made.extend(captured)

    @contextmanager
    def capture(graph, pool):
        before = len(made)
        yield
        captured.extend(made[before:])
        del made[before:]
        if not can_be_captured:
            raise RuntimeError("operation not permitted when stream is capturing")

    for name, replacement in (
        ("CUDAGraph", Graph), ("graph", capture), ("empty_cache", list), ("synchronize", list),
    ):  # fmt: skip
        monkeypatch.setattr(worker.torch.cuda, name, replacement)
    call, count, is_graph = worker._unit([lambda: made.append("a"), lambda: made.append("b")], "cuda", pool=None)
    assert made == ["a", "b"] * 3
    assert is_graph is can_be_captured
    made.clear()
    call()
    assert made == ["a", "b"] * 5
    assert count == 10
