"""The benchmarks page: ratios for CPUs, absolute times for GPUs."""

import dataclasses
from pathlib import Path

import pytest

from lossbook import bench


def row(method, cpu, peak, **extra):
    return bench.CCERow(
        method,
        cpu_seconds=cpu,
        cpu_seconds_forward=cpu / 2,
        cpu_seconds_backward=cpu / 2,
        peak_extra_bytes=peak,
        gradient_bytes=50 << 20,
        loss=2.5,
        loss_error=1e-7,
        e_gradient_error=2e-7,
        c_gradient_error=3e-7,
        **extra,
    )


SETTINGS = {
    "n": 8, "vocab": 16, "dim": 4, "dtype": "float32", "threads": 2, "data": "peaked", "device": "cpu", "seed": 7,
}  # fmt: skip
CPU = bench.CCEReport(
    settings=SETTINGS,
    environment={"torch": "2.13.0", "triton": None, "lossbook": "0.1.0", "device_name": "Some CPU"},
    data={"scale": 1.0, "entry_density": 0.0025},
    rows=(
        row("dense", 4.5678, 400 << 20),
        row("filtered_fast", 5.0246, 100 << 20, kept=(0.25, 0.125), spread=0.034),
        bench.CCERow("torch_chunked", not_available="needs torch >= 2.13"),
    ),
    date="2026-01-31",
)


def on_gpu(report):
    timed = [
        dataclasses.replace(
            row,
            cpu_seconds=None,
            device_seconds=seconds,
            device_seconds_forward=seconds / 4,
            device_seconds_backward=3 * seconds / 4,
            floor_seconds=0.005,
            spread=0.01,
        )
        for row, seconds in zip(report.rows[:2], (0.016, 0.008), strict=True)
    ]
    facts = {
        "gpu": "NVIDIA H200", "cuda": "13.0", "driver": "580.1", "device_name": "NVIDIA H200", "matrix_tflops": 780.0,
    }  # fmt: skip
    return dataclasses.replace(
        report,
        rows=(*timed, bench.CCERow("liger", not_available="ModuleNotFoundError: no | here")),
        environment=report.environment | facts,
        settings=SETTINGS | {"device": "cuda", "density": 0.0025},
        data=report.data | {"complete": True},
    )


def gpu_run(path):
    report = dataclasses.asdict(on_gpu(CPU))
    case = {"case": "softcap", "dtype": "bfloat16", "passed": True}
    step = {"variant": "unpatched", "samples": [{"both": 0.1}, {"both": 0.3}, {"both": 0.2}], "extra_bytes": 5 << 20}
    records = {
        "device": [{"copy_terabytes": 4.2}, {"matrix_tflops": 780.4, "dtype": "bfloat16"}],
        "correctness": [case, case | {"case": "bias", "passed": False}],
        "tables": [{"shape": "gemma2-2b", "report": report}],
        "train": [step, {"variant": "patched", "not_available": "ImportError: nothing there"}],
    }
    phases = {name: {"status": "done", "seconds": 1.0, "records": found} for name, found in records.items()}
    environment = {"gpu": "NVIDIA H200", "device_name": "NVIDIA H200", "torch": "2.13.0"}
    run = bench.GPURun({"device": "cuda"}, environment, "2026-01-31", path / "gpu.json", phases)
    run.save()
    return run


def test_cpu_shows_ratios_and_no_seconds(tmp_path):
    CPU.to_json(tmp_path)
    text = bench.markdown_table(tmp_path)
    assert "awaiting a GPU run" in text
    assert "| `filtered_fast` | 2.0e-07 | 3.0e-07 | 25.0%, 12.5% | 1.10 | 3% | 0.25 | 50 | 1.0e-07 |" in text
    assert "| `torch_chunked` | n/a |" in text
    assert "Not available: `torch_chunked`: needs torch \\>= 2.13." in text
    assert "N = 8, V = 16, D = 4, float32, peaked logits, 0.250% of probabilities ≥ 2⁻¹², seed 7; 2026-01-31." in text
    assert "CPU, 2 threads, torch 2.13.0, lossbook 0.1.0" in text
    for seconds in ("4.5678", "4.57", "5.02"):
        assert seconds not in text
    assert "Some CPU" not in text


def test_gpu_shows_milliseconds_device_and_versions(tmp_path):
    report = on_gpu(CPU)
    assert report.to_json(tmp_path).name == "cce-nvidia-h200.json"
    CPU.to_json(tmp_path)
    text = bench.markdown_table(tmp_path)
    assert "awaiting" not in text
    assert "NVIDIA H200, CUDA 13.0, driver 580.1, torch 2.13.0, lossbook 0.1.0; ceiling 780 TFLOP/s" in text
    figures = "2.0e-07 | 3.0e-07 | 25.0%, 12.5% | 2.000 | 6.000 | 8.000 | 1.0% | 5.000 | 1.60 | 488 | 50 | 1.0e-07"
    assert f"| `filtered_fast` | {figures} |" in text
    assert "Not available: `liger`: ModuleNotFoundError: no \\| here." in text
    assert text.index("NVIDIA H200") < text.index("ratios to the dense method")


def test_a_gpu_run_shows_all_its_phases(tmp_path):
    run = gpu_run(tmp_path)
    assert bench.GPURun.load(run.path).tables() == run.tables()
    text = bench.markdown_table(tmp_path)
    assert "awaiting" not in text
    assert "NVIDIA H200, torch 2.13.0; 2026-01-31: 4.20 TB/s copied, 780 TFLOP/s in a bfloat16 matrix product." in text
    assert "Options compared with float64: 2; within their tolerance: all but `bias` in bfloat16." in text
    assert "**gemma2-2b**\\\nN = 8, V = 16" in text
    assert "| unpatched | 200.0 | 5 |" in text
    assert "| patched | not available: ImportError: nothing there |  |" in text


def test_every_table_is_rectangular(tmp_path):
    CPU.to_json(tmp_path)
    on_gpu(CPU).to_json(tmp_path)
    gpu_run(tmp_path)
    for block in bench.markdown_table(tmp_path).split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_an_empty_folder_awaits_a_run(tmp_path):
    assert bench.markdown_table(tmp_path).startswith("Absolute times: awaiting a GPU run")


def test_a_foreign_file_is_named(tmp_path):
    (tmp_path / "cce-cpu.json").write_text("{}")
    with pytest.raises(ValueError, match=r"path must hold a benchmark report, got .*cce-cpu\.json"):
        bench.markdown_table(tmp_path)


def test_tables_for_the_terminal():
    assert CPU.table().row_count == 2
    assert CPU.table().columns[1].header == "CPU s"
    assert on_gpu(CPU).table().columns[1].header == "ms"


def test_committed_results_can_be_shown():
    results = Path(__file__).parents[2] / "book" / "results"
    for path in results.glob("cce-*.json"):
        for report in bench.read_reports(path):
            assert path.name == report.file_name
            assert {row.method for row in report.rows} <= bench.METHODS.keys()
    assert "`grad_in_forward`" in bench.markdown_table(results)
