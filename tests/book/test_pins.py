"""Exact versions stand in constraints.txt and nowhere else."""

import re
import tomllib

import pytest
import yaml
from book_pages import ROOT
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PLACES = [
    ROOT / name
    for name in ("pyproject.toml", "Makefile", "environment.yml", ".ci/run", ".pre-commit-config.yaml", "README.md")
] + sorted((ROOT / ".github").rglob("*.yml"))


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_constraints_are_exact_unique_and_sorted():
    found = constraints()
    assert all(re.fullmatch(r"==[0-9][0-9a-z.]*", str(item.specifier)) for item in found)
    names = [canonicalize_name(item.name) for item in found]
    assert names == sorted(set(names))


@pytest.mark.parametrize("place", PLACES, ids=lambda path: path.name)
def test_nothing_else_pins(place):
    text = place.read_text(encoding="utf-8")
    assert not re.findall(r"[A-Za-z0-9_.\]-]+\s*={2,3}\s*\d", text)


def requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for extra in project["project"]["optional-dependencies"].values():
        listed += extra
    return [Requirement(line) for line in listed if not line.startswith("lossbook")]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_requirement_is_pinned_within_its_range(requirement):
    pins = {canonicalize_name(item.name): item for item in constraints()}
    pin = pins[canonicalize_name(requirement.name)]
    version = str(pin.specifier).removeprefix("==")
    assert requirement.specifier.contains(version, prereleases=True)
    assert pin.marker is None or requirement.marker is not None or pin.marker == Marker('sys_platform == "darwin"')


def test_conda_takes_everything_from_the_constraints():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert pip == ["-c constraints.txt", "-e .[book,test,models]"]
