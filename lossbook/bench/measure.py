"""Clocks and memory gauges, read inside the process that is being measured."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # the value that makes Linux forget the resident high-water mark; see proc(5)


class CPUGauge:
    """CPU seconds of the process, and the peak of its resident memory."""

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

    def time(self, call: Callable[[], object]) -> tuple[object, float, None]:
        """Run ``call``; return its result, the CPU seconds it took over all threads, and no device time."""
        start = time.process_time()
        result = call()
        return result, time.process_time() - start, None

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
    """Seconds between CUDA events beside the CPU seconds, and the peak of PyTorch's GPU allocations."""

    clock = "CUDA events (device) and time.process_time (CPU)"
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

    def time(self, call: Callable[[], object]) -> tuple[object, float, float]:
        """Run ``call``; return its result, CPU seconds, and seconds on the device."""
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start = time.process_time()
        first.record()
        result = call()
        last.record()
        cpu = time.process_time() - start
        torch.cuda.synchronize()
        return result, cpu, first.elapsed_time(last) / 1e3


def gauge_for(device: str) -> CPUGauge | CUDAGauge:
    """Return the gauge that measures work on ``device``.

    Args:
        device: ``"cpu"`` or a CUDA device such as ``"cuda"``.

    Returns:
        The gauge.
    """
    return CPUGauge() if device == "cpu" else CUDAGauge()


@dataclass(frozen=True)
class Sample:
    """One forward and backward pass.

    Attributes:
        loss: Value of the loss.
        cpu: CPU seconds of the forward and of the backward pass.
        device: Device seconds of the same two, or None on the CPU.
        extra_bytes: Peak memory beyond what was held before the forward pass.
    """

    loss: float
    cpu: tuple[float, float]
    device: tuple[float, float] | None
    extra_bytes: int


def sample(loss: Callable[[], torch.Tensor], gauge: CPUGauge | CUDAGauge) -> Sample:
    """Measure one forward and one backward pass.

    Args:
        loss: Computes the loss, attached to the graph.
        gauge: What measures.

    Returns:
        The times, the memory and the value.
    """
    gauge.start()
    value, cpu_forward, device_forward = gauge.time(loss)
    _, cpu_backward, device_backward = gauge.time(value.backward)
    device = None if device_forward is None else (device_forward, device_backward)
    return Sample(value.item(), (cpu_forward, cpu_backward), device, gauge.extra_bytes())


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{_STATUS} has no field {field}")
