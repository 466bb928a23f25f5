"""POST /generate: one request in, its ranked items out, as JSON or as one server-sent event."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from router.http.answers import Composer
from router.http.edge import Visit, visit_of
from router.http.inbound import Bodies, while_connected
from router.http.intake import Intake, Ticket
from router.http.problems import decode
from router.http.schema import GenerateRequest
from router.job import Dispatch, Outcome
from xgr_runtime.errors import BadRequest, Draining
from xgr_runtime.timeline import REQUEST

LONG_BODY = 16_384  # bytes; beyond, a thread works it out and the event loop goes on
LONG_BODIES = 2  # at once

_DECODER = msgspec.json.Decoder(GenerateRequest)
_ENCODER = msgspec.json.Encoder()


class Generate:
    """The endpoint: validate, dispatch while the client is there, answer."""

    def __init__(self, dispatch: Dispatch, intake: Intake, composer: Composer, bodies: Bodies) -> None:
        self.dispatch = dispatch
        self.intake = intake
        self.composer = composer
        self.bodies = bodies
        self._readers = ThreadPoolExecutor(LONG_BODIES, "intake")

    async def __call__(self, request: Request) -> Response:
        visit = visit_of(request)
        if self.dispatch.draining:
            raise Draining("the deployment is stopping and takes no new requests")
        async with self.bodies.read(request) as body:
            if len(body) > LONG_BODY:
                loop = asyncio.get_running_loop()
                ticket = await loop.run_in_executor(self._readers, self.understand, visit, body)
            else:
                ticket = self.understand(visit, body)
        note_job(visit, ticket)
        self.dispatch.timeline.add(REQUEST, "intake", visit.arrival, rid=visit.rid)
        outcome = await while_connected(request, self.dispatch.generate(ticket.job), ticket.job.deadline)
        return self.respond(visit, ticket, outcome)

    def understand(self, visit: Visit, body: bytes) -> Ticket:
        """The job that `body` asks for. Raises `BadRequest` naming the field."""
        wanted = decode(_DECODER, body)
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
