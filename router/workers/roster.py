"""The workers: who comes and goes, how they are, and which of them may get requests."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence

from router.admission.pairing import Candidate, compatible
from router.job import Flush, WorkerState
from router.workers.breaker import Breaker
from router.workers.sglang_worker import SglangServer
from router.workers.worker import OnLost, OnMessage, Worker, flushed
from router.workers.zmq_worker import WorkerLink
from xgr_runtime.catalog import Catalogs
from xgr_runtime.config import RouterConfig
from xgr_runtime.discovery import WorkerAddress
from xgr_runtime.errors import BadRequest, ConfigError, DuplicateWorker, NotFound, WorkerLost
from xgr_runtime.scheduling.cost_model import LEAST
from xgr_runtime.transport.addresses import check_url, is_url, is_wildcard
from xgr_runtime.transport.curve import check_link
from xgr_runtime.transport.keyring import read_keyring
from xgr_runtime.wire.messages import LAUNCHES, Limits, Role

log = logging.getLogger(__name__)

LOOK = 0.02  # seconds between looks at workers


class Roster:
    """The workers that there are, prefill first. They come and go while the router runs.

    One that is removed gets no more requests, finishes what it has, and is forgotten then.
    """

    def __init__(
        self,
        config: RouterConfig,
        router: int,
        catalogs: Catalogs,
        on_message: OnMessage,
        on_lost: OnLost,
    ) -> None:
        """`router`: this one's incarnation. Raises `ConfigError` for a refused key."""
        self._config = config
        self._router = router
        self._catalogs = catalogs
        self._told = (on_message, on_lost)
        self._keys = read_keyring(config.curve_key, config.curve_allow)
        self._members: dict[str, Worker] = {}  # by address
        self._kept: set[str] = set()  # addresses that only `remove` takes away
        self._drains: dict[Worker, asyncio.Task[None]] = {}
        self._limits: Limits | None = None
        self._limits_until = 0.0
        self.versions_in_use: Callable[[], list[str]] = lambda: catalogs.versions
        """Versions of the catalog that this router may still use."""
        self.lag: Callable[[Worker], str] = self._other_catalog
        """Why a decode worker gets no requests for its catalog, or an empty string."""

    def __iter__(self) -> Iterator[Worker]:
        return iter([*self.prefill, *self.decode])

    @property
    def prefill(self) -> list[Worker]:
        return [worker for worker in self._members.values() if worker.role == "prefill"]

    @property
    def decode(self) -> list[Worker]:
        return [worker for worker in self._members.values() if worker.role == "decode"]

    # --- who comes and goes ---

    def check(self, named: WorkerAddress) -> None:
        """Raises `ConfigError` for an address that strangers reach, or that is none."""
        if named.role == "prefill" and is_url(named.address):
            check_url(named.address, "--prefill")
        elif is_wildcard(check_link(named.address, self._keys)):
            raise ConfigError(f"nobody can connect to {named.address}: name a host and a port")

    def check_role(self, named: WorkerAddress) -> None:
        """Raises `DuplicateWorker` where that address is a worker of another role."""
        worker = self._members.get(named.address)
        if worker is not None and worker.role != named.role and not worker.flexible:
            raise DuplicateWorker(
                f"{named.address} is there as {worker.role} worker: remove it first", "role"
            )

    def keeps(self, named: WorkerAddress) -> bool:
        """Whether it stays whatever discovery says."""
        return named.address in self._kept

    def add(self, named: WorkerAddress, kept: bool = False) -> Worker:
        """Talk to one more from now on, or keep one that was leaving. Inside a running loop.

        `kept`: whatever discovery says later. Raises `ConfigError` for a refused address, and for one that
        is there in another role.
        """
        worker = self._members.get(named.address) or self._join(named)
        if worker.role != named.role and not worker.flexible:
            raise ConfigError(f"{named.address} is a {worker.role} worker of this router: remove it first")
        if worker.leaving:
            worker.leaving = False
            self._drains.pop(worker).cancel()
            log.info("%s worker at %s stays", worker.role, worker.address)
        if kept:
            self._kept.add(named.address)
        return worker

    def remove(self, name: str) -> Worker:
        """Drain the worker of that name or address, whoever added it. Raises `NotFound`, `BadRequest`."""
        worker = self._called(name)
        self._kept.discard(worker.address)
        self.drain(worker)
        return worker

    def discard(self, named: WorkerAddress) -> None:
        """Drain it, if it is there."""
        worker = self._members.get(named.address)
        if worker is not None and (worker.role == named.role or worker.flexible):
            self.drain(worker)

    def drain(self, worker: Worker) -> None:
        """Give it no more requests, and forget it once it has none."""
        if not worker.leaving:
            worker.leaving = True
            log.info("%s worker at %s leaves", worker.role, worker.address)
            self._drains[worker] = asyncio.create_task(self._forget_idle(worker))

    async def stop(self) -> None:
        for drain in self._drains.values():
            drain.cancel()
        await asyncio.gather(*self._drains.values(), return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in self))

    def _join(self, named: WorkerAddress) -> Worker:
        worker = self._members[named.address] = self._worker(named.address, named.role)
        name = f"{named.role} worker at {named.address}"
        worker.breaker = Breaker(name, self._config.breaker_failures)
        worker.start()
        return worker

    def _called(self, name: str) -> Worker:
        if name in self._members:
            return self._members[name]
        found = [worker for worker in self if worker.hello and worker.hello.worker == name]
        if not found:
            raise NotFound(f"no worker has the name or address {name[:200]!r}: see /workers", "name")
        if len(found) > 1:
            raise BadRequest(f"{len(found)} workers have the name {name!r}: send an address", "name")
        return found[0]

    async def _forget_idle(self, worker: Worker) -> None:
        """Every request ends by its deadline, so this does, too."""
        while worker.in_flight:
            await asyncio.sleep(LOOK)
        del self._members[worker.address]
        worker.lost("it was removed")
        await worker.stop()
        self._drains.pop(worker, None)
        log.info("%s worker at %s is forgotten", worker.role, worker.address)

    # --- how they are ---

    async def flush(self) -> list[Flush]:
        """See `Dispatch.flush`."""
        return await asyncio.gather(*(flushed(worker) for worker in self))

    async def refresh(self) -> None:
        """See `Dispatch.refresh`."""
        asked = [worker.refresh() for worker in self if worker.alive]
        for failed in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(failed, BaseException) and not isinstance(failed, WorkerLost):
                raise failed

    def problem(self, worker: Worker) -> str:
        """Why requests cannot go there, or an empty string."""
        leaving = "it is removed, and finishes what it has" if worker.leaving else ""
        return worker.problem or leaving or self.lag(worker) or worker.breaker.problem

    def _other_catalog(self, worker: Worker) -> str:
        """What a decode worker has in place of this router's catalog, or an empty string."""
        hello, newest = worker.hello, self._catalogs.newest.version
        if hello is None or hello.role != "decode" or newest in hello.catalogs:
            return ""
        found = f"catalog {', '.join(hello.catalogs)}" if hello.catalogs else "no catalog"
        return f"it has {found}, this router {newest}: start both with the same file"

    def admitting(self, workers: Sequence[Worker]) -> list[Worker]:
        """Those of them that may get one more request."""
        return [w for w in workers if not w.problem and not w.leaving and w.breaker.admits]

    def states(self) -> list[WorkerState]:
        """See `Dispatch.workers`."""
        return [self.state(worker) for worker in self]

    def state(self, w: Worker) -> WorkerState:
        """As /workers reports it."""
        problem, away = self.problem(w), 0.0 if w.alive else time.monotonic() - w.away_since
        return WorkerState(
            w.address,
            w.role,
            w.alive,
            not problem,
            problem,
            w.hello,
            w.in_flight,
            away,
            w.start_seconds,
            w.leaving,
            w.flexible,
            w.changing,
        )

    def limits(self) -> Limits | None:
        """See `Dispatch.limits`: as of at most `LOOK` seconds ago, for every request asks."""
        now = time.monotonic()
        if now >= self._limits_until:
            self._limits, self._limits_until = self._usable_limits(), now + LOOK
        return self._limits

    def _usable_limits(self) -> Limits | None:
        """The smallest of all usable workers, so that any pair can serve."""
        prefill = [w for w in self.prefill if not self.problem(w)]
        decode = [w for w in self.decode if not self.problem(w)]
        newest = self._catalogs.newest.version
        if not any(True for _ in compatible(candidates(prefill), candidates(decode), newest)):
            return None
        all_limits = [w.hello.limits for w in [*prefill, *decode] if w.hello]
        return Limits(
            min(limit.max_prompt_tokens for limit in all_limits),
            min(w.hello.limits.max_beam_width for w in decode if w.hello),
            any(w.hello.limits.plain_scores for w in decode if w.hello),
        )

    def _worker(self, address: str, role: Role) -> Worker:
        c = self._config
        if role == "prefill" and is_url(address):
            check_url(address, "--prefill")
            return SglangServer(address, c.sglang_api_key, c.heartbeat, c.silence, *self._told)
        return WorkerLink(
            address,
            role,
            self._router,
            c.name,
            c.heartbeat,
            c.silence,
            *self._told,
            self._keys,
            lambda: self.versions_in_use(),
        )


def candidates(workers: Sequence[Worker], reuse: Callable[[int], int] = lambda _: 0) -> list[Candidate]:
    """The workers as pairing sees them. `reuse`: tokens of a prompt that an incarnation probably holds."""
    return [
        Candidate(
            w.hello.worker,
            w.incarnation,
            w.hello.model,
            w.load,
            w.hello.catalogs,
            w.hello.load.cost,
            # A worker may be started without a cache, or have lost what we remember.
            reuse(w.incarnation) if w.hello.load.pages_cached else 0,
            w.hello.turns,
            w.hello.memory,
            w.hello.load.counters.get(LAUNCHES, LEAST) >= LEAST,
        )
        for w in workers
        if w.hello
    ]
