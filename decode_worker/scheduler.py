"""Who gets pages, who gets rows, who steps next. Plain data: no sockets, no tensors, no clock.

The policy, in five lines:
- Higher priority first, then the earliest deadline: for pages, for rows, and for the next step.
- Whoever waits for more pages or rows than are free may be passed, as `xgr_runtime.scheduling.queue` says.
- A request holds pages from GRANT and rows from its first step to its end: no pool is ever exceeded.
- A step on a CPU takes so many searches that its fixed cost is a small share of it: all in it wait for all.
- A request that cannot be in time any more is given up at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from decode_worker.phases import TaskPhase
from xgr_runtime.kv.pages import PageIds, PagePool
from xgr_runtime.kv.prompt_cache import HeldPrompt, PromptCache, Tokens
from xgr_runtime.scheduling.cost_model import Work, alone, marginal, worthwhile
from xgr_runtime.scheduling.queue import UrgencyQueue, Waiter, is_batch
from xgr_runtime.wire.messages import AttemptId, StepCost


class Task(Waiter, Protocol):
    """What the scheduler needs to know of a request; it is `due` at its deadline."""

    @property
    def id(self) -> AttemptId: ...
    @property
    def tokens(self) -> Tokens: ...
    @property
    def most_beams(self) -> int: ...
    @property
    def phase(self) -> TaskPhase: ...
    @property
    def work_left(self) -> Work:
        """The steps that its search still needs."""
        ...

    def let_go(self) -> None:
        """It is over, and no launch has it: what it leased is free."""
        ...


class Steps(Protocol):
    """What the next step needs to know of a search."""

    @property
    def next_work(self) -> Work: ...


T = TypeVar("T", bound=Task)
S = TypeVar("S", bound=Steps)


@dataclass(eq=False)
class DecodeScheduler(Generic[T]):
    """Pages for prompts that arrive, rows for prompts that are here, and both back from those that leave.

    `cost` is that of a step. As long as it is None, every search takes part in every step, and only what is
    late is given up.
    """

    cache: PromptCache
    rows: PagePool
    cost: StepCost | None = None
    waiting: UrgencyQueue[T] = field(default_factory=UrgencyQueue)  # for pages
    ready: UrgencyQueue[T] = field(default_factory=UrgencyQueue)  # KV is here, waiting for rows
    leaving: list[T] = field(default_factory=list)  # over, but a launch still reads what they hold
    _held: dict[AttemptId, HeldPrompt] = field(default_factory=dict)
    _rows_of: dict[AttemptId, PageIds] = field(default_factory=dict)

    def next_grants(self, now: float) -> list[tuple[T, HeldPrompt]]:
        """Tasks that get their pages now."""
        granted = self.waiting.serve(
            lambda task: self.cache.begin(task.tokens), lambda task: self.slack(task, now)
        )
        self._held |= {task.id: held for task, held in granted}
        return granted

    def keep(self, task: T) -> None:
        """All KV of a task's prompt is good: others may share it, if it is in pages of ours."""
        if (held := self._held.get(task.id)) is not None:
            self.cache.keep(held, len(held.tokens))

    def next_starts(self, now: float) -> list[tuple[T, PageIds]]:
        """Tasks that get their rows now and may take part in the next step."""
        started = self.ready.serve(
            lambda task: self.rows.allocate(task.most_beams), lambda task: self.slack(task, now)
        )
        self._rows_of |= {task.id: rows for task, rows in started}
        return started

    def to_give_up(self, tasks: Iterable[T]) -> T | None:
        """The batch task of `tasks` that has to make room for an online one that waits; the last that came.

        One at a time: what those who leave hold may be enough.
        """
        holders: list[Mapping[AttemptId, object]] = []
        if self.ready.starves(lambda task: self.rows.free >= task.most_beams):
            holders.append(self._rows_of)
        if self.waiting.starves(lambda task: self.cache.fits(task.tokens)):
            holders.append(self._held)
        if self.leaving or not holders:
            return None
        batch = [task for task in tasks if is_batch(task.priority) and any(task.id in h for h in holders)]
        return batch[-1] if batch else None

    def slack(self, task: T, now: float) -> float:
        """Seconds that a task can still wait."""
        return task.due - now - (alone(self.cost, task.work_left) if self.cost else 0.0)

    def hopeless(self, task: T, now: float, others: bool = True) -> bool:
        """Whether it cannot be in time any more, even if it had the worker for itself from now on.

        Without `others` a task has its try: it wastes nobody's time, and may take less than is believed.
        """
        return task.due <= now or (others and self.cost is not None and self.slack(task, now) < 0)

    def leave(self, task: T) -> bool:
        """A task is over. True if it holds nothing any more; else `landed` gives it back after its launch."""
        if task.phase is TaskPhase.IN_FLIGHT:
            self.leaving.append(task)
            return False
        self.end(task)
        return True

    def landed(self) -> list[T]:
        """Those that left during a launch which is over: they hold nothing any more."""
        landed = [task for task in self.leaving if task.phase is not TaskPhase.IN_FLIGHT]
        self.leaving = [task for task in self.leaving if task.phase is TaskPhase.IN_FLIGHT]
        for task in landed:
            self.end(task)
        return landed

    def end(self, task: T) -> None:
        """Let go of all that a task holds or waits for; no launch may have it."""
        self.waiting.remove(task)
        self.ready.remove(task)
        if (held := self._held.pop(task.id, None)) is not None:
            self.cache.end(held, first_to_go=is_batch(task.priority))
        if (rows := self._rows_of.pop(task.id, None)) is not None:
            self.rows.release(rows)
        task.let_go()


def share_step(searches: Sequence[S], cost: StepCost | None) -> list[S]:
    """Those of the searches, the most urgent first, that the next step takes: one at least.

    All of them where the cost is unknown.
    """
    if cost is None:
        return list(searches)
    chosen: list[S] = []
    seconds, enough = 0.0, worthwhile(cost)
    for search in searches:
        if chosen and seconds >= enough:
            break
        chosen.append(search)
        seconds += marginal(cost, search.next_work)
    return chosen
