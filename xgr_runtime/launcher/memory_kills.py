"""Whether the kernel killed a process for want of memory: a SIGKILL itself says nothing of who sent it.

The kernel counts such kills for each control group, and for the whole machine. A child that ended by SIGKILL
while the counter of its group grew was one of them; each kill explains the end of one child.
"""

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xgr_runtime.config.machine import memory_files

LOOK_EVERY = 0.25  # seconds between looks at a process's group: it may be moved
RECENT = 10.0  # seconds that a killed process, with all its memory, has at least to be gone


@dataclass
class _Reading:
    """Of one counter, for one process: kills until a time that is `RECENT` ago, and at a later one."""

    before: int
    later: int
    taken: float  # when `later` was read


class MemoryKills:
    """The counters of the groups of all children of one supervisor. `root` is for tests."""

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._explained: Counter[Path] = Counter()  # kills of each counter that have ended a child of ours
        self._readings: dict[int, dict[Path, _Reading]] = {}
        self._next_look: dict[int, float] = {}

    def look(self, pid: int) -> None:
        """Remember what the counter of that living process says. Cheap: it may be called in every pulse."""
        now = self._clock()
        if now < self._next_look.get(pid, now):
            return
        self._next_look[pid] = now + LOOK_EVERY
        if (counter := self._counter(pid)) is None:
            return
        file, count = counter
        readings = self._readings.setdefault(pid, {})
        reading = readings.setdefault(file, _Reading(count, count, now))
        if now >= reading.taken + RECENT:
            readings[file] = _Reading(reading.later, count, now)

    def claim(self, pid: int) -> bool:
        """Whether the kernel has lately killed a process of its group that no other child's end explains.

        Asked once for a process that ended by SIGKILL; it is forgotten then.
        """
        readings = self.forget(pid)
        for file, reading in readings.items():
            with contextlib.suppress(OSError, ValueError):
                if self._unexplained(file) > reading.before:
                    self._explained[file] += 1
                    return True
        return False

    def forget(self, pid: int) -> dict[Path, _Reading]:
        """That process is gone."""
        self._next_look.pop(pid, None)
        return self._readings.pop(pid, {})

    def _counter(self, pid: int) -> tuple[Path, int] | None:
        """The nearest counter of the process that can be read, and what it says."""
        for file in self._files(pid):
            with contextlib.suppress(OSError, ValueError):
                return file, self._unexplained(file)
        return None

    def _files(self, pid: int) -> Iterator[Path]:
        yield from memory_files("memory.events", "memory.oom_control", pid, self._root)
        yield self._root / "proc/vmstat"  # of the whole machine

    def _unexplained(self, file: Path) -> int:
        """Raises OSError, or ValueError for a kernel that does not count."""
        found = re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
        if not found:
            raise ValueError(f"{file} has no oom_kill")
        return int(found[1]) - self._explained[file]
