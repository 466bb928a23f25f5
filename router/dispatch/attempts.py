"""Single tries at requests: booked on a pair, sent to it, ended; what workers say of them arrives here."""

import asyncio
import time
from collections.abc import Collection, Sequence

from router.admission.admission import Admission, Ask
from router.admission.reuse import ReuseIndex
from router.dispatch.attempt import Attempt, LiveRequest, Retry
from router.dispatch.validation import unsound
from router.job import Job
from router.workers.roster import Roster, candidates
from router.workers.worker import Worker
from xgr_runtime.errors import (
    DeadlineExceeded,
    InternalError,
    NoWorkers,
    Preempted,
    WorkerLost,
    request_error,
)
from xgr_runtime.scheduling.cost_model import beams_by_level, portion_sizes
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
        request: LiveRequest,
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
        job = request.job
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
        id = AttemptId(self._router, request.number, number, p.incarnation, d.incarnation)
        attempt = Attempt(id, request, p, d, promise, alone, time.monotonic())
        self._book(attempt)
        try:
            self._send(attempt)
        except Exception:
            self.end(attempt)
            raise
        return attempt

    async def begin_alone(self, request: LiveRequest, number: int, avoid: Collection[int]) -> Attempt:
        """The same for a job whose worker died: beside it, no worker has another such job.

        They take turns, so that of those that were there when a worker died only the one to blame sees the
        next one die. Raises `NoWorkers`.
        """
        async with self._turns:
            while True:
                self._freed.clear()
                taken = self._taken()
                try:
                    return self.begin(request, number, avoid, taken, accepted=True, alone=True)
                except NoWorkers:
                    if not taken:
                        raise
                await self._freed.wait()

    def end(self, attempt: Attempt) -> None:
        """Forget it; whatever still runs for it is cancelled."""
        del self._live[attempt.id]
        self._alone.discard(attempt)
        now = attempt.ended = time.monotonic()
        self._timeline.add(REQUEST, ATTEMPT, attempt.started, now, attempt.id, attempt.request.job.rid)
        answered = isinstance(attempt.outcome, Result)
        late = isinstance(attempt.outcome, DeadlineExceeded) or now >= attempt.promise.deadline
        self.admission.end(attempt.promise, now, answered, late)
        attempt.decode.load -= attempt.request.job.width
        attempt.decode.in_flight -= 1
        if not attempt.committed:
            self._release_prefill(attempt)
        for worker in (attempt.prefill, attempt.decode):
            worker.breaker.ended(attempt.id)
        self._freed.set()
        if not answered:
            self._cancel(attempt)

    # --- events from the workers ---

    def heard(self, worker: Worker, message: Message) -> None:
        """What one of its workers says of an attempt; of one that is over, nothing matters any more."""
        attempt = self._live.get(message.id)  # type: ignore[attr-defined]
        if attempt is None or attempt.outcome is not None:
            return
        match message:
            case Committed() if worker is attempt.decode and not attempt.committed:
                self._committed(attempt)
            case Result() if worker is attempt.decode:
                self._answered(attempt, message)
            case Failed(stage="prefill") if attempt.committed and message.code != Preempted.code:
                pass  # all KV had arrived: the search goes on without it
            case Failed() if worker in (attempt.prefill, attempt.decode):
                self._failed(attempt, worker, message)

    def lost(self, incarnation: int, reason: str) -> None:
        """A worker is gone, and all it held."""
        self.reuse.forget(incarnation)
        for attempt in list(self._live.values()):
            if incarnation == attempt.id.decode:
                worker = attempt.decode
            elif incarnation == attempt.id.prefill and not attempt.committed:
                worker = attempt.prefill
            else:
                continue
            crashed = incarnation == attempt.at_work
            if crashed:
                worker.breaker.failed(attempt.id, attempt.started)
            error = WorkerLost(f"the {worker.role} worker was lost: {reason}", worker.role)
            attempt.finish(Retry(error, crashed))

    def _committed(self, attempt: Attempt) -> None:
        attempt.committed = True
        self._release_prefill(attempt)
        self.admission.committed(attempt.promise, time.monotonic())
        attempt.prefill.breaker.succeeded()
        for incarnation in (attempt.id.prefill, attempt.id.decode):
            self.reuse.note(incarnation, attempt.request.job.tokens)
        self._freed.set()

    def _answered(self, attempt: Attempt, result: Result) -> None:
        breaker = attempt.decode.breaker
        problem = unsound(result, attempt.request.job)
        if problem:
            breaker.failed(attempt.id, attempt.started)
            error = WorkerLost(f"the decode worker's answer is unsound: {problem}", "decode")
            attempt.finish(Retry(error))
        else:
            breaker.succeeded()
            attempt.finish(result)

    def _failed(self, attempt: Attempt, worker: Worker, message: Failed) -> None:
        late = message.code == DeadlineExceeded.code  # a worker saw it before we did
        error = request_error(message.code, message.message, "timeout_ms" if late else message.stage)
        if isinstance(error, (WorkerLost, InternalError)):
            # A hand-over that breaks may be the fault of either; with others, the sound one soon succeeds.
            both = isinstance(error, WorkerLost) and not attempt.committed
            for to_blame in (attempt.prefill, attempt.decode) if both else (worker,):
                to_blame.breaker.failed(attempt.id, attempt.started)
        attempt.finish(Retry(error) if error.elsewhere else error)

    # --- what a pair gets ---

    def _choice(self, workers: Sequence[Worker], without: Collection[int]) -> list[Worker]:
        return [w for w in self._workers.admitting(workers) if w.incarnation not in without]

    def _taken(self) -> set[int]:
        """Incarnations that have a job of `begin_alone`."""
        decode = {attempt.id.decode for attempt in self._alone}
        return decode | {attempt.id.prefill for attempt in self._alone if not attempt.committed}

    def _book(self, attempt: Attempt) -> None:
        self._live[attempt.id] = attempt
        if attempt.alone:
            self._alone.add(attempt)
        job = attempt.request.job
        for worker, load in ((attempt.prefill, len(job.tokens)), (attempt.decode, job.width)):
            worker.load += load
            worker.in_flight += 1
            worker.breaker.began(attempt.id)

    def _release_prefill(self, attempt: Attempt) -> None:
        attempt.prefill.load -= len(attempt.request.job.tokens)
        attempt.prefill.in_flight -= 1

    def _send(self, attempt: Attempt) -> None:
        job, hello = attempt.request.job, attempt.decode.hello
        assert hello is not None
        left = max(0.0, job.deadline - time.monotonic())
        tokens, after = pack(job.tokens), attempt.promise.after
        search = DecodeRequest(
            id=attempt.id,
            tokens=tokens,
            width=job.width,
            results=job.beams,
            score_mode=job.score_mode,
            repetition_penalty=job.repetition_penalty,
            catalog=job.view.version,
            allow=None if job.allow is None else pack(job.allow),
            deny=pack(job.deny),
            where=job.where,
            candidates=None if job.candidates is None else pack(job.candidates.leaves),
            timeout=left,
            priority=job.priority,
        )
        prompt = PrefillRequest(attempt.id, hello.data_address, tokens, left, job.priority, after)
        for worker, message in ((attempt.decode, search), (attempt.prefill, prompt)):
            if not worker.send(message):
                worker.breaker.failed(attempt.id, attempt.started)
                error = WorkerLost("a worker could not be reached", "dispatch")
                attempt.finish(Retry(error, unreached=worker.incarnation))
                return

    def _cancel(self, attempt: Attempt) -> None:
        attempt.decode.send(Cancel(attempt.id, "no longer wanted"))
        if not attempt.committed:
            attempt.prefill.send(Cancel(attempt.id, "no longer wanted"))


def _beams(job: Job) -> list[int]:
    """That each level of the search starts from, at most; of candidates, portion by portion."""
    nodes = job.view.levels(job.score_mode).trie.nodes
    if job.candidates is None:
        return beams_by_level(job.width, nodes, job.live_leaves)[:-1]
    sizes = portion_sizes(len(job.candidates.leaves), job.candidates.together)
    return [beams for size in sizes for beams in beams_by_level(size, nodes, size)[:-1]]
