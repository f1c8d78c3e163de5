"""Clocks and memory gauges, read inside the process that is being measured."""

from __future__ import annotations

import ctypes
import gc
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # the value that makes Linux forget the resident high-water mark; see proc(5)


class CPUGauge:
    """The peak of the resident memory of the process."""

    clock = "time.process_time"

    def __init__(self) -> None:
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
            self._can_reset = True
            self.memory = "VmHWM, reset before each measurement"
        except OSError:
            self._can_reset = False
            self.memory = "lifetime high-water mark of the process (ru_maxrss); may undercut the truth"

    def start(self) -> None:
        """Hand back what the allocator hoards and forget the peak so far."""
        gc.collect()
        # glibc keeps freed blocks below 32 MB; a method could use them unseen if they were not returned first.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        if self._can_reset:
            _CLEAR_REFS.write_text(_RESET_PEAK)
        self._before = self._resident()

    def extra_bytes(self) -> int:
        """Peak of resident memory since :meth:`start`, beyond what was resident then."""
        return max(0, self._peak() - self._before)

    def _resident(self) -> int:
        if self._can_reset:
            return _status_bytes("VmRSS")
        import psutil

        return psutil.Process().memory_info().rss

    def _peak(self) -> int:
        if self._can_reset:
            return _status_bytes("VmHWM")
        if sys.platform == "win32":
            import psutil

            return psutil.Process().memory_info().peak_wset
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, the others KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class CUDAGauge:
    """The peak of PyTorch's GPU allocations."""

    clock = "CUDA events"
    memory = "torch.cuda.max_memory_allocated, reset before each measurement"

    def start(self) -> None:
        """Empty the cache, forget the peak so far."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()

    def extra_bytes(self) -> int:
        """Peak of allocated GPU memory since :meth:`start`, beyond what was allocated then."""
        return max(0, torch.cuda.max_memory_allocated() - self._before)


def use_device(device: str) -> None:
    """Make a GPU the current one, to which clocks and gauges refer.

    Args:
        device: A CUDA device such as ``"cuda:1"``; nothing is done for ``"cpu"``.
    """
    if device != "cpu":
        torch.cuda.set_device(torch.device(device).index or 0)


def gauge_for(device: str) -> CPUGauge | CUDAGauge:
    """Return the gauge that measures work on ``device``.

    Args:
        device: ``"cpu"`` or a CUDA device such as ``"cuda"``.

    Returns:
        The gauge.
    """
    return CPUGauge() if device == "cpu" else CUDAGauge()


@dataclass(frozen=True)
class Passes:
    """Seconds of a forward pass, of its backward pass, and of both together."""

    forward: float
    backward: float
    both: float


@dataclass(frozen=True)
class Sample:
    """One forward and backward pass.

    Attributes:
        loss: Value of the loss.
        cpu: CPU seconds.
        extra_bytes: Peak memory beyond what was held before the forward pass.
    """

    loss: float
    cpu: Passes
    extra_bytes: int


def sample(loss: Callable[[], Tensor], gauge: CPUGauge) -> Sample:
    """Measure one forward and one backward pass by the CPU time of the process.

    Args:
        loss: Computes the loss, attached to the graph.
        gauge: What measures the memory.

    Returns:
        The times, the memory and the value.
    """
    gauge.start()
    start = time.process_time()
    value = loss()
    middle = time.process_time()
    value.backward()
    end = time.process_time()
    return Sample(value.item(), Passes(middle - start, end - middle, end - start), gauge.extra_bytes())


def timed_passes(
    steps: Iterable[tuple[Callable[[], Tensor], Callable[[], None]]], device: str, *, seconds: float, most: int
) -> list[Passes]:
    """Time forward and backward passes by the clock of the device.

    On a GPU, events are recorded around the passes and read at the end, so that the queue never runs empty between
    the kernels of a pass; the gradients are dropped between the passes, outside the time.

    Args:
        steps: Endless pairs of a function that computes the loss and one that drops the gradients.
        device: ``"cpu"``, where wall-clock time is taken, or a CUDA device.
        seconds: Wall-clock time after which no further pass starts; at least two are made.
        most: Largest number of passes.

    Returns:
        The passes in order.
    """
    stamp, elapsed = _event_clock() if device != "cpu" else (time.perf_counter, lambda first, last: last - first)
    stamps, start = [], time.monotonic()
    for loss, clear in itertools.islice(steps, most):
        first = stamp()
        value = loss()
        middle = stamp()
        value.backward()
        stamps.append((first, middle, stamp()))
        clear()
        if len(stamps) >= 2 and _waited(stamps[-2], device) - start > seconds:
            break
    if device != "cpu":
        torch.cuda.synchronize()
    return [Passes(elapsed(a, b), elapsed(b, c), elapsed(a, c)) for a, b, c in stamps]


def timed_calls(call: Callable[[], object], device: str, *, seconds: float, most: int) -> list[float]:
    """Time single calls: on a GPU by events, on the CPU by the CPU time of the process.

    Args:
        call: What to time.
        device: ``"cpu"`` or a CUDA device.
        seconds: Wall-clock time after which no further call starts; at least two are made.
        most: Largest number of calls.

    Returns:
        Seconds of each call.
    """
    stamp, elapsed = _event_clock() if device != "cpu" else (time.process_time, lambda first, last: last - first)
    stamps, start = [], time.monotonic()
    for _ in range(most):
        first = stamp()
        call()
        stamps.append((first, stamp()))
        if len(stamps) >= 2 and _waited(stamps[-2], device) - start > seconds:
            break
    if device != "cpu":
        torch.cuda.synchronize()
    return [elapsed(first, last) for first, last in stamps]


def _waited(stamps: tuple[Any, ...], device: str) -> float:
    """The time once the pass before the last has ended; one pass stays queued."""
    if device != "cpu":
        stamps[-1].synchronize()
    return time.monotonic()


def _event_clock() -> tuple[Callable[[], torch.cuda.Event], Callable[[Any, Any], float]]:
    def stamp() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    return stamp, lambda first, last: first.elapsed_time(last) / 1e3


def median_passes(passes: list[Passes]) -> Passes:
    """Return the medians of each of the three times.

    Args:
        passes: At least one.

    Returns:
        Forward, backward and both, each its own median.
    """
    return Passes(*(statistics.median(getattr(p, name) for p in passes) for name in ("forward", "backward", "both")))


def matrix_ceiling(dtype: torch.dtype, device: str, *, size: int | None = None) -> float:
    """Measure the speed of a square matrix product, the ceiling for everything made of matrix products.

    Args:
        dtype: Floating dtype.
        device: ``"cpu"`` or a CUDA device.
        size: Rows of the matrices; default 8192 on a GPU and 512 on a CPU.

    Returns:
        The best of 20 products, in operations per second.
    """
    size = size or (512 if device == "cpu" else 8192)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _best_seconds(lambda: torch.mm(a, b), device)


def copy_bandwidth(device: str, *, size: int | None = None) -> float:
    """Measure the speed of a copy within the device's memory.

    Args:
        device: ``"cpu"`` or a CUDA device.
        size: Bytes to copy; default 4 GiB on a GPU and 64 MiB on a CPU.

    Returns:
        The best of 20 copies, in bytes per second, read and written bytes counted.
    """
    size = size or (64 << 20 if device == "cpu" else 4 << 30)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * size / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(call: Callable[[], object], device: str, *, count: int = 20) -> float:
    stamp, elapsed = _event_clock() if device != "cpu" else (time.perf_counter, lambda first, last: last - first)
    call()
    stamps = [stamp()]
    for _ in range(count):
        call()
        stamps.append(stamp())
    if device != "cpu":
        torch.cuda.synchronize()
    return min(elapsed(first, last) for first, last in itertools.pairwise(stamps))


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{_STATUS} has no field {field}")
