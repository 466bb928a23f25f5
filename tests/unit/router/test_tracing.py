"""Who answers a question for a trace, who does not, and who cannot."""

import asyncio
from typing import Any

from router.workers.tracing import Tracer
from router.workers.worker import Worker
from xgr_runtime.wire.messages import Message, Span, Spans, TraceAsk


class AskedWorker(Worker):
    """Notes what it is asked."""

    traceable = True  # type: ignore[assignment]

    def __init__(self, address: str, problem: str = "", reachable: bool = True) -> None:
        super().__init__(address, "decode", lambda *_: None, lambda *_: None)
        self.trouble, self.reachable = problem, reachable
        self.asked: list[Any] = []

    def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def flush_cache(self) -> int:
        return 0

    async def refresh(self) -> None: ...

    def send(self, message: Message) -> bool:
        self.asked.append(message)
        return self.reachable

    @property
    def problem(self) -> str:
        return self.trouble


class SilentServer(AskedWorker):
    traceable = False  # type: ignore[assignment]


def spans_of(worker: AskedWorker, name: str) -> Spans:
    return Spans(worker.asked[-1].number, name, 0.0, [Span("t", "n", 1.0, 2.0)])


def test_all_that_answer_are_in_the_trace() -> None:
    async def scene() -> None:
        tracer, workers = Tracer(), [AskedWorker("a"), AskedWorker("b")]
        tracer.timeline.add("request", "own", 0.0)
        asking = asyncio.create_task(tracer.gather(workers, 10.0))
        await asyncio.sleep(0)
        assert [worker.asked for worker in workers] == [[TraceAsk(1, 10.0)]] * 2
        for worker in workers:
            tracer.heard(worker, spans_of(worker, worker.address))
        traced = await asyncio.wait_for(asking, 1.0)
        assert [p.name for p in traced.processes] == ["router", "a", "b"] and not traced.missing
        assert [span.name for span in traced.processes[0].spans] == ["own"]

    asyncio.run(scene())


def test_who_cannot_or_does_not_answer_is_named_and_nobody_waits_for_long() -> None:
    async def scene() -> None:
        tracer = Tracer(patience=0.02)
        silent, well = AskedWorker("silent"), AskedWorker("well")
        others = [
            AskedWorker("gone", problem="it is gone"),
            SilentServer("sglang"),
            AskedWorker("deaf", "", False),
        ]
        asking = asyncio.create_task(tracer.gather([silent, *others, well], 10.0))
        await asyncio.sleep(0)
        tracer.heard(well, spans_of(well, "well"))
        traced = await asyncio.wait_for(asking, 5.0)
        assert [p.name for p in traced.processes] == ["router", "well"]
        assert traced.missing == {
            "silent": "no answer within 0.02 s",
            "gone": "it is gone",
            "sglang": "an SGLang server keeps no timeline",
            "deaf": "it could not be reached",
        }
        assert not others[0].asked and not others[1].asked
        tracer.heard(silent, spans_of(silent, "late"))  # changes nothing

    asyncio.run(scene())


def test_two_questions_at_a_time_get_their_own_answers() -> None:
    async def scene() -> None:
        tracer, worker = Tracer(), AskedWorker("a")
        asking = [asyncio.create_task(tracer.gather([worker], seconds)) for seconds in (1.0, 2.0)]
        await asyncio.sleep(0)
        for ask in reversed(worker.asked):
            tracer.heard(worker, Spans(ask.number, f"asked for {ask.seconds}", 0.0, []))
        traced = await asyncio.gather(*asking)
        assert [t.processes[1].name for t in traced] == ["asked for 1.0", "asked for 2.0"]

    asyncio.run(scene())
