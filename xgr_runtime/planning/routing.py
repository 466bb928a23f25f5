"""The router of a simulation: admission, pairing and guesses of reuse are those of the real one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from router.admission.admission import Admission, Ask, Promise
from router.admission.pairing import Candidate
from router.admission.reuse import ReuseIndex
from xgr_runtime.errors import RequestError
from xgr_runtime.planning.clock import OneAtATime, SharedCores, SimulatedClock
from xgr_runtime.planning.traffic import PlannedRequest, PlannedTraffic
from xgr_runtime.planning.workers import Marks, PlayedDecode, PlayedPrefill, SimulatedTask
from xgr_runtime.wire.messages import AttemptId, ModelIdentity, StepCost

_MODEL = ModelIdentity("planned", "bfloat16", 1, 1, 1, 1, 1, 1)
_CATALOG = "planned"

Outcome = Callable[[int, Marks | None], None]
"""Called with a request's number, and with None where it got no answer."""


@dataclass(eq=False)
class WorkerSeat:
    """A worker as the router sees it. `pair`: the number of the device whose workers take turns."""

    name: str
    number: int
    turns: str = ""
    memory: int = 0
    load: int = 0


@dataclass(eq=False)
class PlayedRouter:
    """Sends each request to the pair that admission chooses. `seconds`: of its one core, for each."""

    clock: SimulatedClock
    cores: SharedCores
    traffic: PlannedTraffic
    seconds: float
    max_live: int
    over: Outcome
    prefill: list[tuple[WorkerSeat, PlayedPrefill]] = field(default_factory=list)
    decode: list[tuple[WorkerSeat, PlayedDecode]] = field(default_factory=list)
    live: int = 0
    _admission: Admission = field(default_factory=Admission)
    _reuse: ReuseIndex = field(default_factory=ReuseIndex)

    def __post_init__(self) -> None:
        self.process = OneAtATime(self.cores)

    def take(self, number: int, request: PlannedRequest) -> None:
        """A request comes. Half of the work is before it is sent on, half after its answer."""
        arrived = self.clock.now
        self.process.do(self.seconds / 2, lambda: self._begin(number, request, arrived))

    def _begin(self, number: int, request: PlannedRequest, arrived: float) -> None:
        traffic, now = self.traffic, self.clock.now
        deadline = arrived + traffic.timeout_ms / 1e3
        beams = traffic.beams(request.width)
        ask = Ask(len(request.tokens), beams, deadline)
        if self.live >= self.max_live:
            self.over(number, None)
            return
        prefill = [self._candidate(seat, it.kind.speed.prefill_cost, request) for seat, it in self.prefill]
        decode = [self._candidate(seat, it.kind.speed.decode_cost, request) for seat, it in self.decode]
        try:
            promise = self._admission.admit(ask, prefill, decode, _CATALOG, now)
        except RequestError:
            self.over(number, None)
            return
        self.live += 1
        self._send(number, request, ask, promise, arrived)

    def _send(self, number: int, request: PlannedRequest, ask: Ask, promise: Promise, arrived: float) -> None:
        p_seat, prefill = self.prefill[promise.pair.prefill.incarnation - 1]
        d_seat, decode = self.decode[promise.pair.decode.incarnation - 1 - len(self.prefill)]
        p_seat.load += len(request.tokens)
        d_seat.load += request.width

        def committed(task: SimulatedTask) -> None:
            p_seat.load -= len(request.tokens)
            self._admission.committed(promise, self.clock.now)
            for seat in (p_seat, d_seat):
                self._reuse.note(seat.number, request.tokens)

        def ended(task: SimulatedTask, answered: bool) -> None:
            self.live -= 1
            d_seat.load -= request.width
            if not task.here:
                p_seat.load -= len(request.tokens)
            self._admission.end(promise, self.clock.now, answered, not answered)
            marks = task.marks if answered else None
            self.process.do(self.seconds / 2, lambda: self.over(number, marks))

        task = SimulatedTask(
            id=AttemptId(1, number, 1, p_seat.number, d_seat.number),
            tokens=request.tokens,
            beams=[*ask.beams],
            most_beams=min(request.width, self.traffic.items),
            deadline=ask.deadline,
            arrived=arrived,
            sent=self.clock.now,
            after=promise.after,
            ended=ended,
            committed=committed,
        )
        decode.expect(task, prefill)
        prefill.accept(task, decode)

    def _candidate(self, seat: WorkerSeat, cost: StepCost, request: PlannedRequest) -> Candidate:
        return Candidate(
            seat.name,
            seat.number,
            _MODEL,
            seat.load,
            (_CATALOG,),
            cost,
            self._reuse.expected(seat.number, request.tokens),
            seat.turns,
            seat.memory,
        )
