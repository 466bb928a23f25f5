"""What the tests of the scripts start from."""

import shutil
from pathlib import Path

import pytest
from scripts import copy_scripts, program

TOOLS = ("bash", "cat", "cut", "dirname", "flock", "grep", "mkdir", "sed", "sha256sum", "tail")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the scripts and of what they read."""
    return copy_scripts(tmp_path / "clone")


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with the shell's tools and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found, f"{name} is needed by the scripts"
        (folder / name).symlink_to(found)
    program(folder / "env", 'shift 0; exec "$@"')
    return folder
