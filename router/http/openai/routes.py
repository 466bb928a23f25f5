"""POST /v1/completions and /v1/chat/completions: what a client of OpenAI's sends, answered as it expects."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from router.http.answers import answer
from router.http.generate import Asked, BodyHead, Generate, note_job, note_rid
from router.http.openai.bodies import of_chat, of_completion
from router.http.openai.replies import Answered, chat_reply, completion_reply
from router.http.openai.schema import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    SamplingFields,
)
from router.http.schema import GenerateRequest
from router.http.server.edge import record_of
from router.http.server.inbound import while_connected
from router.http.server.problems import decode
from router.http.server.recent import AccessRecord
from router.job import Outcome
from xgr_runtime.errors import BadRequest, BodyTooLarge, Draining

MOST_BODY = 1 << 20  # bytes; /generate takes longer ones
B = TypeVar("B", bound=SamplingFields)
R = TypeVar("R", Completion, ChatCompletion)


class Dialect(NamedTuple, Generic[B, R]):
    """One of the two routes."""

    decoder: msgspec.json.Decoder[B]
    bodies: Callable[[B, int], list[GenerateRequest]]
    reply: Callable[[Sequence[Answered], B], list[R]]  # the pieces of a stream, or the only answer


COMPLETIONS = Dialect(msgspec.json.Decoder(CompletionRequest), of_completion, completion_reply)
CHAT = Dialect(msgspec.json.Decoder(ChatRequest), of_chat, chat_reply)


class OpenAi:
    """One method per route; each prompt of a body is a request of its own, and all are answered or none."""

    def __init__(self, generate: Generate) -> None:
        self._generate = generate

    async def completions(self, request: Request) -> Response:
        return await self._serve(request, COMPLETIONS)

    async def chat(self, request: Request) -> Response:
        return await self._serve(request, CHAT)

    async def _serve(self, request: Request, dialect: Dialect[B, R]) -> Response:
        record = record_of(request)
        if self._generate.dispatch.draining:
            raise Draining("the deployment is stopping and takes no new requests")
        with ExitStack() as leases:
            async with self._generate.bodies.read(request) as body:
                if len(body) > MOST_BODY:
                    raise BodyTooLarge(
                        f"the body has {len(body)} bytes, this route takes {MOST_BODY}: use /generate"
                    )
                given = decode(dialect.decoder, body)
            asked = await self._understand(request, record, given, dialect, leases)
            work = all_of([self._generate.dispatch.generate(one.job) for one in asked])
            outcomes = await while_connected(request, work, min(one.job.deadline for one in asked))
            return self._respond(record, given, dialect, asked, outcomes)

    async def _understand(
        self, request: Request, record: AccessRecord, given: B, dialect: Dialect[B, R], leases: ExitStack
    ) -> list[Asked]:
        width = self._generate.intake.settings.default_beam_width
        asked = []
        for at, body in enumerate(dialect.bodies(given, width)):
            note_rid(record, body)
            head = BodyHead(body.model, body.timeout_ms, body)
            one = await self._generate.work_out(request, record, b"", head, leases)
            check_length(given, one.job.view.depth)
            note_job(record, one.job)
            asked.append(one if not at else one._replace(job=replace(one.job, rid=f"{one.job.rid}-{at}")))
        return asked

    def _respond(
        self,
        record: AccessRecord,
        given: B,
        dialect: Dialect[B, R],
        asked: Sequence[Asked],
        outcomes: Sequence[Outcome],
    ) -> Response:
        answered = [
            Answered(answer(one.job, outcome, one.model.tokenizer, record.arrival), one.model)
            for one, outcome in zip(asked, outcomes, strict=True)
        ]
        record.results = sum(len(one.answer.meta_info.beam_results) for one in answered)
        record.wanted = sum(one.job.results for one in asked)
        record.attempts, record.timing = outcomes[0].attempts, outcomes[0].timing
        record.cached_tokens = sum(outcome.cached_tokens for outcome in outcomes)
        record.prompt_tokens = sum(len(one.job.tokens) for one in asked)
        pieces: list[bytes] = [msgspec.json.encode(piece) for piece in dialect.reply(answered, given)]
        if not given.stream:
            return Response(pieces[0], media_type="application/json")
        events = b"".join(b"data: %b\n\n" % piece for piece in [*pieces, b"[DONE]"])
        return Response(events, headers={"cache-control": "no-cache"}, media_type="text/event-stream")


def check_length(given: SamplingFields, depth: int) -> None:
    """Raises `BadRequest` where fewer tokens are asked for than every item has."""
    for name in ("max_tokens", "max_completion_tokens"):
        most = getattr(given, name, None)
        if most is not None and most < depth:
            what = f"{name} is {most}, every item of this catalog has {depth} tokens: leave it out"
            raise BadRequest(what, name)


async def all_of(work: Sequence[Coroutine[Any, Any, Outcome]]) -> list[Outcome]:
    """What all return; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
