"""Which prompts run next, and how much of each. Plain data: no sockets, no tensors."""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xgr_runtime.messages import AttemptId
from xgr_runtime.pages import PageIds
from xgr_runtime.prompt_cache import HeldPrompt, PromptCache


@dataclass(eq=False)
class Prompt:
    """A prompt from its arrival until its KV is wanted no more."""

    id: AttemptId
    tokens: NDArray[np.int32]  # [L]
    data_address: str
    arrived: float
    deadline: float
    held: HeldPrompt | None = None  # its pages, from its first turn on
    computed: int = 0  # tokens whose KV is in the pages
    seconds: float = 0.0  # in the model so far

    @property
    def left(self) -> int:
        """Tokens that are not computed yet."""
        return len(self.tokens) - self.computed

    @property
    def cached_tokens(self) -> int:
        """Tokens whose KV was in its pages when it got them."""
        return self.held.cached_tokens if self.held else 0

    @property
    def pages(self) -> PageIds:
        """Where its KV goes, once it has begun."""
        assert self.held is not None, "it has not begun"
        return self.held.pages


class Turn(NamedTuple):
    """What the next forward computes of a prompt: tokens [start, end)."""

    prompt: Prompt
    start: int
    end: int

    @property
    def last(self) -> bool:
        """Whether the prompt is whole after it."""
        return self.end == len(self.prompt.tokens)


class PrefillScheduler:
    """First come, first served: packs prompts up to a token budget, as far as pages are free.

    At most `batch_prompts` share a forward, if that is given.

    A prompt within the budget runs in one piece, in the first forward with room for it. A longer one takes
    the room that there is, forward after forward, ahead of all later prompts. A prompt that must wait for
    pages keeps its place. What `cache` has of a prompt is not computed.
    """

    def __init__(self, cache: PromptCache, batch_tokens: int, batch_prompts: int | None = None) -> None:
        self.waiting: deque[Prompt] = deque()
        self.begun: list[Prompt] = []  # with pages, and with tokens that are not computed
        self._cache = cache
        self._batch_tokens = batch_tokens
        self._batch_prompts = batch_prompts

    @property
    def runnable(self) -> bool:
        """Whether `next_turns` has something: there are pages for what waits first, or prompts have begun."""
        if self.begun or not self.waiting:
            return bool(self.begun)
        return self._cache.fits(self.waiting[0].tokens)

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

    def next_turns(self) -> list[Turn]:
        """What the next forward computes, of prompts that all have pages; empty when none can run."""
        self._begin()
        turns: list[Turn] = []
        room = self._batch_tokens
        for prompt in self.begun[: self._batch_prompts]:
            if not room:
                break
            turns.append(Turn(prompt, prompt.computed, prompt.computed + min(prompt.left, room)))
            room -= min(prompt.left, room)
        return turns

    def done(self, turn: Turn) -> None:
        """The turn's forward has run."""
        turn.prompt.computed = turn.end
        if turn.last:
            self.begun.remove(turn.prompt)

    def end(self, prompt: Prompt) -> None:
        """Let go of the pages of a prompt, whose remaining tokens are not computed any more."""
        self.begun = [p for p in self.begun if p is not prompt]
        if prompt.held is not None:
            self._cache.end(prompt.held)
            prompt.held = None

    def _begin(self) -> None:
        """Give pages to the prompts that the next forward has room for, in their order."""
        room = self._batch_tokens - sum(prompt.left for prompt in self.begun)
        while room > 0 and self.waiting and len(self.begun) != self._batch_prompts:
            prompt = self.waiting[0]
            if room < len(prompt.tokens) - self._cache.cached(prompt.tokens) <= self._batch_tokens:
                break  # it waits for a forward that has room for all of it
            prompt.held = self._cache.begin(prompt.tokens)
            if prompt.held is None:
                break
            prompt.computed = prompt.held.cached_tokens
            self.begun.append(self.waiting.popleft())
            room -= prompt.left
