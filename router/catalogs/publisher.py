"""Changes of the catalog, one after the other: from the call until they are kept, and its answer."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from router.catalogs.arriving import Arriving
from router.catalogs.figures import CatalogFigures
from router.catalogs.publishing import Prepared, Published
from router.catalogs.shelf import Shelf
from router.catalogs.spreading import Spreading
from router.catalogs.writer import Kept, Made, Writer
from router.workers.worker import Worker
from xgr_runtime.catalog import Catalogs, CatalogView, Scoring
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
from xgr_runtime.process.priority import step_back
from xgr_runtime.wire.answers import CatalogInfo
from xgr_runtime.wire.messages import CatalogAsk, CatalogHeld

log = logging.getLogger(__name__)

T = TypeVar("T")

TEND_EVERY = 0.05  # seconds between looks at workers
FOLLOW_EVERY = 0.2  # seconds between looks at the store
FILTERS_LOOK = 0.005  # seconds between looks at whether workers have evaluated a condition
MOST_WAITING = 256  # changes that wait for their turn
MOST_ARRIVING = 64  # versions that are kept and not in use
NO_WORKER = 10  # times the patience after which a call gives up that no worker follows
COMPACT_AFTER = 1000  # batches of a chain
COMPACT_ITEMS = 1 << 16  # that came by batches: each further one that brings some copies their lists
QUIET = 5.0  # seconds without a change, before a chain is compacted
NEVER_QUIET = 8  # times as many batches or items, after which it is compacted all the same


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
        self._patience = patience
        self._thread = ThreadPoolExecutor(1, "catalog")
        self._reader = ThreadPoolExecutor(1, "pushed", step_back)
        self._turn = asyncio.Lock()  # whoever has it changes the catalog
        self._changed = time.monotonic()
        self._filters = writer.filters()
        self._not_compacted = ""  # the version that could not be
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
        self.arriving = Arriving(catalogs, self.spreading, workers, patience, self.figures.in_use)

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
        work = partial(self._writer.edit, make, key, expected, digest)
        return await self._lasting(self._change("edit", work, wait, time.monotonic()))

    async def push(self, file: Path, wait: bool) -> Published:
        """See `Publishing`."""
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

    def status(self) -> CatalogInfo:
        """See `Publishing`."""
        return self.arriving.status()

    # --- what the router calls ---

    def keeps(self) -> list[str]:
        """Versions that this router may still use, the newest last."""
        held = [*self._catalogs.versions, *self.arriving.versions]
        return list(dict.fromkeys([self.spreading.shelf.base.version, *held]))

    def lag(self, worker: Worker) -> str:
        """Why a decode worker gets no requests for its catalog, or an empty string."""
        return self.arriving.lag(worker)

    def heard(self, worker: Worker, message: CatalogAsk | CatalogHeld) -> None:
        """What a decode worker says of versions."""
        self.spreading.heard(worker, message)
        self.arriving.advance()

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
        for thread in (self._reader, self._thread):
            await asyncio.to_thread(thread.shutdown)
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
            # It may take long, and others go on.
            catalog = await asyncio.get_running_loop().run_in_executor(self._reader, self._writer.read, file)
            self._check_scores(catalog.scoring, file.name)
        except CatalogError as error:
            self.figures.changed("push", "refused")
            raise refusal(error) from None
        work = partial(self._writer.push, catalog, file.name)
        return await self._change("push", work, wait, began)

    def _check_scores(self, scoring: Scoring, name: str) -> None:
        """Raises CatalogError for defaults that a worker in use lacks."""
        if not scoring.plain and any(w.hello and w.hello.limits.plain_scores for w in self.arriving.usable()):
            raise CatalogError(
                f"{name}: its scoring has score_mode level or a repetition_penalty, which searches on a GPU "
                "lack: leave them out of catalog.json and build it again"
            )

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
            if all(self.spreading.has_filters(worker) for worker in self.arriving.usable()):
                return
            await asyncio.sleep(FILTERS_LOOK)

    @contextlib.asynccontextmanager
    async def _changing(self, kind: str) -> AsyncIterator[None]:
        """One change at a time, and not more than workers can follow. Raises RequestError."""
        async with self._turn:
            if len(self.arriving) >= MOST_ARRIVING:
                await asyncio.wait([self.arriving.oldest], timeout=self._patience)
            if len(self.arriving) >= 2 * MOST_ARRIVING:
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
        for one in made:
            self._changed = time.monotonic()
            self.arriving.add(one, began)
        self.arriving.advance()

    async def _result(self, kept: Kept, began: float, wait: bool) -> Published:
        version = kept.version
        used = self.arriving.used(version)
        if wait and used is not None:
            limit = NO_WORKER * self._patience
            both = (used, self._stopping)
            await asyncio.wait(both, timeout=limit, return_when="FIRST_COMPLETED")
            if self._stopping.done() and not used.done():
                raise Draining(f"version {version} is kept, and the router stops before it is in use")
            if not used.done():
                raise DeadlineExceeded(
                    f"version {version} is kept, and no worker has taken it in for {limit:g} s: see "
                    "GET /catalog"
                )
        held = len(self.spreading.holders(version))
        return Published(version, 1000 * (time.monotonic() - began), held, kept.unknown, kept.changed)

    # --- by itself ---

    async def _run(self) -> None:
        """Look after workers, other routers and long chains, for ever."""
        followed = 0.0
        while True:
            await asyncio.sleep(TEND_EVERY)
            now = time.monotonic()
            try:
                self.spreading.tend(now)
                self.arriving.advance()
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
        """One that cannot be compacted is tried again once something else has changed."""
        began, version = time.monotonic(), self.arriving.newest_kept
        if len(self.arriving) or version == self._not_compacted:
            return
        if not is_long(self.spreading.shelf, self._catalogs.newest, began - self._changed >= QUIET):
            return
        try:
            async with self._changing("compact"):
                self._adopt(await self._in_thread(self._writer.compact), began)
        except RequestError as error:
            log.warning("catalog %s stays as it is: %s", version, error)
            self._not_compacted = version


def is_long(shelf: Shelf, view: CatalogView, quiet: bool) -> bool:
    """Whether a chain that leads to a version is to be compacted."""
    times = 1 if quiet else NEVER_QUIET
    items = view.catalog.slots - view.catalog.built_slots
    return len(shelf.batches) >= times * COMPACT_AFTER or items >= times * COMPACT_ITEMS


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
