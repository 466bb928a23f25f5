"""POST /generate: one request in, its ranked items out, as JSON or as one server-sent event."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from router.http.answers import answer
from router.http.batches import all_of, batch_in
from router.http.intake import Intake
from router.http.long_body import decode_long, outline
from router.http.readers import Readers
from router.http.schema import GenerateRequest, Histories, Items
from router.http.server.edge import record_of
from router.http.server.inbound import Bodies, while_connected
from router.http.server.problems import Body, decode
from router.http.server.recent import AccessRecord
from router.job import Dispatch, Job, Outcome
from router.query.binding import bind, texts_of
from router.query.models import Model, Models
from xgr_runtime.catalog import CatalogView, PromptTemplate
from xgr_runtime.errors import BadRequest, Draining, NoWorkers
from xgr_runtime.trace.timeline import REQUEST

LONG_BODY = 16_384  # bytes; beyond, a thread works it out and the event loop goes on
LONG_TEXT = 2048  # characters, the same: a tokenizer takes about a millisecond for them
LONG_CHAT = 16  # messages, the same
LONG_HISTORY = 256  # items, the same where a template makes text of them
READERS = 2
GIANT_BODY = 1 << 20  # bytes

_DECODER = msgspec.json.Decoder(GenerateRequest)
_ENCODER = msgspec.json.Encoder()


class BodyHead(NamedTuple):
    """What has to be known of a body before a thread may read the rest of it."""

    model: str | None
    timeout_ms: int | None
    whole: GenerateRequest | None  # of a body that is short enough to be decoded at once


class Asked(NamedTuple):
    """A request that was understood."""

    job: Job
    model: Model
    stream: bool


class Generate:
    """The endpoint: validate, dispatch while the client is there, answer."""

    def __init__(self, dispatch: Dispatch, models: Models, intake: Intake, bodies: Bodies) -> None:
        self.dispatch = dispatch
        self.models = models
        self.intake = intake
        self.bodies = bodies
        self._readers = Readers(READERS)
        self._outliner = Readers(1)  # of its own: who waits for a reader must know the deadline
        # One at a time, as their lists take memory; and they hold up no others.
        self._giant_reader = Readers(1)

    async def __call__(self, request: Request) -> Response:
        record = record_of(request)
        if self.dispatch.draining:
            raise Draining("the deployment is stopping and takes no new requests")
        with ExitStack() as leases:
            refused: BadRequest | None = None
            batch: list[GenerateRequest] = []
            async with self.bodies.read(request) as body:
                try:
                    asked = await self._understand(request, record, body, leases)
                except BadRequest as error:
                    refused = error.with_traceback(None)  # its frames hold the body
                if refused is not None and not (batch := batch_in(body, refused)):
                    raise refused
            if batch:
                several = await self.understand_all(request, record, batch, leases)
                return self._respond_to_all(record, several, await self.serve_all(request, record, several))
            note_job(record, asked.job)
            self.dispatch.timeline.add(REQUEST, "intake", record.arrival, rid=record.rid)
            work = self.dispatch.generate(asked.job)
            outcome = await while_connected(request, work, asked.job.deadline)
            return self.respond(record, asked, outcome)

    async def _understand(
        self, request: Request, record: AccessRecord, body: Body, leases: ExitStack
    ) -> Asked:
        """What `body` asks, about a version of the catalog that is leased from here on.

        Raises `BadRequest`, `UnknownModel`, `DeadlineExceeded`, `NoWorkers`, `ClientGone`.
        """
        head = await self._head(request, record, body)
        return await self.work_out(request, record, body, head, leases)

    async def work_out(
        self, request: Request, record: AccessRecord, body: Body, head: BodyHead, leases: ExitStack
    ) -> Asked:
        """See `_understand`; a head that holds the whole body needs no `body`."""
        model = self.models.named(head.model)
        view = leases.enter_context(model.catalogs.lease()).view
        if head.whole is not None and self._is_short(head.whole, view):
            return self._asked(record, head.whole, model, view)
        if model.limits() is None:  # nobody knows how long is too long
            raise NoWorkers("no compatible pair of workers is ready: see /workers")
        due = record.arrival + self.intake.seconds(head.timeout_ms)
        readers = self._readers if len(body) <= GIANT_BODY else self._giant_reader
        work = partial(self._read, record, body, head, model, view)
        return await while_connected(request, readers.run(work, due), due, grace=0)

    def _is_short(self, body: GenerateRequest, view: CatalogView) -> bool:
        """Whether its prompt and its filter are worked out in a moment. Raises `BadRequest`."""
        where = self.intake.condition(body.filters)
        return (where is None or where in view.filters) and is_short(body, view)

    async def _head(self, request: Request, record: AccessRecord, body: Body) -> BodyHead:
        if len(body) <= LONG_BODY:
            whole = decode(_DECODER, body)
            note_rid(record, whole)
            return BodyHead(whole.model, whole.timeout_ms, whole)
        latest = record.arrival + self.intake.seconds(None)
        reading = self._outliner.run(partial(outline, body), record.arrival)
        found = await while_connected(request, reading, latest, grace=0)
        return BodyHead(found.model_name, found.timeout, None)

    def _read(
        self, record: AccessRecord, body: Body, head: BodyHead, model: Model, view: CatalogView
    ) -> Asked:
        """What a thread does of it."""
        if head.whole is not None:
            return self._asked(record, head.whole, model, view)
        whole = decode_long(body, self.intake.max_prompt_tokens(model.limits()))
        note_rid(record, whole)
        return self._asked(record, whole, model, view)

    def _asked(self, record: AccessRecord, body: GenerateRequest, model: Model, view: CatalogView) -> Asked:
        limits = model.limits()
        query = self.intake.query(body, record.rid, record.arrival, view, limits)
        job = bind(query, model, view, self.intake.max_prompt_tokens(limits))
        return Asked(job, model, body.stream)

    async def understand_all(
        self, request: Request, record: AccessRecord, bodies: Sequence[GenerateRequest], leases: ExitStack
    ) -> list[Asked]:
        """What requests ask that came in one body; each has an id of its own. Raises as `_understand`."""
        asked: list[Asked] = []
        for at, body in enumerate(bodies):
            note_rid(record, body)
            head = BodyHead(body.model, body.timeout_ms, body)
            one = await self.work_out(request, record, b"", head, leases)
            note_job(record, one.job)
            own = one.job.rid if body.rid or not at else f"{one.job.rid}-{at}"
            asked.append(one._replace(job=replace(one.job, rid=own)))
        return asked

    async def serve_all(
        self, request: Request, record: AccessRecord, asked: Sequence[Asked]
    ) -> list[Outcome]:
        """Of each the outcome, or the first error is raised."""
        work = all_of([self.dispatch.generate(one.job) for one in asked])
        outcomes = await while_connected(request, work, min(one.job.deadline for one in asked))
        record.wanted = sum(one.job.results for one in asked)
        record.attempts, record.timing = outcomes[0].attempts, outcomes[0].timing
        record.cached_tokens = sum(outcome.cached_tokens for outcome in outcomes)
        record.prompt_tokens = sum(len(one.job.tokens) for one in asked)
        return outcomes

    def _respond_to_all(
        self, record: AccessRecord, asked: Sequence[Asked], outcomes: Sequence[Outcome]
    ) -> Response:
        """A list of answers."""
        answers = [
            answer(one.job, outcome, one.model.tokenizer, record.arrival)
            for one, outcome in zip(asked, outcomes, strict=True)
        ]
        record.results = sum(len(one.meta_info.beam_results) for one in answers)
        return Response(_ENCODER.encode(answers), media_type="application/json")

    def respond(self, record: AccessRecord, asked: Asked, outcome: Outcome) -> Response:
        """The answer, as one event where the client asked for a stream."""
        started = time.monotonic()
        answered = answer(asked.job, outcome, asked.model.tokenizer, record.arrival)
        record.results = len(answered.meta_info.beam_results)
        record.attempts, record.cached_tokens = outcome.attempts, outcome.cached_tokens
        record.timing = outcome.timing
        record.wanted = asked.job.results if asked.job.listing.most_items is None else record.results
        body = _ENCODER.encode(answered)
        self.dispatch.timeline.add(REQUEST, "compose", started, rid=record.rid, results=record.results)
        if not asked.stream:
            return Response(body, media_type="application/json")
        event = b"data: " + body + b"\n\ndata: [DONE]\n\n"
        return Response(event, headers={"cache-control": "no-cache"}, media_type="text/event-stream")


def is_short(body: GenerateRequest, view: CatalogView) -> bool:
    """Whether its prompt is worked out in a moment."""
    messages = body.messages or []
    if body.history is not None and items_of(body.history) > LONG_HISTORY:
        templates = view.catalog.templates
        found = templates.default if body.template is None else templates.named.get(body.template)
        if not isinstance(found, PromptTemplate):
            return False
    texts = (body.text or "", *(body.variables or {}).values(), *texts_of(messages))
    return len(messages) <= LONG_CHAT and sum(map(len, texts)) <= LONG_TEXT


def items_of(history: Items | Histories) -> int:
    """How many there are, in all lists together."""
    return sum(map(len, history.values())) if isinstance(history, dict) else len(history)


def note_job(record: AccessRecord, job: Job) -> None:
    """What the access log says of a job."""
    record.prompt_tokens, record.width = len(job.tokens), job.width


def note_rid(record: AccessRecord, body: GenerateRequest) -> None:
    """From here on the request has the client's name for it. Raises `BadRequest`."""
    record.rid = checked_rid(body.rid) or record.id


def checked_rid(rid: str | None) -> str | None:
    """The client's request id. It is written to logs, so it may hold neither spaces nor line ends."""
    if rid is not None and not (rid.isascii() and rid.isprintable() and " " not in rid):
        raise BadRequest("rid must be printable ASCII without spaces", "rid")
    return rid
