"""The configured workers: who they are, how they are, and which of them may get requests."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

from router.admission.pairing import Candidate, pairs_by_finish
from router.job import Flush, WorkerState
from router.workers.breaker import Breaker
from router.workers.sglang_worker import SglangServer
from router.workers.worker import OnLost, OnMessage, Worker, flushed
from router.workers.zmq_worker import WorkerLink
from xgr_runtime.catalog import Catalogs
from xgr_runtime.config import RouterConfig
from xgr_runtime.scheduling.cost_model import LEAST
from xgr_runtime.transport.addresses import check_url, is_url
from xgr_runtime.transport.keyring import read_keyring
from xgr_runtime.wire.messages import LAUNCHES, Limits, Role


class Workers:
    """All of them, prefill first."""

    def __init__(
        self,
        config: RouterConfig,
        router: int,
        catalogs: Catalogs,
        on_message: OnMessage,
        on_lost: OnLost,
    ) -> None:
        """`router`: this one's incarnation. Raises `ConfigError` for a refused address or key."""
        self._config = config
        self._router = router
        self._catalogs = catalogs
        self._told = (on_message, on_lost)
        self._keys = read_keyring(config.curve_key, config.curve_allow)
        self.prefill = [self._worker(address, "prefill") for address in config.prefill]
        self.decode = [self._worker(address, "decode") for address in config.decode]
        self.breakers = {w: Breaker(f"{w.role} worker at {w.address}", config.breaker_failures) for w in self}

    def __iter__(self) -> Iterator[Worker]:
        return iter([*self.prefill, *self.decode])

    def start(self) -> None:
        for worker in self:
            worker.start()

    async def stop(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self))

    async def flush(self) -> list[Flush]:
        """See `Dispatch.flush`."""
        return await asyncio.gather(*(flushed(worker) for worker in self))

    def problem(self, worker: Worker) -> str:
        """Why requests cannot go there, or an empty string."""
        return worker.problem or self._other_catalog(worker) or self.breakers[worker].problem

    def _other_catalog(self, worker: Worker) -> str:
        """What a decode worker has in place of this router's catalog, or an empty string."""
        hello, newest = worker.hello, self._catalogs.newest.version
        if hello is None or hello.role != "decode" or newest in hello.catalogs:
            return ""
        found = f"catalog {', '.join(hello.catalogs)}" if hello.catalogs else "no catalog"
        return f"it has {found}, this router {newest}: start both with the same file"

    def admitting(self, workers: Sequence[Worker]) -> list[Worker]:
        """Those of them that may get one more request."""
        return [w for w in workers if not w.problem and self.breakers[w].admits]

    def states(self) -> list[WorkerState]:
        """See `Dispatch.workers`."""
        return [self._state(worker, self.problem(worker)) for worker in self]

    def _state(self, w: Worker, problem: str) -> WorkerState:
        away = 0.0 if w.alive else time.monotonic() - w.away_since
        return WorkerState(
            w.address, w.role, w.alive, not problem, problem, w.hello, w.in_flight, away, w.start_seconds
        )

    def limits(self) -> Limits | None:
        """See `Dispatch.limits`: the smallest of all usable workers, so that any pair can serve."""
        prefill = [w for w in self.prefill if not self.problem(w)]
        decode = [w for w in self.decode if not self.problem(w)]
        if not pairs_by_finish(candidates(prefill), candidates(decode), self._catalogs.newest.version):
            return None
        all_limits = [w.hello.limits for w in [*prefill, *decode] if w.hello]
        return Limits(
            min(limit.max_prompt_tokens for limit in all_limits),
            min(w.hello.limits.max_beam_width for w in decode if w.hello),
        )

    def _worker(self, address: str, role: Role) -> Worker:
        c = self._config
        if role == "prefill" and is_url(address):
            check_url(address, "--prefill")
            return SglangServer(address, c.sglang_api_key, c.heartbeat, c.silence, *self._told)
        return WorkerLink(
            address, role, self._router, c.name, c.heartbeat, c.silence, *self._told, self._keys
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
            w.hello.load.counters.get(LAUNCHES, LEAST) >= LEAST,
        )
        for w in workers
        if w.hello
    ]
