"""Main memory that one process owns and writes, and others of the same user may map and read.

It has no name: a reader opens the owner's descriptor in /proc. So nothing can be left behind, it is gone with
the last process that has it mapped, and whoever dies takes nothing from the others.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from pathlib import Path

from xgr_runtime.wire.messages import HostRegion, ProcessId

MADV_POPULATE_WRITE = 23  # linux/mman.h, since 5.14; Python has no name for it
_STATE, _THREADS, _STARTED = 0, 17, 19  # fields of /proc/PID/stat behind the command's name
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class CannotMap(Exception):
    """Another process's memory cannot be mapped here, and why."""


def this_process() -> ProcessId:
    """Who we are to others of this machine. Raises OSError without /proc.

    Our number is that of /proc, which others look us up in: within a container `getpid` may know another.
    """
    pid = int(Path("/proc/self").readlink().name)
    return ProcessId(pid, int(_stat(pid)[_STARTED]))


def lives(process: ProcessId) -> bool:
    """Whether this very process can still read memory: False is proof that it never will again.

    One that has ended but was not collected yet is dead once all its threads are.
    """
    try:
        fields = _stat(process.pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:  # no descriptor left to look with: that proves nothing
        return True
    if int(fields[_STARTED]) != process.started:
        return False
    return fields[_STATE] not in ("Z", "X") or int(fields[_THREADS]) > 1


def _stat(pid: int) -> list[str]:
    """The fields behind the command's name, which may hold any bytes. Raises OSError."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()


class Segment:
    """`size` bytes of zeros that this process owns, all in memory now. Raises OSError for too many."""

    def __init__(self, name: str, size: int) -> None:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._fd = os.fdopen(fd, "r+b", buffering=0)  # closed with the last reference to us
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)  # a reader must never find its mapping cut off
        self.memory = mmap.mmap(fd, size)
        _fault_in(self.memory)
        self.region = HostRegion(this_process(), fd, size)


def map_region(region: HostRegion) -> mmap.mmap:
    """Another process's segment, to read: a write would end this process. Raises `CannotMap`."""
    fd = open_region(region)
    try:
        return mmap.mmap(fd, region.size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise CannotMap(f"its memory cannot be mapped: {error}") from None
    finally:
        os.close(fd)


def open_region(region: HostRegion) -> int:
    """A descriptor of another process's segment, which nobody can cut off. Raises `CannotMap`."""
    try:
        # Whatever a peer may have named, opening it must neither block nor change anything.
        fd = os.open(f"/proc/{region.owner.pid}/fd/{region.fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CannotMap(f"its memory cannot be opened: {error.strerror}") from None
    try:
        _check_segment(fd, region.size)
        return fd
    except OSError as error:
        os.close(fd)
        raise CannotMap(f"its memory cannot be read: {error.strerror}") from None
    except BaseException:
        os.close(fd)
        raise


def _check_segment(fd: int, size: int) -> None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_size != size:
        raise CannotMap("what it names as its memory is something else")
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK == 0:
        raise CannotMap("its memory could be cut off while it is read")


def _fault_in(memory: mmap.mmap) -> None:
    """Take all pages now: too little memory ends the start, not a request, and no request pays for faults."""
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    try:
        memory.madvise(MADV_POPULATE_WRITE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        memory[:: mmap.PAGESIZE] = bytes(len(range(0, len(memory), mmap.PAGESIZE)))  # an older kernel
