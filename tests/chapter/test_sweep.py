"""Sweeps: order, processes, what a cache finds again and what it does not, interruption and errors."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch

from lossbook.chapter import Chapter, sweep

SEEDS = [{"seed": seed} for seed in range(4)]


def script(path, text, **environ):
    """Run a script, whose functions live in ``__main__`` as a notebook's do."""
    path.write_text(text, encoding="utf-8")
    environ = {**os.environ, "LOSSBOOK_STATIC": "1", **environ}
    return subprocess.run(
        [sys.executable, str(path)], env=environ, capture_output=True, text=True, check=False, timeout=300
    )


def notebook(source, **names):
    """The function ``run`` of some code, as if a notebook defined it."""
    scope = {"__name__": "__main__", "torch": torch, **names}
    exec(source, scope)
    return scope["run"]


class Counted:
    """Calls of a function, counted outside of what its cache looks at."""

    calls = 0


def count(value):
    Counted.calls += 1
    return value


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(Counted, "calls", 0)
    monkeypatch.delenv("LOSSBOOK_SWEEP_CACHE", raising=False)
    monkeypatch.delenv("LOSSBOOK_THREADS", raising=False)


def power(base, exponent=2):
    return base**exponent


def test_results_come_in_the_order_given():
    assert sweep(power, [{"base": 3}, {"base": 2, "exponent": 3}, {"base": 1}]) == [9, 8, 1]
    assert sweep(power, iter([])) == []


def test_runs_in_this_process_by_default():
    threads = torch.get_num_threads()
    assert sweep(lambda seed: (os.getpid(), torch.get_num_threads()), SEEDS) == [(os.getpid(), threads)] * 4


PARALLEL = """
import os, sys, time
from dataclasses import dataclass
import joblib, torch
from lossbook.chapter import sweep

@dataclass
class Found:
    width: int
    threads: int
    process: int
    weights: torch.Tensor

table = torch.arange(4.0)

def run(width):
    time.sleep(0.5 if width == 0 else 0)     # the first is finished last
    table.add_(0)                            # arrays of a worker can be written to
    return Found(width, torch.get_num_threads(), os.getpid(), table * width)

def check(found, threads):
    assert [one.width for one in found] == [0, 1, 2, 3], found
    assert {one.threads for one in found} == {threads}, found
    assert os.getpid() not in {one.process for one in found}
    assert found[3].weights.tolist() == [0.0, 3.0, 6.0, 9.0]

if __name__ == "__main__":
    torch.set_num_threads(3)
    widths = [{"width": width} for width in range(4)]
    check(sweep(run, widths, n_jobs=2, cache=sys.argv[0] + ".cache"), 1)
    check(sweep(run, widths, cache=sys.argv[0] + ".cache"), 1)
    os.environ["LOSSBOOK_THREADS"] = "2"
    with joblib.parallel_config(backend="loky", n_jobs=2):
        check(sweep(run, widths), 2)
    print("all checked")
"""


def test_processes_run_functions_of_a_notebook_with_one_thread_each(tmp_path):
    done = script(tmp_path / "parallel.py", PARALLEL, OMP_NUM_THREADS="2")
    assert done.stdout == "all checked\n", done.stderr


def test_a_backend_that_returns_all_at_the_end(tmp_path):
    """As Ray's does, and joblib's own for forked processes."""
    assert not joblib.parallel.BACKENDS["multiprocessing"]().supports_return_generator
    text = (
        "import joblib\nfrom lossbook.chapter import sweep\n\ndef run(base):\n    return base**2\n\n"
        "if __name__ == '__main__':\n    with joblib.parallel_config(backend='multiprocessing', n_jobs=2):\n"
        "        print(sweep(run, [{'base': 3}, {'base': 2}]))\n"
    )
    done = script(tmp_path / "forked.py", text)
    assert done.stdout == "[9, 4]\n", done.stderr


INTERRUPTED = """
import os, signal, sys
from lossbook.chapter import sweep

def run(seed):
    with open(os.environ["CALLS"], "a") as file:
        print(seed, file=file)
    if seed == 2 and "STOP" in os.environ:
        os.kill(os.getpid(), getattr(signal, os.environ["STOP"]))
    return {"seed": seed, "words": {"one", "two", "three"}}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print([result["seed"] for result in sweep(run, [{"seed": seed} for seed in range(4)], label="depths")])
"""


def test_interrupted_sweep_continues_where_it_stopped(tmp_path):
    calls, cache = tmp_path / "calls", tmp_path / "deep" / "cache"
    options = {"CALLS": str(calls), "LOSSBOOK_SWEEP_CACHE": str(cache)}
    stopped = script(tmp_path / "stopped.py", INTERRUPTED, **options, STOP="SIGINT")
    assert stopped.returncode != 0
    assert (
        f"KeyboardInterrupt: depths: interrupted after 2 of 4 configurations; their results are kept in {cache}, "
        "and the same call continues from there" in stopped.stderr
    )
    assert calls.read_text().split() == ["0", "1", "2"]
    again = script(tmp_path / "stopped.py", INTERRUPTED, **options)
    assert again.stdout == "[0, 1, 2, 3]\n", again.stderr
    assert calls.read_text().split() == ["0", "1", "2", "2", "3"]
    assert {path.suffix for path in cache.iterdir()} == {".pickle"}, "no partial file is left"


def test_killed_sweep_continues_where_it_stopped(tmp_path):
    """As after a power cut: nothing is told to the process, which can not clean up."""
    calls, cache = tmp_path / "calls", tmp_path / "cache"
    options = {"CALLS": str(calls), "LOSSBOOK_SWEEP_CACHE": str(cache)}
    killed = script(tmp_path / "killed.py", INTERRUPTED, **options, STOP="SIGKILL")
    assert killed.returncode == -signal.SIGKILL
    again = script(tmp_path / "killed.py", INTERRUPTED, **options)
    assert again.stdout == "[0, 1, 2, 3]\n", again.stderr
    assert calls.read_text().split() == ["0", "1", "2", "2", "3"]


@pytest.mark.parametrize(
    ("last", "message"),
    [(1, "after 1 of 4 configurations; no result is kept"), (0, "before the first of 4 configurations was finished")],
)
def test_interruption_without_a_cache_says_what_is_lost(last, message):
    def run(seed):
        if seed == last:
            raise KeyboardInterrupt
        return seed

    with pytest.raises(KeyboardInterrupt, match=f"sweep: interrupted {message}"):
        sweep(run, SEEDS)


def test_cached_results_are_not_computed_again(tmp_path):
    run = notebook("def run(seed):\n    return count(torch.full((2,), float(seed)))", count=count)
    first = sweep(run, SEEDS[:3], cache=tmp_path)
    assert Counted.calls == 3
    second = sweep(run, SEEDS, cache=tmp_path)
    assert Counted.calls == 4, "only the new configuration is computed"
    assert torch.equal(torch.stack(first), torch.stack(second[:3]))
    sweep(run, SEEDS)
    assert Counted.calls == 8, "without a cache everything is"


@pytest.mark.parametrize("damage", ["cut off", "one bit", "empty"])
def test_damaged_result_is_computed_again(tmp_path, damage):
    run = notebook("def run(seed):\n    return count(seed)", count=count)
    sweep(run, SEEDS[:2], cache=tmp_path)
    path = min(tmp_path.iterdir())
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes({"cut off": content[:-3], "one bit": content, "empty": b""}[damage])
    with pytest.warns(RuntimeWarning, match="is damaged: its result is computed again"):
        assert sweep(run, SEEDS[:2], cache=tmp_path) == [0, 1]
    assert sweep(run, SEEDS[:2], cache=tmp_path) == [0, 1]
    assert Counted.calls == 3


BASE = """
class Model(torch.nn.Module):
    scale = 2.0
    def forward(self, seed):
        return [Helper().value(one) * scale * self.scale for one in (seed,)]

class Helper:
    @staticmethod
    def value(seed):
        return seed + offset.sum()

def repeated(depth):
    return 1 if depth == 0 else repeated(depth - 1)

def outer(bonus):
    def run(seed, *, extra=1):
        count(seed)
        return Model()(seed)[0].item() + bonus + extra + repeated(2)
    return run

run = outer(5)
"""


def base(**names):
    return {"count": count, "scale": 3.0, "offset": torch.ones(2, dtype=torch.bfloat16), **names}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (("    return Model", "    seed += 1\n        return Model"), {}),
        (("extra=1", "extra=2"), {}),
        (("outer(5)", "outer(6)"), {}),
        (("scale = 2.0", "scale = 2.5"), {}),
        (("seed + offset", "seed - offset"), {}),
        (("1 if depth", "2 if depth"), {}),
        (None, {"scale": 3.5}),
        (None, {"offset": torch.tensor([1, 2], dtype=torch.bfloat16)}),
        (None, {"offset": torch.ones(2)}),
        (None, {"offset": torch.ones(1, 2, dtype=torch.bfloat16)}),
        (None, {"offset": np.ones(2)}),
    ],
    ids=str,
)
def test_what_a_result_depends_on_is_noticed(tmp_path, change, names):
    sweep(notebook(BASE, **base()), SEEDS[:1], cache=tmp_path)
    sweep(notebook(BASE, **base()), SEEDS[:1], cache=tmp_path)
    assert Counted.calls == 1, "equal code and values give the stored result"
    source = BASE.replace(*change) if change else BASE
    sweep(notebook(source, **base(**names)), SEEDS[:1], cache=tmp_path)
    assert Counted.calls == 2


def test_what_a_result_does_not_depend_on_is_not(tmp_path):
    sweep(notebook(BASE, **base()), SEEDS[:1], cache=tmp_path)
    commented = BASE.replace("    return Model", "    # a word\n        return Model")
    sweep(notebook(commented, **base(unread=3)), [dict(SEEDS[0])], cache=tmp_path)
    assert Counted.calls == 1


def test_chapter_counts_by_profile_and_seed_not_by_its_claims(tmp_path):
    source = "def run(seed):\n    return count(chapter.pick(smoke=1, cpu=2))"
    chapter = Chapter("17_cut_cross_entropy", profile="smoke")
    assert sweep(notebook(source, count=count, chapter=chapter), SEEDS[:1], cache=tmp_path) == [1]
    chapter.needs_gpu("17.a", "nothing")
    assert sweep(notebook(source, count=count, chapter=chapter), SEEDS[:1], cache=tmp_path) == [1]
    assert Counted.calls == 1
    other = Chapter("17_cut_cross_entropy", profile="cpu")
    assert sweep(notebook(source, count=count, chapter=other), SEEDS[:1], cache=tmp_path) == [2]
    reseeded = Chapter("17_cut_cross_entropy", profile="cpu", seed=1)
    sweep(notebook(source, count=count, chapter=reseeded), SEEDS[:1], cache=tmp_path)
    assert Counted.calls == 3


def test_keys_are_the_same_in_every_process(tmp_path):
    text = (
        "import json, sys\nimport torch\nfrom lossbook.chapter.sweep_cache import digest\n"
        "model = torch.nn.Linear(2, 2).requires_grad_(False)\nmodel.weight.fill_(1.0)\nmodel.bias.fill_(0.0)\n"
        "def run(seed):\n    return seed in {'a', 'b', 'c'} and model(torch.ones(2))\n"
        "print(json.dumps([digest(run, 'run'), digest({'x': {'p', 'q', 'r'}, 'w': torch.ones(3)}, 'c')]))\n"
    )
    keys = [json.loads(script(tmp_path / f"{seed}.py", text, PYTHONHASHSEED=seed).stdout) for seed in ("1", "2")]
    assert keys[0] == keys[1]


def test_what_can_not_be_told_apart_is_refused(tmp_path):
    run = notebook("def run(seed):\n    return lock", lock=threading.Lock())
    with pytest.raises(TypeError, match=r"function run must depend on values that can be pickled .* got .*lock"):
        sweep(run, SEEDS, cache=tmp_path)
    with pytest.raises(TypeError, match=r"configurations\[1\] must depend on values that can be pickled"):
        sweep(power, [{"base": 1}, {"base": threading.Lock()}], cache=tmp_path)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_error_names_the_configuration(n_jobs):
    def run(seed, table):
        return 1 / seed

    with pytest.raises(ZeroDivisionError) as caught:
        sweep(run, [{"seed": 1, "table": None}, {"seed": 0, "table": list(range(1000))}], n_jobs=n_jobs)
    (note,) = caught.value.__notes__
    assert note.startswith("in configuration 1 of the sweep: seed=0, table=[0, 1, 2")
    assert len(note) < 120


def test_failed_sweep_keeps_what_was_finished(tmp_path):
    run = notebook("def run(seed):\n    return 6 / count(seed)", count=count)
    with pytest.raises(ZeroDivisionError):
        sweep(run, [{"seed": 1}, {"seed": 0}], cache=tmp_path)
    assert sweep(run, [{"seed": 1}, {"seed": 2}], cache=tmp_path) == [6, 3]
    assert Counted.calls == 3


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((3, SEEDS), {}, TypeError, "function must be callable, got 3"),
        ((power, [{"base": 1}, 2]), {}, TypeError, r"configurations\[1\] must be a mapping of names to values, got 2"),
        ((power, SEEDS), {"n_jobs": 0}, ValueError, "n_jobs must be a nonzero integer or None, got 0"),
        ((power, [{"bass": 1}]), {}, TypeError, "unexpected keyword argument 'bass'"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        sweep(*arguments, **options)


def test_folder_that_can_not_be_made(tmp_path):
    file = Path(tmp_path / "file")
    file.touch()
    with pytest.raises(OSError, match="file"):
        sweep(power, [{"base": 1}], cache=file)


def test_progress_is_shown_when_asked(capsys):
    sweep(power, [{"base": 1}], label="widths", progress=True)
    assert "widths" in capsys.readouterr().err
    sweep(power, [{"base": 1}], label="widths")
    assert capsys.readouterr().err == "", "tests run as the static book does"
