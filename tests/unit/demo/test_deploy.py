"""The set-up scripts, with stand-ins for the machine: what they say and where they stop."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
TOOLS = ("bash", "cat", "cut", "dirname", "flock", "mkdir", "sed", "sha256sum", "tail")


def run(
    script: Path, *args: str, path: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script from another folder, with `path` as the whole PATH if given."""
    environ = {**os.environ, **environment} | ({"PATH": str(path)} if path else {})
    return subprocess.run(
        [script, *args], cwd="/", env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the scripts, so that a set-up that goes wrong spoils nothing."""
    root = tmp_path / "clone"
    shutil.copytree(DEPLOY, root / "deploy")
    shutil.copy(DEPLOY.parent / "pyproject.toml", root)
    return root


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


@pytest.mark.parametrize("name", ["setup", "demo", "serve", "check", "test"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_says_how_to_call_it_and_sets_nothing_up(clone: Path, tools: Path, name: str, flag: str) -> None:
    done = run(clone / "deploy" / name, flag, path=tools)
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: deploy/{name}")
    assert "set -e" not in done.stdout
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    ("python", "version"),
    [('case "$2" in *version_info\\ *) exit 1;; *) echo 3.9.2;; esac', "3.9.2"), ("exit 127", "missing")],
    ids=["python=3.9", "python=none"],
)
def test_too_old_a_python_is_named_with_the_remedy(
    clone: Path, tools: Path, python: str, version: str
) -> None:
    program(tools / "python3", python)
    done = run(clone / "deploy" / "setup", path=tools)
    assert done.returncode == 1
    assert f"Python 3.11 or later is needed; python3 here is {version}" in done.stderr
    assert "sudo apt install python3 python3-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_a_python_without_venv_is_told_what_to_install(clone: Path, tools: Path) -> None:
    program(tools / "python3", 'case "$2" in *ensurepip*) exit 1;; *) echo 3.11.2;; esac')
    done = run(clone / "deploy" / "setup", path=tools)
    assert done.returncode == 1
    assert "cannot make virtual environments" in done.stderr
    assert "sudo apt install python3-venv" in done.stderr


def fake_torch(folder: Path, cuda: str | None) -> Path:
    package = folder / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('importing torch is too slow for this')\n")
    (package / "version.py").write_text(f"cuda = {cuda!r}\nhip = None\n")
    return folder


@pytest.mark.parametrize(
    ("cuda", "answer"), [("13.0", "cuda"), (None, "cpu")], ids=["cuda=13.0", "cuda=None"]
)
def test_tells_the_builds_of_torch_apart_without_importing_it(
    tmp_path: Path, cuda: str | None, answer: str
) -> None:
    command = [sys.executable, str(DEPLOY / "torch_build.py")]
    environ = {**os.environ, "PYTHONPATH": str(fake_torch(tmp_path, cuda))}
    assert (
        subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
        == f"{answer}\n"
    )


def test_finds_no_torch_where_there_is_none() -> None:
    command = [sys.executable, "-I", "-S", str(DEPLOY / "torch_build.py")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "none\n"


@pytest.fixture
def finished(clone: Path, tmp_path: Path) -> Path:
    """An environment with a CUDA torch, in which a set-up finds its own stamp; pip would fail the test."""
    venv = tmp_path / "venv"
    torch = fake_torch(tmp_path / "site", "13.0")
    refuse_pip = 'case "$*" in *pip*) exit 1;; esac'
    program(venv / "bin" / "python", f'{refuse_pip}\nPYTHONPATH={torch} exec {sys.executable} -S "$@"')
    command = 'printf "%s\\n" "$0" | cat - "$0/pyproject.toml" | sha256sum | cut -d " " -f 1'
    stamp = subprocess.run(
        ["bash", "-c", command, str(clone)], capture_output=True, text=True, check=True
    ).stdout
    (venv / ".xgr-setup").write_text(stamp)
    return venv


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="the case is a machine without a GPU")
def test_a_cuda_torch_without_a_gpu_is_pointed_out_with_the_remedy(clone: Path, finished: Path) -> None:
    done = run(clone / "deploy" / "setup", XGR_VENV=str(finished))
    assert done.returncode == 0
    assert done.stdout == ""
    assert "is a CUDA build, but this machine has no GPU" in done.stderr
    assert f"rm -r '{finished}'" in done.stderr


def test_another_pyproject_sets_up_again_and_shows_why_it_fails(clone: Path, finished: Path) -> None:
    with (clone / "pyproject.toml").open("a") as file:
        file.write("\n# changed\n")
    done = run(clone / "deploy" / "setup", XGR_VENV=str(finished))
    assert done.returncode == 1
    assert "this command failed: pip install --editable" in done.stderr
    assert "index reachable" in done.stderr
