"""POST /generate: one request in, its ranked items out, as JSON or as one server-sent event."""

import time
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from router.http.answers import Composer
from router.http.intake import Intake, Ticket
from router.http.long_body import decode_long, outline
from router.http.readers import Readers
from router.http.schema import GenerateRequest
from router.http.server.edge import Visit, visit_of
from router.http.server.inbound import Bodies, while_connected
from router.http.server.problems import Body, decode
from router.job import Dispatch, Outcome
from xgr_runtime.errors import BadRequest, Draining, NoWorkers
from xgr_runtime.trace.timeline import REQUEST

LONG_BODY = 16_384  # bytes; beyond, a thread works it out and the event loop goes on
LONG_TEXT = 2048  # characters, the same: a tokenizer takes about a millisecond for them
READERS = 2
GIANT_BODY = 1 << 20  # bytes

_DECODER = msgspec.json.Decoder(GenerateRequest)
_ENCODER = msgspec.json.Encoder()


class Generate:
    """The endpoint: validate, dispatch while the client is there, answer."""

    def __init__(self, dispatch: Dispatch, intake: Intake, composer: Composer, bodies: Bodies) -> None:
        self.dispatch = dispatch
        self.intake = intake
        self.composer = composer
        self.bodies = bodies
        self._readers = Readers(READERS)
        self._outliner = Readers(1)  # of its own: who waits for a reader must know the deadline
        # One at a time, as their lists take memory; and they hold up no others.
        self._giant_reader = Readers(1)

    async def __call__(self, request: Request) -> Response:
        visit = visit_of(request)
        if self.dispatch.draining:
            raise Draining("the deployment is stopping and takes no new requests")
        async with self.bodies.read(request) as body:
            ticket = await self._understand(request, visit, body)
        note_job(visit, ticket)
        self.dispatch.timeline.add(REQUEST, "intake", visit.arrival, rid=visit.rid)
        outcome = await while_connected(request, self.dispatch.generate(ticket.job), ticket.job.deadline)
        return self.respond(visit, ticket, outcome)

    async def _understand(self, request: Request, visit: Visit, body: Body) -> Ticket:
        """The job of `body`. Raises `BadRequest`, `DeadlineExceeded`, `NoWorkers`, `ClientGone`."""
        if len(body) <= LONG_BODY:
            wanted = decode(_DECODER, body)
            if len(wanted.text or "") <= LONG_TEXT:
                return self._ticket(visit, wanted)
            due = visit.arrival + self.intake.seconds(wanted.timeout_ms)
            work = partial(self._ticket, visit, wanted)
        else:
            latest = visit.arrival + self.intake.seconds(None)
            reading = self._outliner.run(partial(outline, body), visit.arrival)
            found = await while_connected(request, reading, latest, grace=0)
            due = visit.arrival + self.intake.seconds(found.timeout)
            work = partial(self._ticket_of_long, visit, body)
        if self.dispatch.limits() is None:  # nobody knows how long is too long
            raise NoWorkers("no compatible pair of workers is ready: see /workers")
        readers = self._readers if len(body) <= GIANT_BODY else self._giant_reader
        return await while_connected(request, readers.run(work, due), due, grace=0)

    def _ticket_of_long(self, visit: Visit, body: Body) -> Ticket:
        most = self.intake.max_prompt_tokens(self.dispatch.limits())
        return self._ticket(visit, decode_long(body, most))

    def _ticket(self, visit: Visit, wanted: GenerateRequest) -> Ticket:
        visit.rid = checked_rid(wanted.rid) or visit.id
        return self.intake.ticket(wanted, visit.rid, visit.arrival, self.dispatch.limits())

    def respond(self, visit: Visit, ticket: Ticket, outcome: Outcome) -> Response:
        """The answer, as one event where the client asked for a stream."""
        started = time.monotonic()
        visit.wanted, visit.results = ticket.job.results, len(outcome.leaves)
        body = _ENCODER.encode(self.composer.answer(ticket, outcome, visit.arrival))
        self.dispatch.timeline.add(REQUEST, "compose", started, rid=visit.rid, results=visit.results)
        if not ticket.stream:
            return Response(body, media_type="application/json")
        event = b"data: " + body + b"\n\ndata: [DONE]\n\n"
        return Response(event, headers={"cache-control": "no-cache"}, media_type="text/event-stream")


def note_job(visit: Visit, ticket: Ticket) -> None:
    """What the access log says of a job."""
    visit.prompt_tokens, visit.width = len(ticket.job.tokens), ticket.job.width


def checked_rid(rid: str | None) -> str | None:
    """The client's request id. It is written to logs, so it may hold neither spaces nor line ends."""
    if rid is not None and not (rid.isascii() and rid.isprintable() and " " not in rid):
        raise BadRequest("rid must be printable ASCII without spaces", "rid")
    return rid
