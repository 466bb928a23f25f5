"""Many callers at a deployment that is being broken, and what each of their requests came to."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from enum import StrEnum

import httpx
import msgspec
from sameness import TIE, difference, ranked

from xgr_runtime.client import XgrClient, encode
from xgr_runtime.errors import BY_CODE, Cancelled, InternalError
from xgr_runtime.wire.answers import Answer, ErrorBody

GRACE = 5.0  # seconds beyond its deadline in which a request must have ended
_AGAIN = 0.1  # seconds until a caller whose connection broke asks again


@dataclass(frozen=True)
class Question:
    """A request and its answer by a deployment that nobody disturbs."""

    prompt: tuple[int, ...]
    width: int
    answer: Answer

    def body(self, timeout_ms: int, rid: str | None = None) -> bytes:
        return body(self.prompt, self.width, timeout_ms, rid)


class Outcome(StrEnum):
    """`correct`: identical to the undisturbed answer. `refused`: a typed error. `left`: by the caller."""

    CORRECT = "correct"
    REFUSED = "refused"
    LEFT = "left"
    WRONG = "wrong"
    LOST = "lost"


@dataclass(frozen=True)
class Record:
    """One request. `detail` is the code of a refusal, or what is wrong."""

    asked: float
    ended: float
    outcome: Outcome
    detail: str = ""


@dataclass
class Tally:
    """What became of all requests."""

    records: list[Record] = field(default_factory=list)

    @property
    def counts(self) -> Counter[Outcome]:
        return Counter(record.outcome for record in self.records)

    @property
    def complete_counts(self) -> dict[Outcome, int]:
        """With those that did not occur."""
        return {outcome: self.counts[outcome] for outcome in Outcome}

    @property
    def refusals(self) -> Counter[str]:
        return Counter(r.detail for r in self.records if r.outcome is Outcome.REFUSED)

    @property
    def bad(self) -> list[str]:
        return [
            f"{r.outcome}: {r.detail}" for r in self.records if r.outcome in (Outcome.WRONG, Outcome.LOST)
        ]

    def answered_after(self, moment: float) -> float | None:
        """Seconds from `moment` to the first correct answer to a request that came later."""
        return min((r.ended - moment for r in self.correct if r.asked >= moment), default=None)

    @property
    def correct(self) -> list[Record]:
        return [record for record in self.records if record.outcome is Outcome.CORRECT]


def body(prompt: Sequence[int], width: int, timeout_ms: int, rid: str | None = None) -> bytes:
    fields = {"rid": rid} if rid else {}
    query = {"input_ids": list(prompt), "beam_width": width, "n": min(10, width), "timeout_ms": timeout_ms}
    return encode({**query, **fields})  # type: ignore[typeddict-item]


def make_prompts(vocabulary: int, count: int, longest: int, seed: int) -> list[tuple[int, ...]]:
    """Prompts of many lengths; some begin as others do."""
    draw = random.Random(seed)
    prompts: list[tuple[int, ...]] = []
    for number in range(count):
        length = draw.randint(longest // 8, longest)
        start = prompts[draw.randrange(number)][: length // 2] if number % 4 == 3 else ()
        rest = tuple(draw.randrange(1, vocabulary) for _ in range(length - len(start)))
        prompts.append(start + rest)
    return prompts


def undisturbed(client: XgrClient, prompts: Sequence[Sequence[int]], widths: Sequence[int]) -> list[Question]:
    """The questions, with the answers of a deployment that has nothing else to do."""
    questions = []
    for number, prompt in enumerate(prompts):
        width = widths[number % len(widths)]
        answer = client.generate(input_ids=prompt, beam_width=width, n=min(10, width), timeout_ms=60_000)
        questions.append(Question(tuple(prompt), width, answer))
    return questions


def judge(response: httpx.Response, answer: Answer) -> tuple[Outcome, str]:
    """What a response is worth; an error counts as a refusal if a caller can tell what to do."""
    if response.status_code == 200:
        try:
            found = msgspec.json.decode(response.content, type=Answer)
        except msgspec.MsgspecError as error:
            return Outcome.WRONG, f"HTTP 200 with another body: {error}"
        problem = difference(ranked(found), ranked(answer), TIE)
        return (Outcome.WRONG, problem) if problem else (Outcome.CORRECT, "")
    try:
        code = msgspec.json.decode(response.content, type=ErrorBody).error.code
    except msgspec.MsgspecError:
        return Outcome.WRONG, f"HTTP {response.status_code} without our error body"
    typed = code in BY_CODE and BY_CODE[code].status == response.status_code and code != InternalError.code
    if not typed or (response.status_code == 503 and "retry-after" not in response.headers):
        return Outcome.WRONG, f"HTTP {response.status_code} {code} {dict(response.headers)}"
    return Outcome.REFUSED, code


class Crowd(AbstractContextManager["Crowd"]):
    """Asks from a thread of its own between `with` and `stop`; the seed decides who asks what.

    `callers` ask one question after the other; with a `rate` (1/s) questions come at random instead, whatever
    the answers do. `each`: every question once, and no more. A share `leaving` of the requests is given up by
    its caller before long: half of them hang up, half ask for an abort. `reconnect`: a connection that breaks
    is no answer, the caller asks again until its deadline.
    """

    def __init__(
        self,
        url: str,
        questions: Sequence[Question],
        seed: int,
        callers: int = 6,
        rate: float = 0.0,
        each: bool = False,
        leaving: float = 0.0,
        reconnect: bool = False,
        timeout_ms: int = 20_000,
    ) -> None:
        self.tally = Tally()
        self._url = url
        self._questions = questions
        self._seed = seed
        self._callers = callers
        self._rate = rate
        self._left_to_ask = list(questions) if each else None
        self._leaving = leaving
        self._reconnect = reconnect
        self._timeout_ms = timeout_ms
        self._stopping = threading.Event()
        self._names = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> Tally:
        """Ask nothing more and wait for what was asked; a request that never ends is an error."""
        self._stopping.set()
        self._thread.join(self._timeout_ms / 1000 + 2 * GRACE)
        assert not self._thread.is_alive(), "a request hangs"
        return self.tally

    def wait(self) -> Tally:
        """Until every question of `each` was asked."""
        self._thread.join(self._timeout_ms / 1000 * 10)
        return self.stop()

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        timeout = self._timeout_ms / 1000 + GRACE
        async with httpx.AsyncClient(base_url=self._url, limits=limits, timeout=timeout) as client:
            if self._rate:
                await self._arrivals(client)
            else:
                await asyncio.gather(*(self._caller(client, i) for i in range(self._callers)))

    async def _arrivals(self, client: httpx.AsyncClient) -> None:
        draw = random.Random(self._seed)
        asked = []
        due = time.monotonic()
        while not self._stopping.is_set():
            asked.append(asyncio.create_task(self._ask(client, draw.choice(self._questions), draw)))
            due += draw.expovariate(self._rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*asked)

    async def _caller(self, client: httpx.AsyncClient, number: int) -> None:
        draw = random.Random(f"{self._seed} {number}")
        while not self._stopping.is_set():
            if self._left_to_ask is not None:
                if not self._left_to_ask:
                    return
                await self._ask(client, self._left_to_ask.pop(), draw)
            else:
                await self._ask(client, draw.choice(self._questions), draw)

    async def _ask(self, client: httpx.AsyncClient, question: Question, draw: random.Random) -> None:
        asked = time.monotonic()
        leaves = draw.random() < self._leaving
        patience, hangs_up = draw.uniform(0.0, 0.15), draw.random() < 0.5
        try:
            if leaves and hangs_up:
                async with asyncio.timeout(patience):
                    outcome, detail = await self._post(client, question, asked)
            elif leaves:
                outcome, detail = await self._abort(client, question, asked, patience)
            else:
                outcome, detail = await self._post(client, question, asked)
        except TimeoutError:
            outcome, detail = Outcome.LEFT, ""
        self.tally.records.append(Record(asked, time.monotonic(), outcome, detail))

    async def _post(
        self, client: httpx.AsyncClient, question: Question, asked: float, rid: str | None = None
    ) -> tuple[Outcome, str]:
        content = question.body(self._timeout_ms, rid)
        while True:
            try:
                response = await client.post("/generate", content=content, headers=_JSON)
            except httpx.TransportError as error:
                late = time.monotonic() - asked > self._timeout_ms / 1000
                if late or not self._reconnect:
                    return Outcome.LOST, f"{type(error).__name__} after {time.monotonic() - asked:.1f} s"
                await asyncio.sleep(_AGAIN)
                continue
            return judge(response, question.answer)

    async def _abort(
        self, client: httpx.AsyncClient, question: Question, asked: float, patience: float
    ) -> tuple[Outcome, str]:
        """Ask, and ask for the abort while it runs: the answer is one of both."""
        self._names += 1
        rid = f"unwanted-{self._seed}-{self._names}"
        answer = asyncio.create_task(self._post(client, question, asked, rid))
        await asyncio.sleep(patience)
        with suppress(httpx.TransportError):
            await client.post("/abort_request", content=msgspec.json.encode({"rid": rid}), headers=_JSON)
        outcome, detail = await answer
        return (Outcome.LEFT, "") if detail == Cancelled.code else (outcome, detail)


_JSON = {"content-type": "application/json"}
