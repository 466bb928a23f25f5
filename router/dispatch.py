"""Takes a job to a pair of workers and back: attempts, deadlines, retries, cancels."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.admission import Admission, Ask, Promise
from router.job import Flush, Job, Outcome, Traced, WorkerState
from router.links import WorkerLink
from router.pairing import Candidate, pairs_by_finish
from router.reuse import ReuseIndex
from router.sglang_server import SglangServer
from router.tracing import Tracer
from router.worker import Worker, flushed
from xgr_runtime.addresses import check_url, is_url
from xgr_runtime.chrome_trace import ATTEMPT
from xgr_runtime.config import RouterConfig
from xgr_runtime.control import new_incarnation
from xgr_runtime.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    DuplicateRequest,
    NoWorkers,
    Overloaded,
    RequestError,
    WorkerLost,
    request_error,
)
from xgr_runtime.keys import read_keyring
from xgr_runtime.messages import (
    AttemptId,
    Cancel,
    Committed,
    DecodeRequest,
    Failed,
    Limits,
    Message,
    PrefillRequest,
    Result,
    Role,
    Spans,
    Timing,
)
from xgr_runtime.timeline import REQUEST, Timeline

log = logging.getLogger(__name__)


class _Retry(Exception):
    """An attempt failed in a way that another pair may not."""

    def __init__(self, error: RequestError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(eq=False)
class _Attempt:
    """One try: who works on it and who waits for it."""

    id: AttemptId
    prefill: Worker
    decode: Worker
    tokens: NDArray[np.int32]  # [L]
    beams: int
    promise: Promise
    future: asyncio.Future[Result]
    committed: bool = False  # the decode worker has all KV: prefill is no longer needed

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Dispatcher:
    """Owns every live request, from admission to its one end."""

    def __init__(self, config: RouterConfig, catalog: str, nodes: Sequence[int] = ()) -> None:
        """`nodes`: how many the catalog's trie has at each level, so many beams there can be."""
        self._config = config
        self._keys = read_keyring(config.curve_key, config.curve_allow)
        self._catalog = catalog
        self._nodes = nodes
        self._admission = Admission()
        self._reuse = ReuseIndex()
        self._incarnation = new_incarnation()
        self._numbers = count(1)
        self._attempts: dict[AttemptId, _Attempt] = {}
        self._live: dict[str, asyncio.Future[RequestError]] = {}  # rid -> set when it is to end
        self.draining = False
        self._tracer = Tracer()
        self._prefill = [self._worker(address, "prefill") for address in config.prefill]
        self._decode = [self._worker(address, "decode") for address in config.decode]

    # --- what the HTTP edge calls ---

    async def generate(self, job: Job) -> Outcome:
        """See `Dispatch.generate`."""
        self._admit(job)
        aborted = self._live[job.rid] = asyncio.get_running_loop().create_future()
        work = asyncio.ensure_future(self._attempts_of(job))
        try:
            await asyncio.wait(
                (work, aborted), timeout=job.deadline - time.monotonic(), return_when="FIRST_COMPLETED"
            )
            if work.done():
                return work.result()
            if aborted.done():
                raise aborted.result()
            raise DeadlineExceeded("the deadline passed; the work was cancelled", "timeout_ms")
        finally:
            work.cancel()
            del self._live[job.rid]

    def abort(self, rid: str) -> bool:
        """See `Dispatch.abort`."""
        return self._end_live(rid, Cancelled("the request was aborted"))

    async def flush(self) -> list[Flush]:
        """See `Dispatch.flush`."""
        self._reuse.flush()
        return await asyncio.gather(*(flushed(worker) for worker in [*self._prefill, *self._decode]))

    def workers(self) -> list[WorkerState]:
        """See `Dispatch.workers`."""
        return [
            WorkerState(w.address, w.role, w.alive, not w.problem, w.problem, w.hello, w.in_flight)
            for w in [*self._prefill, *self._decode]
        ]

    def limits(self) -> Limits | None:
        """See `Dispatch.limits`: the smallest of all usable workers, so that any pair can serve."""
        prefill, decode = _usable(self._prefill), _usable(self._decode)
        if not pairs_by_finish(self._candidates(prefill), self._candidates(decode), self._catalog):
            return None
        all_limits = [w.hello.limits for w in [*prefill, *decode] if w.hello]
        return Limits(
            min(limit.max_prompt_tokens for limit in all_limits),
            min(w.hello.limits.max_beam_width for w in decode if w.hello),
        )

    @property
    def live(self) -> int:
        return len(self._live)

    @property
    def timeline(self) -> Timeline:
        return self._tracer.timeline

    async def trace(self, seconds: float) -> Traced:
        """See `Dispatch.trace`."""
        return await self._tracer.gather([*self._prefill, *self._decode], seconds)

    # --- life ---

    def start(self) -> None:
        for worker in [*self._prefill, *self._decode]:
            worker.start()

    async def stop(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in [*self._prefill, *self._decode]))

    async def drain(self) -> None:
        """Take no new requests and wait for the live ones, at most `drain_timeout`."""
        self.draining = True
        end = time.monotonic() + self._config.drain_timeout
        while self._live and time.monotonic() < end:
            await asyncio.sleep(0.02)
        for rid in list(self._live):
            self._end_live(rid, Draining("the deployment stopped before the request was done"))

    def _end_live(self, rid: str, error: RequestError) -> bool:
        """End a live request with `error`; False when there is none of that id."""
        aborted = self._live.get(rid)
        if aborted is not None and not aborted.done():
            aborted.set_result(error)
        return aborted is not None

    # --- attempts ---

    def _admit(self, job: Job) -> None:
        if self.draining:
            raise Draining("the deployment is stopping")
        if job.rid in self._live:
            raise DuplicateRequest(f"rid {job.rid!r} is in use by a live request", "rid")
        if len(self._live) >= self._config.max_live:
            raise Overloaded(f"{len(self._live)} requests are live, the limit: try again later")

    async def _attempts_of(self, job: Job) -> Outcome:
        """Try pair after pair until one answers, an error is final, or no try is left."""
        number, avoid = next(self._numbers), set[int]()
        last: RequestError = NoWorkers("no compatible pair of workers is ready: see /workers")
        for attempt in range(1, self._config.max_attempts + 1):
            try:
                result = await self._attempt(job, number, attempt, avoid)
            except _Retry as retry:
                log.warning("request %s attempt %d: %s", job.rid, attempt, retry)
                last = retry.error
                continue
            except NoWorkers:
                break
            leaves = np.frombuffer(result.leaves, np.int32)
            scores = np.frombuffer(result.scores, np.float32)
            return Outcome(leaves, scores, result.timing, attempt, result.cached_tokens)
        raise last

    async def _attempt(self, job: Job, number: int, attempt: int, avoid: set[int]) -> Result:
        started = time.monotonic()
        tried = self._begin(job, number, attempt, avoid)
        try:
            result = await tried.future
        except _Retry:
            avoid.update({tried.id.prefill, tried.id.decode})
            raise
        finally:
            seconds = time.monotonic() - started
            self.timeline.add(REQUEST, ATTEMPT, started, started + seconds, tried.id, job.rid)
            self._end(tried)
        return msgspec.structs.replace(result, timing=whole(result.timing, seconds))

    def _begin(self, job: Job, number: int, attempt: int, avoid: set[int]) -> _Attempt:
        """Choose a pair and send it the job. Raises `_Retry`, and as `Admission.admit` does."""
        prefill, decode = _usable(self._prefill), _usable(self._decode)
        promise = self._admission.admit(
            Ask(len(job.tokens), self._beams(job), job.deadline, job.priority),
            self._candidates(prefill, job),
            self._candidates(decode, job),
            self._catalog,
            time.monotonic(),
            avoid,
            accepted=attempt > 1,
        )
        p = next(w for w in prefill if w.incarnation == promise.pair.prefill.incarnation)
        d = next(w for w in decode if w.incarnation == promise.pair.decode.incarnation)
        id = AttemptId(self._incarnation, number, attempt, p.incarnation, d.incarnation)
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        tried = _Attempt(id, p, d, job.tokens, job.width, promise, future)
        self._attempts[id] = tried
        for worker, load in ((p, len(tried.tokens)), (d, tried.beams)):
            worker.load += load
            worker.in_flight += 1
        prompt = self._prefill_request(job, id, d, promise.after)
        if not (d.send(self._decode_request(job, id)) and p.send(prompt)):
            tried.fail(_Retry(WorkerLost("a worker could not be reached", "dispatch")))
        return tried

    def _end(self, tried: _Attempt) -> None:
        """Forget the attempt; whatever still runs for it is cancelled."""
        del self._attempts[tried.id]
        error = None if not tried.future.done() or tried.future.cancelled() else tried.future.exception()
        answered = tried.future.done() and not tried.future.cancelled() and not error
        now = time.monotonic()
        late = isinstance(error, DeadlineExceeded) or now >= tried.promise.deadline
        self._admission.end(tried.promise, now, answered, late)
        if not answered:
            tried.decode.send(Cancel(tried.id, "no longer wanted"))
        if not tried.committed:
            self._release_prefill(tried)
            if not answered:
                tried.prefill.send(Cancel(tried.id, "no longer wanted"))
        tried.decode.load -= tried.beams
        tried.decode.in_flight -= 1

    def _release_prefill(self, tried: _Attempt) -> None:
        tried.prefill.load -= len(tried.tokens)
        tried.prefill.in_flight -= 1

    # --- events from the workers ---

    def _on_message(self, worker: Worker, message: Message) -> None:
        if isinstance(message, Spans):
            self._tracer.heard(worker, message)
            return
        tried = self._attempts.get(message.id)  # type: ignore[attr-defined]
        if tried is None:
            return  # an attempt that is over
        match message:
            case Committed() if not tried.committed:
                tried.committed = True
                self._release_prefill(tried)
                self._admission.committed(tried.promise, time.monotonic())
                for incarnation in (tried.id.prefill, tried.id.decode):
                    self._reuse.note(incarnation, tried.tokens)
            case Result():
                if not tried.future.done():
                    tried.future.set_result(message)
            case Failed(stage="prefill") if tried.committed:
                pass  # all KV had arrived: the search goes on without it
            case Failed():
                late = message.code == DeadlineExceeded.code  # a worker saw it before we did
                error = request_error(message.code, message.message, "timeout_ms" if late else message.stage)
                tried.fail(_Retry(error) if message.retry else error)

    def _on_lost(self, worker: Worker, incarnation: int, reason: str) -> None:
        self._reuse.forget(incarnation)
        for id, tried in list(self._attempts.items()):
            if id.decode == incarnation:
                tried.fail(_Retry(WorkerLost(f"the decode worker was lost: {reason}", "decode")))
            elif id.prefill == incarnation and not tried.committed:
                tried.fail(_Retry(WorkerLost(f"the prefill worker was lost: {reason}", "prefill")))

    # --- messages ---

    def _worker(self, address: str, role: Role) -> Worker:
        """Raises `ConfigError` for an address that is refused."""
        c, told = self._config, (self._on_message, self._on_lost)
        if role == "prefill" and is_url(address):
            check_url(address)
            return SglangServer(address, c.sglang_api_key, c.heartbeat, c.silence, *told)
        return WorkerLink(address, role, self._incarnation, c.heartbeat, c.silence, *told, self._keys)

    def _candidates(self, workers: Sequence[Worker], job: Job | None = None) -> list[Candidate]:
        """The workers as pairing sees them, for this job."""
        return [
            Candidate(
                w.hello.worker,
                w.incarnation,
                w.hello.model,
                w.load,
                w.hello.catalogs,
                w.hello.load.cost,
                # A worker may be started without a cache, or have lost what we remember.
                self._reuse.expected(w.incarnation, job.tokens) if job and w.hello.load.pages_cached else 0,
                w.hello.turns,
            )
            for w in workers
            if w.hello
        ]

    def _beams(self, job: Job) -> list[int]:
        """That each level of the search starts from, at most: one, then what the level before can hold."""
        most = job.width if job.allow is None else min(job.width, len(job.allow))
        return [1, *(min(most, nodes) for nodes in self._nodes[:-1])]

    def _prefill_request(self, job: Job, id: AttemptId, decode: Worker, after: float) -> PrefillRequest:
        assert decode.hello is not None
        address, tokens = decode.hello.data_address, job.tokens.tobytes()
        return PrefillRequest(id, address, tokens, _seconds_left(job), job.priority, after)

    def _decode_request(self, job: Job, id: AttemptId) -> DecodeRequest:
        return DecodeRequest(
            id=id,
            tokens=job.tokens.tobytes(),
            width=job.width,
            results=job.results,
            score_mode=job.score_mode,
            catalog=job.catalog,
            allow=None if job.allow is None else job.allow.tobytes(),
            deny=job.deny.tobytes(),
            timeout=_seconds_left(job),
            priority=job.priority,
        )


def whole(timing: Timing, seconds: float) -> Timing:
    """The timing of an attempt that lasted `seconds`, with what lies between its stages."""
    within = timing.queue + timing.prefill + timing.decode
    return msgspec.structs.replace(timing, transfer=max(0.0, seconds - within))


def _seconds_left(job: Job) -> float:
    return max(0.0, job.deadline - time.monotonic())


def _usable(workers: Sequence[Worker]) -> list[Worker]:
    return [worker for worker in workers if not worker.problem]
