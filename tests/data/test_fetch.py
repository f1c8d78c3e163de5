"""Fetching: whole or not at all, once, and with a sentence for what goes wrong."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lossbook.data import DataError, assets, cache, cache_dir

FETCH_TOY = """
import sys, time
from pathlib import Path
from lossbook.data import assets, cache
folder, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def build(stage, progress):
    (stage / "weights.bin").write_bytes(b"x" * 1000)
    with log.open("a") as file:
        file.write("built\\n")
    time.sleep(seconds)
    cache.write_manifest(stage, {"asset": "toy"})

assets.ASSETS = {"toy": assets.Asset("toy", "a toy", "a test", "CC0-1.0", 1000, build)}
assets.fetch("toy", cache=folder)
"""


def start_fetch(folder, log, seconds):
    return subprocess.Popen([sys.executable, "-c", FETCH_TOY, str(folder), str(log), str(seconds)])


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_fetch_builds_once_and_is_idempotent(toy, toy_state, tmp_path):
    steps = []
    assert toy_state(tmp_path).state == "missing"
    [path] = assets.fetch("toy", cache=tmp_path, progress=lambda *step: steps.append(step))
    assert path == tmp_path / "toy" and visible(tmp_path) == ["toy"]
    assert steps == [("toy", "waiting", 0.0), ("toy", "working", 0.0), ("toy", "working", 1.0)]
    steps.clear()
    assets.fetch("all", cache=tmp_path, progress=lambda *step: steps.append(step))
    assert steps == [("toy", "present", 1.0)] and toy.builds == 1
    entry = toy_state(tmp_path, deep=True)
    assert (entry.state, entry.fix, entry.detail) == ("ok", "", "")
    assert entry.bytes == sum(file.stat().st_size for file in path.iterdir())


def test_force_replaces_what_is_whole(toy, tmp_path):
    [path] = assets.fetch("toy", cache=tmp_path)
    (path / "extra").write_text("not part of it")
    assets.fetch("toy", force=True, cache=tmp_path)
    assert toy.builds == 2 and not (path / "extra").exists() and visible(tmp_path) == ["toy"]


def test_unknown_name_is_refused(toy, tmp_path):
    with pytest.raises(ValueError, match="name must be 'all' or one of 'toy', got 'nothing'"):
        assets.fetch("nothing", cache=tmp_path)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, DataError("it broke", "lossbook fetch toy"), ValueError])
def test_an_interruption_leaves_nothing(toy, toy_state, tmp_path, stop):
    def interrupt(stage):
        raise stop

    toy.before_end = interrupt
    with pytest.raises(type(stop) if isinstance(stop, Exception) else stop):
        assets.fetch("toy", cache=tmp_path)
    assert visible(tmp_path) == [] and toy_state(tmp_path).state == "missing"


def test_a_failed_renewal_keeps_what_was_there(toy, toy_state, tmp_path):
    assets.fetch("toy", cache=tmp_path)

    def interrupt(stage):
        raise KeyboardInterrupt

    toy.before_end = interrupt
    with pytest.raises(KeyboardInterrupt):
        assets.fetch("toy", force=True, cache=tmp_path)
    assert visible(tmp_path) == ["toy"] and toy_state(tmp_path, deep=True).state == "ok"


def test_a_swap_cut_between_its_two_renames_is_undone(toy, toy_state, tmp_path):
    [path] = assets.fetch("toy", cache=tmp_path)
    path.rename(tmp_path / ".toy.old")
    assert toy_state(tmp_path).state == "missing"

    def interrupt(stage):
        raise KeyboardInterrupt

    toy.before_end = interrupt
    with pytest.raises(KeyboardInterrupt):
        assets.fetch("toy", cache=tmp_path)
    assert visible(tmp_path) == ["toy"] and toy_state(tmp_path, deep=True).state == "ok"


@pytest.mark.parametrize(
    ("damage", "detail"),
    [
        (lambda path: (path / "weights.bin").write_bytes(b"short"), "weights.bin has 5 of 10,000 bytes"),
        (lambda path: (path / "weights.bin").write_bytes(b"x" * 10_000), "weights.bin does not match its checksum"),
        (lambda path: (path / "notes.txt").unlink(), "notes.txt is missing"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing or damaged"),
        (lambda path: (path / "manifest.json").write_text('{"format": 1'), "manifest.json is missing or damaged"),
        (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json is missing or damaged"),
        (lambda path: (path / "manifest.json").write_text('{"format": 1, "files": [1]}'), "has no attribute"),
        (lambda path: (path / "manifest.json").write_text('{"format": 0, "files": {}}'), "another version"),
    ],
)
def test_damage_is_found_named_and_mended(toy, toy_state, tmp_path, damage, detail):
    [path] = assets.fetch("toy", cache=tmp_path)
    assert toy_state(tmp_path, deep=True).state == "ok", "so that the damaged files were verified once before"
    damage(path)
    with pytest.raises(DataError, match=r"is damaged: .*; run: lossbook fetch toy$") as caught:
        assets.require("toy", cache=tmp_path)
    assert detail in str(caught.value)
    assert toy_state(tmp_path, deep=True).state == "corrupt"
    assets.fetch("toy", cache=tmp_path)
    assert assets.require("toy", cache=tmp_path) == path


def test_a_killed_fetch_shows_as_partial_and_the_next_one_cleans_up(toy, toy_state, tmp_path):
    log = tmp_path / "log"
    folder = tmp_path / "cache"
    process = start_fetch(folder, log, 60)
    wait_for(log.exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    entry = toy_state(folder)
    assert (entry.state, entry.fix) == ("partial", "lossbook fetch toy")
    with pytest.raises(DataError, match=r"only partly in the cache .*; run: lossbook fetch toy$"):
        assets.require("toy", cache=folder)
    assets.fetch("toy", cache=folder)
    assert visible(folder) == ["toy"] and toy_state(folder, deep=True).state == "ok"


def test_two_processes_build_it_once(toy_state, toy, tmp_path):
    log, folder = tmp_path / "log", tmp_path / "cache"
    processes = [start_fetch(folder, log, 1.5) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert log.read_text() == "built\n"
    assert visible(folder) == ["toy"] and toy_state(folder, deep=True).state == "ok"


def test_a_cache_that_cannot_be_made_is_explained(toy, tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(
        DataError, match=r"cache folder .* cannot be written: .*LOSSBOOK_CACHE.*run: lossbook fetch toy$"
    ):
        assets.fetch("toy", cache=tmp_path / "file" / "cache")
    assert visible(tmp_path) == ["file"]


def test_a_read_only_cache_is_explained(toy, tmp_path, monkeypatch):
    # root may write anywhere, so the operating system's refusal is acted.
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DataError, match=r"cannot be written: permission denied .*run: lossbook fetch toy$"):
        assets.fetch("toy", cache=tmp_path / "cache")


def test_a_full_disk_is_explained_and_cleaned_up(toy, tmp_path):
    def fill(stage):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    toy.before_end = fill
    with pytest.raises(DataError, match=r"the disk of .* is full .*run: lossbook fetch toy$"):
        assets.fetch("toy", cache=tmp_path)
    assert visible(tmp_path) == []


def test_missing_space_is_seen_before_the_download(tmp_path):
    with pytest.raises(DataError, match=r"MB free and 1,000,000,000,000 MB are needed .*; run: lossbook fetch toy"):
        cache.require_space(tmp_path, 10**18, "lossbook fetch toy")


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LOSSBOOK_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here" and not cache_dir().exists()
    monkeypatch.setenv("LOSSBOOK_CACHE", "~/there")
    assert cache_dir() == Path.home() / "there"
    monkeypatch.delenv("LOSSBOOK_CACHE")
    assert cache_dir().name == "lossbook"


def test_unchanged_files_are_hashed_once_in_a_process(toy, tmp_path, monkeypatch):
    hashed = []
    sha256 = cache.sha256
    monkeypatch.setattr(cache, "sha256", lambda path: (hashed.append(path.name), sha256(path))[1])
    assets.fetch("toy", cache=tmp_path)
    hashed.clear()
    cache.forget_verified()
    for _ in range(3):
        assets.require("toy", cache=tmp_path)
    assert sorted(hashed) == ["notes.txt", "weights.bin"]


def test_data_error_survives_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(DataError("it is gone", "lossbook fetch toy")))
    assert str(error) == "it is gone; run: lossbook fetch toy"
    assert (error.problem, error.mend) == ("it is gone", "lossbook fetch toy")
