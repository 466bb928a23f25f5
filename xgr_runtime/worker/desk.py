"""A worker's desk: requests of routers come in, what ends them goes out, routers that left are noticed.

Both workers have one. What becomes of a request in between is the worker's own: see `Holder`.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from xgr_runtime.errors import InternalError, RequestError, WorkerLost
from xgr_runtime.kv.prompt_cache import PromptCache
from xgr_runtime.trace.timeline import Timeline
from xgr_runtime.transport import Listener
from xgr_runtime.wire.messages import (
    AttemptId,
    CacheFlushed,
    Cancel,
    CatalogOffer,
    CatalogPart,
    DecodeRequest,
    Failed,
    FlushCache,
    Message,
    PrefillRequest,
    Role,
    RoleChange,
    TakeRole,
    WorkerHello,
    brief,
)
from xgr_runtime.worker.control import LISTEN_EVERY, ControlServer, new_incarnation

log = logging.getLogger(__name__)

R = TypeVar("R", PrefillRequest, DecodeRequest)
R_contra = TypeVar("R_contra", PrefillRequest, DecodeRequest, contravariant=True)


class Holder(Protocol[R_contra]):
    """Whoever holds the requests that come in at a desk: a worker."""

    cache: PromptCache

    def introduce(self) -> WorkerHello:
        """The answer to a router's heartbeat."""
        ...

    def holds(self, id: AttemptId) -> bool:
        """Whether this attempt waits or is under way here."""
        ...

    def accept(self, request: R_contra, now: float) -> None:
        """Take a request that is not held. Raises RequestError for one that is refused: nothing is held."""
        ...

    def cancel(self, id: AttemptId) -> None:
        """A router wants this attempt no more, which may be over, or not have come yet."""
        ...

    def fail(self, id: AttemptId, error: RequestError) -> None:
        """End an attempt that is held; its router hears of `error`, at the latest when its pages are free."""
        ...

    def part_with(self, router: int, error: RequestError) -> None:
        """End all that this router asked for, and report it before this returns."""
        ...


class Desk(Generic[R]):
    """Takes `requests`, the kind of message that this worker serves, of all routers that greet."""

    def __init__(
        self, holder: Holder[R], role: Role, requests: type[R], listener: Listener[Any], silence: float
    ) -> None:
        self.incarnation = new_incarnation()
        self.timeline = Timeline()
        self.counters: dict[str, float] = defaultdict(float)
        self.control = ControlServer(listener, holder.introduce, silence, self.timeline)
        self.versions: Callable[[CatalogOffer | CatalogPart, float], None] | None = None
        """Who takes versions of the catalog, in decode workers."""
        self.flexible = False  # whether this process can take the other role
        self.wanted: Role | None = None  # the role that it was told to take
        self._holder: Holder[R] = holder
        self._role = role
        self._requests: type[R] = requests
        self._listened = -math.inf
        self._inbox: list[Message] = []  # that came in and were not handled yet

    @property
    def change(self) -> RoleChange:
        """What routers are told of it."""
        if self.wanted is not None:
            return "under way"
        return "can" if self.flexible else "no"

    def deaf(self, now: float) -> bool:
        """Whether nobody was listened to for as long as a launch may take."""
        return now - self._listened >= LISTEN_EVERY

    def listen(self, now: float) -> None:
        """Answer heartbeats and keep the rest for `handle`."""
        self._listened = now
        self._inbox.extend(self.control.receive(now))

    def take_versions(self, now: float) -> bool:
        """Act at once on what routers say of versions of the catalog; whether they said something."""
        said = [one for one in self._inbox if isinstance(one, CatalogOffer | CatalogPart)]
        if said:
            self._inbox = [one for one in self._inbox if not isinstance(one, CatalogOffer | CatalogPart)]
        for message in said:
            self.take(message, now)
        return bool(said)

    def handle(self, now: float) -> None:
        """Act on what routers sent since the last time."""
        messages, self._inbox = self._inbox, []
        for message in messages:
            self.take(message, now)

    def take(self, message: Message, now: float) -> None:
        """A message of a router. What goes wrong with it ends its request and nothing else."""
        try:
            self._act_on(message, now)
        except Exception:
            log.exception("a message of a router could not be handled")
            self._give_up(message)

    def dismiss_gone(self, now: float) -> None:
        """End what routers asked for that are gone; they are told all the same, as some were only stopped."""
        for router, reason in self.control.gone(now):
            self._holder.part_with(router, WorkerLost(reason))
            self.control.forget(router)

    def report(self, id: AttemptId, error: RequestError) -> None:
        """Tell the router that this attempt is over; it ignores what it has cancelled itself."""
        self.counters["failed"] += 1
        self.control.send(id.router, Failed(id, self._role, error.code, brief(error.message)))

    def bug(self) -> InternalError:
        """What a request ends with that this worker was not made for; its stack is in our log."""
        return InternalError(f"the {self._role} worker failed on this request")

    def _act_on(self, message: Message, now: float) -> None:
        if isinstance(message, self._requests):
            self._accept(message, now)
        elif isinstance(message, Cancel):
            self._holder.cancel(message.id)
        elif isinstance(message, CatalogOffer | CatalogPart) and self.versions is not None:
            self.versions(message, now)
        elif isinstance(message, FlushCache):
            pages = self._holder.cache.flush()
            self.control.send(message.router, CacheFlushed(message.number, pages))
        elif isinstance(message, TakeRole) and self.flexible and message.worker == self.incarnation:
            if message.role != self._role and self.wanted is None:
                log.info("told to be a %s worker: what is here is finished first", message.role)
                self.wanted = message.role
        else:
            self.counters["stale_messages"] += 1

    def _accept(self, request: R, now: float) -> None:
        """One that comes twice, or was meant for an earlier run of this process, is dropped."""
        id = request.id
        meant_for = id.prefill if self._role == "prefill" else id.decode
        if meant_for != self.incarnation or self._holder.holds(id):
            self.counters["stale_messages"] += 1
            return
        try:
            self._holder.accept(request, now)
        except RequestError as error:
            self.report(id, error)

    def _give_up(self, message: Message) -> None:
        """Answer a message that we failed on."""
        if not isinstance(message, PrefillRequest | DecodeRequest | Cancel):
            return
        if self._holder.holds(message.id):
            self._holder.fail(message.id, self.bug())
        elif not isinstance(message, Cancel):
            self.report(message.id, self.bug())
