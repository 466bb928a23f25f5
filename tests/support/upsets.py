"""Random acts against a deployment under load. One worker of each kind is always left alone."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import zmq
from faulty_worker import Fault, FaultFile
from fleet import TIMES, Fleet
from throw import throw

LONGEST = 1.5 * TIMES["silence"]  # seconds that a worker is stopped, slow or cut off
PAUSE = 2.0  # most seconds between two acts


class Upsets:
    """`run` disturbs the fleet; `draw` decides what happens to whom and when."""

    def __init__(self, fleet: Fleet, draw: random.Random) -> None:
        self.fleet = fleet
        self.draw = draw
        self.done: Counter[str] = Counter()
        self._upset: dict[str, tuple[float, Callable[[], None]]] = {}  # worker -> until when, how it ends
        self._acts: list[tuple[str, Callable[[str], None]]] = [
            ("kill", self._kill),
            ("stop", self._stop),
            ("slow", lambda name: self._break(name, Fault("slow"))),
            ("refuse", lambda name: self._break(name, Fault("refuse"))),
            ("hold link", self._hold),
            ("bad frames", self._send_rubbish),
        ]

    def run(self, seconds: float) -> None:
        """Act until the time is over, then undo what lasts."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._calm()
            if names := self._disposable():
                kind, act = self.draw.choice(self._acts)
                with suppress(AssertionError, ProcessLookupError):  # it has just gone
                    act(self.draw.choice(names))
                    self.done[kind] += 1
            time.sleep(self.draw.uniform(0.1, PAUSE))
        self._calm(always=True)

    def _disposable(self) -> list[str]:
        """Workers whose like is usable and undisturbed."""
        usable = set()
        with suppress(Exception):  # the router is busy
            usable = set(self.fleet.incarnations()) - set(self._upset)
        role = {name: name.partition("-")[0] for name in self.fleet.workers}
        return [n for n in sorted(usable) if any(role[o] == role[n] for o in usable if o != n)]

    def _calm(self, always: bool = False) -> None:
        """What has lasted long enough ends."""
        for name, (due, ending) in list(self._upset.items()):
            if always or time.monotonic() >= due:
                del self._upset[name]
                with suppress(AssertionError, ProcessLookupError):
                    ending()

    def _for_a_while(self, name: str, ending: Callable[[], None]) -> None:
        self._upset[name] = (time.monotonic() + self.draw.uniform(0.2, LONGEST), ending)

    def _kill(self, name: str) -> None:
        self.fleet.signal(name, SIGKILL)

    def _stop(self, name: str) -> None:
        self.fleet.signal(name, SIGSTOP)
        self._for_a_while(name, lambda: self.fleet.signal(name, SIGCONT))

    def _break(self, name: str, fault: Fault) -> None:
        file = FaultFile(self.fleet.faults / name)
        file.write(fault)
        self._for_a_while(name, file.remove)

    def _hold(self, name: str) -> None:
        """One direction of its links, where a test stands in them."""
        if name in self.fleet.remote:
            self.fleet.hold(name, "in" if self.draw.random() < 0.5 else "out")
            held = self.fleet.faults / f"{name}.held"
            self._for_a_while(name, lambda: held.unlink(missing_ok=True))

    def _send_rubbish(self, name: str) -> None:
        """Frames that mean nothing, to each of its sockets."""
        folder = self.fleet.run_folder
        assert folder is not None
        for path in [folder / name, folder / f"{name}.data"]:
            if not path.exists():
                continue
            socket: Any = zmq.Context.instance().socket(zmq.DEALER)
            socket.connect(f"ipc://{path}")
            for _ in range(20):
                parts = [
                    self.draw.randbytes(self.draw.randint(0, 2000)) for _ in range(self.draw.randint(1, 3))
                ]
                throw(socket, *parts)
            socket.close(linger=200)
