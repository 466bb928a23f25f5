"""Kills by the kernel for want of memory are told from those by a person, as far as the counters say."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from until import until

from xgr_runtime.config.machine import memory_bytes
from xgr_runtime.launcher.child import Child
from xgr_runtime.launcher.memory_kills import LOOK_EVERY, RECENT, MemoryKills
from xgr_runtime.launcher.program import Program

PID, OTHER = 71, 72
LAYOUTS = {
    "v2": ("0::/app.slice/xgr", "sys/fs/cgroup/app.slice/xgr/memory.events", "memory.max"),
    "v1": ("4:memory:/xgr\n0::/", "sys/fs/cgroup/memory/xgr/memory.oom_control", "memory.limit_in_bytes"),
    "v1 with others": (
        "4:cpu,memory:/x",
        "sys/fs/cgroup/memory/x/memory.oom_control",
        "memory.limit_in_bytes",
    ),
    "v2 in a container": ("0::/docker/0123", "sys/fs/cgroup/memory.events", "memory.max"),
    "v1 in a container": ("9:memory:/0", "sys/fs/cgroup/memory/memory.oom_control", "memory.limit_in_bytes"),
    "no group": ("0::/", "proc/vmstat", ""),
    "no /proc/PID/cgroup": ("", "proc/vmstat", ""),
}


class Kernel:
    """A tree of files as the kernel shows them, and a clock."""

    def __init__(self, root: Path, layout: str = "v2") -> None:
        self.root, self.now = root, 1000.0
        groups, counter, _ = LAYOUTS[layout]
        self.counter = root / counter
        for pid in (PID, OTHER):
            self.write(f"proc/{pid}/cgroup", groups)
        self.write("proc/vmstat", "nr_free_pages 7\noom_kill 40\n")
        self.kills = 0
        self.kill(3)
        self.watch = MemoryKills(root, lambda: self.now)

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def kill(self, processes: int = 1) -> None:
        """For want of memory, in the group of both."""
        self.kills += processes
        self.counter.parent.mkdir(parents=True, exist_ok=True)
        self.counter.write_text(f"low 0\noom {self.kills}\noom_kill_disable 0\noom_kill {self.kills}\n")

    def pass_time(self, seconds: float, *pids: int) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.1
            for pid in pids:
                self.watch.look(pid)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_counter_that_grew_explains_one_end(tmp_path: Path, layout: str) -> None:
    kernel = Kernel(tmp_path, layout)
    kernel.pass_time(60, PID, OTHER)
    kernel.kill()
    kernel.pass_time(0.5 * RECENT, PID, OTHER)  # the kernel takes its time to free a large process
    assert kernel.watch.claim(PID)
    assert not kernel.watch.claim(OTHER)  # by a person, a moment later


def test_no_growth_is_a_person(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kernel.pass_time(60, PID)
    assert not kernel.watch.claim(PID)
    assert not kernel.watch.claim(PID) and not kernel.watch.claim(12345)  # never looked at


def test_two_killed_at_once_are_both_explained(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kernel.pass_time(1, PID, OTHER)
    kernel.kill(2)
    assert kernel.watch.claim(PID) and kernel.watch.claim(OTHER)


def test_a_kill_of_long_ago_explains_nothing(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kernel.pass_time(1, PID)
    kernel.kill()  # of something else in the group
    kernel.pass_time(3 * RECENT, PID)
    assert not kernel.watch.claim(PID)


def test_a_kill_elsewhere_on_the_machine_explains_nothing_where_groups_are_known(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kernel.pass_time(1, PID)
    kernel.write("proc/vmstat", "oom_kill 41\n")
    assert not kernel.watch.claim(PID)


def test_a_process_that_was_moved_is_looked_for_where_it_is(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kernel.pass_time(1, PID)
    kernel.write("sys/fs/cgroup/tight/memory.events", "oom_kill 5\n")
    kernel.write(f"proc/{PID}/cgroup", "0::/tight")
    kernel.pass_time(1, PID)
    kernel.write("sys/fs/cgroup/tight/memory.events", "oom_kill 6\n")
    kernel.write(f"proc/{PID}/cgroup", "0::/")  # as of one that is ending
    kernel.pass_time(1, PID)
    assert kernel.watch.claim(PID)


@pytest.mark.parametrize("text", ["", "oom_kill\n", "oom_kill many\n", "oom 3\n", "\n\n", "\0"], ids=repr)
def test_counters_that_cannot_be_read_explain_nothing(tmp_path: Path, text: str) -> None:
    kernel = Kernel(tmp_path)
    for file in (kernel.counter, tmp_path / "proc/vmstat"):
        file.write_text(text)
    kernel.pass_time(1, PID)
    assert not kernel.watch.claim(PID)
    kernel.pass_time(1, PID)
    kernel.counter.unlink()  # the group was removed meanwhile
    assert not kernel.watch.claim(PID)


@pytest.mark.parametrize("layout", [name for name, (_, _, limit) in LAYOUTS.items() if limit])
def test_memory_is_what_the_group_is_held_to(tmp_path: Path, layout: str) -> None:
    groups, counter, limit = LAYOUTS[layout]
    meminfo = "MemFree: 1 kB\nMemTotal: 4096 kB\n"
    for name, text in {"proc/self/cgroup": groups, "proc/meminfo": meminfo}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_bytes(tmp_path) == 4096 << 10
    file = (tmp_path / counter).with_name(limit)
    file.parent.mkdir(parents=True, exist_ok=True)
    for text, want in (("max\n", 4096 << 10), ("1048576\n", 1 << 20), (f"{1 << 62}\n", 4096 << 10)):
        file.write_text(text)
        assert memory_bytes(tmp_path) == want
    assert memory_bytes() > 1 << 20  # this machine's


def test_a_child_killed_by_a_person_is_told_as_before(start: Callable[..., Child]) -> None:
    child = start()
    child.wait_ready(time.monotonic() + 20)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(20)
    assert child.ending() == child.ending() == "was killed by SIGKILL"


def test_a_signal_without_a_name_is_told_by_its_number(start: Callable[..., Child]) -> None:
    child = start()
    child.wait_ready(time.monotonic() + 20)
    os.kill(child.pid, signal.SIGRTMIN + 6)
    assert child.wait(20)
    assert child.ending() == f"was killed by signal {signal.SIGRTMIN + 6}"


@pytest.fixture
def tight_group() -> Iterator[Path]:
    """A memory group of this machine whose processes get 150 MB, where we may make one."""
    with contextlib.suppress(OSError, StopIteration):
        folder = _own_group() / f"xgr-test-{os.getpid()}"
        folder.mkdir()
        try:
            limits = (folder / name for name in ("memory.max", "memory.limit_in_bytes"))
            next(limit for limit in limits if limit.exists()).write_text(str(150 << 20))
            with contextlib.suppress(OSError):
                (folder / "memory.swap.max").write_text("0")
            yield folder
        finally:
            until(lambda: not (folder / "cgroup.procs").read_text(), "its processes are gone", 20)
            folder.rmdir()
        return
    pytest.skip("no memory group can be made here")


def _own_group() -> Path:
    groups = Path("/proc/self/cgroup").read_text()
    if found := re.search(r"^\d+:(?:.*,)?memory(?:,.*)?:/(.*)$", groups, re.MULTILINE):
        return Path("/sys/fs/cgroup/memory") / found[1]
    return Path("/sys/fs/cgroup")


def test_a_child_that_the_kernel_killed_is_named_with_what_to_change(
    tiny: Callable[..., Program], tight_group: Path
) -> None:
    kills, endings = MemoryKills(), []
    for name, act in (("hungry", "hungry"), ("mate", "serve")):
        child = Child(tiny(name, act=act), kills=kills)
        child.start()
        try:
            child.wait_ready(time.monotonic() + 20)
            (tight_group / "cgroup.procs").write_text(str(child.pid))
            time.sleep(2 * LOOK_EVERY)
            child.poll()  # as a supervisor does all the time
            child.terminate() if act == "hungry" else os.kill(child.pid, signal.SIGKILL)
            assert child.wait(60)
            endings.append(child.ending())
        finally:
            child.kill()
            child.close()
    assert endings[0].startswith("was killed by SIGKILL, sent by the kernel") and "--kv-bytes" in endings[0]
    assert endings[1] == "was killed by SIGKILL"
