"""Versions of the catalog as routers offer them: what is lacking comes in, is applied, and is held.

Batches that only flip bits are applied at once, all else aside: the loop goes on with its searches.
"""

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, MutableMapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import msgspec
import numpy as np
import xxhash

from decode_worker.aside import Aside
from decode_worker.pulls import Pull
from xgr_kernels.trie import LeafFilter
from xgr_runtime.catalog import Catalogs, CatalogView
from xgr_runtime.catalog.edits import edited
from xgr_runtime.catalog.edits.batch import EditBatch
from xgr_runtime.catalog.file import map_memory
from xgr_runtime.catalog.sealed import is_sealed
from xgr_runtime.catalog.snapshot import Catalog
from xgr_runtime.errors import BadRequest, CatalogError
from xgr_runtime.kv.shared_memory import CannotMap, lives, open_region
from xgr_runtime.process.priority import step_back
from xgr_runtime.wire.messages import CatalogHeld, CatalogOffer, CatalogPart, CatalogStep, brief
from xgr_runtime.worker.control import ControlServer

log = logging.getLogger(__name__)

QUICK_BYTES = 1 << 16  # of batches that are applied at once
QUICK_FILTERS = 1 << 20  # items, times the conditions that then go over to the next version
MOST_OFFERS = 1024  # that wait
PLACE_EVERY = 0.001  # seconds between looks at a version on its way to where searches read it


class BrokenChain(CatalogError):
    """The steps lead to another version than they say, or cannot be taken."""


class Like(NamedTuple):
    """What all versions that a worker holds have in common."""

    vocab_size: int
    filter_bytes: int


class VersionReader(Protocol):
    """Of versions: see `DecodeEngine`, which is one."""

    def place(self, view: CatalogView, ready: Sequence[LeafFilter]) -> bool: ...

    def keep(self, views: Sequence[CatalogView]) -> None: ...


class CatalogUpdates:
    """Offers, one after the other, in the order in which they came."""

    def __init__(
        self,
        catalogs: Catalogs,
        control: ControlServer,
        fits: Callable[[CatalogView], str],
        counters: MutableMapping[str, float],
        reader: VersionReader,
        maps_memory: bool = True,
    ) -> None:
        """`fits`: why a version cannot be searched here, or an empty string. reader: the engine."""
        first = catalogs.newest
        self.aside = Aside("catalogs", step_back)
        self.aside.submit(first.ready)
        self._like = Like(first.catalog.vocab_size, first.filter_bytes)
        self._catalogs = catalogs
        self._control = control
        self._fits = fits
        self._counters = counters
        self._reader = reader
        self._maps_memory = maps_memory
        self._offers: deque[CatalogOffer] = deque()
        self._work: Future[CatalogView] | None = None  # for the first of them
        self._files: dict[str, BinaryIO] = {}  # what was gathered for the first of them, by version
        self._pull: Pull | None = None
        self._asks = 0
        self._used: frozenset[str] = frozenset()
        self._read: list[CatalogView] = [first]  # what searches may read, as the engine was told last
        self._placing = False  # a version that is made, and not yet where searches read it
        self._ready: list[LeafFilter] = []  # bitmaps that come with it

    # --- what routers say ---

    def take(self, message: CatalogOffer | CatalogPart, now: float) -> None:
        """See `turn` for what comes of it."""
        if isinstance(message, CatalogOffer):
            self._offered(message)
        elif self._pull is not None and self._pull.take(message, now):
            self._counters["catalog_bytes"] += len(message.data)
        else:
            self._counters["stale_messages"] += 1

    def _offered(self, offer: CatalogOffer) -> None:
        self._control.uses(offer.router, offer.keeps)
        if len(self._offers) >= MOST_OFFERS:
            self._tell(offer, "too many versions wait to be taken in", broken=True)
            return
        if not offer.parent or self._catalogs.get(offer.parent) is not None:
            self._overtake(offer.router)
        self._offers.append(offer)

    def _overtake(self, router: int) -> None:
        """A router that begins anew wants nothing any more of what it offered before."""
        begun = [self._offers[0]] if self._work is not None else []
        later = [offer for offer in self._offers if offer.router != router and offer not in begun]
        self._offers = deque([*begun, *later])

    # --- what becomes of it ---

    def turn(self, now: float) -> None:
        """Go on with what is there."""
        self.aside.woken()
        self._keep_used()  # before a newer version takes their place
        self._keep_read()
        self._forget_gone()
        while self._offers and self._go_on(self._offers[0], now):
            self._offers.popleft()
            self._close_files()

    def _keep_used(self) -> None:
        """Hold what routers may still use; while there is none, what the last ones did."""
        used = self._control.used_catalogs
        if used is not None and used != self._used:
            self._used = used
            self._catalogs.keep(used)

    def _keep_read(self) -> None:
        """Versions that are gone make room where searches read them."""
        views = self._catalogs.views
        if views != self._read:
            self._read = views
            self._reader.keep(views)

    def due(self, now: float) -> float | None:
        """Seconds until the next turn is of use if nothing comes; None: whenever something comes."""
        if self._placing:
            return PLACE_EVERY
        pulling = self._offers and self._pull is not None and self._work is None
        return self._pull.due(now) if pulling and self._pull is not None else None

    def close(self) -> None:
        self._offers.clear()
        self.aside.close()
        self._close_files()

    def _go_on(self, offer: CatalogOffer, now: float) -> bool:
        """Whether the first offer is over."""
        if self._work is None:
            held = self._catalogs.get(offer.version)
            missing = None if held is not None else self._missing(offer)
            if missing is not None:
                self._pull_on(missing, now)
                return False
            self._work = self._begin(offer, held)
        if not self._work.done():
            return False
        self._placing = not self._is_placed(offer, self._work)
        if self._placing:
            return False
        work, self._work = self._work, None
        self._finish(offer, work)
        return True

    def _is_placed(self, offer: CatalogOffer, work: Future[CatalogView]) -> bool:
        """Whether searches can read the version, or never will."""
        if work.exception() is not None:
            return True
        view = work.result()
        if not self._placing:
            self._ready = bitmaps(view, offer.filters)
        try:
            return self._reader.place(view, self._ready)
        except CatalogError as error:
            self._work = Future()
            self._work.set_exception(error)
            return True

    def _begin(self, offer: CatalogOffer, held: CatalogView | None) -> Future[CatalogView]:
        start = held if held is not None else self._catalogs.get(offer.parent)
        steps = [] if held is not None else offer.steps
        work = partial(self._result, start, steps, offer.filters, dict(self._files))
        if start is None or not is_quick(start, steps, offer.filters):
            return self.aside.submit(work)
        at_once: Future[CatalogView] = Future()
        try:
            at_once.set_result(work())
        except Exception as error:
            at_once.set_exception(error)
        return at_once

    def _result(
        self,
        start: CatalogView | None,
        steps: list[CatalogStep],
        filters: list[str],
        files: dict[str, BinaryIO],
    ) -> CatalogView:
        """The version that was offered. Raises CatalogError."""
        view = followed(start, steps, files, self._like)
        if problem := self._fits(view):
            raise CatalogError(problem)
        view.ready()
        for text in filters:
            with contextlib.suppress(BadRequest):  # a version may lack its columns: requests find that out
                view.filters.left_by(text)
        return view

    def _finish(self, offer: CatalogOffer, work: Future[CatalogView]) -> None:
        try:
            view = work.result()
        except BrokenChain as error:
            self._counters["catalog_broken_chains"] += 1
            self._tell(offer, str(error), broken=True)
        except CatalogError as error:
            self._tell(offer, str(error))
        except Exception:
            log.exception("a version of the catalog could not be taken in")
            self._tell(offer, "the worker failed on this version")
        else:
            if self._catalogs.get(view.version) is not view:
                self._catalogs.add(view)
                self._counters["catalogs_taken"] += 1
            self._tell(offer)

    def _tell(self, offer: CatalogOffer, problem: str = "", broken: bool = False) -> None:
        if problem:
            log.warning("catalog %s: %s", offer.version, problem)
        for router in self._control.routers:
            number = offer.number if router == offer.router else 0
            if not problem or number:  # what one router sends is no problem of another
                self._control.send(router, CatalogHeld(offer.version, number, brief(problem), broken))

    # --- what is lacking ---

    def _missing(self, offer: CatalogOffer) -> CatalogStep | None:
        """The first step whose bytes are not here."""
        for step in offer.steps:
            if step.data or step.version in self._files:
                continue
            if self._maps_memory and step.memory is not None and (memory := mapped(step)) is not None:
                self._files[step.version] = memory
            elif self._pull is not None and self._pull.is_for(step) and self._pull.whole:
                self._files[step.version], self._pull = self._pull.memory, None
            else:
                return step
        return None

    def _pull_on(self, step: CatalogStep, now: float) -> None:
        """Ask for more of it, of whoever offers it; a pull of something else has no use any more."""
        if self._pull is None or not self._pull.is_for(step) or self._pull.problem:
            if self._pull is not None:
                self._pull.close()
            self._pull = Pull(step)
        if (ask := self._pull.ask(now)) is not None:
            have = [one.router for one in self._offers if any(self._pull.is_for(s) for s in one.steps)]
            self._asks += 1
            repeated = self._asks if self._pull.again else 0
            self._control.send(have[repeated % len(have)], ask)

    def _forget_gone(self) -> None:
        """What routers offered that are gone, unless it is being applied: the next one offers it again."""
        routers = set(self._control.routers)
        if all(offer.router in routers for offer in self._offers):
            return
        begun = [self._offers[0]] if self._work is not None else []
        self._offers = deque(o for o in self._offers if o.router in routers or o in begun)
        if not begun:
            self._close_files()
        if self._pull is not None:
            self._pull.ask_anew()

    def _close_files(self) -> None:
        """What is mapped stays so."""
        for file in self._files.values():
            file.close()
        self._files = {}


def followed(
    start: CatalogView | None, steps: list[CatalogStep], files: dict[str, BinaryIO], like: Like
) -> CatalogView:
    """Where the steps lead from `start`, None for those that begin with a whole file.

    Raises CatalogError; BrokenChain where they lead elsewhere than they say.
    """
    view = start
    for step in steps:
        if step.whole:
            view = opened(files[step.version], step, like)
        elif view is None:
            break
        else:
            view = _applied(view, step, step.data or _bytes(files[step.version]))
        if view.version != step.version:
            raise BrokenChain(f"version {step.version} came out as {view.version}")
    if view is None:
        raise BrokenChain("the version that it follows is not held")
    return view


def _applied(view: CatalogView, step: CatalogStep, data: bytes) -> CatalogView:
    if xxhash.xxh3_64_intdigest(data) != step.digest:
        raise BrokenChain(f"the batch of version {step.version} is damaged")
    try:
        return edited(view, msgspec.msgpack.decode(data, type=EditBatch))
    except (CatalogError, msgspec.MsgspecError) as error:
        raise BrokenChain(f"the batch of version {step.version} cannot be applied: {error}") from error


def opened(memory: BinaryIO, step: CatalogStep, like: Like) -> CatalogView:
    """The catalog in memory whose bytes are those that a router has verified. Raises CatalogError."""
    path = Path(f"catalog {step.version}")
    if xxhash.xxh3_64_intdigest(np.memmap(memory, np.uint8, "r").data) != step.digest:
        raise CatalogError(f"{path}: its bytes are not those that the router offered")
    catalog = Catalog.mapped(path, *map_memory(memory, path))  # whose checksums the router has read
    return CatalogView(catalog.for_vocabulary(like.vocab_size), like.filter_bytes)


def bitmaps(view: CatalogView, filters: Sequence[str]) -> list[LeafFilter]:
    """What is visible of a version, unless all is, and what each of these conditions leaves that it knows."""
    found = [] if view.visible is None else [view.visible]
    for text in filters:
        with contextlib.suppress(BadRequest):
            found.append(view.filters.left_by(text).leaves)
    return found


def mapped(step: CatalogStep) -> BinaryIO | None:
    """The router's own memory of a file, if we are on its machine and nobody can change it."""
    assert step.memory is not None
    if not lives(step.memory.owner):  # a process of another machine, as far as we know
        return None
    try:
        memory = os.fdopen(open_region(step.memory), "rb")
    except CannotMap:
        return None
    if is_sealed(memory):
        return memory
    memory.close()
    return None


def is_quick(view: CatalogView, steps: list[CatalogStep], filters: list[str]) -> bool:
    """Whether a version is there in a moment: bits are flipped, and few conditions go over to it."""
    few = len(filters) * view.catalog.slots <= QUICK_FILTERS
    known = few and all(text in view.filters for text in filters)
    return known and len(steps) <= 1 and all(_flips_bits(step) for step in steps)


def _flips_bits(step: CatalogStep) -> bool:
    if step.whole or not 0 < len(step.data) <= QUICK_BYTES:
        return False
    try:
        batch = msgspec.msgpack.decode(step.data, type=EditBatch)
    except msgspec.MsgspecError:
        return True  # that is found out at once, too
    return not (batch.put or batch.rank or batch.compact)


def _bytes(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()
