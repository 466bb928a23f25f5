"""One run: points measured one after the other against one deployment, from one stream of requests."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from xgr_runtime.cli.bench.arrivals import arrivals
from xgr_runtime.cli.bench.load import Recorder, closed_loop, open_loop
from xgr_runtime.cli.bench.measures import Point, summarise
from xgr_runtime.cli.bench.search import RateSearch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from xgr_runtime.cli.bench.judge import Judge
    from xgr_runtime.cli.bench.settings import LoadSettings, SearchSettings
    from xgr_runtime.cli.bench.traffic import Call

FIRST = 4  # requests at a time before the first point


class LoadTarget(Protocol):
    """What is measured: `Target`, or a stand-in."""

    async def send(self, call: Call) -> tuple[str, bytes]: ...

    async def drain(self) -> None: ...


@dataclass
class Run:
    """`points` and `problems` (by code, what the first such answer said) hold whatever is there so far."""

    target: LoadTarget
    judge: Judge
    calls: Iterator[Call]
    load: LoadSettings
    seen: Callable[[Point], None] = lambda point: None  # called after every point
    points: list[Point] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)

    async def prime(self, known: int) -> None:
        """Requests that count in no figure: by `known` users one after the other, then a few at a time.

        What a deployment does once, when it is first asked so, would be taken for what the first rate does.
        """
        for call in itertools.islice(self.calls, known):
            await self.target.send(call)
        for _ in range(2):
            await asyncio.gather(*(self.target.send(call) for call in itertools.islice(self.calls, FIRST)))

    async def open(self, rate: float) -> Point:
        """An open loop at `rate` requests per second."""
        load = self.load
        due = arrivals(rate, load.warm_up + load.duration, [load.seed, len(self.points)], load.burstiness)
        calls = list(itertools.islice(self.calls, len(due)))
        return await self._measure(lambda recorder: open_loop(recorder, calls, due.tolist()), rate=rate)

    async def closed(self, in_flight: int) -> Point:
        """A closed loop of `in_flight` callers."""
        seconds = self.load.warm_up + self.load.duration
        return await self._measure(
            lambda recorder: closed_loop(recorder, self.calls, in_flight, seconds), in_flight=in_flight
        )

    async def highest_rate(self, settings: SearchSettings) -> float | None:
        """The highest rate at which the promise was kept; None if at none."""
        search = RateSearch(settings)
        while (rate := search.next_rate()) is not None:
            search.note(rate, (await self.open(rate)).keeps(self.load))
        return search.best

    async def _measure(
        self,
        drive: Callable[[Recorder], Coroutine[None, None, None]],
        rate: float | None = None,
        in_flight: int | None = None,
    ) -> Point:
        used = time.process_time()
        recorder = Recorder(self.target.send, self.judge)
        stopped: float | None = None
        try:
            await drive(recorder)
        except asyncio.CancelledError:
            stopped = recorder.now
            raise
        finally:
            used = time.process_time() - used
            recorder.settle()
            point = summarise(recorder.samples, self.load, rate, in_flight, used, stopped)
            self.problems = recorder.problems | self.problems
            self.points.append(point)
            self.seen(point)
        await self.target.drain()
        return point
