"""Sends requests: when they are due (open loop), or a fixed number at a time (closed loop).

Answers are kept and looked at after the point, so that the client stays out of the way while it measures.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xgr_runtime.cli.bench.measures import ANSWERED, Sample
from xgr_runtime.cli.bench.target import said

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from xgr_runtime.cli.bench.judge import Judge
    from xgr_runtime.cli.bench.traffic import Call

    Send = Callable[[Call], Awaitable[tuple[str, bytes]]]

HELD_BYTES = 256 << 20  # answers kept for later; beyond, they are looked at as they come


@dataclass
class Recorder:
    """What came back so far in one point; `started` is its time zero on the monotonic clock."""

    send: Send
    judge: Judge
    started: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)  # by code, what the first such answer said
    _held: list[tuple[Sample, Call, bytes]] = field(default_factory=list)
    _bytes: int = 0

    @property
    def now(self) -> float:
        """Seconds since the beginning of the point."""
        return time.monotonic() - self.started

    async def ask(self, call: Call, scheduled: float) -> None:
        """One request, recorded when it is over."""
        sent = self.now
        code, body = await self.send(call)
        sample = Sample(scheduled, sent, self.now, code)
        if code != ANSWERED:
            self.samples.append(sample)
            self.problems.setdefault(code, said(body) if body else "")
            return
        self._held.append((sample, call, body))
        self._bytes += len(body)
        if self._bytes > HELD_BYTES:
            self.settle()

    def settle(self) -> None:
        """Look at the answers that were put aside."""
        for sample, call, body in self._held:
            verdict = self.judge.judge(call, body)
            code = sample.code if verdict.readable else "unreadable"
            self.samples.append(Sample(sample.scheduled, sample.sent, sample.done, code, verdict))
        self._held.clear()
        self._bytes = 0


async def open_loop(recorder: Recorder, calls: Sequence[Call], due: Sequence[float]) -> None:
    """Each call when it is due (seconds, ascending), whatever becomes of the others; ends when all have."""
    asked: list[asyncio.Task[None]] = []
    try:
        for call, at in zip(calls, due, strict=True):
            if (wait := at - recorder.now) > 0:
                await asyncio.sleep(wait)
            asked.append(asyncio.create_task(recorder.ask(call, at)))
        await asyncio.gather(*asked)
    finally:
        for task in asked:
            task.cancel()


async def closed_loop(recorder: Recorder, calls: Iterator[Call], in_flight: int, seconds: float) -> None:
    """`in_flight` callers that each send again when they are answered, for so many seconds."""

    async def caller() -> None:
        while (now := recorder.now) < seconds:
            await recorder.ask(next(calls), now)

    async with asyncio.TaskGroup() as callers:
        for _ in range(in_flight):
            callers.create_task(caller())
