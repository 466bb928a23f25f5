"""Turns on one GPU, passed between the two processes that share it.

Two processes that launch at will slice each other's time, and both get slower: with turns only one of them
has work on the GPU. A turn is a lock of the kernel on a file: it ends with its holder, however that dies.
"""

import fcntl
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

PATIENCE = 0.1  # seconds for which one who had the turn leaves it to one who waits and does not take it
PREFILL_SEAT, DECODE_SEAT = 0, 1

_TURN = 0  # the byte of the file whose lock is the turn, and which says who had it last
_FLOCK = "hhqqi4x"  # struct flock of fcntl.h: type, whence, start, length, pid


class Turns(Protocol):
    """When a process may launch."""

    def try_take(self) -> bool:
        """Take the turn if we may have it now; never waits. True as well for one who holds it already.

        Whoever asks in vain is waiting, until it gets the turn or says `forget`: ask again soon.
        """
        ...

    def wanted(self) -> bool:
        """Whether another waits for the turn: launch no more, and give it when what is queued is done."""
        ...

    def give(self) -> None:
        """All that we launched is done: let others have the turn. Changes nothing for one without it."""
        ...

    def forget(self) -> None:
        """There is nothing to launch any more: wait no longer."""
        ...


class NoTurns:
    """Launch at will."""

    def try_take(self) -> bool:
        return True

    def wanted(self) -> bool:
        return False

    def give(self) -> None:
        pass

    def forget(self) -> None:
        pass


class FileTurns:
    """One of the two players who name the same file, each in a seat of its own.

    Whoever had the turn last leaves it to the other if that one waits. Waiting is a lock as well, so nobody
    waits for the dead, and a player that stops while it waits costs the other `PATIENCE` once per turn. One
    that stops in its turn keeps it: its work may still be running.
    """

    def __init__(self, path: Path, seat: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.holds = False
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._seat = seat
        self._clock = clock
        self._gave_at = 0.0
        self._waits = False

    def try_take(self) -> bool:
        """See `Turns`."""
        if self.holds:
            return True
        if self._leaves_it() or not self._lock(_TURN):
            self._wait(True)
            return False
        self.holds = True
        os.pwrite(self._fd, bytes([1 + self._seat]), _TURN)
        self._wait(False)
        return True

    def wanted(self) -> bool:
        """See `Turns`."""
        return self._is_locked(1 + (PREFILL_SEAT + DECODE_SEAT - self._seat))

    def give(self) -> None:
        """See `Turns`."""
        if self.holds:
            self.holds, self._gave_at = False, self._clock()
            self._unlock(_TURN)

    def forget(self) -> None:
        """See `Turns`."""
        self._wait(False)

    def close(self) -> None:
        """Leave the game; the kernel takes back what we hold."""
        os.close(self._fd)

    def _leaves_it(self) -> bool:
        """Whether the other shall have it. Only one of the two had it last, so one of them takes it."""
        if os.pread(self._fd, 1, _TURN) != bytes([1 + self._seat]):
            return False
        patient = self._clock() - self._gave_at < PATIENCE
        return patient and self.wanted()

    def _wait(self, waits: bool) -> None:
        if waits != self._waits:
            self._waits = waits
            self._lock(1 + self._seat) if waits else self._unlock(1 + self._seat)

    # Locks of an open file, not of a process, which would lose them by closing any descriptor of the file.

    def _lock(self, byte: int) -> bool:
        try:
            self._control(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, byte)
        except BlockingIOError:
            return False
        return True

    def _unlock(self, byte: int) -> None:
        self._control(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, byte)

    def _is_locked(self, byte: int) -> bool:
        """Whether another holds it."""
        found: int = struct.unpack_from("h", self._control(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte))[0]
        return found != fcntl.F_UNLCK

    def _control(self, command: int, kind: int, byte: int) -> bytes:
        return fcntl.fcntl(self._fd, command, struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0))


def turns_of(path: str, seat: int) -> Turns:
    """The game that `--turns-file` names; no path: no game."""
    return FileTurns(Path(path), seat) if path else NoTurns()
