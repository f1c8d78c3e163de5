"""One function over many configurations: in this process, on several cores, or on a cluster, resumable if asked."""

from __future__ import annotations

import os
import platform
import reprlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from joblib import Parallel, delayed
from joblib.parallel import get_active_backend
from tqdm.auto import tqdm

from lossbook.chapter.explorer import static_mode
from lossbook.chapter.repeatability import limit_threads
from lossbook.chapter.sweep_cache import MISSING, SweepCache

R = TypeVar("R")


def sweep(
    function: Callable[..., R],
    configurations: Iterable[Mapping[str, Any]],
    *,
    n_jobs: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    label: str = "sweep",
    progress: bool | None = None,
) -> list[R]:
    """Call ``function(**configuration)`` for each configuration and return the results in the order given.

    Without more it is a loop in this process.  ``n_jobs``, or ``joblib.parallel_config`` around the call, spreads
    it over processes, and with one of joblib's cluster backends over machines; functions defined in a notebook work
    there too.  A worker process uses one torch thread, or as many as ``LOSSBOOK_THREADS`` says.  What is random in
    ``function`` must be drawn from a seed in its configuration: workers share no random state, and their order varies.

    With a cache each result is stored as soon as it arrives, so the same call made again continues an interrupted
    sweep.  A result is found again while the function's code, the notebook's functions and values it reads, its
    configuration, and the versions of Python, torch and this package stay the same; code it imports counts by version,
    so clear the folder after editing that.  ``joblib.Memory`` would not do: it looks at the function's own code
    alone, and so returns the results of another profile or seed that the function reads from its notebook.

    Args:
        function: Called with the entries of one configuration as keyword arguments.
        configurations: Mappings of argument names to values.
        n_jobs: Processes to use, ``-1`` for one per core; default: what an enclosing ``joblib.parallel_config`` says,
            otherwise 1, which is this process.
        cache: Folder for finished results, made if missing, read with pickle: only use one you trust. Default: the
            environment variable ``LOSSBOOK_SWEEP_CACHE`` if set, otherwise nothing is stored.
        label: Shown beside the progress bar.
        progress: Show a progress bar; default: only when the chapter runs live.

    Returns:
        One result for each configuration.

    Raises:
        TypeError: If ``function`` can not be called, a configuration is no mapping, or the cache can not tell two
            states of the function or a configuration apart.
        ValueError: If ``n_jobs`` is 0.
        KeyboardInterrupt: If the reader stops it; the message says what is kept and how to continue.
        Exception: What ``function`` raises, with a note that names the configuration.

    Examples:
        >>> sweep(lambda width, seed: width + seed, [{"width": w, "seed": s} for w in (10, 20) for s in (0, 1)])
        [10, 11, 20, 21]
    """
    if not callable(function):
        raise TypeError(f"function must be callable, got {function!r}")
    if n_jobs == 0:
        raise ValueError("n_jobs must be a nonzero integer or None, got 0")
    chosen = list(configurations)
    for index, configuration in enumerate(chosen):
        if not isinstance(configuration, Mapping):
            raise TypeError(f"configurations[{index}] must be a mapping of names to values, got {configuration!r}")
    folder = cache or os.environ.get("LOSSBOOK_SWEEP_CACHE")
    store = SweepCache(Path(folder), function, chosen) if folder else None
    results = [store.load(index) if store else MISSING for index in range(len(chosen))]
    waiting = [index for index, result in enumerate(results) if result is MISSING]
    disable = static_mode() if progress is None else not progress
    threads = limit_threads() if os.environ.get("LOSSBOOK_THREADS") else 1
    calls = (delayed(_call)(function, index, chosen[index], _process(), threads) for index in waiting)
    finished = len(chosen) - len(waiting)
    with tqdm(total=len(chosen), initial=finished, desc=label, disable=disable, leave=False) as bar:
        try:
            with closing(_arriving(calls, n_jobs)) as arriving:
                for index, result in arriving:
                    if store:
                        store.save(index, result)
                    results[index] = result
                    finished += 1
                    bar.update()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_farewell(label, finished, len(chosen), folder)) from None
    return results


def _arriving(calls: Iterable[Any], n_jobs: int | None):
    """Results as they are finished; from a backend that can not do that, such as Ray's, all at the end."""
    backend, _ = get_active_backend()
    order = "generator_unordered" if backend.supports_return_generator else "list"
    # Without memory maps a worker gets arrays it may write to, as a call in this process does.
    yield from Parallel(n_jobs=n_jobs, return_as=order, max_nbytes=None)(calls)


def _call(
    function: Callable[..., R], index: int, configuration: Mapping[str, Any], home: tuple[str, int], threads: int
) -> tuple[int, R]:
    if _process() != home:
        limit_threads(threads)
    try:
        return index, function(**configuration)
    except Exception as error:
        arguments = ", ".join(f"{name}={reprlib.repr(value)}" for name, value in configuration.items())
        error.add_note(f"in configuration {index} of the sweep: {arguments}")
        raise


def _process() -> tuple[str, int]:
    return platform.node(), os.getpid()


def _farewell(label: str, finished: int, total: int, folder: str | os.PathLike[str] | None) -> str:
    if not finished:
        return f"{label}: interrupted before the first of {total} configurations was finished"
    head = f"{label}: interrupted after {finished} of {total} configurations; "
    if folder:
        return f"{head}their results are kept in {os.fspath(folder)}, and the same call continues from there"
    return f"{head}no result is kept: give the sweep a folder, cache=..., to continue from it next time"
