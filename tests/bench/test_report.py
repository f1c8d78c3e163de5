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


SETTINGS = {"n": 8, "vocab": 16, "dim": 4, "dtype": "float32", "threads": 2, "data": "peaked", "device": "cpu"}
CPU = bench.CCEReport(
    settings=SETTINGS,
    environment={"torch": "2.13.0", "triton": None, "lossbook": "0.1.0", "device_name": "Some CPU"},
    data={"scale": 1.0, "entry_density": 0.0025},
    rows=(
        row("dense", 4.5678, 400 << 20),
        row("two_pass", 5.0246, 100 << 20),
        bench.CCERow("torch_chunked", not_available="needs torch >= 2.13"),
    ),
    date="2026-01-31",
)


def on_gpu(report):
    timed = [
        dataclasses.replace(
            row, device_seconds=seconds, device_seconds_forward=seconds / 4, device_seconds_backward=3 * seconds / 4
        )
        for row, seconds in zip(report.rows[:2], (0.016, 0.008), strict=True)
    ]
    environment = report.environment | {"gpu": "NVIDIA H200", "cuda": "13.0", "device_name": "NVIDIA H200"}
    return dataclasses.replace(
        report, rows=tuple(timed), environment=environment, settings=SETTINGS | {"device": "cuda"}
    )


def test_cpu_shows_ratios_and_no_seconds(tmp_path):
    CPU.to_json(tmp_path)
    text = bench.markdown_table(tmp_path)
    assert "awaiting a GPU run" in text
    assert "| `two_pass` | 1.10 | 0.25 | 50% | 1.0e-07 | 2.0e-07 | 3.0e-07 |" in text
    assert "| `torch_chunked` | not available: needs torch >= 2.13 |" in text
    assert "N = 8, V = 16, D = 4, float32, peaked logits, 0.25% of probabilities >= 2^-12; 2026-01-31." in text
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
    assert "NVIDIA H200, CUDA 13.0, torch 2.13.0" in text
    assert "| `two_pass` | 2.000 | 6.000 | 8.000 | 100 | 0.50 | 1.0e-07 | 2.0e-07 | 3.0e-07 |" in text
    assert text.index("NVIDIA H200") < text.index("ratios to the dense method")


def test_every_table_is_rectangular(tmp_path):
    CPU.to_json(tmp_path)
    on_gpu(CPU).to_json(tmp_path)
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
    assert on_gpu(CPU).table().columns[1].header == "GPU ms"


def test_committed_results_can_be_shown():
    results = Path(__file__).parents[2] / "book" / "results"
    for path in results.glob("*.json"):
        report = bench.CCEReport.from_json(path)
        assert path.name == report.file_name
        assert {row.method for row in report.rows} <= bench.METHODS.keys()
    assert "`grad_in_forward`" in bench.markdown_table(results)
