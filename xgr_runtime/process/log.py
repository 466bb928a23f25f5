"""Logging for every process: one line per event on stderr, with the process's name.

No process waits for its log, and none ends because of it: lines go through a bounded queue to a thread, which
counts what a full disk, a closed pipe or a stopped terminal does not take.
"""

import contextlib
import logging
import os
import queue
import threading
import time

ROOM = 10_000  # lines that wait to be written
FLUSH_SECONDS = 1.0  # that an ending process gives its last lines
PAUSE = 0.01  # seconds between writes: a thread that woke for each line would take the interpreter each time
MOST_AT_ONCE = 256  # lines that one write takes


class LineSink:
    """Writes lines to a descriptor from a thread of its own, or drops them and says how many."""

    def __init__(self, fd: int, room: int = ROOM) -> None:
        self.dropped = 0  # lines, since the last one that was written
        self._fd = fd
        self._room = room
        # Its `put` takes no lock, so a signal handler may log as well.
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._started = False

    def put(self, line: str) -> None:
        """Returns at once, whatever the descriptor does."""
        if self._lines.qsize() >= self._room:
            self.dropped += 1
            return
        self._lines.put(line)
        self._start()

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Whether all lines so far were written, or dropped, within that time."""
        reached = threading.Event()
        self._lines.put(reached)
        self._start()
        return reached.wait(seconds)

    def _start(self) -> None:
        if not self._started and self._starting.acquire(blocking=False):
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="log", daemon=True).start()
            self._starting.release()

    def _run(self) -> None:
        """A line that comes alone is written at once, those that come close behind it together."""
        while True:
            lines, reached = self._gathered()
            if lines and self.dropped and self._write(f"({self.dropped} lines dropped)\n"):
                self.dropped = 0
            if lines and not self._write("".join(f"{line}\n" for line in lines)):
                self.dropped += len(lines)
            if reached is not None:
                reached.set()
            else:
                time.sleep(PAUSE)

    def _gathered(self) -> tuple[list[str], threading.Event | None]:
        """The lines that are here, at least one, up to whoever waits for all before it."""
        lines: list[str] = []
        with contextlib.suppress(queue.Empty):
            while len(lines) < MOST_AT_ONCE:
                line = self._lines.get(block=not lines)
                if isinstance(line, threading.Event):
                    return lines, line
                lines.append(line)
        return lines, None

    def _write(self, text: str) -> bool:
        """Whether the descriptor took it: not when its disk is full or its reader gone."""
        left = text.encode(errors="backslashreplace")
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:  # somebody else has made it so
                time.sleep(0.01)
            except OSError:
                return False
        return True


stderr = LineSink(2)
"""This process's way to its stderr, for log lines and for those of its children."""


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a record that cannot be formatted ends nobody either
            stderr.put(self.format(record))

    def flush(self) -> None:
        """At exit, by `logging.shutdown`."""
        stderr.flush()


def configure(process: str, level: str = "INFO") -> None:
    """Send this process's log lines to stderr as `time level process: message`."""
    handler, name = _Handler(), process.replace("%", "%%")
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)-7s {name}: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "numba"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
