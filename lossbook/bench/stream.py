"""Run a generator of records in a process of its own and read the records as they come.

In the parent, :func:`stream` starts ``python -m lossbook.bench.stream '<JSON>'``.  There the named module's
``records(spec)`` is iterated, and every record is printed as one line of JSON.  What the module or the libraries it
uses print themselves goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

from lossbook.bench.process import BenchmarkError, OutOfTimeError, reason, thread_environment

_MODULE = "lossbook.bench.stream"
_END = object()


def stream(
    module: str,
    spec: Mapping[str, Any],
    *,
    timeout: float,
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Iterate over ``module.records(spec)``, which runs in a process of its own.

    Leaving the iteration early, by an exception or by closing the generator, ends the process and its children.

    Args:
        module: Module with a function ``records``.
        spec: Its argument; handed over as JSON.
        timeout: Seconds of wall-clock time for all records together.
        threads: Value for the thread variables of the numerical libraries.
        environment: Further environment variables of the process.

    Yields:
        The records.

    Raises:
        OutOfTimeError: If the process is not done after ``timeout``.
        BenchmarkError: If it fails or is killed; the message ends with its own.
    """
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, json.dumps({"module": module, "spec": dict(spec)})],
            env=thread_environment(threads) | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            for line in _lines(process.stdout, deadline):
                if line is None:
                    raise OutOfTimeError(f"{module}: ended after {timeout:.0f} s, its share of the time")
                yield json.loads(line)
            status = process.wait()
            if status != 0:
                errors.seek(0)
                done = subprocess.CompletedProcess([], status, "", errors.read())
                raise BenchmarkError(f"{module}: {reason(done)}")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()


def _lines(pipe: IO[str], deadline: float) -> Iterator[str | None]:
    """The lines of ``pipe``; None, and no more, once the deadline has passed."""
    lines: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        for line in pipe:
            lines.put(line)
        lines.put(_END)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            yield None
            return
        if line is _END:
            reader.join()
            return
        yield line


def _main() -> None:
    request = json.loads(sys.argv[1])
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for record in importlib.import_module(request["module"]).records(request["spec"]):
            print(json.dumps(record), file=answers, flush=True)


if __name__ == "__main__":
    _main()
