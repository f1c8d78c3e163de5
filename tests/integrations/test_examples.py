"""The programs that the guide pages show run as they are, and print what the pages say of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BOOK = Path(__file__).resolve().parents[2] / "book"
NAMES = ("transformers", "tensor_parallel", "data_parallel")
PAGES = {name: (BOOK / f"{name}.md").read_text(encoding="utf-8") for name in NAMES}


def output(*command):
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def example(name):
    return str(BOOK / "examples" / name)


@pytest.mark.model
def test_fine_tuning_lowers_the_loss():
    losses = [float(value) for value in re.findall(r": ([\d.]+) nats", output(sys.executable, example("finetune.py")))]
    assert len(losses) == 2 and losses[1] < losses[0]


def test_peak_memory_is_below_a_quarter():
    """Plain holds the logits and their gradient at least, patched a quarter of plain at most."""
    pytest.importorskip("transformers")
    text = output(sys.executable, example("peak_memory.py"))
    (logits,) = re.findall(r"float32: (\d+) MiB", text)
    plain, patched = re.findall(r"(\d+) MiB more, loss ([\d.]+)", text)
    (ratio,) = re.findall(r"patched / plain = ([\d.]+)", text)
    assert int(plain[0]) >= 2 * int(logits)
    assert float(ratio) <= 1 / 4 and float(ratio) == pytest.approx(int(patched[0]) / int(plain[0]), abs=0.01)
    assert float(patched[1]) == pytest.approx(float(plain[1]), rel=1e-6)


@pytest.mark.parametrize("options", [[], ["--sequence-parallel"]], ids=["tensor", "sequence"])
def test_processes_together_equal_one(options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    text = output(*command, example("tensor_parallel.py"), *options)
    assert "rank 0: rows [0, 5001) of 10001 on" in text and "rank 1: rows [5001, 10001) of 10001 on" in text
    assert len(re.findall(r"relative difference from one process", text)) == 3
    assert text.rstrip().endswith("equal to rounding")


def test_losses_of_joined_batches_equal_one_process_and_local_ones_do_not():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    text = output(*command, example("data_parallel.py"))
    joined, local = map(float, re.findall(r"from one process (\S+)$", text, re.MULTILINE))
    assert joined < 1e-5 and local > 0.1, "the page says: of the order of one"
    assert text.rstrip().endswith("equal to rounding")


@pytest.mark.parametrize("page", PAGES)
def test_pages_show_programs_that_are_run_here(page):
    shown = set(re.findall(r"^```\{literalinclude\} examples/(\S+)$", PAGES[page], re.MULTILINE))
    tested = {"transformers": {"finetune.py", "peak_memory.py"}}
    assert shown == tested.get(page, {f"{page}.py"})
    assert "```python" not in PAGES[page], "code on these pages comes from the tested programs"


def test_commands_on_the_pages_name_programs_that_exist():
    for text in PAGES.values():
        programs = re.findall(r"\w+\.py", text)
        assert programs and all((BOOK / "examples" / program).is_file() for program in programs)
