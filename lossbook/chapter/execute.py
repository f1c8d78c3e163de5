"""The one place that executes a notebook of the book, for the command line, the tests and the published book."""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbformat import NotebookNode

from lossbook.chapter.catalog import NotebookInfo
from lossbook.chapter.scoreboard import find_card

_WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
_MODEL_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_THREAD_VARIABLES = ("LOSSBOOK_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ExecutionResult:
    """What executing a chapter gave: the executed notebook's path, seconds, its card and, if it stopped, why."""

    path: Path
    wall_seconds: float
    cpu_seconds: float
    card: dict[str, Any] | None
    failed: str | None


def execute(
    info: NotebookInfo,
    *,
    profile: str = "cpu",
    seed: int = 0,
    out: Path,
    on_progress: Progress | None = None,
    static: bool = True,
    threads: int | None = None,
) -> ExecutionResult:
    """Execute a chapter or a comparison with papermill, in a kernel of the running Python, and keep the result.

    A notebook that stops part-way is kept too, with its error in place.

    Args:
        info: The chapter or comparison.
        profile: ``"smoke"``, ``"cpu"`` or ``"gpu"``.
        seed: Seed of the chapter, ``>= 0``.
        out: Folder for the executed notebook; made if missing.
        on_progress: Called with (cells done, cells in all) as the run goes on.
        static: Render explorers for a page without a kernel.
        threads: Threads the kernel and the processes it starts may use, ``>= 1``; default: their own choice.

    Returns:
        The outcome; ``failed`` holds one line when a cell raised.

    Raises:
        FileNotFoundError: If the notebook is not written yet.
        OSError: If ``out`` can not be written.
    """
    import papermill

    if not info.written:
        raise FileNotFoundError(f"{info.label} ({info.slug}) is planned but not written yet")
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{info.slug}-{profile}-seed{seed}.ipynb"
    parameters = {} if (profile, seed) == ("cpu", 0) else {"profile": profile, "seed": seed}
    failed, cpu, start = None, _child_cpu_seconds(), time.perf_counter()
    limits = dict.fromkeys(_THREAD_VARIABLES, str(threads)) if threads else {}
    with _environment(LOSSBOOK_STATIC="1" if static else "0", **limits), _quiet_papermill():
        try:
            papermill.execute_notebook(
                str(info.notebook),
                str(target),
                parameters=parameters,
                engine_name=_register_engine(),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                extra_arguments=["--log-level=40"],  # the kernel's start-up warnings are not the reader's
                cwd=str(target.parent),
                on_progress=on_progress,
            )
        except papermill.PapermillExecutionError as error:
            message = str(error.evalue).strip() or "no message"
            failed = f"{error.ename}: {message}"
    wall, cpu = time.perf_counter() - start, _child_cpu_seconds() - cpu
    notebook = nbformat.read(target, as_version=4)
    notebook.metadata["lossbook"] = {
        "profile": profile,
        "seed": seed,
        "cpu_seconds": round(cpu, 1),
        "wall_seconds": round(wall, 1),
        "versions": _versions(),
    }
    nbformat.write(notebook, target)
    return ExecutionResult(target, wall, cpu, find_card(notebook), failed)


def rewrite(info: NotebookInfo, *, on_progress: Progress | None = None) -> ExecutionResult:
    """Execute a notebook with profile ``cpu`` and seed 0 and, if it passes, replace it by the result.

    It runs on one thread: the order in which threads add up would otherwise show in the published digits. A folder in
    ``LOSSBOOK_SWEEP_CACHE`` is not looked at: results of an earlier day must not be published as this run's.

    Args:
        info: The chapter or comparison.
        on_progress: As for :func:`execute`.

    Returns:
        The outcome; after a failure ``path`` is the kept partial notebook and the book's own file is untouched.

    Raises:
        FileNotFoundError: If the notebook is not written yet.
        OSError: If the notebook can not be written.
    """
    with tempfile.TemporaryDirectory(prefix="lossbook-") as folder, _environment(LOSSBOOK_SWEEP_CACHE=""):
        result = execute(info, out=Path(folder), on_progress=on_progress, threads=1)
        if result.failed:
            kept = Path(tempfile.mkdtemp(prefix="lossbook-")) / result.path.name
            kept.write_bytes(result.path.read_bytes())
            return ExecutionResult(kept, result.wall_seconds, result.cpu_seconds, result.card, result.failed)
        notebook = clean(nbformat.read(result.path, as_version=4))
        partial = info.notebook.with_suffix(".ipynb.partial")
        nbformat.write(notebook, partial)
        partial.replace(info.notebook)
    return ExecutionResult(info.notebook, result.wall_seconds, result.cpu_seconds, result.card, None)


def clean(notebook: NotebookNode) -> NotebookNode:
    """Strip from an executed notebook what differs between two equal runs.

    Execution counts, timings, injected parameters, standard error and tool versions go; widget identifiers become
    a deterministic sequence.

    Args:
        notebook: The notebook, changed in place.

    Returns:
        The same notebook.
    """
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        for key in ("papermill", "execution", "ExecuteTime", "collapsed", "trusted"):
            cell.metadata.pop(key, None)
        if cell.metadata.get("tags") == []:
            del cell.metadata["tags"]
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = None
    kept = {key: notebook.metadata[key] for key in ("lossbook", "widgets", "mystnb") if key in notebook.metadata}
    notebook.metadata = NotebookNode(
        {
            **kept,
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
        }
    )
    return _rename_widgets(notebook)


def _rename_widgets(notebook: NotebookNode) -> NotebookNode:
    """Number the widget models in the order in which the outputs lead to them, instead of at random."""
    state = notebook.metadata.get("widgets", {}).get(_WIDGET_STATE, {}).get("state")
    if not state:
        return notebook
    names: dict[str, str] = {}
    pending = _MODEL_ID.findall(json.dumps([cell.get("outputs", []) for cell in notebook.cells], sort_keys=True))
    while len(names) < len(state):
        while pending:
            model = pending.pop(0)
            if model in state and model not in names:
                names[model] = f"{len(names) + 1:032x}"
                pending = _MODEL_ID.findall(json.dumps(state[model], sort_keys=True)) + pending
        # What no output leads to (links between widgets) is ordered by what it refers to.
        rest = {model: _renamed(json.dumps(state[model], sort_keys=True), names) for model in state.keys() - names}
        pending = sorted(rest, key=rest.get)[:1]
    return nbformat.reads(_renamed(nbformat.writes(notebook), names), as_version=4)


def _renamed(text: str, names: dict[str, str]) -> str:
    return _MODEL_ID.sub(lambda match: names.get(match[0], match[0]), text)


def _register_engine() -> str:
    """A papermill engine that reports each finished cell; registered once."""
    from papermill.engines import NBClientEngine, papermill_engines

    class ReportingEngine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, on_progress=None, **options):
            if on_progress is not None:
                total, finish = len(nb_man.nb.cells), nb_man.cell_complete

                def cell_complete(cell, cell_index=None, **rest):
                    finish(cell, cell_index=cell_index, **rest)
                    on_progress((cell_index or 0) + 1, total)

                nb_man.cell_complete = cell_complete
            return super().execute_managed_notebook(nb_man, kernel_name, **options)

    papermill_engines.register("lossbook", ReportingEngine)
    return "lossbook"


def _child_cpu_seconds() -> float:
    times = psutil.Process().cpu_times()
    return getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("lossbook", "torch", "triton", "numpy", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def _environment(**values: str):
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _quiet_papermill():
    """Papermill logs each cell at INFO through the root logger's handlers; the caller shows progress instead."""
    import logging

    logger = logging.getLogger("papermill")
    level, logger.level = logger.level, logging.ERROR
    try:
        yield
    finally:
        logger.level = level
