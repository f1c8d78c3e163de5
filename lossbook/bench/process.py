"""Run one measurement in a fresh Python process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
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


def run_worker(module: str, spec: dict[str, Any], *, threads: int, timeout: float) -> dict[str, Any]:
    """Start ``python -m module '<JSON of spec>'`` and read the JSON object on the last line it prints.

    A new process, never a fork: a fork would inherit the parent's resident memory and its started thread pools.

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
    environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(threads))
    command = [sys.executable, "-m", module, json.dumps(spec)]
    label = spec.get("method", module)
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{label}: the worker was ended after {timeout:g} s; pass a larger timeout") from None
    if done.returncode != 0:
        raise BenchmarkError(f"{label}: {_reason(done)}")
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise BenchmarkError(f"{label}: the worker printed no result, but: {done.stdout[-500:]!r}") from None


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        hint = "; most likely the machine ran out of memory" if name == "SIGKILL" else ""
        return f"the worker was killed by {name}{hint}"
    lines = done.stderr.strip().splitlines() or ["no message"]
    return f"the worker failed: {lines[-1]}\n" + "\n".join(lines[-20:])
