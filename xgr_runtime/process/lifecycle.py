"""A process of ours from the inside: how it starts, says that it is ready, and is asked to stop.

`main` gives a body its parsed configuration and a `Lifecycle`. A launcher, where there is one, holds the
other end: see `xgr_runtime.launcher.child`. Between the two is one pipe, which carries one JSON line and
then beats.
"""

import contextlib
import gc
import json
import logging
import os
import resource
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from xgr_runtime.config import C, parse
from xgr_runtime.errors import ConfigError, Fatal, StartupError
from xgr_runtime.process.log import FLUSH_SECONDS, configure, stderr
from xgr_runtime.process.watchdog import Watchdog

if TYPE_CHECKING:
    from xgr_runtime.process.probes import State

log = logging.getLogger(__name__)

STARTUP_FAILED = 2  # exit code of a process that raised StartupError


class Lifecycle:
    """What a body knows of its process: whether it was asked to stop, and who waits to hear `ready`."""

    def __init__(self, ready_fd: int = -1, stuck_timeout: float = 0.0) -> None:
        self.stopping = False
        self._watchdog = Watchdog(stuck_timeout, ready_fd)
        self._stuck_timeout = stuck_timeout
        self._turned = 0.0  # when the last turn began
        self._is_ready = False
        self._ready_fd = ready_fd
        self._callbacks: list[Callable[[], None]] = []
        self._parts: dict[str, float] = {}  # of the start, in seconds
        self._told = time.monotonic() - age()

    def passed(self, part: str, within: Mapping[str, float] | None = None) -> None:
        """What has passed since the start of the process, or the last call, was spent on `part` of its start.

        `within` are seconds of it that were spent on other parts.
        """
        now, others = time.monotonic(), dict(within or {})
        seconds = {part: now - self._told - sum(others.values())} | others
        self._parts |= {name: self._parts.get(name, 0.0) + took for name, took in seconds.items()}
        self._told = now

    def waited(self) -> None:
        """What has passed up to now was no part of a start."""
        self._told = time.monotonic()

    @property
    def state(self) -> "State":
        """How this process is, in a word."""
        if not self._is_ready:
            return "stopping" if self.stopping else "starting"
        if 0 < self._stuck_timeout < time.monotonic() - self._turned:
            return "stuck"
        return "stopping" if self.stopping else "ready"

    def listen(self) -> None:
        """Let SIGTERM and SIGINT stop this process. Main thread only."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def stop(self) -> None:
        """Ask the body to end. Asking again changes nothing."""
        if self.stopping:
            return
        self.stopping = True
        for callback in self._callbacks:
            callback()

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when asked to stop, at once if that was before.

        It runs inside a signal handler: set a flag or `loop.call_soon_threadsafe`, nothing that takes a lock.
        """
        self._callbacks.append(callback)
        if self.stopping:
            callback()

    def ready(self, info: Mapping[str, Any]) -> None:
        """Tell the launcher that this process now does its work; `info` is plain JSON.

        It also hears under "start" what took how long, since the process began, or since it was ready last:
        one that waited for its work says so when it waits, and again when it has it.

        From now on the body must take turns: see `turn`.
        """
        gc.collect()
        gc.freeze()  # a full collection would go through all that was loaded, some 0.2 s in a worker
        self._turned = time.monotonic()
        self._is_ready = True
        if self._ready_fd < 0:
            return
        line = (json.dumps({**info, "start": self._parts}) + "\n").encode()
        self._parts = {}
        os.set_blocking(self._ready_fd, True)
        with contextlib.suppress(BrokenPipeError):  # the launcher died: its death signal is on the way
            os.write(self._ready_fd, line)
        os.set_blocking(self._ready_fd, False)  # beats that nobody reads are not waited for

    def turn(self) -> bool:
        """Whether the body shall end. It asks in every turn of its loop, and shows so that it is not stuck.

        One that is ready and does not ask for `stuck_timeout` seconds is ended, its stacks on stderr.
        """
        if self._is_ready:
            self._turned = time.monotonic()
            self._watchdog.feed()
        return self.stopping

    def done(self) -> None:
        """The body has returned: there are no more turns."""
        self._watchdog.disarm()

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        self.stop()


def main(
    kind: type[C], body: Callable[[C, Lifecycle], None], program: str, argv: Sequence[str] | None = None
) -> int:
    """Run `body` as this process; the exit code, for `sys.exit`.

    0: the body returned. 2: `StartupError`, one line on stderr. 1: anything else, logged with its stack.
    Below a launcher it does not return but ends the process: what a body holds it frees itself, not at exit.
    """
    try:
        config = parse(kind, sys.argv[1:] if argv is None else argv, program=program)
    except StartupError as error:
        return _refuse(program, error)
    code = _run(config, body, program)
    if config.ready_fd >= 0:
        # Taking the interpreter and torch apart object by object costs seconds, in which the launcher waits.
        flushing = threading.Thread(target=_flush, daemon=True)
        flushing.start()
        flushing.join(2 * FLUSH_SECONDS)  # a reader that takes nothing must not keep us
        os._exit(code)
    return code


def age() -> float:
    """Seconds since this process began, its imports included; zero where the system does not say."""
    try:
        stat = Path("/proc/self/stat").read_bytes()
        began = int(stat.rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")  # since boot
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began)
    except (OSError, ValueError, AttributeError):
        return 0.0


def one_line(error: BaseException) -> str:
    """The error's message without line breaks."""
    return " ".join(part.strip() for part in str(error).splitlines())


def _run(config: C, body: Callable[[C, Lifecycle], None], program: str) -> int:
    """`main` once the configuration is known."""
    try:
        _check_ready_fd(config.ready_fd)
        configure(getattr(config, "name", program), config.log_level)
        _allow_many_descriptors()
        lifecycle = Lifecycle(config.ready_fd, config.stuck_timeout)
        lifecycle.listen()
        if config.ready_fd >= 0:
            os.set_inheritable(config.ready_fd, False)
        if address := getattr(config, "probe_address", ""):
            _answer_probes(address, lifecycle)
        try:
            body(config, lifecycle)
        finally:
            lifecycle.done()
    except StartupError as error:
        return _refuse(program, error)
    except (Exception, Fatal):
        log.exception("%s failed", program)
        return 1
    return 0


def _answer_probes(address: str, lifecycle: Lifecycle) -> None:
    """Raises `ConfigError`."""
    from xgr_runtime.process.probes import answer_probes  # its server is needed where one is asked for

    answer_probes(address, lifecycle)


def _check_ready_fd(fd: int) -> None:
    """Raises `ConfigError` for a descriptor that nobody gave us."""
    try:
        if fd >= 0 and not stat.S_ISFIFO(os.fstat(fd).st_mode):
            raise OSError
    except OSError:
        raise ConfigError(f"--ready-fd is {fd}, no pipe of a launcher: leave it out") from None


def _refuse(program: str, error: StartupError) -> int:
    stderr.put(f"{program}: error: {one_line(error)}")
    stderr.flush()
    return STARTUP_FAILED


def _flush() -> None:
    stderr.flush()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a full disk, a closed pipe
            stream.flush()


def _allow_many_descriptors() -> None:
    """As many as the system lets this process have; many give it 1,024 unless it asks for more.

    A live request holds a connection of its client and one to an SGLang server, a cancelled one a third.
    Without a descriptor a router seems dead, and libzmq ends a worker that cannot accept an ipc connection.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems name a limit that they refuse
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
