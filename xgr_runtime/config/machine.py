"""What this machine, or the control group that we are in, gives a process: cores and memory."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from xgr_runtime.errors import ConfigError

THREADS_PER_CORE = 4  # more only wait for each other; some are fine where cores are few
WORKERS_PER_CORE = 4
FEW_WORKERS = 16  # for tests of many workers on a small machine


def memory_files(of_v2: str, of_v1: str, pid: int | str = "self", root: Path = Path("/")) -> Iterator[Path]:
    """Where the memory controller may keep the file of a process's group, likeliest first.

    Within a container /proc may name the group as its host sees it, and what is mounted is that group alone.
    """
    cgroups = root / "sys/fs/cgroup"
    found: list[tuple[Path, str, str]] = []  # mount, group, file
    with contextlib.suppress(OSError):
        for line in (root / f"proc/{pid}/cgroup").read_text().splitlines():
            number, controllers, group = line.split(":", 2)
            if "memory" in controllers.split(","):
                found.append((cgroups / "memory", group, of_v1))
            elif number == "0":
                found.append((cgroups, group, of_v2))
    yield from (mount / group.lstrip("/") / name for mount, group, name in found)
    yield from (mount / name for mount, _, name in found)


def memory_bytes(root: Path = Path("/")) -> int:
    """Main memory that this process may use: the machine's, or what its control group is held to."""
    limits = [_total(root)]
    for file in memory_files("memory.max", "memory.limit_in_bytes", root=root):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(file.read_text()))
            break
    return min(limits)


def _total(root: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_threads(threads: int) -> None:
    """Raises `ConfigError` for more threads of a worker than the cores of this machine have any use for."""
    cores = len(os.sched_getaffinity(0))
    if threads > THREADS_PER_CORE * cores:
        raise ConfigError(
            f"--threads is {threads}, this machine gives us {cores} cores: set it to {cores} or less, "
            f"at most {THREADS_PER_CORE * cores}"
        )


def check_workers(prefill: int, decode: int) -> None:
    """Raises `ConfigError` for more processes than this machine can start."""
    cores = len(os.sched_getaffinity(0))
    most = max(FEW_WORKERS, WORKERS_PER_CORE * cores)
    if prefill + decode > most:
        raise ConfigError(
            f"--prefill-workers and --decode-workers are {prefill + decode}, this machine with its {cores} "
            f"cores bears at most {most}: lower them"
        )


def check_memory(needed: int, setting: str, value: object, why: str) -> None:
    """Raises `ConfigError` for a setting that needs more main memory, in bytes, than there is at all."""
    there = memory_bytes()
    if needed > there:
        raise ConfigError(
            f"{setting} is {value}: {why} takes {needed / 1e9:,.1f} GB, this machine gives us "
            f"{there / 1e9:,.1f} GB: lower it"
        )
