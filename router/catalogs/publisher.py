"""Changes of the catalog, from the call until requests use them: kept, held by workers, in use."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from router.catalogs.figures import CatalogFigures
from router.catalogs.publishing import CatalogStatus, HeldVersion, Prepared, Published, UnderWay
from router.catalogs.spreading import Spreading, names
from router.catalogs.writer import Kept, Made, Writer
from router.workers.worker import Worker
from xgr_runtime.catalog import Catalogs, CatalogView
from xgr_runtime.catalog.store import Store
from xgr_runtime.errors import (
    BadRequest,
    CatalogError,
    DeadlineExceeded,
    Draining,
    Overloaded,
    RequestError,
    StoreError,
    StoreUnavailable,
)
from xgr_runtime.wire.messages import CatalogAsk, CatalogHeld

log = logging.getLogger(__name__)

T = TypeVar("T")

TEND_EVERY = 0.05  # seconds between looks at workers
FOLLOW_EVERY = 0.2  # seconds between looks at the store
FILTERS_LOOK = 0.005  # seconds between looks at whether workers have evaluated a condition
MOST_WAITING = 256  # changes that wait for their turn
MOST_UNUSED = 64  # versions that are kept and not in use
NO_WORKER = 10  # times the patience after which a call gives up that no worker follows
COMPACT_AFTER = 1000  # batches of a chain
QUIET = 5.0  # seconds without a change, before a chain is compacted
ALWAYS_COMPACT = 8 * COMPACT_AFTER  # batches, also of a chain that is never quiet


@dataclass(eq=False)
class _Unused:
    """A version that is kept, and waits for workers."""

    made: Made
    began: float  # the call
    offered: float
    used: "asyncio.Future[None]"
    first_held: float = 0.0  # by a worker


class Publisher:
    """See `Publishing`. One for a router with a store; `run` makes it go."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        catalogs: Catalogs,
        router: int,
        workers: Callable[[], Sequence[Worker]],
        patience: float,
    ) -> None:
        """`writer` has been opened, and `catalogs` begins with its version.

        router: its incarnation. workers: the decode workers, whatever their state. patience: seconds without
        a sign of progress, after which a worker is not waited for.
        """
        self._store = store
        self._writer = writer
        self._catalogs = catalogs
        self._workers = workers
        self._patience = patience
        self._thread = ThreadPoolExecutor(1, "catalog")
        self._turn = asyncio.Lock()  # whoever has it changes the catalog
        self._unused: list[_Unused] = []  # oldest first
        self._changed = time.monotonic()
        self._filters = writer.filters()
        self.newest_kept = writer.view.version
        self._problem = ""  # why the store is not followed
        self._tasks: set[asyncio.Task[Any]] = set()
        self._running: asyncio.Task[None] | None = None
        self._stopping: asyncio.Future[None]  # from `start` on
        self.spreading = Spreading(
            router,
            writer.shelf,
            workers,
            self.keeps,
            lambda: catalogs.versions,
            list(self._filters.values()),
        )
        self.figures = CatalogFigures(
            lambda: len(catalogs.versions),
            lambda: self.spreading.bytes_sent,
            lambda: self.spreading.broken_chains,
            lambda: (catalogs.newest.filters.misses, catalogs.newest.filters.hits),
        )

    # --- what the HTTP edge calls ---

    async def edit(
        self,
        make: Callable[[CatalogView], Prepared],
        key: str,
        expected: str,
        wait: bool,
        digest: str = "",
    ) -> Published:
        """See `Publishing`."""
        work = partial(self._writer.edit, make, key, expected, not self._one_trie, digest)
        return await self._lasting(self._change("edit", work, wait, time.monotonic()))

    async def push(self, file: Path, wait: bool) -> Published:
        """See `Publishing`."""
        if self._one_trie:
            raise BadRequest(
                "workers on a GPU keep the catalog that they were started with: restart the deployment"
            )
        return await self._lasting(self._push(file, wait))

    async def rollback(self, version: str | None, wait: bool) -> Published:
        """See `Publishing`."""
        work = partial(self._writer.rollback, version)
        return await self._lasting(self._change("rollback", work, wait, time.monotonic()))

    async def set_filter(self, name: str, where: str | None) -> None:
        """See `Publishing`."""
        await self._lasting(self._set_filter(name, where))

    def filters(self) -> Mapping[str, str]:
        """See `Publishing`."""
        return self._filters

    def status(self) -> CatalogStatus:
        """See `Publishing`."""
        newest, now = self._catalogs.newest, time.monotonic()
        held = dict.fromkeys(self._catalogs.versions)
        for worker in self._workers():
            if worker.alive and worker.hello:
                held = dict.fromkeys(worker.hello.catalogs) | held
        views = {version: self._catalogs.get(version) for version in held}
        versions = [
            HeldVersion(
                version,
                version == newest.version,
                self._catalogs.leases(version),
                names(self.spreading.holders(version)),
                view.catalog.items if view is not None else 0,
            )
            for version, view in views.items()
        ]
        under_way = None
        if self._unused:
            last = self._unused[-1]
            lacking = [
                w for w in self._workers() if w.alive and not self.spreading.holds(w, last.made.view.version)
            ]
            waits_for = {w.address: self.spreading.share(w) for w in lacking}
            under_way = UnderWay(last.made.view.version, last.made.kind, now - last.began, waits_for)
        behind = {w.address: problem for w in self._workers() if (problem := self.lag(w))}
        return CatalogStatus(self.newest_kept, newest.version, versions, under_way, behind)

    # --- what the router calls ---

    def keeps(self) -> list[str]:
        """Versions that this router may still use, the newest last."""
        unused = [one.made.view.version for one in self._unused]
        return list(dict.fromkeys([self.spreading.shelf.base.version, *self._catalogs.versions, *unused]))

    def lag(self, worker: Worker) -> str:
        """Why a decode worker gets no requests for its catalog, or an empty string."""
        hello, newest = worker.hello, self._catalogs.newest.version
        if not worker.alive or hello is None or hello.role != "decode" or newest in hello.catalogs:
            return ""
        return self.spreading.problem(worker)

    def heard(self, worker: Worker, message: CatalogAsk | CatalogHeld) -> None:
        """What a decode worker says of versions."""
        self.spreading.heard(worker, message)
        self._advance()

    def start(self) -> None:
        """Inside a running loop."""
        self._stopping = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self._run())

    def drain(self) -> None:
        """Change nothing any more; who waits for workers is told that what was kept stays so."""
        if not self._stopping.done():
            self._stopping.set_result(None)

    async def stop(self) -> None:
        self.drain()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)
        self._store.close()

    # --- one change ---

    async def _lasting(self, work: Coroutine[Any, Any, T]) -> T:
        """What was begun goes on, whoever goes away. Raises `Overloaded`."""
        if self._stopping.done():
            work.close()
            raise Draining("the router is stopping")
        if len(self._tasks) >= MOST_WAITING:
            work.close()
            raise Overloaded(f"{MOST_WAITING} changes of the catalog wait already: send more in one batch")
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have gone away

    async def _push(self, file: Path, wait: bool) -> Published:
        began = time.monotonic()
        try:
            catalog = await asyncio.to_thread(self._writer.read, file)  # it may take long, and others go on
        except CatalogError as error:
            self.figures.changed("push", "refused")
            raise refusal(error) from None
        work = partial(self._writer.push, catalog, file.name)
        return await self._change("push", work, wait, began)

    async def _change(
        self, kind: str, work: Callable[[], tuple[list[Made], Kept]], wait: bool, began: float
    ) -> Published:
        async with self._changing(kind):
            made, kept = await self._in_thread(work)
            self._adopt(made, began)
        return await self._result(kept, began, wait)

    async def _set_filter(self, name: str, where: str | None) -> None:
        async with self._changing("filter"):
            await self._in_thread(partial(self._writer.set_filter, name, where))
            await self._in_thread(self._prepare)
        end = time.monotonic() + self._patience
        while time.monotonic() < end:
            if all(self.spreading.has_filters(worker) for worker in self._usable()):
                return
            await asyncio.sleep(FILTERS_LOOK)

    @contextlib.asynccontextmanager
    async def _changing(self, kind: str) -> AsyncIterator[None]:
        """One change at a time, and not more than workers can follow. Raises RequestError."""
        async with self._turn:
            if len(self._unused) >= MOST_UNUSED:
                await asyncio.wait([self._unused[0].used], timeout=self._patience)
            if len(self._unused) >= 2 * MOST_UNUSED:
                raise Overloaded("workers are far behind with the catalog: see GET /catalog")
            try:
                yield
            except (RequestError, CatalogError) as error:
                self.figures.changed(kind, "refused")
                raise refusal(error) from None
            self.figures.changed(kind, "kept")

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """The work, and what goes with every change: the named conditions as they are now."""
        found, self._filters = await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: (work(), self._writer.filters())
        )
        if list(self._filters.values()) != self.spreading.filters:
            self.spreading.filters = list(self._filters.values())
            self.spreading.refresh_filters(time.monotonic())
        return found

    def _prepare(self) -> None:
        """Evaluate the named conditions on the newest version, in the thread."""
        ready(self._writer.view, self._filters.values())

    def _adopt(self, made: Sequence[Made], began: float) -> None:
        """These versions are kept: let workers have them."""
        loop, now = asyncio.get_running_loop(), time.monotonic()
        for one in made:
            self._unused.append(_Unused(one, began, now, loop.create_future()))
            self.newest_kept = one.view.version
            self._changed = now
            self.spreading.take(one.shelf)
        self._advance()

    async def _result(self, kept: Kept, began: float, wait: bool) -> Published:
        version = kept.version
        unused = next((one for one in self._unused if one.made.view.version == version), None)
        if wait and unused is not None:
            limit = NO_WORKER * self._patience
            both = (unused.used, self._stopping)
            await asyncio.wait(both, timeout=limit, return_when="FIRST_COMPLETED")
            if self._stopping.done() and not unused.used.done():
                raise Draining(f"version {version} is kept, and the router stops before it is in use")
            if not unused.used.done():
                raise DeadlineExceeded(
                    f"version {version} is kept, and no worker has taken it in for {limit:g} s: see "
                    "GET /catalog"
                )
        held = len(self.spreading.holders(version))
        return Published(version, 1000 * (time.monotonic() - began), held, kept.unknown, kept.changed)

    # --- from kept to in use ---

    def _usable(self) -> list[Worker]:
        """The decode workers that get requests now, as far as their catalog goes."""
        newest = self._catalogs.newest.version
        return [
            w for w in self._workers() if not w.problem and not w.leaving and self.spreading.holds(w, newest)
        ]

    @property
    def _one_trie(self) -> bool:
        """Whether one of them searches only the SIDs that it was started with."""
        return any(w.hello and w.hello.limits.one_trie for w in self._usable())

    def _advance(self) -> None:
        """Use the newest version that all usable workers hold."""
        now = time.monotonic()
        for at in range(len(self._unused) - 1, -1, -1):
            if self._is_held(self._unused[at], now):
                self._use(at, now)
                return

    def _is_held(self, unused: _Unused, now: float) -> bool:
        """Whether requests may use it; whoever is too slow is not waited for once another holds it."""
        version, usable = unused.made.view.version, self._usable()
        lacking = [worker for worker in usable if not self.spreading.confirmed(worker, version)]
        if not lacking:
            return True
        if len(lacking) == len(usable):
            return False
        unused.first_held = unused.first_held or now
        as_long = unused.offered + 2 * (unused.first_held - unused.offered)
        if not all(self._is_slow(worker, max(unused.offered, as_long), now) for worker in lacking):
            return False
        for worker in lacking:
            log.warning(
                "decode worker at %s gets no requests until it holds catalog %s: %s",
                *(worker.address, version, self.spreading.problem(worker)),
            )
        return True

    def _is_slow(self, worker: Worker, since: float, now: float) -> bool:
        last = max(since, self.spreading.progress(worker))
        return self.spreading.refused(worker) or now > last + self._patience

    def _use(self, at: int, now: float) -> None:
        """Requests that come from now on use that version."""
        used, self._unused = self._unused[: at + 1], self._unused[at + 1 :]
        made = used[-1].made
        self._catalogs.add(made.view)
        later = next((one.made.later for one in reversed(used) if one.made.later is not None), None)
        if later is not None and not self._unused and self.spreading.shelf.version == later.version:
            self.spreading.take(later)
        for one in used:
            self.figures.in_use(one.made.kind, now - one.began)
            one.used.set_result(None)

    # --- by itself ---

    async def _run(self) -> None:
        """Look after workers, other routers and long chains, for ever."""
        followed = 0.0
        while True:
            await asyncio.sleep(TEND_EVERY)
            now = time.monotonic()
            try:
                self.spreading.tend(now)
                self._advance()
                if now - followed >= FOLLOW_EVERY and not self._turn.locked():
                    followed = now
                    await self._follow()
                    await self._compact_if_long()
            except Exception:
                log.exception("looking after the catalog failed")

    async def _follow(self) -> None:
        """Take over what another router wrote."""
        began = time.monotonic()
        async with self._turn:
            try:
                if await self._in_thread(self._writer.look):
                    self._adopt(await self._in_thread(self._writer.follow), began)
                problem = ""
            except CatalogError as error:
                problem = str(error)
            if problem and problem != self._problem:
                log.error("the catalog's store cannot be followed: %s", problem)
            self._problem = problem

    async def _compact_if_long(self) -> None:
        batches = len(self.spreading.shelf.batches)
        quiet = time.monotonic() - self._changed >= QUIET
        if self._unused or batches < (COMPACT_AFTER if quiet else ALWAYS_COMPACT):
            return
        began = time.monotonic()
        async with self._changing("compact"):
            self._adopt(await self._in_thread(self._writer.compact), began)


def ready(view: CatalogView, conditions: Iterable[str]) -> None:
    """Evaluate conditions; what is none over the columns of this version is a request's to find out."""
    for text in conditions:
        with contextlib.suppress(BadRequest):
            view.filters.left_by(text)


def refusal(error: RequestError | CatalogError) -> RequestError:
    """As a client is told."""
    if isinstance(error, StoreError):
        return StoreUnavailable(str(error))
    return BadRequest(str(error)) if isinstance(error, CatalogError) else error
