"""Which prompts run next. Plain data: no sockets, no tensors."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xgr_runtime.messages import AttemptId
from xgr_runtime.pages import PageIds, PagePool, pages_for


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt that waits for its turn."""

    id: AttemptId
    tokens: NDArray[np.int32]  # [L]
    data_address: str
    arrived: float
    deadline: float


class PrefillScheduler:
    """First come, first served: packs prompts up to a token budget, as far as pages are free.

    A prompt larger than the budget runs alone. A prompt that must wait for pages keeps its place.
    """

    def __init__(self, pool: PagePool, page_size: int, batch_tokens: int) -> None:
        self.waiting: deque[Prompt] = deque()
        self._pool = pool
        self._page_size = page_size
        self._batch_tokens = batch_tokens

    def add(self, prompt: Prompt) -> None:
        self.waiting.append(prompt)

    def drop(self, id: AttemptId) -> None:
        """Forget a prompt that waits; an unknown id changes nothing."""
        self.waiting = deque(p for p in self.waiting if p.id != id)

    def drop_late(self, now: float) -> list[Prompt]:
        """Prompts whose deadline passed while they waited, removed."""
        late = [p for p in self.waiting if p.deadline <= now]
        if late:
            self.waiting = deque(p for p in self.waiting if p.deadline > now)
        return late

    def next_batch(self) -> list[tuple[Prompt, PageIds]]:
        """The prompts of the next forward, each with pages reserved; empty when none can run."""
        batch: list[tuple[Prompt, PageIds]] = []
        room = self._batch_tokens
        while self.waiting:
            prompt = self.waiting[0]
            if batch and len(prompt.tokens) > room:
                break
            pages = self._pool.allocate(pages_for(len(prompt.tokens), self._page_size))
            if pages is None:
                break
            self.waiting.popleft()
            batch.append((prompt, pages))
            room -= len(prompt.tokens)
        return batch
