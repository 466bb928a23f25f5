"""A worker's control link: which routers are alive, what they ask, and how they are answered."""

import logging
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from xgr_runtime.trace.timeline import Timeline
from xgr_runtime.transport import Listener
from xgr_runtime.wire.messages import PROTOCOL, Hello, Message, OtherProtocol, TraceAsk, WorkerHello

log = logging.getLogger(__name__)

ROUTER_SILENT = "the router was silent for too long"
ROUTER_REPLACED = "the router was started again"

LISTEN_EVERY = 0.005
"""Seconds for which a worker in a forward, which has all cores, hears nobody; the layer is finished."""

MOST_ROUTERS = 64
_MOST_SEEN = 1024  # incarnations that are remembered


def new_incarnation() -> int:
    """A random id that tells one run of a process from every other."""
    return secrets.randbits(62)


@dataclass
class _Router:
    peer: bytes
    name: str
    heard: float
    replaced: bool = False  # by the next run of its name
    catalogs: Sequence[str] = ()  # versions that it may still use


@dataclass
class ControlServer:
    """The bound end of the control links. `introduce` makes the answer to a router's heartbeat."""

    listener: Listener[Any]
    introduce: Callable[[], WorkerHello]
    silence: float  # seconds without a heartbeat after which a router counts as lost
    timeline: Timeline = field(default_factory=Timeline)  # what a router that asks for a trace is told
    refused: int = 0  # greetings of routers that speak another protocol, or for whom there is no room
    _routers: dict[int, _Router] = field(default_factory=dict)
    _seen: dict[int, None] = field(default_factory=dict)  # incarnations, the latest last
    _refused_protocols: set[int] = field(default_factory=set)  # protocols that were logged

    def receive(self, now: float) -> Iterator[Message]:
        """Some of the requests and cancels that are here; heartbeats and traces are answered on the way.

        A turn's worth at most: who waits for the listener is woken for the rest at once.
        """
        for peer, message, _ in self.listener.receive_some():
            if isinstance(message, TraceAsk):
                self.listener.send(peer, self.timeline.answer(message, self.introduce().worker, now))
            elif isinstance(message, OtherProtocol):
                self._refuse(peer, message)
            elif not isinstance(message, Hello):
                yield message
            elif message.protocol != PROTOCOL:
                self._refuse(peer, OtherProtocol(message.protocol))
            else:
                self._greet(message, peer, now)

    def send(self, router: int, message: Message) -> bool:
        """Answer the router with this incarnation; False when it is gone, which `gone` then reports too."""
        known = self._routers.get(router)
        if known is None:
            return False
        sent = self.listener.send(known.peer, message)
        if not sent:
            known.heard = -math.inf
        return sent

    @property
    def routers(self) -> list[int]:
        """Incarnations of those that greeted and are not gone."""
        return list(self._routers)

    def uses(self, router: int, catalogs: Sequence[str]) -> None:
        """That router may still use these versions, and no others."""
        if router in self._routers:
            self._routers[router].catalogs = catalogs

    @property
    def used_catalogs(self) -> frozenset[str] | None:
        """Versions that any router may still use; None without a router."""
        if not self._routers:
            return None
        return frozenset(version for known in self._routers.values() for version in known.catalogs)

    def gone(self, now: float) -> list[tuple[int, str]]:
        """Incarnations of routers whose requests end now, and why. Tell them, then `forget`.

        One that was only stopped finds the news when it wakes up, and tries its requests again.
        """
        return [
            (router, ROUTER_REPLACED if known.replaced else ROUTER_SILENT)
            for router, known in self._routers.items()
            if known.replaced or now - known.heard > self.silence
        ]

    def forget(self, router: int) -> None:
        """Its requests are dropped; it is welcome again."""
        log.warning("router %x is gone: its requests are dropped", router)
        del self._routers[router]

    def _greet(self, hello: Hello, peer: bytes, now: float) -> None:
        known = self._routers.get(hello.router)
        if known is not None:
            known.peer, known.heard = peer, now
        elif len(self._routers) < MOST_ROUTERS:
            log.info("router %s (%x) connected", hello.name, hello.router)
            self._replace(hello)
            self._routers[hello.router] = _Router(peer, hello.name, now)
        else:
            self.refused += 1
            return
        self.uses(hello.router, hello.catalogs)
        self.listener.send(peer, replace(self.introduce(), number=hello.number))

    def _replace(self, hello: Hello) -> None:
        """A router that was never seen before takes the place of the one of its name."""
        namesakes = [known for known in self._routers.values() if known.name == hello.name]
        if namesakes and hello.router in self._seen:  # it was here before them: neither is dead
            log.error("two routers are named %s: give each a --name of its own", hello.name)
        elif namesakes:
            for known in namesakes:
                known.replaced = True
        self._seen[hello.router] = self._seen.pop(hello.router, None)
        if len(self._seen) > _MOST_SEEN:
            del self._seen[next(iter(self._seen))]

    def _refuse(self, peer: bytes, greeting: OtherProtocol) -> None:
        """Tell who we are, so that it can say why it does not use us."""
        self.refused += 1
        if greeting.protocol not in self._refused_protocols and len(self._refused_protocols) < MOST_ROUTERS:
            self._refused_protocols.add(greeting.protocol)
            log.error("a router cannot be served: %s", greeting.problem_with("worker"))
        self.listener.send(peer, self.introduce())
