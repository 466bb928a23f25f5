"""Single tries at requests: booked on a pair, sent to it, ended; what workers say of them arrives here."""

import asyncio
import time
from collections.abc import Collection, Sequence

from router.admission.admission import Admission, Ask
from router.admission.reuse import ReuseIndex
from router.dispatch.attempt import Attempt, Retry, Wanted
from router.dispatch.validation import unsound
from router.job import Job
from router.workers.roster import Roster, candidates
from router.workers.worker import Worker
from xgr_runtime.errors import (
    DeadlineExceeded,
    InternalError,
    NoWorkers,
    WorkerLost,
    request_error,
)
from xgr_runtime.scheduling.cost_model import beams_by_level
from xgr_runtime.trace.chrome import ATTEMPT
from xgr_runtime.trace.timeline import REQUEST, Timeline
from xgr_runtime.wire.arrays import pack
from xgr_runtime.wire.messages import (
    AttemptId,
    Cancel,
    Committed,
    DecodeRequest,
    Failed,
    Message,
    PrefillRequest,
    Result,
)


class Attempts:
    """All that are under way, and what of the workers' time is promised to them."""

    def __init__(self, workers: Roster, router: int, timeline: Timeline) -> None:
        """`router`: its incarnation."""
        self.admission = Admission()
        self.reuse = ReuseIndex()
        self._timeline = timeline
        self._workers = workers
        self._router = router
        self._live: dict[AttemptId, Attempt] = {}
        self._alone: set[Attempt] = set()
        self._turns = asyncio.Lock()  # whoever has it is the next to be alone
        self._freed = asyncio.Event()

    def begin(
        self,
        wanted: Wanted,
        number: int,
        avoid: Collection[int] = (),
        without: Collection[int] = (),
        *,
        accepted: bool,
        alone: bool = False,
    ) -> Attempt:
        """Choose a pair and send it the job. Raises as `Admission.admit`.

        Incarnations in `avoid` are taken if there are no others, those in `without` never. `accepted`: see
        `Admission.admit`.
        """
        job = wanted.job
        prefill = self._choice(self._workers.prefill, without)
        decode = self._choice(self._workers.decode, without)
        quiet = (w.incarnation for w in [*prefill, *decode] if w.quiet)
        promise = self.admission.admit(
            Ask(len(job.tokens), _beams(job), job.deadline, job.priority),
            candidates(prefill, lambda worker: self.reuse.expected(worker, job.tokens)),
            candidates(decode, lambda worker: self.reuse.expected(worker, job.tokens)),
            job.view.version,
            time.monotonic(),
            {*avoid, *quiet, *self._taken()},
            accepted,
        )
        p = next(w for w in prefill if w.incarnation == promise.pair.prefill.incarnation)
        d = next(w for w in decode if w.incarnation == promise.pair.decode.incarnation)
        id = AttemptId(self._router, wanted.number, number, p.incarnation, d.incarnation)
        tried = Attempt(id, wanted, p, d, promise, alone, time.monotonic())
        self._book(tried)
        try:
            self._send(tried)
        except Exception:
            self.end(tried)
            raise
        return tried

    async def begin_alone(self, wanted: Wanted, number: int, avoid: Collection[int]) -> Attempt:
        """The same for a job whose worker died: beside it, no worker has another such job.

        They take turns, so that of those that were there when a worker died only the one to blame sees the
        next one die. Raises `NoWorkers`.
        """
        async with self._turns:
            while True:
                self._freed.clear()
                taken = self._taken()
                try:
                    return self.begin(wanted, number, avoid, taken, accepted=True, alone=True)
                except NoWorkers:
                    if not taken:
                        raise
                await self._freed.wait()

    def end(self, tried: Attempt) -> None:
        """Forget it; whatever still runs for it is cancelled."""
        del self._live[tried.id]
        self._alone.discard(tried)
        now = tried.ended = time.monotonic()
        self._timeline.add(REQUEST, ATTEMPT, tried.started, now, tried.id, tried.wanted.job.rid)
        answered = isinstance(tried.outcome, Result)
        late = isinstance(tried.outcome, DeadlineExceeded) or now >= tried.promise.deadline
        self.admission.end(tried.promise, now, answered, late)
        tried.decode.load -= tried.wanted.job.width
        tried.decode.in_flight -= 1
        if not tried.committed:
            self._release_prefill(tried)
        for worker in (tried.prefill, tried.decode):
            self._workers.breakers[worker].ended(tried.id)
        self._freed.set()
        if not answered:
            self._cancel(tried)

    # --- events from the workers ---

    def heard(self, worker: Worker, message: Message) -> None:
        """What one of its workers says of an attempt; of one that is over, nothing matters any more."""
        tried = self._live.get(message.id)  # type: ignore[attr-defined]
        if tried is None or tried.outcome is not None:
            return
        match message:
            case Committed() if worker is tried.decode and not tried.committed:
                self._committed(tried)
            case Result() if worker is tried.decode:
                self._answered(tried, message)
            case Failed(stage="prefill") if tried.committed:
                pass  # all KV had arrived: the search goes on without it
            case Failed() if worker in (tried.prefill, tried.decode):
                self._failed(tried, worker, message)

    def lost(self, incarnation: int, reason: str) -> None:
        """A worker is gone, and all it held."""
        self.reuse.forget(incarnation)
        for tried in list(self._live.values()):
            if incarnation == tried.id.decode:
                worker = tried.decode
            elif incarnation == tried.id.prefill and not tried.committed:
                worker = tried.prefill
            else:
                continue
            crashed = incarnation == tried.at_work
            if crashed:
                self._workers.breakers[worker].failed(tried.id, tried.started)
            error = WorkerLost(f"the {worker.role} worker was lost: {reason}", worker.role)
            tried.finish(Retry(error, crashed))

    def _committed(self, tried: Attempt) -> None:
        tried.committed = True
        self._release_prefill(tried)
        self.admission.committed(tried.promise, time.monotonic())
        self._workers.breakers[tried.prefill].succeeded()
        for incarnation in (tried.id.prefill, tried.id.decode):
            self.reuse.note(incarnation, tried.wanted.job.tokens)
        self._freed.set()

    def _answered(self, tried: Attempt, result: Result) -> None:
        breaker = self._workers.breakers[tried.decode]
        problem = unsound(result, tried.wanted.job)
        if problem:
            breaker.failed(tried.id, tried.started)
            error = WorkerLost(f"the decode worker's answer is unsound: {problem}", "decode")
            tried.finish(Retry(error))
        else:
            breaker.succeeded()
            tried.finish(result)

    def _failed(self, tried: Attempt, worker: Worker, message: Failed) -> None:
        late = message.code == DeadlineExceeded.code  # a worker saw it before we did
        error = request_error(message.code, message.message, "timeout_ms" if late else message.stage)
        if isinstance(error, (WorkerLost, InternalError)):
            # A hand-over that breaks may be the fault of either; with others, the sound one soon succeeds.
            both = isinstance(error, WorkerLost) and not tried.committed
            for to_blame in (tried.prefill, tried.decode) if both else (worker,):
                self._workers.breakers[to_blame].failed(tried.id, tried.started)
        tried.finish(Retry(error) if error.elsewhere else error)

    # --- what a pair gets ---

    def _choice(self, workers: Sequence[Worker], without: Collection[int]) -> list[Worker]:
        return [w for w in self._workers.admitting(workers) if w.incarnation not in without]

    def _taken(self) -> set[int]:
        """Incarnations that have a job of `begin_alone`."""
        decode = {tried.id.decode for tried in self._alone}
        return decode | {tried.id.prefill for tried in self._alone if not tried.committed}

    def _book(self, tried: Attempt) -> None:
        self._live[tried.id] = tried
        if tried.alone:
            self._alone.add(tried)
        job = tried.wanted.job
        for worker, load in ((tried.prefill, len(job.tokens)), (tried.decode, job.width)):
            worker.load += load
            worker.in_flight += 1
            self._workers.breakers[worker].began(tried.id)

    def _release_prefill(self, tried: Attempt) -> None:
        tried.prefill.load -= len(tried.wanted.job.tokens)
        tried.prefill.in_flight -= 1

    def _send(self, tried: Attempt) -> None:
        job, hello = tried.wanted.job, tried.decode.hello
        assert hello is not None
        left = max(0.0, job.deadline - time.monotonic())
        tokens, after = pack(job.tokens), tried.promise.after
        search = DecodeRequest(
            id=tried.id,
            tokens=tokens,
            width=job.width,
            results=job.results,
            score_mode=job.score_mode,
            catalog=job.view.version,
            allow=None if job.allow is None else pack(job.allow),
            deny=pack(job.deny),
            timeout=left,
            priority=job.priority,
        )
        prompt = PrefillRequest(tried.id, hello.data_address, tokens, left, job.priority, after)
        for worker, message in ((tried.decode, search), (tried.prefill, prompt)):
            if not worker.send(message):
                self._workers.breakers[worker].failed(tried.id, tried.started)
                tried.finish(Retry(WorkerLost("a worker could not be reached", "dispatch")))
                return

    def _cancel(self, tried: Attempt) -> None:
        tried.decode.send(Cancel(tried.id, "no longer wanted"))
        if not tried.committed:
            tried.prefill.send(Cancel(tried.id, "no longer wanted"))


def _beams(job: Job) -> list[int]:
    """That each level of the search starts from, at most."""
    return beams_by_level(job.width, job.view.nodes, job.live_leaves)[:-1]
