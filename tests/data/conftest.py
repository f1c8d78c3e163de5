"""A small asset that is built in no time, in a cache of its own."""

import pytest

from lossbook.data import assets, cache

CONTENT = b"0123456789" * 1000


class Toy:
    """Builds an asset of two files; ``before_end`` runs when half of it is written."""

    def __init__(self):
        self.builds = 0
        self.before_end = lambda stage: None

    def __call__(self, stage, progress):
        self.builds += 1
        progress("working", 0.0)
        (stage / "weights.bin").write_bytes(CONTENT)
        self.before_end(stage)
        (stage / "notes.txt").write_text("small", encoding="utf-8")
        cache.write_manifest(stage, {"asset": "toy"})
        progress("working", 1.0)


@pytest.fixture
def toy(monkeypatch):
    """The recipe of the only asset there is, named ``toy``."""
    recipe = Toy()
    asset = assets.Asset("toy", "a toy", "this test", "CC0-1.0", len(CONTENT), recipe)
    monkeypatch.setattr(assets, "ASSETS", {"toy": asset})
    cache.forget_verified()
    return recipe


def state(folder, **options):
    """The toy's status."""
    return next(entry for entry in assets.status(cache=folder, **options) if entry.name == "toy")


@pytest.fixture
def toy_state():
    """A function of the cache folder that gives the toy's status."""
    return state
