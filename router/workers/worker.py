"""One worker as the router knows it, whatever carries the messages."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from router.job import Flush
from router.workers.breaker import Breaker
from xgr_runtime.errors import RequestError, WorkerLost
from xgr_runtime.wire.messages import (
    PROTOCOL,
    START_SECONDS,
    STOPPING,
    Message,
    OtherProtocol,
    Role,
    WorkerHello,
)

log = logging.getLogger(__name__)

QUIET = 3  # heartbeats without an answer after which a worker is quiet
_LONGEST_START = 3600.0  # seconds that are believed
RENEWAL = 0.5  # seconds before a link that broke is made anew

OnMessage = Callable[["Worker", Message], None]
OnLost = Callable[["Worker", int, str], None]


class Worker(ABC):
    """`alive` from its first introduction until it is silent, gone or another incarnation."""

    breaker: Breaker  # of whichever incarnation; the roster's to give

    def __init__(self, address: str, role: Role, on_message: OnMessage, on_lost: OnLost) -> None:
        self.address = address
        self.role = role
        self.hello: WorkerHello | None = None
        self.alive = False
        self.absence = "it has not answered yet"  # why it is not alive
        self.away_since = time.monotonic()  # while it is not alive
        self.leaving = False  # it is removed, and gets no more requests
        self.incompatible = False  # it answers, but cannot be used: asked again now and then
        self.load = 0  # what this router has under way there
        self.in_flight = 0  # attempts
        self._unanswered = 0  # heartbeats since it was last heard
        self._on_message = on_message
        self._on_lost = on_lost

    @property
    def traceable(self) -> bool:
        """Whether it answers `TraceAsk`."""
        return True

    @property
    def quiet(self) -> bool:
        """Whether `QUIET` heartbeats have passed without a word: it may be busy, stuck or gone."""
        return self._unanswered > QUIET

    @abstractmethod
    def start(self) -> None:
        """Begin to listen for it. Inside a running loop."""

    @abstractmethod
    async def stop(self) -> None:
        """Close the connection."""

    @abstractmethod
    def send(self, message: Message) -> bool:
        """False when the worker is gone."""

    @abstractmethod
    async def flush_cache(self) -> int:
        """Drop the prompt KV that only its cache holds; returns pages. Raises `RequestError`."""

    @abstractmethod
    async def refresh(self) -> None:
        """Let it introduce itself now, and wait until it has. Raises `WorkerLost`."""

    @property
    def flexible(self) -> bool:
        """Whether it takes prompts or beams as it is told: its role is what it said last."""
        return self.hello is not None and self.hello.change != "no"

    @property
    def changing(self) -> bool:
        """Whether it is about to take the other role."""
        return self.hello is not None and self.hello.change == "under way"

    @property
    def incarnation(self) -> int:
        return self.hello.incarnation if self.hello else 0

    @property
    def start_seconds(self) -> float:
        """That its last start took, as it said; zero if it did not."""
        said = self.hello.load.counters.get(START_SECONDS, 0.0) if self.hello else 0.0
        return min(max(0.0, said), _LONGEST_START)

    @property
    def problem(self) -> str:
        """Why the worker cannot be used, or an empty string."""
        if not self.alive or self.hello is None:
            return self.absence
        if self.hello.role != self.role:
            return f"it is a {self.hello.role} worker, configured as {self.role}"
        if self.hello.model.tp_size != 1:
            return f"its tensor parallelism is {self.hello.model.tp_size}, this release needs 1"
        if self.changing:
            return "it takes the other role, and finishes what it has"
        if self.hello.load.counters.get(STOPPING):
            return "it is stopping, and finishes what it has"
        return ""

    def meet(self, hello: WorkerHello) -> None:
        """It has introduced itself, again or for the first time."""
        if hello.protocol != PROTOCOL:
            self._unusable(OtherProtocol(hello.protocol).problem_with("router"))
            return
        if self.alive and hello.incarnation != self.incarnation:
            self.lost("it was restarted")
        newcomer = not self.alive
        self.hello, self.alive, self.incompatible = hello, True, False
        if self.flexible:
            self.role = hello.role
        if newcomer:
            problem = f", unusable: {self.problem}" if self.problem else ""
            log.info("%s worker %s connected%s", self.role, hello.worker, problem)

    def held(self, version: str) -> None:
        """It has said that it holds one more version of the catalog."""
        if self.hello is not None and version not in self.hello.catalogs:
            self.hello = replace(self.hello, catalogs=[*self.hello.catalogs, version])

    def lets_go(self, version: str) -> None:
        """It need not hold a version of the catalog any more, until it says so again."""
        if self.hello is not None and version in self.hello.catalogs:
            self.hello = replace(self.hello, catalogs=[one for one in self.hello.catalogs if one != version])

    def _unusable(self, problem: str) -> None:
        """It answers, but not as a worker that we can use; said once."""
        self.lost(problem)
        self.incompatible = True
        if problem != self.absence:
            log.warning("%s worker at %s is unusable: %s", self.role, self.address, problem)
            self.absence = problem

    def lost(self, reason: str) -> None:
        """Report the present incarnation as lost, once."""
        if self.alive:
            self.alive, self.absence = False, "it is gone"
            self.away_since = time.monotonic()
            log.warning("%s worker at %s is lost: %s", self.role, self.address, reason)
            self._on_lost(self, self.incarnation, reason)

    async def _kept(self, work: Callable[[], Awaitable[None]]) -> None:
        """Work for ever. What breaks that is logged and costs the worker its requests, never its link."""
        broken = False
        while True:
            try:
                if broken:
                    broken = False
                    self.lost("our link to it broke")
                    await asyncio.sleep(RENEWAL)
                await work()
            except Exception:
                log.exception("the link to the %s worker at %s is made anew", self.role, self.address)
                broken = True


async def flushed(worker: Worker) -> Flush:
    """Flush one worker; whoever is away, or goes away, is not waited for."""
    try:
        if worker.problem:
            raise WorkerLost(worker.problem)
        return Flush(worker.address, await worker.flush_cache())
    except RequestError as error:
        return Flush(worker.address, 0, error.message)
