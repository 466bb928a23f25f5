"""The route of POST /score: the same way through the router as /generate, with other beams."""

from contextlib import ExitStack
from functools import partial

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from router.http.batches import MOST_BODY
from router.http.generate import LONG_BODY, Asked, BodyHead, Generate, note_job, note_rid
from router.http.intake import item_ids
from router.http.readers import Readers
from router.http.scoring.answer import score_answer
from router.http.scoring.schema import ScoreRequest, as_generate
from router.http.server.edge import record_of
from router.http.server.inbound import while_connected
from router.http.server.problems import Body, decode
from router.http.server.recent import AccessRecord
from router.job import Job, Outcome
from router.query import candidates
from xgr_runtime.errors import BadRequest, BodyTooLarge, Draining
from xgr_runtime.trace.timeline import REQUEST
from xgr_runtime.wire.messages import Timing

MANY = 1000  # candidates, whose answer takes a millisecond

_DECODER = msgspec.json.Decoder(ScoreRequest)
_ENCODER = msgspec.json.Encoder()


class Score:
    """The endpoint: validate, dispatch while the client is there, answer."""

    def __init__(self, generate: Generate) -> None:
        self._generate = generate
        self._readers = Readers(1)

    async def __call__(self, request: Request) -> Response:
        record = record_of(request)
        if self._generate.dispatch.draining:
            raise Draining("the deployment is stopping and takes no new requests")
        with ExitStack() as leases:
            async with self._generate.bodies.read(request) as body:
                given = await self._decoded(request, record, body)
            asked = await self._understand(request, record, given, leases)
            note_job(record, asked.job)
            self._generate.dispatch.timeline.add(REQUEST, "intake", record.arrival, rid=record.rid)
            outcome = await self._outcome(request, asked.job)
            answered = await self._answered(request, record, asked.job, outcome)
            return Response(answered, media_type="application/json")

    async def _decoded(self, request: Request, record: AccessRecord, body: Body) -> ScoreRequest:
        if len(body) > MOST_BODY:
            raise BodyTooLarge(
                f"the body has {len(body)} bytes, this route takes {MOST_BODY}: send fewer items at a time"
            )
        if len(body) <= LONG_BODY:
            return decode(_DECODER, body)
        latest = record.arrival + self._generate.intake.seconds(None)
        reading = self._readers.run(partial(decode, _DECODER, body), record.arrival)
        return await while_connected(request, reading, latest, grace=0)

    async def _understand(
        self, request: Request, record: AccessRecord, given: ScoreRequest, leases: ExitStack
    ) -> Asked:
        """What is asked, about a version that is leased from here on. Raises as `Generate.work_out`."""
        wanted = to_score(given)
        body = as_generate(given)
        note_rid(record, body)
        head = BodyHead(body.model, body.timeout_ms, body)
        asked = await self._generate.work_out(request, record, b"", head, leases)
        work = partial(candidates.with_candidates, asked.job, wanted, asked.model.limits())
        reading = self._readers.run(work, asked.job.deadline)
        return asked._replace(job=await while_connected(request, reading, asked.job.deadline, grace=0))

    async def _outcome(self, request: Request, job: Job) -> Outcome:
        """Of a job without a single live candidate nothing is left to work out."""
        if not job.width:
            return Outcome(np.empty(0, np.int32), np.empty(0, np.float32), Timing(0, 0, 0, 0, 0), 0)
        return await while_connected(request, self._generate.dispatch.generate(job), job.deadline)

    async def _answered(self, request: Request, record: AccessRecord, job: Job, outcome: Outcome) -> bytes:
        """The body of the answer; a long one is a thread's work, and the event loop goes on."""
        record.results = record.wanted = len(outcome.leaves)
        record.attempts, record.cached_tokens = outcome.attempts, outcome.cached_tokens
        record.timing = outcome.timing
        work = partial(encoded, job, outcome, record.arrival)
        assert job.candidates is not None, "the job is one of scores"
        if len(job.candidates.asked) <= MANY:
            return work()
        return await while_connected(request, self._readers.run(work, job.deadline), job.deadline)


def encoded(job: Job, outcome: Outcome, arrival: float) -> bytes:
    """See `score_answer`."""
    return _ENCODER.encode(score_answer(job, outcome, arrival))


def to_score(given: ScoreRequest) -> candidates.NamedCandidates:
    """The candidates. Raises `BadRequest`."""
    if (given.items is None) == (given.sids is None):
        what = "items and sids are given" if given.items is not None else "no candidates are given"
        raise BadRequest(f"{what}: send exactly one of items and sids", "items")
    if given.items is not None:
        return candidates.NamedCandidates(items=item_ids(given.items, "items"))
    return candidates.NamedCandidates(sids=given.sids)
