"""Run phase after phase within a budget of time, and keep what is measured at every moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lossbook.bench.cross_entropy import DENSITIES, check_methods
from lossbook.bench.environment import describe, require_device
from lossbook.bench.gpu.results import GPURun
from lossbook.bench.methods import methods_for
from lossbook.bench.process import BenchmarkError, OutOfTimeError
from lossbook.bench.shapes import SHAPES
from lossbook.bench.sparse_attention import decode_reports
from lossbook.bench.sparse_attention.cases import DECODE_METHODS, DECODE_SHAPES, DecodeShape
from lossbook.bench.stream import stream
from lossbook.bench.turns import reports_in_turns

_PACKAGE = "lossbook.bench.gpu"
_SHAPES = ("smollm2", "gemma2-2b")
_REPEATS = 2

# On a CPU the Triton kernels run in their interpreter, thousands of times slower: the sizes only exercise the driver.
_DRY_SHAPES = {"small": {"n": 32, "vocab": 160, "dim": 16}, "tall": {"n": 48, "vocab": 128, "dim": 16}}
_DRY_DECODE_SHAPES = {"tiny": {"batch": 2, "query_heads": 4, "key_heads": 2, "tokens": 256, "features": 16}}
_DRY_DENSITIES = (0.05, 0.1, 0.2)
_INTERPRETER = MappingProxyType({"TRITON_INTERPRET": "1"})


@dataclass(frozen=True)
class Phase:
    """One part of the run.

    Attributes:
        name: Name on the command line and in the file.
        description: What it does, in a few words.
        weight: Its part of the time, relative to the other phases that are still to come.
        records: Does the work within the seconds given, yielding what is to be kept.
        continues: Whether it takes up the records of an earlier, incomplete attempt; otherwise it starts anew.
    """

    name: str
    description: str
    weight: float
    records: Callable[[GPURun, float], Iterator[dict[str, Any]]]
    continues: bool = False


def run_gpu(
    budget: float,
    out: str | os.PathLike[str],
    *,
    phases: Sequence[str] = (),
    device: str = "cuda",
    methods: Sequence[str] = (),
    seed: int = 0,
    on_phase: Callable[[str, float], None] | None = None,
) -> GPURun:
    """Measure everything the book wants to know of a GPU, unattended, within a budget of time.

    Every record is written to ``out`` as soon as it is there, so that a run which is interrupted or killed keeps what
    it has.  A call with a file that exists continues it: phases that are done are not repeated.  Every phase gets its
    part of the time that is left; a phase that fails or runs out of time does not stop the next.

    Args:
        budget: Seconds of wall-clock time for this call, ``> 0``.
        out: File to write or to continue.
        phases: Names as ``lossbook bench list`` shows them. Default: all of them.
        device: A CUDA device, default ``"cuda"``; or ``"cpu"``, which runs everything at tiny sizes, the Triton
            kernels in their interpreter, to try the run without a GPU.
        methods: Names from :data:`lossbook.bench.METHODS`. Default: all that fit.
        seed: Seed of all inputs.
        on_phase: Called with a phase's name and seconds before it starts.

    Returns:
        The run, as it stands in the file.

    Raises:
        ValueError: If an argument is not as above, the device is not present, or ``out`` holds another run.
        KeyboardInterrupt: When interrupted, after the file is written.
    """
    if not budget > 0:
        raise ValueError(f"budget must be > 0 seconds, got {budget!r}")
    unknown = [name for name in phases if name not in PHASES]
    if unknown or isinstance(phases, str):
        raise ValueError(f"phases must be names out of {list(PHASES)}, got {unknown or phases!r}")
    methods = list(methods) or methods_for("triton")
    check_methods(methods)
    require_device(device)
    run = _open(Path(out), _settings(device, methods, seed))
    deadline = time.monotonic() + budget
    left = [phase for name, phase in PHASES.items() if not run.done(name) and (not phases or name in phases)]
    while left:
        phase, weights = left[0], sum(other.weight for other in left)
        seconds = max(0.0, deadline - time.monotonic()) * phase.weight / weights
        if on_phase is not None:
            on_phase(phase.name, seconds)
        _run_phase(run, phase, seconds)
        left = left[1:]
    return run


def _open(path: Path, settings: dict[str, Any]) -> GPURun:
    if not path.exists():
        return GPURun(settings, describe(), datetime.now(UTC).date().isoformat(), path)
    run = GPURun.load(path)
    if run.settings != settings:
        differing = sorted(name for name in settings if run.settings.get(name) != settings[name])
        raise ValueError(f"out must be a new file or one with the same settings, got {path}: {differing} differ")
    return run


def _settings(device: str, methods: list[str], seed: int) -> dict[str, Any]:
    on_gpu = device != "cpu"
    sizes = {
        name: {"n": shape.rows, "vocab": shape.vocab, "dim": shape.features}
        for name, shape in ((name, SHAPES[name]) for name in _SHAPES)
    }
    decode_shapes = {name: asdict(shape) for name, shape in DECODE_SHAPES.items() if not name.startswith("small")}
    return {
        "device": device,
        "seed": seed,
        "dtype": "bfloat16" if on_gpu else "float32",
        "shapes": sizes if on_gpu else _DRY_SHAPES,
        "densities": list(DENSITIES if on_gpu else _DRY_DENSITIES),
        "methods": methods,
        "decode_shapes": decode_shapes if on_gpu else _DRY_DECODE_SHAPES,
    }


def _run_phase(run: GPURun, phase: Phase, seconds: float) -> None:
    start = time.monotonic()
    entry = run.phases.setdefault(phase.name, {"status": "interrupted", "seconds": 0.0, "records": []})
    before = entry["seconds"]
    entry |= {"status": "interrupted", "reason": None}
    if not phase.continues:
        entry["records"].clear()
    try:
        for record in phase.records(run, seconds):
            entry["records"].append(record)
            entry["seconds"] = before + time.monotonic() - start
            run.save()
        entry["status"] = "done"
    except OutOfTimeError as error:
        entry |= {"status": "out of time", "reason": str(error)}
    except BenchmarkError as error:
        entry |= {"status": "failed", "reason": str(error)}
    finally:
        entry["seconds"] = before + time.monotonic() - start
        run.save()


def _environment(run: GPURun) -> Mapping[str, str]:
    return _INTERPRETER if run.settings["device"] == "cpu" else {}


def _worker(run: GPURun, module: str, limit: float, **spec: Any) -> Iterator[dict[str, Any]]:
    """The records of a module of this package; facts about the device go to the environment."""
    shared = {name: run.settings[name] for name in ("device", "seed", "dtype")}
    for record in stream(f"{_PACKAGE}.{module}", shared | spec, timeout=limit, environment=_environment(run)):
        if "facts" in record:
            run.environment |= record["facts"]
        else:
            yield record


def _device(run: GPURun, seconds: float) -> Iterator[dict[str, Any]]:
    return _worker(run, "device", seconds)


def _correctness(run: GPURun, seconds: float) -> Iterator[dict[str, Any]]:
    """Every case; one that ends its process has failed, and the others continue in another."""
    deadline = time.monotonic() + seconds
    on_gpu = run.settings["device"] != "cpu"
    sizes = {"n": 300, "vocab": 1000, "dim": 136} if on_gpu else {"n": 20, "vocab": 70, "dim": 12}
    dtypes = ["float32", "bfloat16", "float16"] if on_gpu else ["float32"]
    spec = sizes | {"impl": "triton", "dtypes": dtypes}
    settled, begun = 0, None
    while True:
        try:
            for record in _worker(run, "correctness", deadline - time.monotonic(), **spec, skip=settled):
                begun = record.get("begin")
                if begun is None:
                    settled += 1
                    yield record
            return
        except OutOfTimeError:
            raise
        except BenchmarkError as error:
            if begun is None:
                raise
            settled += 1
            yield begun | {"passed": False, "failure": str(error).splitlines()[0]}
            begun = None


def _tuning(run: GPURun, seconds: float) -> Iterator[dict[str, Any]]:
    densities = run.settings["densities"]
    density = densities[len(densities) // 2]
    return _worker(run, "tuning", seconds, shapes=run.settings["shapes"], density=density)


def _tables(run: GPURun, seconds: float) -> Iterator[dict[str, Any]]:
    """Side-by-side measurements of the shapes and densities that are not complete yet."""
    deadline = time.monotonic() + seconds
    records = run.records("tables")
    records[:] = [record for record in records if record["report"]["data"]["complete"]]
    on_gpu = run.settings["device"] != "cpu"
    shapes, trouble = run.settings["shapes"], None
    for index, (shape, sizes) in enumerate(shapes.items()):
        finished = [record["report"]["settings"]["density"] for record in records if record["shape"] == shape]
        densities = [density for density in run.settings["densities"] if density not in finished]
        if not densities:
            continue
        settings = sizes | {
            "dtype": run.settings["dtype"],
            "device": run.settings["device"],
            "seed": run.settings["seed"],
            "data": "peaked",
            "impl": "triton",
            "threads": 1,
            "repeats": _REPEATS if on_gpu else 1,
            "seconds": 0.3 if on_gpu else 0.0,
            "check_rows": 512,
        }
        reports = reports_in_turns(
            settings,
            run.settings["methods"],
            densities,
            timeout=(deadline - time.monotonic()) / (len(shapes) - index),
            environment=_environment(run),
        )
        try:
            for report in reports:
                yield {"shape": shape, "report": asdict(report)}
        except BenchmarkError as error:
            trouble = error  # the other shape has its own part of the time
    if trouble is not None:
        raise trouble


def _train(run: GPURun, seconds: float) -> Iterator[dict[str, Any]]:
    on_gpu = run.settings["device"] != "cpu"
    sizes = {"batch": 8, "context": 1024, "seconds": 3.0} if on_gpu else {"batch": 2, "context": 16, "seconds": 0.0}
    return _worker(run, "train", seconds, small=not on_gpu, repeats=_REPEATS, **sizes)


def _sparse_attention(run: GPURun, seconds: float) -> Iterator[dict[str, Any]]:
    """Decode attention at the shapes that are not complete yet."""
    records = run.records("sparse attention")
    records[:] = [record for record in records if record["report"]["complete"]]
    finished = [record["shape"] for record in records]
    on_gpu = run.settings["device"] != "cpu"
    settings = {name: run.settings[name] for name in ("device", "dtype", "seed")} | {
        "impl": "triton",
        "threads": 1,
        "repeats": _REPEATS if on_gpu else 1,
        "seconds": 0.1 if on_gpu else 0.0,
    }
    reports = decode_reports(
        settings,
        {name: DecodeShape(**sizes) for name, sizes in run.settings["decode_shapes"].items() if name not in finished},
        list(DECODE_METHODS),
        timeout=seconds,
        environment=_environment(run),
    )
    for report in reports:
        yield {"shape": report.shape, "report": asdict(report)}


def _decode(run: GPURun, seconds: float) -> Iterator[dict[str, Any]]:
    on_gpu = run.settings["device"] != "cpu"
    sizes = {"batch": 8, "context": 8192, "seconds": 3.0} if on_gpu else {"batch": 2, "context": 40, "seconds": 0.0}
    return _worker(run, "decode", seconds, small=not on_gpu, repeats=_REPEATS, **sizes)


_ALL = (
    Phase("device", "facts, copy bandwidth and the ceiling of matrix products", 60, _device),
    Phase("correctness", "every option of the kernel against float64", 120, _correctness),
    Phase("tuning", "the fastest configuration for each shape", 480, _tuning),
    Phase("tables", "methods side by side at two shapes and three densities", 540, _tables, continues=True),
    Phase("train", "a training step of SmolLM2's architecture, patched and unpatched", 120, _train),
    Phase(
        "sparse attention",
        "the attention of a decode step, dense and sparse, stage by stage",
        300,
        _sparse_attention,
        continues=True,
    ),
    Phase("decode", "a decode step of SmolLM2's architecture, dense and sparse", 60, _decode),
)

PHASES: Mapping[str, Phase] = MappingProxyType({phase.name: phase for phase in _ALL})
"""The phases by name, in the order in which they run."""
