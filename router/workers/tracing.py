"""Asks every worker what it did lately, and waits for the answers, but not for ever."""

import asyncio
import time
from collections.abc import Iterable
from itertools import count

from router.job import Traced
from router.workers.worker import Worker
from xgr_runtime.trace.chrome import ProcessSpans
from xgr_runtime.trace.timeline import Timeline
from xgr_runtime.wire.messages import Spans, TraceAsk

PATIENCE = 3.0
"""Seconds that workers have to answer. They do so between the layers of a forward, or between two steps."""


class Tracer:
    """The questions under way, and the router's own timeline."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.timeline = Timeline()
        self._patience = patience
        self._numbers = count(1)
        self._asked: dict[tuple[int, Worker], asyncio.Future[Spans]] = {}

    async def gather(self, workers: Iterable[Worker], seconds: float) -> Traced:
        """What this router and all `workers` did in the last `seconds`, and who did not say."""
        number, now = next(self._numbers), time.monotonic()
        asked = {worker: self._ask(worker, number, seconds) for worker in workers}
        own = self.timeline.answer(TraceAsk(number, seconds), "router", now)
        processes = [ProcessSpans("router", own.worker, own.spans, own.whole_since)]
        missing: dict[str, str] = {}
        waiting = [answer for answer in asked.values() if not isinstance(answer, str)]
        try:
            if waiting:
                await asyncio.wait(waiting, timeout=self._patience)
        finally:
            for worker in asked:
                self._asked.pop((number, worker), None)
        for worker, answer in asked.items():
            if isinstance(answer, str):
                missing[worker.address] = answer
            elif not answer.done():
                answer.cancel()
                missing[worker.address] = f"no answer within {self._patience:g} s"
            else:
                spans = answer.result()
                processes.append(ProcessSpans(worker.role, spans.worker, spans.spans, spans.whole_since))
        return Traced(processes, missing, now - seconds)

    def heard(self, worker: Worker, spans: Spans) -> None:
        """An answer; one that comes too late changes nothing."""
        answer = self._asked.get((spans.number, worker))
        if answer is not None and not answer.done():
            answer.set_result(spans)

    def _ask(self, worker: Worker, number: int, seconds: float) -> "asyncio.Future[Spans] | str":
        """The answer to come, or why none will."""
        if worker.problem:
            return worker.problem
        if not worker.traceable:
            return "an SGLang server keeps no timeline"
        if not worker.send(TraceAsk(number, seconds)):
            return "it could not be reached"
        answer: asyncio.Future[Spans] = asyncio.get_running_loop().create_future()
        self._asked[number, worker] = answer
        return answer
