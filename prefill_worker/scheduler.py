"""Which prompts run next, and how much of each. Plain data: no sockets, no tensors, no clock.

The policy, in five lines:
- Higher priority first, then whoever is due first: at its deadline, less what it needs after its prompt.
- A forward takes so many prompts that its fixed cost is a small share of it, and at most `batch_tokens`.
- A longer prompt runs in pieces of about that size, so that an urgent one can overtake between forwards.
- A forward that others could fill waits for them: as long as filling saves at most, while prompts come that
  often and everybody has the time.
- A prompt that cannot be in time any more is given up, before it runs or between its pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xgr_runtime.kv.pages import PageIds
from xgr_runtime.kv.prompt_cache import HeldPrompt, PromptCache
from xgr_runtime.scheduling.cost_model import (
    CostModel,
    alone,
    marginal,
    prompt_work,
    tokens_within,
    worthwhile,
)
from xgr_runtime.scheduling.queue import UrgencyQueue, is_batch, urgency
from xgr_runtime.wire.messages import AttemptId

LEAST_PIECE = 256  # tokens: whoever is urgent can wait for so few


@dataclass(eq=False)
class Prompt:
    """A prompt from its arrival until its KV is wanted no more."""

    id: AttemptId
    tokens: NDArray[np.int32]  # [L]
    data_address: str
    arrived: float
    deadline: float
    priority: int = 0  # higher first
    after: float = 0.0  # seconds that the request needs once this prompt is computed
    held: HeldPrompt | None = None  # its pages, from its first turn on
    computed: int = 0  # tokens whose KV is in the pages
    seconds: float = 0.0  # in the model so far

    @property
    def due(self) -> float:
        """When it must be computed."""
        return self.deadline - self.after

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
    """Prompts that wait for pages, and prompts that have some and are not computed yet.

    At most `batch_prompts` share a forward, if that is given. What `cache` has of a prompt is not computed.
    As long as `costs` knows nothing, forwards are filled to `batch_tokens`, and only the late are given up.
    `window` is the longest wait for others, in seconds.
    """

    def __init__(
        self,
        cache: PromptCache,
        batch_tokens: int,
        batch_prompts: int | None = None,
        costs: CostModel | None = None,
        window: float = 0.0,
    ) -> None:
        self.waiting: UrgencyQueue[Prompt] = UrgencyQueue()  # for pages
        self.begun: list[Prompt] = []  # with pages, and with tokens that are not computed
        self.costs = costs or CostModel()
        self._cache = cache
        self._batch_tokens = batch_tokens
        self._batch_prompts = batch_prompts
        self._window = window
        self._gap = float("inf")  # seconds between arrivals of late
        self._arrived = float("-inf")

    def add(self, prompt: Prompt) -> None:
        gap = prompt.arrived - self._arrived
        self._gap = gap if self._gap == float("inf") else self._gap + (gap - self._gap) / 8
        self._arrived = prompt.arrived
        self.waiting.add(prompt)

    def drop(self, id: AttemptId) -> None:
        """Forget a prompt that waits; an unknown id changes nothing."""
        for prompt in self.waiting:
            if prompt.id == id:
                self.waiting.remove(prompt)

    def drop_late(self, now: float) -> list[Prompt]:
        """Prompts that waited until they cannot be in time any more, removed."""
        late = [prompt for prompt in self.waiting if self._hopeless(prompt, now)]
        for prompt in late:
            self.waiting.remove(prompt)
        return late

    def late(self, now: float) -> list[Prompt]:
        """Prompts that have begun and cannot be in time any more."""
        return [prompt for prompt in self.begun if self._hopeless(prompt, now)]

    def hold(self, now: float) -> float:
        """Seconds for which the next forward should wait for more prompts; 0: it should run."""
        cost = self.costs.cost
        if cost is None or self.begun or not self.waiting:
            return 0.0
        longest = min(self._window, cost.fixed)
        filled = sum(marginal(cost, prompt_work(0, len(prompt.tokens))) for prompt in self.waiting)
        if self._gap > longest or filled >= worthwhile(cost):
            return 0.0
        until = min(prompt.arrived for prompt in self.waiting) + longest
        return max(0.0, min(until - now, *(self.slack(prompt, now) for prompt in self.waiting)))

    def runnable(self, now: float) -> bool:
        """Whether a forward should run: prompts have begun, or there are pages for one that waits."""
        if self.begun or not self.waiting or self.hold(now):
            return bool(self.begun)
        return any(self._cache.fits(prompt.tokens) for prompt in self.waiting)

    def next_turns(self, now: float) -> list[Turn]:
        """What the next forward computes, of prompts that all have pages; empty when none can run."""
        batch = _Batch(self, self._batch_tokens, self._batch_prompts)
        # The most urgent last, among equals the first that began: asked again, the answer is the same.
        begun = sorted(self.begun, key=urgency)[::-1]

        def full(prompt: Prompt) -> bool:
            """Whether no room is left once those have theirs who have begun and are as urgent."""
            while begun and urgency(begun[-1]) <= urgency(prompt):
                batch.take(begun.pop())
            prompt.computed = self._cache.cached(prompt.tokens)  # as it would be if it began
            return not batch.fits(prompt)

        def begin(prompt: Prompt) -> HeldPrompt | None:
            prompt.held = self._cache.begin(prompt.tokens)
            if prompt.held is not None:
                prompt.computed = prompt.held.cached_tokens
                self.begun.append(prompt)
                batch.take(prompt)
            return prompt.held

        self.waiting.serve(begin, lambda prompt: self.slack(prompt, now), full)
        while begun:
            batch.take(begun.pop())
        return batch.turns

    @property
    def starved(self) -> bool:
        """Whether online work waits for pages that batch work may hold."""
        return self.waiting.starves(lambda prompt: self._cache.fits(prompt.tokens))

    def launched(self, turn: Turn) -> None:
        """The turn is in a forward's hands: what its prompt needs next comes behind it."""
        turn.prompt.computed = turn.end
        if turn.last:
            self.begun = [prompt for prompt in self.begun if prompt is not turn.prompt]

    def would_find_more(self, running: Sequence[Turn]) -> bool:
        """Whether a prompt that is about to begin would find in the cache what a running forward computes.

        Then it should begin after that.
        """
        holding = [(turn.prompt.held, turn.end) for turn in running if turn.prompt.held is not None]
        soon = set[bytes]().union(*(self._cache.soon(held, end) for held, end in holding))
        about_to = islice(self.waiting, self._batch_prompts)
        return any(self._cache.waits_for(prompt.tokens, soon) for prompt in about_to)

    def end(self, prompt: Prompt) -> None:
        """Let go of the pages of a prompt, whose remaining tokens are not computed any more."""
        self.begun = [p for p in self.begun if p is not prompt]
        if prompt.held is not None:
            self._cache.end(prompt.held, first_to_go=is_batch(prompt.priority))
            prompt.held = None

    def slack(self, prompt: Prompt, now: float) -> float:
        """Seconds that a prompt can still wait; what the cache has of it counts."""
        left = prompt.due - now
        if (cost := self.costs.cost) is None:
            return left
        computed, whole = prompt.computed, len(prompt.tokens)
        slack = left - alone(cost, prompt_work(computed, whole))
        if slack >= 0 or prompt.held is not None:
            return slack
        return left - alone(cost, prompt_work(self._cache.cached(prompt.tokens), whole))

    def piece(self, prompt: Prompt) -> int:
        """Tokens that a forward should compute of a prompt."""
        most = self._batch_tokens
        if (cost := self.costs.cost) is not None:
            filling = tokens_within(cost, prompt.computed, worthwhile(cost))
            most = min(most, max(LEAST_PIECE, filling))
        if most == self._batch_tokens:
            return min(prompt.left, most)
        pieces = max(1, round(prompt.left / most))
        return min(-(-prompt.left // pieces), self._batch_tokens)

    def _hopeless(self, prompt: Prompt, now: float) -> bool:
        """Alone, a prompt has its try: it wastes nobody's time, and may take less than is believed."""
        if prompt.deadline <= now or self.costs.cost is None or len(self.waiting) + len(self.begun) < 2:
            return prompt.deadline <= now
        return self.slack(prompt, now) < 0


@dataclass
class _Batch:
    """The turns of one forward, as they are chosen."""

    scheduler: PrefillScheduler
    room: int  # tokens
    places: int | None
    turns: list[Turn] = field(default_factory=list)
    seconds: float = 0.0  # marginal
    closed: bool = False  # somebody did not fit: nobody less urgent goes instead

    def fits(self, prompt: Prompt) -> bool:
        """Whether the forward has room for this prompt's next piece, and gains by it."""
        cost = self.scheduler.costs.cost
        filled = bool(self.turns) and cost is not None and self.seconds >= worthwhile(cost)
        if self.closed or filled or len(self.turns) == self.places:
            return False
        if self.turns and is_batch(prompt.priority) != is_batch(self.turns[0].prompt.priority):
            return False
        needs_pieces = prompt.left > self.scheduler._batch_tokens
        return self.room > 0 if needs_pieces else self.scheduler.piece(prompt) <= self.room

    def take(self, prompt: Prompt) -> None:
        """Its next piece, if it fits."""
        if not self.fits(prompt):
            self.closed = True
            return
        size = min(self.scheduler.piece(prompt), self.room)
        turn = Turn(prompt, prompt.computed, prompt.computed + size)
        self.turns.append(turn)
        self.room -= size
        if (cost := self.scheduler.costs.cost) is not None:
            self.seconds += marginal(cost, prompt_work(turn.start, turn.end))
