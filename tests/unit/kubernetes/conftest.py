"""The chart as helm renders it, for tests of what is in it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from chart import CHART, EXAMPLES, FOLDER, Document, Render, Validate


@pytest.fixture(scope="session")
def helm() -> Path:
    return _fetched("helm")


@pytest.fixture(scope="session")
def validate() -> Validate:
    """What the schemas of a version of Kubernetes have against files, empty if nothing."""
    folder = _fetched("validator")

    def run(files: list[Path], version: str) -> str:
        command = ["-m", "kubernetes_validate", "--strict", "--quiet", "--no-warn", "-k", version]
        done = subprocess.run(
            [sys.executable, *command, *map(str, files)],
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return (done.stdout + done.stderr).strip() or ("" if done.returncode == 0 else "it failed")

    return run


def _fetched(name: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        tools = importlib.import_module("chart_tools")
    try:
        found: Path = getattr(tools, name)()
        return found
    except tools.Unavailable as missing:
        pytest.skip(f"the chart is not checked: {missing}")


@pytest.fixture(scope="session")
def render(helm: Path) -> Render:
    """`helm template` of a release `shop` in a namespace `shops`, with an example's values and more flags."""

    def run(example: str, *flags: str) -> subprocess.CompletedProcess[str]:
        values = FOLDER / "examples" / f"{example}.yaml"
        command = [helm, "template", "shop", CHART, "--namespace=shops", f"--values={values}", *flags]
        return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture(scope="session")
def rendered(render: Render) -> dict[str, str]:
    """Each example's manifests."""
    made = {}
    for example in EXAMPLES:
        done = render(example)
        assert done.returncode == 0, done.stderr
        made[example] = done.stdout
    return made


@pytest.fixture(scope="session")
def documents(rendered: dict[str, str]) -> dict[str, list[Document]]:
    return {name: [found for found in yaml.safe_load_all(text) if found] for name, text in rendered.items()}


@pytest.fixture(params=EXAMPLES)
def release(request: pytest.FixtureRequest, documents: dict[str, list[Document]]) -> Iterator[list[Document]]:
    yield documents[request.param]
