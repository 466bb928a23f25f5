"""Who gets pages, who gets rows, who steps next. Plain data: no sockets, no tensors."""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from xgr_runtime.messages import AttemptId
from xgr_runtime.pages import PageIds, PagePool
from xgr_runtime.prompt_cache import HeldPrompt, PromptCache, Tokens


class Task(Protocol):
    """What the scheduler needs to know of a request."""

    @property
    def id(self) -> AttemptId: ...
    @property
    def tokens(self) -> Tokens: ...
    @property
    def most_beams(self) -> int: ...


T = TypeVar("T", bound=Task)


@dataclass(eq=False)
class DecodeScheduler(Generic[T]):
    """First come, first served, twice: pages for prompts that arrive, rows for prompts that are here.

    A request holds its pages from GRANT to the end and its rows from its first step to the end, so neither
    pool is ever exceeded. Every request that has rows takes part in every step.
    """

    cache: PromptCache
    rows: PagePool
    waiting: deque[T] = field(default_factory=deque)  # for pages
    ready: deque[T] = field(default_factory=deque)  # KV is here, waiting for rows
    _held: dict[AttemptId, HeldPrompt] = field(default_factory=dict)
    _rows_of: dict[AttemptId, PageIds] = field(default_factory=dict)

    def next_grants(self) -> list[tuple[T, HeldPrompt]]:
        """Tasks that get their pages now, in order of arrival."""
        granted = []
        while self.waiting:
            held = self.cache.begin(self.waiting[0].tokens)
            if held is None:
                break
            task = self.waiting.popleft()
            self._held[task.id] = held
            granted.append((task, held))
        return granted

    def keep(self, task: T) -> None:
        """All KV of a task's prompt is good: others may share it, if it is in pages of ours."""
        if (held := self._held.get(task.id)) is not None:
            self.cache.keep(held, len(held.tokens))

    def next_starts(self) -> list[tuple[T, PageIds]]:
        """Tasks that get their rows now and join the next step, in order of readiness."""
        started = []
        while self.ready:
            rows = self.rows.allocate(self.ready[0].most_beams)
            if rows is None:
                break
            task = self.ready.popleft()
            self._rows_of[task.id] = rows
            started.append((task, rows))
        return started

    def end(self, task: T) -> None:
        """Free all that a task holds or waits for."""
        self.waiting = deque(t for t in self.waiting if t is not task)
        self.ready = deque(t for t in self.ready if t is not task)
        if (held := self._held.pop(task.id, None)) is not None:
            self.cache.end(held)
        if (rows := self._rows_of.pop(task.id, None)) is not None:
            self.rows.release(rows)
