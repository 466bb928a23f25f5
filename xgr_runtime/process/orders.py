"""How a process that waits hears what it is to become: lines of JSON in a pipe from its launcher."""

import os
import select
from collections.abc import Callable

import msgspec

LOOK_EVERY = 0.2  # seconds between turns of one who waits


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Become what `python -m module argv...` would be."""

    module: str
    argv: list[str]


def order_line(order: Order) -> bytes:
    """As it goes through the pipe."""
    return msgspec.json.encode(order) + b"\n"


class Orders:
    """The end of one who waits."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._received = b""
        os.set_inheritable(fd, False)

    def close(self) -> None:
        """There will be no more."""
        os.close(self._fd)

    def next(self, stopping: Callable[[], bool]) -> Order | None:
        """Wait for one; None when `stopping`, which is asked now and then, or when the launcher is gone."""
        while b"\n" not in self._received:
            if stopping():
                return None
            if not select.select([self._fd], [], [], LOOK_EVERY)[0]:
                continue
            part = os.read(self._fd, 65536)
            if not part:
                return None
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return msgspec.json.decode(line, type=Order)
