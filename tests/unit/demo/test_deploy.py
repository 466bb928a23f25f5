"""The set-up scripts, with stand-ins for the machine: what they say and where they stop."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import DEPLOY, fake_torch, fake_venv, program, run, stamp


@pytest.mark.parametrize("name", ["setup", "demo", "serve", "check", "test"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_says_how_to_call_it_and_sets_nothing_up(clone: Path, tools: Path, name: str, flag: str) -> None:
    done = run(clone / "deploy" / name, flag, path=tools)
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: deploy/{name}")
    assert "set -e" not in done.stdout
    assert ("sglang" in done.stdout) == (name != "check")
    assert not list(clone.glob(".venv*"))


@pytest.mark.parametrize(
    ("args", "problem"),
    [(["--sgl"], "unknown flag --sgl"), (["--sglang", "-v"], "one flag at most, not: --sglang -v")],
    ids=["unknown", "two"],
)
def test_flags_of_setup_that_make_no_sense_are_named(
    clone: Path, tools: Path, args: list[str], problem: str
) -> None:
    done = run(clone / "deploy" / "setup", *args, path=tools)
    assert done.returncode == 1
    assert problem in done.stderr
    assert not list(clone.glob(".venv*"))


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


@pytest.mark.parametrize(
    ("cuda", "finished", "wanted", "answer"),
    [
        ("13.0", True, [], "cuda"),
        (None, True, [], "cpu"),
        (None, True, ["2.13.0"], "cpu"),
        (None, True, ["2.14.0"], "none"),
        (None, False, [], "none"),
    ],
    ids=["cuda=13.0", "cuda=None", "the-wanted-version", "another-version", "half-installed"],
)
def test_tells_the_builds_of_torch_apart_without_importing_it(
    tmp_path: Path, cuda: str | None, finished: bool, wanted: list[str], answer: str
) -> None:
    folder = fake_torch(tmp_path, cuda, "2.13.0+build", finished)
    command = [sys.executable, "-S", str(DEPLOY / "torch_build.py"), *wanted]
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == f"{answer}\n"


def test_finds_no_torch_where_there_is_none() -> None:
    command = [sys.executable, "-I", "-S", str(DEPLOY / "torch_build.py")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "none\n"


@pytest.fixture
def finished(clone: Path, tmp_path: Path) -> Path:
    """An environment with a CUDA torch, in which a set-up finds its own stamp."""
    venv = fake_venv(tmp_path / "venv", fake_torch(tmp_path / "site", "13.0"))
    (venv / ".xgr-setup").write_text(stamp(clone, "dev"))
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


@pytest.fixture
def installing(clone: Path, tmp_path: Path) -> dict[str, str]:
    """For a set-up in which uv ends with $UV and pip with $PIP, and both say in `calls` that they ran."""
    inside = f"""case "$*" in *install_by_uv*) echo uv >>{tmp_path}/calls; exit $UV;;
*" install --editable "*) echo pip >>{tmp_path}/calls; exit $PIP;; *torch_build*) echo cpu;; esac"""
    program(tmp_path / "inside", inside)
    make = f'mkdir -p "$3/bin" && cp {tmp_path}/inside "$3/bin/python"'
    program(tmp_path / "path" / "python3", f'case "$*" in "-m venv "*) {make};; esac')
    return {"PATH": f"{tmp_path}/path:{os.environ['PATH']}", "XGR_VENV": str(tmp_path / "venv")}


without_gpu = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="a GPU's packages are left to pip")


@without_gpu
@pytest.mark.parametrize(
    ("uv", "pip", "installed_by"), [(0, 1, "uv"), (1, 0, "uv pip"), (1, 1, "uv pip")], ids=str
)
def test_pip_installs_what_uv_does_not(
    clone: Path, tmp_path: Path, installing: dict[str, str], uv: int, pip: int, installed_by: str
) -> None:
    done = run(clone / "deploy" / "setup", UV=str(uv), PIP=str(pip), **installing)  # type: ignore[arg-type]
    assert done.returncode == (uv and pip), done.stderr
    assert (tmp_path / "calls").read_text().split() == installed_by.split()
    assert (tmp_path / "venv" / ".xgr-setup-unfinished").exists() == bool(uv and pip)


@without_gpu
def test_an_environment_that_was_left_unfinished_is_made_again_and_no_other(
    clone: Path, tmp_path: Path, installing: dict[str, str]
) -> None:
    def set_up(status: int) -> list[str]:
        (tmp_path / "calls").write_text("")
        run(clone / "deploy" / "setup", UV=str(status), PIP=str(status), **installing)  # type: ignore[arg-type]
        return (tmp_path / "calls").read_text().split()

    half = tmp_path / "venv" / "half-a-package"
    assert set_up(1) == ["uv", "pip"]
    half.touch()
    assert set_up(0) == ["uv"] and not half.exists()
    (tmp_path / "venv" / ".xgr-setup").unlink()
    half.touch()
    assert set_up(0) == ["pip"] and half.exists()
