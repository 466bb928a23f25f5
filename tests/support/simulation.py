"""A deployment without sockets, tensors or time: the real decisions, driven by made-up costs.

Requests arrive, `Admission` chooses a pair or refuses, `PrefillScheduler` forms forwards, `DecodeScheduler`
and `share_step` form steps, and cost models learn from how long those took. Launches cost what `Truth` says,
with noise. `FirstComeFirstServed` puts the plain policy in the place of all of it.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from decode_worker.phases import TaskPhase
from decode_worker.scheduler import DecodeScheduler, share_step
from prefill_worker.scheduler import PrefillScheduler, Prompt, Turn
from router.admission.admission import Admission, Ask, Promise
from router.admission.pairing import Candidate
from xgr_runtime.errors import DeadlineExceeded, Overloaded
from xgr_runtime.kv.pages import PagePool
from xgr_runtime.kv.prompt_cache import PromptCache, Tokens
from xgr_runtime.scheduling.cost_model import (
    CostModel,
    Tried,
    Work,
    alone,
    prompt_work,
    search_work,
    together,
)
from xgr_runtime.wire.messages import AttemptId, ModelIdentity, StepCost

MODEL = ModelIdentity("hash", "float32", 4, 2, 32, 192, 1027, 1)
PAGE = 16
HEARTBEAT = 0.5  # seconds between announcements of costs
DEPTH = 4
FAR = 1e6  # seconds
FORWARD = StepCost(fixed=2e-3, per_token=4e-5, per_pair=4e-9)
STEP = StepCost(fixed=2e-3, per_token=3e-5, per_pair=1.5e-8)


@dataclass(frozen=True)
class Truth:
    """What launches really cost, and how far a single one strays (sigma of its logarithm)."""

    prefill: StepCost = FORWARD
    decode: StepCost = STEP
    noise: float = 0.1
    overhead: float = 1e-3  # seconds of wire and HTTP, which no model knows
    slow: tuple[float, float] = (0.0, 0.0)  # from when to when another tenant takes most of the machine

    def factor(self, now: float) -> float:
        """How many times longer than usual a launch takes that begins now."""
        return 5.0 if self.slow[0] <= now < self.slow[1] else 1.0


@dataclass(eq=False)
class Request:
    """One request, and what became of it."""

    number: int
    arrived: float
    tokens: Tokens
    width: int
    deadline: float
    priority: int = 0
    due: float = 0.0  # what schedulers take for its deadline
    outcome: str = ""  # answered, refused, gave up
    ended: float = math.inf
    promise: Promise | None = None
    level: int = 0

    def __post_init__(self) -> None:
        self.due = self.deadline

    def moved(self, number: int, later: float) -> None:
        """Give it another number, and let it arrive `later`."""
        self.number, self.tokens = number, np.full(len(self.tokens), number, np.int32)
        self.arrived += later
        self.deadline += later
        self.due = self.deadline

    @property
    def beams(self) -> list[int]:
        """That each level starts from: the first codebook has 256 tokens."""
        return [1, min(self.width, 256), *[self.width] * (DEPTH - 2)]

    @property
    def work(self) -> Work:
        return search_work(len(self.tokens), self.beams)

    @property
    def accepted(self) -> bool:
        return self.outcome != "refused"

    @property
    def good(self) -> bool:
        return self.outcome == "answered" and self.ended <= self.deadline

    # --- what the decode scheduler asks of a task, and a step of a search ---

    def let_go(self) -> None:
        pass

    @property
    def id(self) -> AttemptId:
        return AttemptId(1, self.number, 1, 2, 3)

    @property
    def phase(self) -> TaskPhase:
        return TaskPhase.SEARCH  # no launch outlives its step

    @property
    def most_beams(self) -> int:
        return self.width

    @property
    def work_left(self) -> Work:
        left = self.beams[self.level :]
        pairs = (sum(left) - (self.level == 0)) * len(self.tokens)
        return Work(len(left), sum(left), pairs)

    @property
    def next_work(self) -> Work:
        rows = self.beams[self.level]
        return Work(1, rows, rows * len(self.tokens) if self.level else 0)


@dataclass(frozen=True)
class Traffic:
    """Poisson arrivals of mixed requests. Deadlines are drawn from `deadlines`, in seconds."""

    rate: float
    seconds: float
    deadlines: Sequence[float] = (0.3, 0.6, 1.2)
    widths: Sequence[int] = (32, 64, 128, 256)
    prompts: Sequence[int] = (100, 300, 500, 1500)
    priorities: Sequence[int] = (0,)
    seed: int = 1

    def at(self, rate: float, seconds: float, seed: int) -> list[Request]:
        """The same kind of traffic, at another rate."""
        return replace(self, rate=rate, seconds=seconds, seed=seed).requests()

    def requests(self) -> list[Request]:
        draw = random.Random(self.seed)
        requests: list[Request] = []
        now = draw.expovariate(self.rate)
        while now < self.seconds:
            tokens = np.full(draw.choice(self.prompts), len(requests), np.int32)  # no two begin alike
            wanted = (draw.choice(self.widths), now + draw.choice(self.deadlines))
            requests.append(Request(len(requests), now, tokens, *wanted, draw.choice(self.priorities)))
            now += draw.expovariate(self.rate)
        return requests


def mixed_after(first: list[Request], second: list[Request], seconds: float) -> list[Request]:
    """Both, the second of them `seconds` later."""
    for number, request in enumerate(second, len(first)):
        request.moved(number, seconds)
    return [*first, *second]


class Clock:
    """Events in order of time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), event))

    def run(self) -> None:
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()


@dataclass(eq=False)
class Machine:
    """A worker that runs one launch at a time."""

    clock: Clock
    truth: Truth
    cost: StepCost  # of the truth
    draw: random.Random
    costs: CostModel
    busy: bool = False
    busy_seconds: float = 0.0

    def launch(self, work: Work, then: Callable[[], None]) -> None:
        """Do the work, learn what it cost, and go on."""
        assert not self.busy and work.tokens > 0
        self.busy = True
        noise = self.draw.lognormvariate(0.0, self.truth.noise)
        seconds = alone(self.cost, work) * noise * self.truth.factor(self.clock.now)
        self.busy_seconds += seconds

        def done() -> None:
            self.busy = False
            self.costs.observe(work, seconds)
            then()

        self.clock.at(self.clock.now + seconds, done)


@dataclass(eq=False)
class PrefillSide:
    """What the prefill worker does between its launches."""

    machine: Machine
    scheduler: PrefillScheduler
    begun: Callable[[Prompt], None]  # it has pages
    ready: Callable[[Prompt], None]  # its KV is whole
    gave_up: Callable[[Prompt], None]
    leaving: list[Prompt] = field(default_factory=list)  # wanted no more; a launch may still write their KV

    def turn(self) -> None:
        clock, scheduler = self.machine.clock, self.scheduler
        if self.machine.busy:
            return
        self.free()
        for prompt in [*scheduler.drop_late(clock.now), *scheduler.late(clock.now)]:
            self.gave_up(prompt)
        self.free()
        if (hold := scheduler.hold(clock.now)) > 0:
            clock.at(clock.now + hold, self.turn)
        if not scheduler.runnable(clock.now):
            return
        turns = scheduler.next_turns(clock.now)
        for turn in turns:
            self.begun(turn.prompt)
            scheduler.launched(turn)
        if turns:
            works = together(prompt_work(turn.start, turn.end) for turn in turns)
            self.machine.launch(works, lambda: self.done(turns))

    def free(self) -> None:
        while self.leaving:
            self.scheduler.end(self.leaving.pop())

    def done(self, turns: list[Turn]) -> None:
        for turn in turns:
            if turn.last:
                self.ready(turn.prompt)
        self.turn()


@dataclass(eq=False)
class DecodeSide:
    """What the decode worker does between its launches."""

    machine: Machine
    scheduler: DecodeScheduler[Request]
    over: Callable[[Request, str], None]
    tasks: dict[int, Request] = field(default_factory=dict)
    running: list[Request] = field(default_factory=list)
    computed: set[int] = field(default_factory=set)  # prompts whose KV could be taken in
    granted: set[int] = field(default_factory=set)

    def turn(self) -> None:
        clock, scheduler = self.machine.clock, self.scheduler
        if self.machine.busy:
            return
        scheduler.cost = self.machine.costs.cost
        others = len(self.tasks) > 1
        for task in [t for t in self.tasks.values() if scheduler.hopeless(t, clock.now, others)]:
            self.over(task, "gave up")
        for task, _ in scheduler.next_grants(clock.now):
            self.granted.add(task.number)
        for number in self.granted & self.computed:
            self.granted.discard(number)
            scheduler.ready.add(self.tasks[number])
        self.running += [task for task, _ in scheduler.next_starts(clock.now)]
        urgent = sorted(self.running, key=lambda task: (-task.priority, task.due))
        if step := share_step(urgent, scheduler.cost):
            self.machine.launch(together(task.next_work for task in step), lambda: self.done(step))

    def done(self, step: list[Request]) -> None:
        for task in step:
            task.level += 1
            if task.number in self.tasks and task.level == DEPTH:
                self.over(task, "answered")
        self.turn()

    def end(self, request: Request) -> None:
        """Whatever it holds is free."""
        if self.tasks.pop(request.number, None) is not None:
            self.running = [task for task in self.running if task is not request]
            self.granted.discard(request.number)
            self.scheduler.end(request)


class NeverKnows(CostModel):
    """Learns nothing."""

    def observe(self, work: Work, seconds: float) -> None:
        pass


class Deployment:
    """One router, one prefill worker, one decode worker, with our policy."""

    costs = CostModel

    def __init__(self, truth: Truth, seed: int = 5, pages: int = 4000, rows: int = 2048) -> None:
        self.truth = truth
        self.clock = Clock()
        draw = random.Random(seed)
        self.prefill_machine = Machine(self.clock, truth, truth.prefill, draw, self.costs())
        self.decode_machine = Machine(self.clock, truth, truth.decode, draw, self.costs())
        self.requests: list[Request] = []
        self.prompts: dict[int, Prompt] = {}
        self.admission = Admission()
        self.announced: tuple[StepCost | None, StepCost | None] = (None, None)
        self.announced_at = -math.inf
        self.prefill = PrefillSide(
            self.prefill_machine,
            PrefillScheduler(
                PromptCache(PagePool(pages), PAGE), 4096, None, self.prefill_machine.costs, window=0.002
            ),
            self.opened,
            self.computed,
            lambda prompt: self.over(self.requests[prompt.id.request], "gave up"),
        )
        searches: DecodeScheduler[Request] = DecodeScheduler(
            PromptCache(PagePool(pages), PAGE), PagePool(rows)
        )
        self.decode = DecodeSide(self.decode_machine, searches, self.over)

    def try_launches(self, speed: float = 1.0) -> None:
        """What workers do before they are ready: launches of a few sizes, each `speed` times as long."""
        for machine, works in (
            (self.prefill_machine, [prompt_work(0, tokens) for tokens in (32, 256, 1024, 2048)]),
            (self.decode_machine, [Work(1, 1, 0), Work(1, 64, 64 * 256), Work(1, 256, 256 * 1024)]),
        ):
            stray = [speed * machine.draw.lognormvariate(0.0, self.truth.noise) for _ in works]
            machine.costs.seed(
                [Tried(work, alone(machine.cost, work) * by) for work, by in zip(works, stray, strict=True)]
            )

    def run(self, requests: list[Request]) -> list[Request]:
        """All of them, until nothing is left to do."""
        self.requests = requests
        for request in requests:
            self.clock.at(request.arrived, lambda request=request: self.arrive(request))  # type: ignore[misc]
            self.clock.at(request.deadline, lambda request=request: self.time_out(request))  # type: ignore[misc]
        self.clock.run()
        return requests

    def held(self) -> bool:
        """Whether anything is held by anybody."""
        used = self.prefill.scheduler._cache.used + self.decode.scheduler.cache.used
        return bool(used + self.decode.scheduler.rows.used or self.admission.backlogs or self.decode.tasks)

    def time_out(self, request: Request) -> None:
        """The router answers 504 at the deadline, whatever the workers think."""
        if not request.outcome:
            self.over(request, "gave up")

    def arrive(self, request: Request) -> None:
        try:
            request.promise = self.admit(request)
        except (DeadlineExceeded, Overloaded):
            request.outcome, request.ended = "refused", self.clock.now
            return
        self.clock.at(self.clock.now + self.truth.overhead, lambda: self.send(request))

    def admit(self, request: Request) -> Promise | None:
        now = self.clock.now
        if now - self.announced_at >= HEARTBEAT:
            self.announced_at = now
            self.announced = self.prefill_machine.costs.cost, self.decode_machine.costs.cost
        p = Candidate("p", 2, MODEL, 0, (), self.announced[0])
        d = Candidate("d", 3, MODEL, 0, ("v",), self.announced[1])
        ask = Ask(len(request.tokens), request.beams, request.deadline, request.priority)
        return self.admission.admit(ask, [p], [d], "v", now)

    def send(self, request: Request) -> None:
        if request.outcome:
            return  # it timed out on the way
        after = request.promise.after if request.promise else 0.0
        prompt = Prompt(request.id, request.tokens, "", self.clock.now, request.due, request.priority, after)
        self.prompts[request.number] = prompt
        self.decode.tasks[request.number] = request
        self.prefill.scheduler.add(prompt)
        self.prefill.turn()

    def opened(self, prompt: Prompt) -> None:
        request = self.requests[prompt.id.request]
        if request.number in self.decode.tasks and prompt.computed == 0:
            self.decode.scheduler.waiting.add(request)
            self.decode.turn()

    def computed(self, prompt: Prompt) -> None:
        """Its KV leaves while it is computed: it is there once both sides are through with it."""
        request = self.requests[prompt.id.request]
        if request.number not in self.decode.tasks:
            return
        self.decode.computed.add(request.number)
        self.decode.turn()
        self.prefill.leaving.append(prompt)
        if request.promise:
            self.admission.committed(request.promise, self.clock.now)

    def over(self, request: Request, outcome: str) -> None:
        """Its one end."""
        assert not request.outcome, "it ended before"
        request.outcome, request.ended = outcome, self.clock.now
        self.decode.end(request)
        if (prompt := self.prompts.get(request.number)) is not None:
            self.prefill.scheduler.drop(prompt.id)
            self.prefill.leaving.append(prompt)
        self.clock.at(self.clock.now, self.prefill.turn)
        self.clock.at(self.clock.now, self.decode.turn)
        if request.promise:
            self.admission.end(
                request.promise, self.clock.now, outcome == "answered", self.clock.now >= request.deadline
            )


class FirstComeFirstServed(Deployment):
    """The plain policy: in order of arrival, full forwards, everybody in every step, an end at the deadline.

    Schedulers that take the arrival for the deadline serve in order of arrival; without a cost they fill
    launches and give nobody up early.
    """

    costs = NeverKnows

    def admit(self, request: Request) -> Promise | None:
        request.due = request.arrived + FAR
        return None


# --- what came of it -------------------------------------------------------------------------------------


def goodput(requests: Sequence[Request], seconds: float) -> float:
    """Answers within their deadline, per second."""
    return sum(request.good for request in requests) / seconds


def kept(requests: Sequence[Request]) -> float:
    """The part of accepted requests that were answered in time."""
    accepted = [request for request in requests if request.accepted]
    return sum(request.good for request in accepted) / max(1, len(accepted))


def capacity(truth: Truth, traffic: Traffic) -> float:
    """Requests per second that the busier worker could do if its fixed costs were shared by many."""
    prefill = [marginal_seconds(truth.prefill, prompt_work(0, n)) for n in traffic.prompts]
    searches = [
        marginal_seconds(truth.decode, Request(0, 0.0, np.zeros(n, np.int32), w, 0.0).work)
        for n in traffic.prompts
        for w in traffic.widths
    ]
    return 1 / max(sum(prefill) / len(prefill), sum(searches) / len(searches))


def marginal_seconds(cost: StepCost, work: Work) -> float:
    return cost.per_token * work.tokens + cost.per_pair * work.pairs
