"""Versions from kept to in use: once the workers that get requests hold one, requests that come lease it."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from router.catalogs.spreading import Spreading, names
from router.catalogs.writer import Made
from router.workers.worker import Worker
from xgr_runtime.catalog import Catalogs
from xgr_runtime.wire.answers import CatalogInfo, CatalogVersion, ChangeUnderWay

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Arriving:
    """A version that is kept, and waits for workers."""

    made: Made
    began: float  # the call
    offered: float
    used: "asyncio.Future[None]"
    first_held: float = 0.0  # by a worker


class Arriving:
    """Versions that are kept, and wait for workers."""

    def __init__(
        self,
        catalogs: Catalogs,
        spreading: Spreading,
        workers: Callable[[], Sequence[Worker]],
        patience: float,
        in_use: Callable[[str, float], None],
    ) -> None:
        """`in_use` is told the kind of each version that is in use, and the seconds since its call."""
        self._catalogs = catalogs
        self._spreading = spreading
        self._workers = workers
        self._patience = patience
        self._in_use = in_use
        self._kept: list[_Arriving] = []  # oldest first
        self.newest_kept = catalogs.newest.version

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def versions(self) -> list[str]:
        """Oldest first."""
        return [one.made.view.version for one in self._kept]

    @property
    def oldest(self) -> "asyncio.Future[None]":
        """Done once the first of them is in use."""
        return self._kept[0].used

    def used(self, version: str) -> "asyncio.Future[None] | None":
        """Done once that version is in use; None where it does not wait for workers."""
        return next((one.used for one in self._kept if one.made.view.version == version), None)

    def add(self, made: Made, began: float) -> None:
        """A version is kept since now: let workers have it. `began`: the call."""
        used: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._kept.append(_Arriving(made, began, time.monotonic(), used))
        self.newest_kept = made.view.version
        self._spreading.take(made.shelf)

    def usable(self) -> list[Worker]:
        """The decode workers that get requests now, as far as their catalog goes."""
        newest = self._catalogs.newest.version
        return [
            w for w in self._workers() if not w.problem and not w.leaving and self._spreading.holds(w, newest)
        ]

    def advance(self) -> None:
        """Use the newest version that all usable workers hold."""
        now = time.monotonic()
        for at in range(len(self._kept) - 1, -1, -1):
            if self._is_held(self._kept[at], now):
                self._use(at, now)
                return

    def _is_held(self, one: _Arriving, now: float) -> bool:
        """Whether requests may use it; whoever is too slow is not waited for once another holds it."""
        version, usable = one.made.view.version, self.usable()
        lacking = [worker for worker in usable if not self._spreading.confirmed(worker, version)]
        if not lacking:
            return True
        if len(lacking) == len(usable):
            return False
        one.first_held = one.first_held or now
        as_long = one.offered + 2 * (one.first_held - one.offered)
        if not all(self._is_slow(worker, max(one.offered, as_long), now) for worker in lacking):
            return False
        for worker in lacking:
            log.warning(
                "decode worker at %s gets no requests until it holds catalog %s: %s",
                *(worker.address, version, self._spreading.problem(worker)),
            )
        return True

    def _is_slow(self, worker: Worker, since: float, now: float) -> bool:
        last = max(since, self._spreading.progress(worker))
        return self._spreading.refused(worker) or now > last + self._patience

    def _use(self, at: int, now: float) -> None:
        """Requests that come from now on use that version."""
        used, self._kept = self._kept[: at + 1], self._kept[at + 1 :]
        made = used[-1].made
        self._catalogs.add(made.view)
        later = next((one.made.later for one in reversed(used) if one.made.later is not None), None)
        if later is not None and not self._kept and self._spreading.shelf.version == later.version:
            self._spreading.take(later)
        for one in used:
            self._in_use(one.made.kind, now - one.began)
            one.used.set_result(None)

    def lag(self, worker: Worker) -> str:
        """Why a decode worker gets no requests for its catalog, or an empty string."""
        hello, newest = worker.hello, self._catalogs.newest.version
        if not worker.alive or hello is None or hello.role != "decode" or newest in hello.catalogs:
            return ""
        return self._spreading.problem(worker)

    def status(self) -> CatalogInfo:
        """Versions, who holds them, and what is on its way."""
        newest = self._catalogs.newest
        held = dict.fromkeys(self._catalogs.versions)
        for worker in self._workers():
            if worker.alive and worker.hello:
                held = dict.fromkeys(worker.hello.catalogs) | held
        versions = [self._held(version) for version in held]
        behind = {w.address: problem for w in self._workers() if (problem := self.lag(w))}
        return CatalogInfo(True, self.newest_kept, newest.version, versions, self._under_way(), behind)

    def _held(self, version: str) -> CatalogVersion:
        view = self._catalogs.get(version)
        return CatalogVersion(
            version,
            version == self._catalogs.newest.version,
            self._catalogs.leases(version),
            names(self._spreading.holders(version)),
            view.catalog.items if view is not None else 0,
        )

    def _under_way(self) -> ChangeUnderWay | None:
        if not self._kept:
            return None
        last, version = self._kept[-1], self._kept[-1].made.view.version
        lacking = [w for w in self._workers() if w.alive and not self._spreading.holds(w, version)]
        waits_for = {w.address: self._spreading.share(w) for w in lacking}
        return ChangeUnderWay(version, last.made.kind, time.monotonic() - last.began, waits_for)
