"""Takes jobs to pairs of workers and back: who is let in, who is live, when one is to end."""

import asyncio
import logging
import time
from collections.abc import Callable
from itertools import count

from router.dispatch.attempts import Attempts
from router.dispatch.hedge import hedge
from router.dispatch.poison import PoisonRequests
from router.dispatch.tries import Tries
from router.job import Flush, Job, Outcome, Traced, WorkerState
from router.workers.following import Following
from router.workers.returns import seconds_to_a_pair, seconds_to_start
from router.workers.role_changes import RoleChanges
from router.workers.roster import Roster
from router.workers.tracing import Tracer
from router.workers.worker import Worker
from xgr_runtime.catalog import Catalogs
from xgr_runtime.config import RouterConfig
from xgr_runtime.discovery import WorkerAddress
from xgr_runtime.errors import (
    BadRequest,
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    Draining,
    DuplicateRequest,
    NoWorkers,
    Overloaded,
    RequestError,
)
from xgr_runtime.trace.timeline import Timeline
from xgr_runtime.wire.messages import CatalogAsk, CatalogHeld, Limits, Message, Spans
from xgr_runtime.worker.control import new_incarnation

log = logging.getLogger(__name__)

OnVersion = Callable[[Worker, CatalogAsk | CatalogHeld], None]


class _Ending:
    """How a live request is ended from outside, and why: by its deadline, or before."""

    def __init__(self, seconds: float) -> None:
        self.clock = asyncio.timeout(seconds)
        self.error: RequestError | None = None  # None: the deadline

    def come(self, error: RequestError) -> None:
        """Now, for that reason; the first one counts."""
        if self.error is None and not self.clock.expired():
            self.error = error
            self.clock.reschedule(0)


class Dispatcher:
    """Owns every live request, from admission to its one end."""

    def __init__(self, config: RouterConfig, catalogs: Catalogs) -> None:
        router = self.router = new_incarnation()
        self._config = config
        self.roster = self._workers = Roster(config, router, catalogs, self._on_message, self._on_lost)
        self._following = Following(self._workers, config)
        self._tracer = Tracer()
        self._attempts = Attempts(self._workers, router, self._tracer.timeline)
        self._poison = PoisonRequests()
        self._numbers = count(1)
        self._live: dict[str, _Ending] = {}  # by rid
        self._tries: dict[str, Tries] = {}  # of live requests, the oldest first
        self._batch = 0  # live requests of batch work: they leave room for others
        self._hedging: asyncio.Task[None] | None = None
        self._changes = RoleChanges(self._workers, self._attempts.admission, router)
        self._planning: asyncio.Task[None] | None = None  # of roles
        self.draining = False
        self.on_version: OnVersion | None = None  # who hears what decode workers say of versions

    # --- what the HTTP edge calls ---

    async def generate(self, job: Job) -> Outcome:
        """See `Dispatch.generate`."""
        self._admit(job)
        ending = self._live[job.rid] = _Ending(job.deadline - time.monotonic())
        tries = Tries(job, next(self._numbers), self._attempts, self._poison, self._config)
        self._tries[job.rid] = tries
        self._batch += job.batch
        try:
            async with ending.clock:
                return await tries.outcome()
        except TimeoutError:
            if not ending.clock.expired():
                raise
            late = DeadlineExceeded("the deadline passed; the work was cancelled", "timeout_ms")
            raise ending.error or late from None
        except NoWorkers as error:
            error.retry_after = seconds_to_a_pair(self.workers())
            raise
        finally:
            self._batch -= job.batch
            del self._live[job.rid], self._tries[job.rid]

    def abort(self, rid: str) -> bool:
        """See `Dispatch.abort`."""
        return self._end_live(rid, Cancelled("the request was aborted"))

    async def flush(self) -> list[Flush]:
        """See `Dispatch.flush`."""
        self._attempts.reuse.flush()
        return await self._workers.flush()

    async def refresh(self) -> None:
        """See `Dispatch.refresh`."""
        await self._workers.refresh()

    def workers(self) -> list[WorkerState]:
        """See `Dispatch.workers`."""
        return self._workers.states()

    @property
    def discovery_problem(self) -> str:
        return self._following.problem

    def add_worker(self, named: WorkerAddress) -> WorkerState:
        """See `Dispatch.add_worker`."""
        self._workers.check_role(named)
        try:
            return self._workers.state(self._workers.add(named, kept=True))
        except ConfigError as error:
            raise BadRequest(str(error), "address") from None

    def remove_worker(self, name: str) -> WorkerState:
        """See `Dispatch.remove_worker`."""
        return self._workers.state(self._workers.remove(name))

    def limits(self) -> Limits | None:
        """See `Dispatch.limits`."""
        return self._workers.limits()

    @property
    def live(self) -> int:
        return len(self._live)

    @property
    def timeline(self) -> Timeline:
        return self._tracer.timeline

    async def trace(self, seconds: float) -> Traced:
        """See `Dispatch.trace`."""
        return await self._tracer.gather(self._workers, seconds)

    # --- life ---

    def start(self) -> None:
        """Inside a running loop. Raises `ConfigError` for what the settings name."""
        self._following.start()
        self._hedging = asyncio.create_task(self._hedge())
        if self._config.plan_roles:
            self._planning = asyncio.create_task(self._changes.run())

    async def stop(self) -> None:
        tasks = [task for task in (self._hedging, self._planning) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._following.stop()
        await self._workers.stop()

    async def drain(self) -> None:
        """Take no new requests and wait for the live ones, at most `drain_timeout`."""
        self.draining = True
        end = time.monotonic() + self._config.drain_timeout
        while self._live and time.monotonic() < end:
            await asyncio.sleep(0.02)
        for rid in list(self._live):
            after = seconds_to_start(self.workers())
            error = Draining("the deployment stopped before the request was done", retry_after=after)
            self._end_live(rid, error)

    def _admit(self, job: Job) -> None:
        if self.draining:
            raise Draining("the deployment is stopping", retry_after=seconds_to_start(self.workers()))
        if job.rid in self._live:
            raise DuplicateRequest(f"rid {job.rid!r} is in use by a live request", "rid")
        if len(self._live) >= self._config.max_live and not job.probe:
            raise Overloaded(f"{len(self._live)} requests are live, the limit: try again later")
        if job.batch and self._batch >= self._config.max_live // 2:
            raise Overloaded(f"{self._batch} requests of batch work are live, the limit: try again later")
        self._poison.check(job, time.monotonic())

    def _end_live(self, rid: str, error: RequestError) -> bool:
        """End a live request with `error`; False when there is none of that id."""
        ending = self._live.get(rid)
        if ending is not None:
            ending.come(error)
        return ending is not None

    async def _hedge(self) -> None:
        """Look after requests whose pair seems stuck, at every heartbeat."""
        while self._config.hedge_after:
            await asyncio.sleep(self._config.heartbeat)
            try:
                hedge(self._tries.values(), self._config.hedge_after, time.monotonic())
            except Exception:
                log.exception("looking after slow requests failed")

    # --- events from the workers ---

    def _on_message(self, worker: Worker, message: Message) -> None:
        if isinstance(message, Spans):
            self._tracer.heard(worker, message)
        elif isinstance(message, CatalogAsk | CatalogHeld):
            if self.on_version is not None:
                self.on_version(worker, message)
        else:
            self._attempts.heard(worker, message)

    def _on_lost(self, worker: Worker, incarnation: int, reason: str) -> None:
        self._attempts.lost(incarnation, reason)
