"""POST /v1/completions and /v1/chat/completions: what a client of OpenAI's sends, answered as it expects."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Generic, NamedTuple, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from router.http.answers import answer
from router.http.batches import MOST_BODY
from router.http.generate import Asked, Generate
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
from router.http.server.problems import decode
from router.http.server.recent import AccessRecord
from router.job import Outcome
from xgr_runtime.errors import BadRequest, BodyTooLarge, Draining

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
            width = self._generate.intake.settings.default_beam_width
            bodies = dialect.bodies(given, width)
            asked = await self._generate.understand_all(request, record, bodies, leases)
            for one in asked:
                check_length(given, one.job.view.depth)
            outcomes = await self._generate.serve_all(request, record, asked)
            return self._respond(record, given, dialect, asked, outcomes)

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
