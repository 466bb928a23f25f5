"""What the container file takes from this folder is what a wheel is built from. No image is built here."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from chart import CHART
from hatchling.builders.wheel import WheelBuilder
from scripts import DEPLOY

ROOT = DEPLOY.parent
FILE = (DEPLOY / "container" / "Containerfile").read_text().replace("\\\n", "")


@pytest.fixture(scope="module")
def copied() -> list[tuple[str, str]]:
    """Sources in this folder, and where they go below /source/."""
    pairs = []
    for line in re.findall(r"^COPY (?!--from)(.+)$", FILE, re.MULTILINE):
        *sources, target = line.split()
        below = target.removeprefix("/source").strip("/")
        pairs += [(source, f"{below}/{source}" if target.endswith("/") else below) for source in sources]
    return [(source, target.strip("/")) for source, target in pairs]


def test_the_wheel_of_what_is_copied_is_whole(copied: list[tuple[str, str]], tmp_path: Path) -> None:
    for source, target in copied:
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / target)
    assert names(tmp_path, tmp_path / "dist") == names(ROOT, tmp_path / "whole")


def names(source: Path, out: Path) -> set[str]:
    built = next(iter(WheelBuilder(str(source)).build(directory=str(out), versions=["standard"])))
    return {name for name in zipfile.ZipFile(built).namelist() if "__pycache__" not in name}


def test_the_build_sees_what_it_copies_and_no_more(copied: list[tuple[str, str]]) -> None:
    lines = (DEPLOY / "container" / "Containerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == {source for source, _ in copied}
    assert any(fnmatch.fnmatch("a/__pycache__", rule) for rule in rules[1:])


def test_torch_is_asked_for_as_the_project_does() -> None:
    (script,) = re.findall(r"sed -n '([^']+)' /source/pyproject.toml", FILE)
    command = ["sed", "-n", script, str(ROOT / "pyproject.toml")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found == next(one for one in project["dependencies"] if one.startswith("torch"))
    assert "cuda" in project["optional-dependencies"]


def test_its_user_is_that_of_the_chart() -> None:
    (user,) = re.findall(r"^USER (\d+):(\d+)$", FILE, re.MULTILINE)
    helpers = (CHART / "templates" / "_helpers.tpl").read_text()
    assert user == (re.findall(r"runAsUser: (\d+)", helpers)[0], re.findall(r"runAsGroup: (\d+)", helpers)[0])
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
