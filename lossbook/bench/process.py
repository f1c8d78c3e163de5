"""Run each measurement in a fresh Python process."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class BenchmarkError(RuntimeError):
    """A worker process failed; the message ends with what the worker said."""


class OutOfTimeError(BenchmarkError):
    """A worker process was not done in time and was ended."""


def run_worker(module: str, spec: dict[str, Any], *, threads: int, timeout: float) -> dict[str, Any]:
    """Start ``python -m module '<JSON of spec>'`` and read the JSON object on the last line it prints.

    Never a fork of the calling process, whose resident memory and started thread pools it would inherit.

    Args:
        module: Module to run.
        spec: What to measure; handed over as JSON.
        threads: Value for the thread variables of the numerical libraries, read when they load.
        timeout: Seconds of wall-clock time after which the worker is ended.

    Returns:
        The worker's answer.

    Raises:
        BenchmarkError: If the worker fails, is killed, runs too long or prints something else.
    """
    command = [sys.executable, "-m", module, json.dumps(spec)]
    try:
        done = subprocess.run(
            command,
            env=thread_environment(threads),
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise _too_slow(spec.get("method", module), timeout) from None
    return _answer(spec.get("method", module), done)


class Nursery:
    """One process that imports a worker's module once and forks a child for every measurement.

    The children are as fresh as new processes where it counts: the parent has imported libraries but computed
    nothing, so no memory is held and no thread has started.  Forking needs Linux and must not follow CUDA's start.

    Args:
        module: Module that reads requests when started with ``--serve``.
        threads: As for :func:`run_worker`.

    Raises:
        BenchmarkError: From :meth:`run`.
    """

    def __init__(self, module: str, *, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lossbook-bench-")
        self._files = {name: Path(self._folder.name) / name for name in ("out", "err")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "--serve"],
            env=thread_environment(threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stdin.close()
        if kind is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # the child that is measuring, too
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def run(self, spec: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        """Measure in a child of its own.

        Args:
            spec: As for :func:`run_worker`.
            timeout: Seconds of wall-clock time.

        Returns:
            The worker's answer.

        Raises:
            BenchmarkError: As for :func:`run_worker`.
        """
        request = {"spec": spec} | {name: str(path) for name, path in self._files.items()}
        label = spec.get("method", "worker")
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise BenchmarkError(f"{label}: the worker's parent process has ended") from None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout):
                raise _too_slow(label, timeout)
        status = self._process.stdout.readline()
        if not status:
            raise BenchmarkError(f"{label}: the worker's parent process ended with {self._process.wait()}")
        out, err = (path.read_text() for path in self._files.values())
        return _answer(label, subprocess.CompletedProcess([], int(status), out, err))


def thread_environment(threads: int) -> dict[str, str]:
    """Return this process's environment with the thread variables of the numerical libraries set.

    Args:
        threads: Their value.

    Returns:
        The environment for a new process.
    """
    return os.environ | dict.fromkeys(_THREAD_VARIABLES, str(threads))


def _too_slow(label: str, timeout: float) -> OutOfTimeError:
    return OutOfTimeError(f"{label}: the worker was ended after {timeout:g} s; pass a larger timeout")


def _answer(label: str, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    if done.returncode != 0:
        raise BenchmarkError(f"{label}: {reason(done)}")
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise BenchmarkError(f"{label}: the worker printed no result, but: {done.stdout[-500:]!r}") from None


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """Say why a process failed.

    Args:
        done: A process that ended with another status than 0.

    Returns:
        The signal, or the last line of its standard error, followed by the lines before it.
    """
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        hint = "; most likely the machine ran out of memory" if name == "SIGKILL" else ""
        return f"the worker was killed by {name}{hint}"
    lines = done.stderr.strip().splitlines() or ["no message"]
    return f"the worker failed: {lines[-1]}\n" + "\n".join(lines[-20:])
