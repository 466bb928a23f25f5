"""Memory of another process: mapped as it is, never written, and there as long as anybody has it."""

import mmap
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xgr_runtime.kv.shared_memory import CannotMap, Segment, lives, map_region, this_process
from xgr_runtime.wire.messages import HostRegion, ProcessId

SIZE = 3 * mmap.PAGESIZE + 5

# Holds a segment that says "mine" and prints where it is; "later" in a line changes what it says.
OWNER = f"""
import sys
from xgr_runtime.kv.shared_memory import Segment
segment = Segment("test", {SIZE})
segment.memory[:4] = b"mine"
region = segment.region
print(region.owner.pid, region.owner.started, region.fd, flush=True)
for line in sys.stdin:
    segment.memory[:5] = line.strip().encode()
    print("done", flush=True)
"""


class Owner:
    """Another process with a segment."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        pid, started, fd = map(int, self.line().split())
        self.region = HostRegion(ProcessId(pid, started), fd, SIZE)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def write(self, text: str) -> None:
        assert self.process.stdin is not None
        print(text, file=self.process.stdin, flush=True)
        assert self.line() == "done\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def owner() -> Iterator[Owner]:
    made = Owner()
    yield made
    made.kill()


def test_what_the_owner_writes_is_seen(owner: Owner) -> None:
    mapped = map_region(owner.region)
    assert mapped[:4] == b"mine" and mapped[4:] == bytes(SIZE - 4)
    owner.write("later")
    assert mapped[:5] == b"later"


def test_a_reader_cannot_write(owner: Owner) -> None:
    with pytest.raises(TypeError):
        map_region(owner.region)[:4] = b"ours"


def test_it_outlives_its_owner_and_then_is_gone(owner: Owner) -> None:
    mapped = map_region(owner.region)
    descriptors = open_descriptors()
    owner.kill()
    assert mapped[:4] == b"mine"
    with pytest.raises(CannotMap, match="cannot be opened"):
        map_region(owner.region)
    del mapped
    assert not mappings("test"), "the last one who has it mapped frees it"
    assert open_descriptors() <= descriptors


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mappings(name: str) -> list[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if line.endswith(f"/memfd:{name} (deleted)")]


def test_an_owner_that_is_done_with_it_leaves_nothing() -> None:
    before = open_descriptors()
    segment = Segment("ours", SIZE)
    assert mappings("ours") and bytes(segment.memory[:]) == bytes(SIZE)
    del segment
    assert not mappings("ours") and open_descriptors() == before


def test_nobody_can_cut_it_off(owner: Owner) -> None:
    """A mapping beyond the end of its file would kill the reader."""
    with (
        pytest.raises(OSError),
        Path(f"/proc/{owner.region.owner.pid}/fd/{owner.region.fd}").open("r+b") as f,
    ):
        f.truncate(1)


def another_size(region: HostRegion, folder: Path) -> HostRegion:
    return HostRegion(region.owner, region.fd, region.size + 1)


def a_plain_file(region: HostRegion, folder: Path) -> HostRegion:
    """One that its owner could cut off while we read."""
    stream = (folder / "file").open("w+b")
    stream.truncate(SIZE)
    return HostRegion(this_process(), os.dup(stream.fileno()), SIZE)


def a_pipe(region: HostRegion, folder: Path) -> HostRegion:
    """Opening its reading end would wait for a writer."""
    os.mkfifo(folder / "pipe")
    return HostRegion(this_process(), os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK), SIZE)


def no_descriptor(region: HostRegion, folder: Path) -> HostRegion:
    return HostRegion(region.owner, 999, region.size)


def no_process(region: HostRegion, folder: Path) -> HostRegion:
    return HostRegion(ProcessId(2**22 + 1, 1), region.fd, region.size)


@pytest.mark.parametrize(
    "lie", [another_size, a_plain_file, a_pipe, no_descriptor, no_process], ids=lambda lie: lie.__name__
)
def test_what_is_not_such_memory_is_not_mapped(
    owner: Owner, lie: Callable[[HostRegion, Path], HostRegion], tmp_path: Path
) -> None:
    with pytest.raises(CannotMap):
        map_region(lie(owner.region, tmp_path))


def test_a_process_lives_until_it_cannot_read_any_more(owner: Owner) -> None:
    process = owner.region.owner
    assert lives(this_process()) and lives(process)
    assert not lives(ProcessId(process.pid, process.started + 1)), "another one that had its number"
    owner.process.send_signal(signal.SIGSTOP)
    assert lives(process), "a stopped process can wake up"
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not lives(process), "dead, though nobody has collected it"
    owner.kill()
    assert not lives(process)


def test_who_cannot_be_looked_at_may_live() -> None:
    """With no descriptor left, a worker must not take its readers for dead."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert lives(ProcessId(os.getppid(), 1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("name", [b"a) S (b", b"caf\xe9"], ids=["brackets", "no-utf-8"])
def test_no_name_confuses(name: bytes, tmp_path: Path) -> None:
    program = tmp_path / os.fsdecode(name)
    program.symlink_to(sys.executable)
    started = subprocess.Popen([program, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        told = Path(f"/proc/{started.pid}/stat").read_bytes().rpartition(b")")[2].split()[19]
        assert lives(ProcessId(started.pid, int(told)))
    finally:
        started.kill()
        started.communicate()


def test_our_number_is_the_one_that_others_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a namespace of its own that sees the machine's /proc, a process thinks that it has another one."""
    seen = this_process()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert this_process() == seen and lives(seen)
