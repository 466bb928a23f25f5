"""Ends its own process when the loop of it makes no more turns, whatever holds it up.

The kernel's timer needs no thread and no interpreter: it also ends a process that is caught in C code, with
the interpreter's lock held. On the way the stacks of all threads go to stderr.
"""

import contextlib
import faulthandler
import os
import signal
import time

BEAT = b"."
BEATS = 20  # within the timeout; more turns than that are not told


class Watchdog:
    """Armed by the first `feed`; bites `timeout` seconds after the last one, 0: never.

    `beat_fd`: a pipe that gets a byte per beat, for whoever watches from outside; -1: nobody does.
    """

    def __init__(self, timeout: float, beat_fd: int = -1) -> None:
        self._timeout = timeout
        self._beat_fd = beat_fd
        self._next = 0.0  # beat
        self._stderr = -1

    def feed(self) -> None:
        """A turn was made. Costs a look at the clock, and two system calls per beat."""
        now = time.monotonic()
        if not self._timeout or now < self._next:
            return
        if self._stderr < 0:
            self._arm()
        self._next = now + self._timeout / BEATS
        signal.setitimer(signal.ITIMER_REAL, self._timeout)
        if self._beat_fd >= 0:
            with contextlib.suppress(OSError):  # the pipe is full, or nobody holds its other end
                os.write(self._beat_fd, BEAT)

    def disarm(self) -> None:
        """There are no more turns to make."""
        if self._stderr >= 0:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.unregister(signal.SIGALRM)
            os.close(self._stderr)
            self._stderr, self._timeout = -1, 0.0

    def _arm(self) -> None:
        """SIGALRM shows where every thread is, and then does what it does by itself: end the process."""
        self._stderr = _without_waiting()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, file=self._stderr, all_threads=True, chain=True)


def _without_waiting() -> int:
    """Another way to our stderr: a full pipe must not keep a process alive that is to end."""
    with contextlib.suppress(OSError):
        return os.open("/proc/self/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.dup(2)
