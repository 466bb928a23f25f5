"""A worker's control link: which routers are alive, what they ask, and how they are answered."""

import logging
import math
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from xgr_runtime.messages import PROTOCOL, Hello, Message, TraceAsk, WorkerHello
from xgr_runtime.timeline import Timeline
from xgr_runtime.transport import Listener

log = logging.getLogger(__name__)

ROUTER_SILENT = "the router was silent for too long"


def new_incarnation() -> int:
    """A random id that tells one run of a process from every other."""
    return secrets.randbits(62)


@dataclass
class _Router:
    peer: bytes
    heard: float


@dataclass
class ControlServer:
    """The bound end of the control links. `introduce` makes the answer to a router's heartbeat."""

    listener: Listener[Any]
    introduce: Callable[[], WorkerHello]
    silence: float  # seconds without a heartbeat after which a router counts as lost
    timeline: Timeline = field(default_factory=Timeline)  # what a router that asks for a trace is told
    refused: int = 0  # messages of routers that speak another protocol
    _routers: dict[int, _Router] = field(default_factory=dict)

    def receive(self, now: float) -> Iterator[Message]:
        """All requests and cancels that are here; heartbeats and traces are answered on the way."""
        while (received := self.listener.receive()) is not None:
            message = received.message
            if isinstance(message, TraceAsk):
                self.listener.send(received.peer, self.timeline.answer(message, self.introduce().worker, now))
            elif not isinstance(message, Hello):
                yield message
            elif message.protocol == PROTOCOL:
                self._greet(message.router, received.peer, now)
            else:
                self.refused += 1
                self.listener.send(received.peer, self.introduce())  # so that it can say why

    def send(self, router: int, message: Message) -> bool:
        """Answer the router with this incarnation; False when it is gone, which `silent` then reports too."""
        known = self._routers.get(router)
        if known is None:
            return False
        sent = self.listener.send(known.peer, message)
        if not sent:
            known.heard = -math.inf
        return sent

    def silent(self, now: float) -> list[int]:
        """Incarnations of routers that are gone or sent no heartbeat for too long. Tell them, then `forget`.

        A router that was only stopped finds the news when it wakes up, and tries its requests again.
        """
        return [r for r, known in self._routers.items() if now - known.heard > self.silence]

    def forget(self, router: int) -> None:
        """Its requests are dropped; it is welcome again."""
        log.warning("router %x is gone: its requests are dropped", router)
        del self._routers[router]

    def _greet(self, router: int, peer: bytes, now: float) -> None:
        if router not in self._routers:
            log.info("router %x connected", router)
        self._routers[router] = _Router(peer, now)
        self.listener.send(peer, self.introduce())
