"""Stands between two processes at a socket in the file system and can hold either direction.

What is held is late, not lost: a partition that heals delivers what was sent into it, as TCP would.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

Direction = Literal["in", "out"]
_PART = 1 << 16  # bytes


class LinkProxy:
    """Listens at `front` for the process that listens at `back`; `in` is what goes there.

    Nothing passes in the direction that the file `held` names, while there is one.
    """

    def __init__(self, front: Path, back: Path, held: Path) -> None:
        self.back = back
        self.held = held
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(front))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            caller, _ = self._listener.accept()
            self._join(caller)

    def _join(self, caller: socket.socket) -> None:
        """Connect the caller, or let it see that nobody is there."""
        worker = socket.socket(socket.AF_UNIX)
        try:
            worker.connect(str(self.back))
        except OSError:
            worker.close()
            caller.close()
            return
        ends = threading.Barrier(2)
        ways: tuple[tuple[Direction, socket.socket, socket.socket], ...] = (
            ("in", caller, worker),
            ("out", worker, caller),
        )
        for direction, source, sink in ways:
            threading.Thread(target=self._pump, args=(direction, source, sink, ends), daemon=True).start()

    def _pump(
        self, direction: Direction, source: socket.socket, sink: socket.socket, ends: threading.Barrier
    ) -> None:
        with suppress(OSError):
            while part := source.recv(_PART):
                self._wait(direction)
                sink.sendall(part)
        self._wait(direction)  # the end of a connection is held as well
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        ends.wait()
        source.close()

    def _wait(self, direction: Direction) -> None:
        with suppress(FileNotFoundError):
            while self.held.read_text() in ("", direction):  # empty: it is being written
                time.sleep(0.01)
