"""Floors against numbers worked out by hand."""

import pytest

from lossbook import bench


def test_gemma():
    floors = bench.roofline(8192, 256000, 2304, f=0.1)
    product = 2 * 8192 * 256000 * 2304 / 790e12  # 9.66e12 operations
    assert floors.forward == pytest.approx(product) == pytest.approx(12.23e-3, abs=5e-6)
    assert floors.exact == pytest.approx(36.7e-3, abs=5e-5)
    assert floors.two_pass == pytest.approx(48.9e-3, abs=5e-5)
    assert floors.filtered == pytest.approx(1.3 * product)
    assert floors.gradient_bytes == 2 * 2304 * (8192 + 256000)
    assert floors.gradient_bytes / 2**20 == 1161.0  # the paper's lower bound
    assert floors.gradient_seconds == pytest.approx(0.28e-3, abs=5e-6)
    assert floors.logits_bytes == 4000 * 2**20


@pytest.mark.parametrize(
    ("f", "products"),
    [(0.0, 1.0), (0.25, 1.75), (0.4, 2.2), (1.0, 3.0), ((0.4, 0.1), 1.9), ((0.1, 0.4), 1.9), ((0.3, 1.0), 3.0)],
)
def test_filter(f, products):
    floors = bench.roofline(64, 512, 16, f=f)
    assert floors.filtered == pytest.approx(products * floors.forward)


def test_other_devices_and_dtypes():
    assert bench.roofline(10, 100, 1000, "float32", tflops=2).forward == pytest.approx(1e-6)
    assert bench.roofline(10, 100, 1000, "float32", tflops=2).gradient_bytes == 440_000
    assert bench.roofline(10, 100, 1000, terabytes=0.22).gradient_seconds == pytest.approx(1e-6)
    assert bench.roofline(10, 100, 1000).filtered is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n must be an int >= 1, got 0"),
        ({"dtype": "int8"}, r"dtype must be one of \[.*\], got 'int8'"),
        ({"dtype": "float32"}, "tflops must be given for dtype 'float32'"),
        ({"tflops": 0}, "tflops must be a finite number > 0, got 0"),
        ({"terabytes": float("inf")}, "terabytes must be a finite number > 0, got inf"),
        ({"f": 1.5}, r"f must be a fraction in \[0, 1\] or a pair of them, got 1\.5"),
        ({"f": (0.1, 0.2, 0.3)}, "f must be a fraction"),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        bench.roofline(**{"n": 8, "vocab": 16, "dim": 4} | wrong)


def test_table_of_floors():
    lines = bench.floors_table().splitlines()
    assert "790 TFLOP/s" in lines[0]
    assert len(lines) == 4 + len(bench.SHAPES)
    assert "| gemma2-2b | 8192 | 256000 | 2304 | 12.2 | 36.7 | 48.9 | 15.9 | 21.4 | 26.9 | 1161 | 4000 |" in lines
    assert "| smollm2 | 8192 | 49152 | 576 | 0.6 | 1.8 | 2.3 | 0.8 | 1.0 | 1.3 | 63 | 768 |" in lines
