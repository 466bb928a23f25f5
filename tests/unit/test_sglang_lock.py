"""The locked SGLang environment holds what we and SGLang ask for, and agrees with the extra for a GPU."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(text: str) -> Iterator[Requirement]:
    """The requirements of a pip file, without its comments and options."""
    for line in text.splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if line and not line.startswith("--"):
            yield Requirement(line)


LOCK = list(requirements((ROOT / "deploy" / "sglang-cpu.lock").read_text()))
PINNED = {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in LOCK}
DIRECT = list(requirements((ROOT / "deploy" / "sglang-cpu.in").read_text()))
OURS = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]


@pytest.mark.parametrize("requirement", LOCK, ids=lambda r: r.name)
def test_pins_one_public_version(requirement: Requirement) -> None:
    assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(requirement.specifier))  # no local build, no wildcard
    assert requirement.marker is None


@pytest.mark.parametrize("requirement", [*DIRECT, *OURS], ids=str)
def test_satisfies_what_is_asked_for(requirement: Requirement) -> None:
    version = PINNED.get(canonicalize_name(requirement.name))
    assert version is not None, f"{requirement.name} is not in the lock: renew it as its comment says"
    assert version in requirement.specifier


def test_is_of_the_release_that_the_extra_installs() -> None:
    cuda = {r.name: str(r.specifier) for r in map(Requirement, PROJECT["optional-dependencies"]["cuda"])}
    assert cuda["sglang"] == f"=={PINNED['sglang']}"  # type: ignore[index]
