"""The environment of the make targets: made, kept, mended, and refused with a sentence."""

import json
import subprocess
import sys

import pytest
from book_pages import ROOT

from lossbook.site import environment


@pytest.fixture
def checkout(tmp_path):
    """The files that decide what is installed, in a folder of their own whose name holds a blank."""
    root = tmp_path / "my book"
    root.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (root / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    return root


@pytest.fixture
def steps(monkeypatch):
    """What was done, with the slow steps replaced: a bare interpreter, and pip that succeeds."""
    done = []

    def create(venv):
        done.append("create")
        (venv / "bin").mkdir(parents=True, exist_ok=True)
        (venv / "bin" / "python").write_text("#!/bin/sh\n", encoding="utf-8")
        (venv / "bin" / "python").chmod(0o755)

    def install(root, venv, extras):
        environment._state_file(venv).unlink(missing_ok=True)
        done.append(",".join(extras))

    monkeypatch.setattr(environment, "_create", create)
    monkeypatch.setattr(environment, "_install", install)
    return done


def test_second_call_does_nothing(checkout, steps):
    assert environment.prepare(checkout, "book") is True
    assert environment.prepare(checkout, "book") is False
    assert steps == ["create", "book"]


def test_a_larger_target_adds_and_a_smaller_one_is_served(checkout, steps):
    environment.prepare(checkout, "book")
    environment.prepare(checkout, "test")
    assert environment.prepare(checkout, "book") is False
    assert environment.prepare(checkout, "lab") is False
    assert steps == ["create", "book", "book,models,test"]


def test_interrupted_installation_is_made_anew(checkout, steps, monkeypatch):
    install = environment._install

    def interrupted(root, venv, extras):
        install(root, venv, extras)
        raise KeyboardInterrupt

    environment.prepare(checkout, "book")
    with monkeypatch.context() as patch:
        patch.setattr(environment, "_install", interrupted)
        with pytest.raises(KeyboardInterrupt):
            environment.prepare(checkout, "test")
    environment.prepare(checkout, "book")
    assert steps == ["create", "book", "book,models,test", "create", "book"]


@pytest.mark.parametrize("damage", ["python is gone", "python is broken", "state is cut off", "folder was moved"])
def test_broken_environment_is_made_anew(checkout, steps, damage):
    environment.prepare(checkout, "book")
    venv = checkout / ".venv"
    state = environment._state_file(venv)
    if damage == "python is gone":
        (venv / "bin" / "python").unlink()
    elif damage == "python is broken":
        (venv / "bin" / "python").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        (checkout / "constraints.txt").write_text("", encoding="utf-8")
    elif damage == "state is cut off":
        state.write_text(state.read_text(encoding="utf-8")[:20], encoding="utf-8")
    else:
        text = json.loads(state.read_text(encoding="utf-8")) | {"root": "/elsewhere"}
        state.write_text(json.dumps(text), encoding="utf-8")
    assert environment.prepare(checkout, "book") is True
    assert steps == ["create", "book", "create", "book"]


def test_another_python_counts_only_when_named(checkout, steps, monkeypatch):
    environment.prepare(checkout, "book")
    monkeypatch.setattr(environment, "_python", lambda: "3.99")
    assert environment.prepare(checkout, "book") is False
    assert environment.prepare(checkout, "book", exact=True) is True
    assert environment.prepare(checkout, "book", exact=True) is False
    assert steps == ["create", "book", "create", "book"]


@pytest.mark.parametrize(
    ("name", "old", "new", "installs"),
    [
        ("constraints.txt", "zipp==", "# zipp==", True),
        ("pyproject.toml", '"tqdm>=', '"tqdm >=', True),
        ("pyproject.toml", "line-length = 120", "line-length = 119", False),
    ],
)
def test_installs_again_only_when_requirements_change(checkout, steps, name, old, new, installs):
    environment.prepare(checkout, "book")
    text = (checkout / name).read_text(encoding="utf-8")
    assert old in text
    (checkout / name).write_text(text.replace(old, new), encoding="utf-8")
    assert environment.prepare(checkout, "book") is installs


def test_old_python_is_refused(checkout, monkeypatch):
    monkeypatch.setattr(environment, "MINIMUM", (99, 0))
    with pytest.raises(environment.SetupError, match=r"needs Python 3\.11 or newer.*make PYTHON="):
        environment.prepare(checkout, "book")
    assert not (checkout / ".venv").exists()


def test_failed_installation_says_so_and_is_not_taken_for_done(checkout, monkeypatch):
    monkeypatch.setattr(environment, "_create", lambda venv: (venv / "bin").mkdir(parents=True))
    monkeypatch.setattr(environment, "_interpreter", lambda venv: "/bin/false")
    with pytest.raises(environment.SetupError, match="pip could not install"):
        environment.prepare(checkout, "book")
    assert not environment._state_file(checkout / ".venv").exists()


def make(*arguments):
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_make_alone_lists_the_targets():
    shown = make()
    assert shown.returncode == 0
    for target in ("book", "test", "lab", "reproduce", "bench", "offline-book", "new-chapter", "clean"):
        assert f"\n  {target} " in shown.stdout


@pytest.mark.parametrize("python", ["no-such-python", "/bin/false"])
def test_make_with_a_wrong_python_fails(python):
    shown = make("env-book", f"PYTHON={python}")
    assert shown.returncode == 2
    if python == "no-such-python":
        assert "there is no command no-such-python" in shown.stderr


def test_script_needs_nothing_installed():
    shown = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "lossbook" / "site" / "environment.py"), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
