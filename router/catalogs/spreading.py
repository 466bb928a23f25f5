"""Versions on their way to decode workers: who was offered what, who holds it, who is too slow."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

import xxhash

from router.catalogs.shelf import Shelf
from router.workers.worker import Worker
from xgr_runtime.wire.messages import CatalogAsk, CatalogHeld, CatalogOffer, CatalogPart

log = logging.getLogger(__name__)

AGAIN = 1.0  # seconds after which a version that was refused is offered again, from its file on
_SHELVES = 2  # that workers may still ask for parts of: a compaction has one before it and one behind it


@dataclass(eq=False)
class _Told:
    """What one run of a worker was offered last."""

    incarnation: int
    version: str = ""
    number: int = 0
    progress: float = 0.0  # when it was offered, or asked for a part of it
    asked: tuple[str, int] = ("", 0)  # of which version, from which byte on
    problem: str = ""  # why it does not hold it
    broken: bool = False  # the whole file is to be offered next
    wanted: dict[str, int] = field(default_factory=dict)  # versions, and numbers of their offers
    confirmed: set[str] = field(default_factory=set)  # versions it holds, in answer to offers


class Spreading:
    """`workers`: all decode workers. `keeps`: versions that this router may still use.

    `used`: those of them that requests read. A worker holds these since it said so; what was named again only
    now it may have let go of, whatever it said last.
    """

    def __init__(
        self,
        router: int,
        shelf: Shelf,
        workers: Callable[[], Sequence[Worker]],
        keeps: Callable[[], Sequence[str]],
        used: Callable[[], Sequence[str]],
        filters: Sequence[str] = (),
    ) -> None:
        self._router = router
        self._shelves = deque([shelf], _SHELVES)
        self._workers = workers
        self._keeps = keeps
        self._used = used
        self._base_kept = True  # the shelf's file was named to workers all the time
        self.filters = list(filters)  # conditions that are ready on every version
        self._numbers = count(1)
        self._told: dict[str, _Told] = {}  # by address
        self._ready: dict[str, tuple[int, tuple[str, ...]]] = {}  # by address: filters of the last answer
        self._sent_filters: dict[int, tuple[str, ...]] = {}  # by number of the offer
        self.bytes_sent = 0
        self.broken_chains = 0

    @property
    def shelf(self) -> Shelf:
        """The chain that is offered."""
        return self._shelves[-1]

    def take(self, shelf: Shelf) -> None:
        """Offer this chain from now on."""
        if shelf.base is self.shelf.base:
            self._shelves[-1] = shelf
        else:
            self._base_kept = shelf.base.version in self._used()
            self._shelves.append(shelf)
        self.tend(time.monotonic())

    # --- who holds what ---

    def holds(self, worker: Worker, version: str) -> bool:
        return bool(worker.alive and worker.hello and version in worker.hello.catalogs)

    def confirmed(self, worker: Worker, version: str) -> bool:
        """Whether it answered the last offer of that version: what it said before, it may have let go of."""
        told = self._current(worker)
        return self.holds(worker, version) and told is not None and version in told.confirmed

    def holders(self, version: str) -> list[Worker]:
        return [worker for worker in self._workers() if self.holds(worker, version)]

    def progress(self, worker: Worker) -> float:
        """When it was last offered something, or asked for a part of that."""
        told = self._current(worker)
        return told.progress if told else 0.0

    def refused(self, worker: Worker) -> bool:
        """Whether it has said that it does not hold what it was offered last."""
        told = self._current(worker)
        return bool(told and told.problem)

    def has_filters(self, worker: Worker) -> bool:
        """Whether the named conditions of now are evaluated there."""
        ready = self._ready.get(worker.address)
        return ready == (worker.incarnation, tuple(self.filters))

    def share(self, worker: Worker) -> float:
        """The part of what it pulls that it has."""
        told = self._current(worker)
        if told is None or told.asked[0] == "":
            return 0.0
        size = max((shelf.size(told.asked[0]) for shelf in self._shelves), default=0)
        return min(1.0, told.asked[1] / size) if size else 0.0

    def problem(self, worker: Worker) -> str:
        """Why a worker does not hold what it was offered, or how far it is."""
        told = self._current(worker)
        if told is None:
            return "it was offered no catalog yet"
        if told.problem:
            return f"catalog {told.version}: {told.problem}"
        part = f", {self.share(worker):.0%} of its file" if told.asked[0] else ""
        return f"it takes in catalog {told.version}{part}"

    # --- offers ---

    def tend(self, now: float) -> None:
        """Offer what is lacking to all that were not offered it yet."""
        there = {worker.address for worker in self._workers()}
        self._told = {address: told for address, told in self._told.items() if address in there}
        for worker in self._workers():
            if worker.alive and worker.hello is not None and worker.hello.role == "decode":
                self._tend(worker, now)

    def _tend(self, worker: Worker, now: float) -> None:
        told = self._current(worker)
        if told is None:
            told = self._told[worker.address] = _Told(worker.incarnation)
        version = self.shelf.version
        if told.version == version and self._answered(worker, told, version):
            return
        if told.problem and told.version == version and (not told.broken or now - told.progress < AGAIN):
            return
        if told.version == version and not told.problem:
            return  # it is on its way, or being applied
        self._offer(worker, told, now)

    def _answered(self, worker: Worker, told: _Told, version: str) -> bool:
        return self.holds(worker, version) and not told.problem

    def refresh_filters(self, now: float) -> None:
        """Offer the newest version once more, with the conditions of now."""
        for worker in self._workers():
            told = self._current(worker)
            if worker.alive and told is not None:
                self._offer(worker, told, now)

    def _offer(self, worker: Worker, told: _Told, now: float) -> None:
        assert worker.hello is not None
        kept = {*self._used()} | ({self.shelf.base.version} if self._base_kept else set())
        held = [] if told.broken else [one for one in worker.hello.catalogs if one in kept]
        if told.version and not told.problem:
            held.append(told.version)  # it is on its way there
        parent, steps = self.shelf.lacking(held)
        number = next(self._numbers)
        offer = CatalogOffer(self._router, number, parent, steps, list(self._keeps()), list(self.filters))
        if not worker.send(offer):
            return
        self.bytes_sent += sum(len(step.data) for step in steps)
        self._sent_filters[number] = tuple(self.filters)
        if offer.version not in kept:
            worker.lets_go(offer.version)
        named = {*offer.keeps}
        wanted = {version: at for version, at in told.wanted.items() if version in named}
        confirmed = told.confirmed & named - {offer.version}
        self._told[worker.address] = _Told(
            worker.incarnation,
            offer.version,
            number,
            now,
            wanted=wanted | {offer.version: number},
            confirmed=confirmed,
        )

    # --- what workers say ---

    def heard(self, worker: Worker, message: CatalogAsk | CatalogHeld) -> None:
        told = self._current(worker)
        if told is None:
            return
        if isinstance(message, CatalogAsk):
            self._send_part(worker, told, message)
            return
        filters = self._sent_filters.pop(message.number, None)
        if not message.problem:
            worker.held(message.version)
            if message.number == told.wanted.get(message.version):
                told.confirmed.add(message.version)
            if filters is not None:
                self._ready[worker.address] = (worker.incarnation, filters)
        elif message.number == told.number:
            told.problem, told.broken = message.problem, message.broken
            self.broken_chains += message.broken
            log.warning(
                "decode worker at %s lacks catalog %s: %s", worker.address, message.version, message.problem
            )

    def _send_part(self, worker: Worker, told: _Told, ask: CatalogAsk) -> None:
        told.progress, told.asked = time.monotonic(), (ask.version, ask.offset)
        found = (shelf.read(ask.version, ask.offset) for shelf in reversed(self._shelves))
        data = next((part for part in found if part is not None), b"")
        part = CatalogPart(self._router, ask.version, ask.offset, data, xxhash.xxh3_64_intdigest(data))
        if worker.send(part):
            self.bytes_sent += len(data)

    def _current(self, worker: Worker) -> _Told | None:
        """Of this run of the worker."""
        told = self._told.get(worker.address)
        return told if told is not None and told.incarnation == worker.incarnation else None


def names(workers: Iterable[Worker]) -> list[str]:
    """As the workers call themselves."""
    return [worker.hello.worker for worker in workers if worker.hello]
