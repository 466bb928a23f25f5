"""Turns on one device, a GPU or a machine's cores, passed between the two processes that share it.

Two processes that launch at will slice each other's time, and both get slower: with turns only one of them
has work on the device. A turn is a lock of the kernel on a file: it ends with its holder, however that dies.
Whoever gives it wakes the other by a named pipe, so that nobody looks for it all the time.
"""

import contextlib
import fcntl
import math
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from xgr_runtime.errors import ConfigError

PATIENCE = 0.1  # seconds for which one who had the turn leaves it to one who waits and does not take it
LOOK_EVERY = PATIENCE / 5  # seconds until a turn is asked for again, if nobody wakes us
OVERDUE = 1.0  # seconds after which cores are used without a turn: their holder may have been stopped
KEEP_EVERY = 1.0  # seconds between looks at whether the files are still there
_TRIAL_PATIENCE = 2.0  # seconds for which trials at the start wait for the turn
PREFILL_SIDE, DECODE_SIDE = 0, 1

_TURN = 0  # the byte of the file whose lock is the turn, and which says who had it last
_FLOCK = "hhqqi4x"  # struct flock of fcntl.h: type, whence, start, length, pid


class Turns(Protocol):
    """When a process may launch."""

    wakeup: int | None
    """A descriptor to wait for: it can be read once a turn that we wait for may have come free."""

    def want(self) -> None:
        """We ask for the turn in a moment, with something to launch: from now on we are waiting for it."""
        ...

    def try_take(self) -> bool:
        """Take the turn if we may have it now; never waits. True as well for one who holds it already.

        Whoever asks in vain is waiting, until it gets the turn or says `forget`: ask again when woken,
        or after `LOOK_EVERY`, for the holder may have died.
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

    def close(self) -> None:
        """Take part no more."""
        ...


class NoTurns:
    """Launch at will."""

    wakeup: int | None = None

    def want(self) -> None:
        pass

    def try_take(self) -> bool:
        return True

    def wanted(self) -> bool:
        return False

    def give(self) -> None:
        pass

    def forget(self) -> None:
        pass

    def close(self) -> None:
        pass


class FileTurns:
    """One of the two processes that name the same file, each on a side of its own.

    Whoever had the turn last leaves it to the other if that one waits. Waiting is a lock as well, so nobody
    waits for the dead, and a process that stops while it waits costs the other `PATIENCE` once per turn. One
    that stops in its turn keeps it: its work may still be running. Where that cannot be, on a machine's
    cores, the other waits for `overdue` seconds and then launches without it.
    """

    def __init__(
        self,
        path: Path,
        side: int,
        clock: Callable[[], float] = time.monotonic,
        overdue: float = math.inf,
    ) -> None:
        self.holds = False
        self._overdue = overdue
        self._waits_since = 0.0
        self._path = path
        self._fd = _open_file(path)
        self._side = side
        self._clock = clock
        self._gave_at = 0.0
        self._looked_at = clock()
        self._waits = False
        self._pipe = _open_wakeup(_wakeup_of(path, side))
        self.wakeup: int | None = self._pipe

    def want(self) -> None:
        """See `Turns`."""
        if not self.holds:
            self._wait(True)

    def try_take(self) -> bool:
        """See `Turns`."""
        if self.holds:
            return True
        self._keep()
        self._drain()
        if self._leaves_it() or not self._lock(_TURN):
            self._wait(True)
            # Given just before we were seen to wait, it came without a wake-up.
            if self._leaves_it() or not self._lock(_TURN):
                return self._clock() - self._waits_since >= self._overdue
        self.holds = True
        with contextlib.suppress(OSError):  # a full disk: that we had it last is a courtesy, the lock is not
            os.pwrite(self._fd, bytes([1 + self._side]), _TURN)
        self._wait(False)
        return True

    def wanted(self) -> bool:
        """See `Turns`."""
        return self._is_locked(1 + self._other)

    def give(self) -> None:
        """See `Turns`."""
        if self.holds:
            self.holds, self._gave_at = False, self._clock()
            self._unlock(_TURN)
            if self.wanted():
                self._wake()

    def forget(self) -> None:
        """See `Turns`."""
        self._drain()
        self._wait(False)

    def close(self) -> None:
        """Take part no more; the kernel takes back what we hold."""
        os.close(self._fd)
        os.close(self._pipe)

    @property
    def _other(self) -> int:
        return PREFILL_SIDE + DECODE_SIDE - self._side

    def _keep(self) -> None:
        """See now and then that the other finds our files, for temporary folders are cleaned by others.

        Until both have looked, both may launch. Descriptors keep their numbers, for somebody waits
        for the pipe.
        """
        if self._clock() < self._looked_at + KEEP_EVERY:
            return
        self._looked_at = self._clock()
        wakeup = _wakeup_of(self._path, self._side)
        with contextlib.suppress(OSError):  # their folder is gone, too: later
            if not _leads_to(self._path, self._fd):
                self._wait(False)
                _replace(self._fd, _open_file(self._path))
            if not _leads_to(wakeup, self._pipe):
                _replace(self._pipe, _open_wakeup(wakeup))

    def _wake(self) -> None:
        """Nobody there, or woken already: both are well."""
        with contextlib.suppress(OSError):
            wakeup = os.open(_wakeup_of(self._path, self._other), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(wakeup, b"!")
            finally:
                os.close(wakeup)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._pipe, 4096)

    def _leaves_it(self) -> bool:
        """Whether the other shall have it. Only one of the two had it last, so one of them takes it."""
        if os.pread(self._fd, 1, _TURN) != bytes([1 + self._side]):
            return False
        patient = self._clock() - self._gave_at < PATIENCE
        return patient and self.wanted()

    def _wait(self, waits: bool) -> None:
        if waits != self._waits:
            self._waits, self._waits_since = waits, self._clock()
            self._lock(1 + self._side) if waits else self._unlock(1 + self._side)

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


@contextlib.contextmanager
def turn_for_trials(turns: Turns, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Have the turn inside of the block if it comes in time: beside another's launches ours take longer."""
    until = clock() + _TRIAL_PATIENCE
    while not turns.try_take() and clock() < until:
        time.sleep(LOOK_EVERY)
    try:
        yield
    finally:
        turns.give()
        turns.forget()


@contextlib.contextmanager
def trial_turn(path: str, side: int, device: str) -> Iterator[None]:
    """`turn_for_trials` of one who takes no other turns yet. Raises `ConfigError`, as `turns_of`."""
    turns = turns_of(path, side, device)
    try:
        with turn_for_trials(turns):
            yield
    finally:
        turns.close()


def _wakeup_of(path: Path, side: int) -> Path:
    return path.with_name(f"{path.name}.wakeup{side}")


def _open_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _open_wakeup(path: Path) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0o600)
    # For writing, too: a pipe without a writer would be at its end, and readable for ever.
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _leads_to(path: Path, descriptor: int) -> bool:
    """Whether whoever opens the path gets the file that we have open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _replace(descriptor: int, other: int) -> None:
    os.dup2(other, descriptor, inheritable=False)
    os.close(other)


def turns_of(path: str, side: int, device: str) -> Turns:
    """The turns that `--turns-file` names, for `device`; no path: none are taken. Raises `ConfigError`."""
    if not path:
        return NoTurns()
    try:
        return FileTurns(Path(path), side, overdue=OVERDUE if device == "cpu" else math.inf)
    except OSError as error:
        raise ConfigError(
            f"--turns-file {path} cannot be used ({error.strerror}): name a file in a folder of your own"
        ) from error
