"""A process of ours from the outside: start it, hear that it is ready, learn why it ended, stop it.

The launcher holds one `Child` per process. What the process does on its side is in
`xgr_runtime.process.lifecycle`.
"""

import contextlib
import errno
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xgr_runtime.config import flag
from xgr_runtime.errors import StartupError
from xgr_runtime.launcher.memory_kills import MemoryKills
from xgr_runtime.launcher.program import Program, Start, spawn
from xgr_runtime.process.lifecycle import STARTUP_FAILED
from xgr_runtime.process.log import stderr
from xgr_runtime.process.orders import Order, order_line
from xgr_runtime.process.watchdog import BEAT

log = logging.getLogger(__name__)

UNKILLABLE = 5.0  # seconds after SIGKILL
LAST_LINES = 20  # of a child's stderr, kept to explain its end
NO_MEMORY = (
    ", sent by the kernel, which had no memory left: lower --kv-bytes or --host-cache-bytes, start fewer "
    "workers, or give them more memory"
)


class ChildFailed(StartupError):
    """A child ended, or said nothing, before it was ready. `startup`: it gave the reason itself."""

    def __init__(self, message: str, startup: bool = False) -> None:
        super().__init__(message)
        self.startup = startup


class Child:
    """One running process, from `start` until its end has been collected.

    Start children from a thread that outlives them: Linux takes its end for the parent's.
    """

    def __init__(
        self,
        program: Program,
        inherits: Sequence[int] = (),
        kills: MemoryKills | None = None,
        start: Start = spawn,
    ) -> None:
        """`inherits`: descriptors of ours that the process has too, under their numbers."""
        self.program = program
        self._start = start
        self._inherits = tuple(inherits)
        self._kills = kills or MemoryKills()
        self._starved: bool | None = None  # whether the kernel killed it for want of memory, once known
        self.startup_error = ""  # what the child itself gave as the reason not to start
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._info: dict[str, Any] | None = None
        self._received = b""
        self._orders = -1  # where a child that waits hears which place to take

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Start the process in a group of its own, so that a Ctrl-C reaches the launcher alone.

        Raises `StartupError` where the system has no process, memory or descriptor left.
        """
        try:
            self._begin()
        except OSError as error:
            remedy = (
                "stop other programs, or raise the limits for processes and open files (ulimit -u, ulimit -n)"
            )
            if error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT):
                remedy = f"let this user run {sys.executable}"
            raise StartupError(
                f"{self.name} cannot be started ({error.strerror or error}): {remedy}"
            ) from error
        self._reader = threading.Thread(target=self._read_stderr, name=f"stderr of {self.name}", daemon=True)
        self._reader.start()
        self._kills.look(self.pid)

    def _begin(self) -> None:
        self._ready_fd, theirs = os.pipe()
        os.set_blocking(self._ready_fd, False)
        program, inherits, given = self.program, self._inherits, [theirs]
        try:
            if program.waits:
                hears, self._orders = os.pipe()
                given.append(hears)
                program = replace(program, argv=[*program.argv, f"{flag('orders_fd')}={hears}"])
                inherits = (*inherits, hears)
            self._process = self._start(program, theirs, inherits)
        except BaseException:
            os.close(self._ready_fd)
            self._stop_ordering()
            raise
        finally:
            for descriptor in given:
                os.close(descriptor)

    def become(self, program: Program) -> None:
        """Let this child, which is ready and waits, take the place of `program`; it is ready anew then.

        Raises OSError when it is gone.
        """
        os.write(self._orders, order_line(Order(program.module, list(program.argv))))
        self.program, self._info, self._received = program, None, b""
        self._stop_ordering()

    def _stop_ordering(self) -> None:
        if self._orders >= 0:
            os.close(self._orders)
            self._orders = -1

    def check_ready(self) -> dict[str, Any] | None:
        """What the child said when it became ready, or None. Raises `ChildFailed` once it never will."""
        if self._info is None and self._read_ready():
            self._info = self._parse_ready()
        elif self._info is None and self.poll() is not None:
            raise self._failure()
        return self._info

    def wait_ready(self, deadline: float) -> dict[str, Any]:
        """`check_ready` until `deadline` (of `time.monotonic`). Raises `ChildFailed`."""
        while (info := self.check_ready()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ChildFailed(f"{self.name} was not ready in time")
            select.select([self._ready_fd], [], [], min(left, 0.1))
        return info

    def beats(self) -> bool:
        """Whether a turn of the ready child's loop was told since we looked last."""
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self._ready_fd, 65536))
        return False

    def is_stopped(self) -> bool:
        """Whether somebody has stopped the process, by SIGSTOP or with a debugger. Where /proc tells."""
        try:
            status = Path(f"/proc/{self.pid}/stat").read_bytes()
        except OSError:
            return False
        return status.rpartition(b")")[2].split()[0] in (b"T", b"t")

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        code = self._process.poll()
        if code is None:
            self._kills.look(self.pid)
        return code

    def wait(self, seconds: float) -> bool:
        """Whether the child ended within that time."""
        try:
            self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        return True

    def terminate(self) -> None:
        """SIGTERM: finish what is under way, then end."""
        self._process.terminate()

    def strike(self) -> None:
        """`kill` that does not wait for the end."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL to the child and whatever it started; returns when the child is gone.

        The kernel may keep one for as long as its disk or its driver does not answer: it is not waited for.
        """
        if self.poll() is None:
            self.strike()
            if not self.wait(UNKILLABLE):
                log.error("%s (pid %d) cannot be killed: its disk or its driver hangs", self.name, self.pid)

    def close(self) -> None:
        """Give back the descriptors and the reader of a child that has ended."""
        self._reader.join(1.0)
        if self._ready_fd >= 0:
            os.close(self._ready_fd)
            self._ready_fd = -1
        self._stop_ordering()
        self._kills.forget(self.pid)

    def ending(self) -> str:
        """How the child ended, with what it said last."""
        self._reader.join(1.0)  # its last words may still be in the pipe
        code = self.poll()
        if code is None:
            how = "stopped answering"
        elif code < 0:  # it had no time for last words
            return f"was killed by {_signal_name(-code)}{NO_MEMORY if self._is_starved(code) else ''}"
        else:
            how = f"ended with exit code {code}"
        last = next((line for line in reversed(self.last_lines) if line.strip()), "")
        return f"{how}: {last.strip()}" if last else how

    def _is_starved(self, code: int) -> bool:
        if self._starved is None:
            self._starved = code == -signal.SIGKILL and self._kills.claim(self.pid)
        return self._starved

    def _failure(self) -> ChildFailed:
        ending = self.ending()
        if self.poll() == STARTUP_FAILED and self.startup_error:
            return ChildFailed(self.startup_error, startup=True)
        return ChildFailed(f"{self.name} {ending} (before it was ready)")

    def _read_ready(self) -> bool:
        """Whether the whole line, or the pipe's end, is there."""
        try:
            part = os.read(self._ready_fd, 65536)
        except BlockingIOError:
            return False
        self._received += part
        return not part or b"\n" in self._received

    def _parse_ready(self) -> dict[str, Any]:
        line, end, _ = self._received.lstrip(BEAT).partition(b"\n")  # beats from while it waited
        if not end:  # closed without a word: it is dying, or it broke the rule
            self.wait(1.0)
            raise self._failure()
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise ChildFailed(f"{self.name} announced itself with something else than JSON") from error

    def _read_stderr(self) -> None:
        """Pass the child's lines on, but for a reason not to start: the launcher says that once, for all."""
        assert self._process.stderr is not None
        mark = f"{self.program.module}: error: "
        with self._process.stderr as lines:
            for raw in lines:
                line = raw.decode(errors="replace").rstrip("\n")
                self.last_lines.append(line)
                if line.startswith(mark):
                    self.startup_error = line.removeprefix(mark)
                else:
                    stderr.put(line)  # never waits, so theirs is always emptied


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has none
        return f"signal {number}"
