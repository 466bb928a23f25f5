"""What this machine, or the control group that we are in, gives a process: cores and memory."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xgr_runtime.errors import ConfigError

THREADS_PER_CORE = 4  # more only wait for each other; some are fine where cores are few
WORKERS_PER_CORE = 4
FEW_WORKERS = 16  # for tests of many workers on a small machine


@dataclass(frozen=True)
class Cores:
    """How many cores a process may keep busy, and what says so."""

    count: int
    limit: str


def cores(root: Path = Path("/")) -> Cores:
    """The cores that this process may run on, or fewer where its control group has a quota of processor time.

    A thread more than the quota bears stops all of them for the rest of each period.
    """
    visible = len(os.sched_getaffinity(0))
    limits = [Cores(visible, f"the {visible} that this process may run on")]
    for folder in _groups("cpu", root=root):  # an outer group's quota holds for those within it, too
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, file = _quota(folder)
            limits.append(
                Cores(max(1, int(quota)), f"the quota of {quota:g} in {file}, {visible} are visible")
            )
    return min(limits, key=lambda found: found.count)


def _quota(folder: Path) -> tuple[float, Path]:
    """Cores' worth of time per period, and the file that says so. Raises OSError, ValueError without one."""
    file = folder / "cpu.max"
    if file.exists():
        spent, period = file.read_text().split()
        return int(spent) / int(period), file
    file = folder / "cpu.cfs_quota_us"
    spent = file.read_text()
    if int(spent) <= 0:
        raise ValueError("no quota")
    return int(spent) / int((folder / "cpu.cfs_period_us").read_text()), file


def memory_files(of_v2: str, of_v1: str, pid: int | str = "self", root: Path = Path("/")) -> Iterator[Path]:
    """Where the memory controller may keep the file of a process's group, likeliest first."""
    found = [(mount, group, of_v1 if old else of_v2) for mount, group, old in _mounts("memory", pid, root)]
    yield from (mount / group / name for mount, group, name in found)
    yield from (mount / name for mount, _, name in found)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the control groups that this process is in, each before the one around it."""
    for mount, group, _ in _mounts(controller, "self", root):
        for inner in (Path(group), *Path(group).parents):
            yield mount / inner


def _mounts(controller: str, pid: int | str, root: Path) -> list[tuple[Path, str, bool]]:
    """Where a controller is mounted, a process's group in it, and whether it is one of the older kind.

    Within a container /proc may name the group as its host sees it, and what is mounted is that group alone.
    """
    cgroups = root / "sys/fs/cgroup"
    found = []
    with contextlib.suppress(OSError):
        for line in (root / f"proc/{pid}/cgroup").read_text().splitlines():
            number, controllers, group = line.split(":", 2)
            if controller in controllers.split(","):
                # "cpu,cpuacct" is one mount, often with a link "cpu".
                name = controller if (cgroups / controller).is_dir() else controllers
                found.append((cgroups / name, group.lstrip("/"), True))
            elif number == "0":
                found.append((cgroups, group.lstrip("/"), False))
    return found


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
    there = cores().count
    if threads > THREADS_PER_CORE * there:
        raise ConfigError(
            f"--threads is {threads}, this machine gives us {there} cores: set it to {there} or less, "
            f"at most {THREADS_PER_CORE * there}"
        )


def check_workers(prefill: int, decode: int, either: int = 0, standby: int = 0) -> None:
    """Raises `ConfigError` for more processes than this machine can start."""
    there = cores().count
    most = max(FEW_WORKERS, WORKERS_PER_CORE * there)
    if (asked := prefill + decode + either + standby) > most:
        settings = "--prefill-workers, --decode-workers, --any-workers and --standby"
        raise ConfigError(
            f"{settings} are {asked}, this machine with its {there} cores bears at most {most}: lower them"
        )


def check_memory(needed: int, setting: str, value: object, why: str) -> None:
    """Raises `ConfigError` for a setting that needs more main memory, in bytes, than there is at all."""
    there = memory_bytes()
    if needed > there:
        raise ConfigError(
            f"{setting} is {value}: {why} takes {needed / 1e9:,.1f} GB, this machine gives us "
            f"{there / 1e9:,.1f} GB: lower it"
        )
