"""NVIDIA's MPS daemon, played by a shell script: found, started, kept, ended, and refused by name."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from until import until

from xgr_runtime.config import ServeConfig
from xgr_runtime.errors import ConfigError
from xgr_runtime.launcher import mps as mps_module
from xgr_runtime.launcher.mps import CONTROL, PIPES, VISIBLE, OwnDaemon, mps
from xgr_runtime.launcher.run_folder import run_folder
from xgr_runtime.launcher.topology import check, plan

# As the real one: -f is the daemon, and without arguments it passes a command on to the one that listens.
PLAYED = """#!/bin/sh
if [ "$1" = -f ]; then
    [ -n "$FAILS" ] && { echo "no device"; exit 3; }
    trap 'exit 0' TERM
    env > "$CUDA_MPS_PIPE_DIRECTORY/env"
    echo $$ > "$CUDA_MPS_PIPE_DIRECTORY/pid.new"
    mv "$CUDA_MPS_PIPE_DIRECTORY/pid.new" "$CUDA_MPS_PIPE_DIRECTORY/pid"
    while :; do sleep 0.05; done
fi
read command
pid=$(cat "$CUDA_MPS_PIPE_DIRECTORY/pid" 2>/dev/null) && kill -0 "$pid" 2>/dev/null || exit 1
case "$command" in quit*) kill "$pid";; esac
"""


@pytest.fixture(autouse=True)
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where CUDA would look for a daemon; the script is on PATH."""
    path = tmp_path / "bin" / CONTROL
    path.parent.mkdir()
    path.write_text(PLAYED)
    path.chmod(0o700)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    usual = tmp_path / "usual"
    usual.mkdir()
    monkeypatch.setenv(PIPES, str(usual))
    monkeypatch.delenv(VISIBLE, raising=False)
    return usual


def serve(**settings: Any) -> ServeConfig:
    return ServeConfig(model_path="m", catalog="c", **{"device": "cuda", "sharing": "mps", **settings})


def pid_in(folder: Path) -> int:
    return int((folder / "pid").read_text())


def runs(pid: int) -> bool:
    """Also one that has ended and that nobody collects does not run."""
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def test_a_daemon_of_our_own_lives_in_the_run_folder_and_ends_with_it(tmp_path: Path) -> None:
    with run_folder(tmp_path) as folder:
        with mps(serve(), folder.path) as shared:
            where = folder.path / "mps"
            pid = pid_in(where)
            assert shared.environ == {PIPES: str(where), "CUDA_MPS_LOG_DIRECTORY": str(where)}
            folder.keep()
            assert runs(pid) and where.is_dir(), "the run folder's keeper leaves it alone"
            workers, router = plan(serve(), folder.path, "c", 2, gpus=1, environ=shared.environ)
            assert all(program.environ[PIPES] == str(where) for program in workers.programs)
            assert not any(PIPES in program.environ for program in router.programs)
        assert not runs(pid)


def test_one_that_listens_is_used_and_left_alone(played: Path, tmp_path: Path) -> None:
    other = subprocess.Popen([CONTROL, "-f"])
    try:
        until((played / "pid").exists, "it listens")
        with mps(serve(), tmp_path) as shared:
            assert shared.environ == {} and not (tmp_path / "mps").exists()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_workers_see_gpus_by_the_daemons_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "3,GPU-5ebe9f43")
    with mps(serve(), tmp_path) as shared:
        assert shared.environ[VISIBLE] == "0,1"
        assert f"{VISIBLE}=3,GPU-5ebe9f43\n" in (tmp_path / "mps" / "env").read_text()


def test_nothing_is_started_for_other_ways_of_sharing(tmp_path: Path) -> None:
    with mps(serve(sharing="turns"), tmp_path) as shared:
        assert shared.environ == {} and not (tmp_path / "mps").exists()


def test_one_that_dies_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mps_module, "AGAIN_AFTER", 0.0)
    with mps(serve(), tmp_path) as shared:
        assert isinstance(shared, OwnDaemon) and shared._process is not None
        first = pid_in(tmp_path / "mps")
        os.kill(first, signal.SIGKILL)
        shared._process.wait()
        shared.keep()
        until(lambda: pid_in(tmp_path / "mps") != first, "another one listens")
        second = pid_in(tmp_path / "mps")
        shared.keep()
        assert runs(second)
    assert not runs(second)


def test_it_ends_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from xgr_runtime.config import ServeConfig\n"
    code += "from xgr_runtime.launcher.mps import mps\n"
    code += "config = ServeConfig(model_path='m', catalog='c', device='cuda', sharing='mps')\n"
    code += "with mps(config, Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    until(lambda: not runs(pid_in(tmp_path / "mps")), "it has ended", seconds=60)


@pytest.mark.parametrize(
    ("missing", "settings", "says"),
    [
        (True, {}, f"--sharing mps needs {CONTROL}, .*driver.*--sharing turns"),
        (False, {"device": "cpu"}, "--sharing mps is for a GPU: set --device cuda"),
    ],
    ids=["no MPS", "no GPU"],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    missing: bool, settings: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing:
        monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=says):
        check(serve(**settings))


def test_one_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(ConfigError, match=rf"{CONTROL} ended with 3 \(no device\)"), mps(serve(), tmp_path):
        pass
