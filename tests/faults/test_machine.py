"""A machine that runs out of ports, disk, shared memory or descriptors, and what earlier runs left."""

import resource
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGKILL, SIGTERM

import psutil
from census import SHARED_MEMORY, take
from crowd import Crowd, Question
from fault_table import FaultTable
from fleet import Fleet
from ports import free_port
from trial import MakeTrial, Trial
from until import until

# A mount namespace in which nothing fits into shared memory any more.
WITHOUT_SHARED_MEMORY = [
    "unshare",
    "-rm",
    "sh",
    "-c",
    'mount -t tmpfs -o size=4k full /dev/shm && head -c 4096 /dev/zero > /dev/shm/full && exec "$@"',
    "-",
]


def orphan(folder: Path) -> Path:
    """What a launcher that was killed leaves."""
    left = folder / "xgr-orphan"
    left.mkdir(mode=0o700)
    (left / "launcher.pid").write_text("1\n")
    return left


def allowed(command: list[str]) -> bool:
    return subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0


def test_a_full_machine_and_an_impatient_operator(
    checkpoint: Path, catalog_source: Path, questions: list[Question], table: FaultTable
) -> None:
    """Logs go to a full disk, /dev/shm is full, an earlier run left its folder, the port is soon in use."""
    port = free_port()
    wrapper = WITHOUT_SHARED_MEMORY if allowed(WITHOUT_SHARED_MEMORY) else []
    files = (checkpoint, catalog_source)
    fleet = Fleet(*files, 1, 1, port=port, wrapper=wrapper, said=Path("/dev/full"), drain_timeout=120.0)
    left = orphan(fleet.folder)
    with fleet:
        assert not left.exists(), "the folder of a dead launcher is removed"
        with Crowd(fleet.url, questions, seed=12, each=True) as tour:
            tour.wait()
        before = take(fleet)
        case = f"log disk {'and /dev/shm ' if wrapper else ''}full; SIGTERM twice, started again on its port"
        with Trial(case, fleet, questions, before, table, refusals=("draining", "no_workers")) as it:
            refused_start(files, port)
            family = fleet.family()
            with it.crowd(seed=13, reconnect=True, timeout_ms=90_000):
                until(lambda: it.row.tally.correct, "an answer")
                it.fault()
                fleet.launcher.send_signal(SIGTERM)
                time.sleep(0.1)
                fleet.launcher.send_signal(SIGTERM)
                fleet.end(60)  # half of what it may take to drain
                assert not psutil.wait_procs(family, timeout=30)[1]
                assert fleet.run_folder is None
                fleet.start()
                it.wait_answered()
    assert not set(SHARED_MEMORY.iterdir()) - before.shared_files


def refused_start(files: tuple[Path, Path], port: int) -> None:
    """A second deployment on a port in use."""
    command = [sys.executable, "-m", "xgr_runtime.cli", "serve", f"--port={port}"]
    flags = [f"--model-path={files[0]}", f"--catalog={files[1]}"]
    second = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60, check=False)
    errors = [line for line in second.stderr.splitlines() if "error:" in line]
    assert second.returncode == 2 and len(errors) == 1 and "--port" in errors[0], second.stderr


class OutOfDescriptors:
    """While it lasts, a running process may open nothing more."""

    def __init__(self, process: psutil.Process | None) -> None:
        assert process is not None
        self.process = process

    def __enter__(self) -> None:
        self.before = self.process.rlimit(resource.RLIMIT_NOFILE)
        self.process.rlimit(resource.RLIMIT_NOFILE, (self.process.num_fds(), self.before[1]))

    def __exit__(self, *_: object) -> None:
        self.process.rlimit(resource.RLIMIT_NOFILE, self.before)


def test_a_router_without_descriptors_serves_whom_it_has(fleet: Fleet, trial: MakeTrial) -> None:
    with trial("router out of descriptors; callers ask again") as it, it.crowd(seed=14):
        until(lambda: it.row.tally.correct, "an answer")
        with OutOfDescriptors(fleet.process("router")):
            it.fault()
            newcomers = it.crowd(seed=15, reconnect=True)
            newcomers.__enter__()  # they have to connect first
            time.sleep(2)
            it.wait_answered()
        newcomers.stop()


def test_a_worker_without_descriptors_is_done_without(fleet: Fleet, trial: MakeTrial) -> None:
    """A prefill worker that is replaced meanwhile cannot reach it."""
    with trial("decode worker out of descriptors, prefill worker replaced") as it, it.crowd(seed=16):
        until(lambda: it.row.tally.correct, "an answer")
        old = fleet.incarnations()["prefill-0"]
        with OutOfDescriptors(fleet.process("decode-0")):
            fleet.signal("prefill-0", SIGKILL)
            it.fault({"prefill-0": old})
            it.wait_answered()
            fleet.whole({"prefill-0": old})
            time.sleep(1)
