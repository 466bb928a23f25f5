"""Workers of a simulation: the schedulers of the real ones, over launches that only take their time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from decode_worker.engines.cohort import MAX_REQUESTS, choose_cohort
from decode_worker.phases import TaskPhase
from decode_worker.scheduler import DecodeScheduler, share_step
from prefill_worker.scheduler import PrefillScheduler, Prompt, Turn
from xgr_runtime.kv.pages import PagePool
from xgr_runtime.kv.prompt_cache import PromptCache
from xgr_runtime.planning.clock import SharedCores, SimulatedClock, Then
from xgr_runtime.planning.devices import DeviceKind
from xgr_runtime.planning.speeds import Level
from xgr_runtime.scheduling.cost_model import CostModel, Work, search_work
from xgr_runtime.scheduling.queue import of_first_class, urgency
from xgr_runtime.wire.messages import AttemptId

PAGE = 64  # tokens: coarser than of workers, as what is shared need not be known better than the router does
WINDOW = 0.002  # seconds: the usual --batch-window-ms


class Marks(NamedTuple):
    """When an answered request got how far, in seconds of the simulation."""

    arrived: float
    sent: float  # the router had chosen a pair
    begun: float  # its prompt had pages
    computed: float  # the prompt
    here: float  # its KV, in the decode worker
    started: float  # it had rows
    answered: float


STAGES = ("router", "prefill queue", "prefill", "KV hand-over", "rows", "search")
"""What passes between two marks, in their order; what comes after the last one is the router's again."""


@dataclass(eq=False)
class SimulatedTask:
    """One request, in both of its workers. See `decode_worker.task.DecodeTask`."""

    id: AttemptId
    tokens: NDArray[np.int32]  # [L]
    beams: list[int]  # that each level starts from
    most_beams: int
    deadline: float
    arrived: float
    sent: float
    after: float
    ended: Callable[[SimulatedTask, bool], None]
    committed: Callable[[SimulatedTask], None]
    priority: int = 0
    phase: TaskPhase = TaskPhase.PREFILL
    level: int = 0
    over: bool = False
    begun: float = 0.0
    computed: float = -1.0  # below 0: not yet
    granted: float = -1.0
    here: float = 0.0
    started: float = 0.0
    answered: float = 0.0
    missing: int = 0  # tokens whose KV the decode worker has to be given
    prompt: Prompt | None = None

    @property
    def due(self) -> float:
        return self.deadline

    @property
    def work_left(self) -> Work:
        """The steps that its search still needs."""
        beams = self.beams[self.level :]
        if not self.level:
            return search_work(len(self.tokens), beams)
        return Work(len(beams), sum(beams), sum(beams) * len(self.tokens))

    @property
    def next_level(self) -> Level:
        return Level(self.beams[self.level], len(self.tokens), not self.level)

    @property
    def next_work(self) -> Work:
        return self.next_level.work

    @property
    def question(self) -> SimulatedTask:
        """What a cohort needs to know of it."""
        return self

    @property
    def depth(self) -> int:
        return len(self.beams)

    @property
    def marks(self) -> Marks:
        """Of one that is answered."""
        done = (self.begun, self.computed, self.here, self.started, self.answered)
        return Marks(self.arrived, self.sent, *done)

    def let_go(self) -> None:
        """It leases nothing."""


class Launch(NamedTuple):
    """What a worker would run now: seconds alone, and what is so after it."""

    seconds: float
    landed: Then


class Launcher(Protocol):
    """A worker, as the device sees it that it computes on."""

    def next_launch(self, now: float) -> Launch | None:
        """What runs next; it is under way once this was asked."""
        ...


@dataclass(eq=False)
class SimulatedDevice:
    """One launch at a time, of its workers in turns."""

    clock: SimulatedClock
    cores: SharedCores
    workers: list[Launcher] = field(default_factory=list)
    busy: float = 0.0  # seconds so far
    running: bool = False
    _asked: bool = False

    def poke(self) -> None:
        """Something may run by now: looked at once all that happens now has happened."""
        if not self._asked:
            self._asked = True
            self.clock.at(self.clock.now, self._launch)

    def _launch(self) -> None:
        self._asked = False
        if self.running:
            return
        for worker in list(self.workers):
            if (launch := worker.next_launch(self.clock.now)) is not None:
                self.running, began = True, self.clock.now
                self.workers.remove(worker)
                self.workers.append(worker)  # the other one goes first next time
                self.cores.begin(launch.seconds, lambda at=began, one=launch: self._landed(at, one))  # type: ignore[misc]
                return

    def _landed(self, began: float, launch: Launch) -> None:
        self.running = False
        self.busy += self.clock.now - began
        launch.landed()
        self.poke()


class PlayedPrefill:
    """A prefill worker. `decode_of` says where a task's KV goes."""

    def __init__(self, kind: DeviceKind, device: SimulatedDevice, clock: SimulatedClock) -> None:
        costs = CostModel()
        costs.cost = kind.speed.prefill_cost
        self.kind, self.device, self.clock = kind, device, clock
        self.cache = PromptCache(PagePool(kind.kv_tokens // PAGE), PAGE)
        self.scheduler = PrefillScheduler(self.cache, kind.batch_tokens, costs=costs, window=WINDOW)
        self._tasks: dict[AttemptId, tuple[SimulatedTask, PlayedDecode]] = {}
        self._looks_at = -1.0
        device.workers.append(self)

    def accept(self, task: SimulatedTask, decode: PlayedDecode) -> None:
        """Its prompt waits for its turn."""
        task.prompt = Prompt(
            task.id, task.tokens, "", self.clock.now, task.deadline, task.priority, task.after
        )
        self._tasks[task.id] = task, decode
        self.scheduler.add(task.prompt)
        self.device.poke()

    def next_launch(self, now: float) -> Launch | None:
        """See `Launcher`."""
        for prompt in [*self.scheduler.drop_late(now), *self.scheduler.late(now)]:
            task, decode = self._tasks[prompt.id]
            self.forget(task)
            decode.fail(task)
        if hold := self.scheduler.hold(now):
            self._look_at(now + hold)
        if not self.scheduler.runnable(now):
            return None
        turns = self.scheduler.next_turns(now)
        for prompt in self.scheduler.begun:
            task, decode = self._tasks[prompt.id]
            if not task.begun:
                task.begun = now
                decode.opened(task)
        if not turns:
            return None
        for turn in turns:
            self.scheduler.launched(turn)
        seconds = self.kind.speed.forward([(turn.start, turn.end) for turn in turns])
        return Launch(seconds, lambda: self._landed(turns))

    def _landed(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            if turn.prompt.held is None or turn.prompt.id not in self._tasks:
                continue  # it was given up meanwhile
            self.cache.keep(turn.prompt.held, turn.end)
            if turn.last:
                task, decode = self._tasks[turn.prompt.id]
                task.computed = self.clock.now
                decode.computed(task)

    def forget(self, task: SimulatedTask) -> None:
        """Its KV is wanted no more here."""
        if self._tasks.pop(task.id, None) is not None and task.prompt is not None:
            self.scheduler.drop(task.id)
            self.scheduler.end(task.prompt)
            self.device.poke()

    def _look_at(self, time: float) -> None:
        if time != self._looks_at:
            self._looks_at = time
            self.clock.at(time, self.device.poke)


class PlayedDecode:
    """A decode worker. `beside`: the prefill worker whose KV it reads in place, if it is half of a pair."""

    def __init__(
        self,
        kind: DeviceKind,
        device: SimulatedDevice,
        clock: SimulatedClock,
        link: float,
        beside: PlayedPrefill | None = None,
    ) -> None:
        self.kind, self.device, self.clock, self.beside = kind, device, clock, beside
        pages = 0 if beside else kind.kv_tokens // PAGE
        rows = kind.max_rows * (2 if kind.cohorts else 1)  # a cohort runs, and the next one waits
        self.scheduler: DecodeScheduler[SimulatedTask] = DecodeScheduler(
            PromptCache(PagePool(pages), PAGE), PagePool(rows), kind.speed.decode_cost
        )
        self._link = link  # bytes per second
        self._link_free = 0.0
        self._held: dict[AttemptId, PlayedPrefill] = {}  # who has the prompt of a task
        self._tasks: dict[AttemptId, SimulatedTask] = {}
        device.workers.append(self)

    def expect(self, task: SimulatedTask, prefill: PlayedPrefill) -> None:
        """It will be opened."""
        self._tasks[task.id], self._held[task.id] = task, prefill

    def opened(self, task: SimulatedTask) -> None:
        """Its prompt has pages there; here it waits for its own."""
        if self.beside:
            task.phase, task.granted = TaskPhase.KV, self.clock.now
            return
        task.phase = TaskPhase.PAGES
        self.scheduler.waiting.add(task)
        self.grant()

    def grant(self) -> None:
        """Pages for those who wait for them."""
        for task, held in self.scheduler.next_grants(self.clock.now):
            task.phase, task.granted = TaskPhase.KV, self.clock.now
            task.missing = len(task.tokens) - held.cached_tokens
            if task.computed >= 0:
                self._send(task)

    def computed(self, task: SimulatedTask) -> None:
        """Its prompt is whole."""
        if self.beside:
            self._arrived(task)
        elif task.granted >= 0:
            self._send(task)

    def _send(self, task: SimulatedTask) -> None:
        """Layers left while later ones were computed: the last one is under way at least."""
        now = self.clock.now
        seconds = task.missing * self.kind.token_bytes / self._link
        self._link_free = max(self._link_free, min(task.granted, task.computed)) + seconds
        last = now + seconds / self.kind.layers
        self.clock.at(max(last, self._link_free), lambda: self._arrived(task))

    def _arrived(self, task: SimulatedTask) -> None:
        if task.over:
            return
        if not self.beside:
            self._held.pop(task.id).forget(task)
        task.here, task.phase = self.clock.now, TaskPhase.ROWS
        self.scheduler.keep(task)
        self.scheduler.ready.add(task)
        task.committed(task)
        self.device.poke()

    def next_launch(self, now: float) -> Launch | None:
        """See `Launcher`."""
        tasks = [*self._tasks.values()]
        for task in tasks:
            others = len(tasks) > 1 and task.phase is not TaskPhase.IN_FLIGHT
            if self.scheduler.hopeless(task, now, others):
                self.fail(task)
        for task, _ in self.scheduler.next_starts(now):
            task.phase, task.started = TaskPhase.SEARCH, now
        running = [task for task in self._tasks.values() if task.phase is TaskPhase.SEARCH]
        if not running:
            return None
        waiting = of_first_class(sorted(running, key=urgency))
        if self.kind.cohorts:
            return self._cohort(choose_cohort(waiting, self.kind.max_rows, MAX_REQUESTS))
        return self._step(share_step(waiting, self.scheduler.cost))

    def _step(self, tasks: list[SimulatedTask]) -> Launch:
        """One level of these."""
        seconds = self.kind.speed.step([task.next_level for task in tasks])
        return self._launch(tasks, seconds, 1)

    def _cohort(self, tasks: list[SimulatedTask]) -> Launch:
        """All levels of these."""
        seconds, depth = 0.0, tasks[0].depth
        for level in range(depth):
            parts = [Level(task.beams[level], len(task.tokens), not level) for task in tasks]
            seconds += self.kind.speed.step(parts)
        return self._launch(tasks, seconds, depth)

    def _launch(self, tasks: list[SimulatedTask], seconds: float, levels: int) -> Launch:
        for task in tasks:
            task.phase = TaskPhase.IN_FLIGHT
        return Launch(seconds, lambda: self._landed(tasks, levels))

    def _landed(self, tasks: list[SimulatedTask], levels: int) -> None:
        for task in tasks:
            task.level += levels
            over = task.level >= task.depth
            task.phase = TaskPhase.OVER if over else TaskPhase.SEARCH
        self.scheduler.landed()
        for task in tasks:
            if task.phase is TaskPhase.OVER and not task.over:
                task.answered = self.clock.now
                self._end(task, True)

    def fail(self, task: SimulatedTask) -> None:
        """It cannot be in time."""
        if not task.over:
            self._end(task, False)

    def _end(self, task: SimulatedTask, answered: bool) -> None:
        task.over = True
        del self._tasks[task.id]
        self.scheduler.leave(task)
        if (prefill := self._held.pop(task.id, None)) is not None:
            prefill.forget(task)
        task.ended(task, answered)
        self.grant()
        self.device.poke()
