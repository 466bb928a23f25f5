"""Users who come back: each visit is the history of the last one plus what the user has taken since.

The first visitors are new, as many as asked for. Then one is new, or returns with the probability asked for,
drawn by Zipf's law from those who were here before. A new one takes over the rank of one who leaves once as
many are known as may return.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from xgr_runtime.cli.bench.settings import TrafficSettings

Leaves: TypeAlias = npt.NDArray[np.int64]
Visitor = Literal["new", "returning", "cut"]
CUT = 8  # a full history loses an eighth at once: to lose one item per visit would change every prefix


@dataclass(frozen=True)
class Visit:
    """`history` are leaves, oldest first. A `cut` visitor returns, but the oldest items were dropped.

    Cut are an eighth of a full history, or where a window slides as many items as are new.
    """

    user: int
    visitor: Visitor
    history: Leaves


class Sessions:
    """An endless, replayable stream of visits: the same settings give the same ones.

    items: the longest history; every history holds at least 7/8 of that.
    """

    def __init__(self, settings: TrafficSettings, leaves: int, items: int) -> None:
        self._settings = settings
        self._leaves = leaves
        self._most, self._slack = items, max(items // CUT, settings.new_items)
        assert self._slack < items or settings.returning == 0, "checked by whoever reads the flags"
        self._draw = np.random.default_rng([settings.seed, 1])
        self._known: list[tuple[int, Leaves]] = []  # by rank, the most popular first
        self._users = 0
        self._shares = np.cumsum(np.arange(1, settings.users + 1, dtype=np.float64) ** -settings.zipf)

    def __iter__(self) -> Sessions:
        return self

    def __next__(self) -> Visit:
        opening = self._users < max(1, self._settings.known)
        if not opening and self._draw.random() < self._settings.returning:
            return self._return(self._rank())
        history = self._items(int(self._draw.integers(self._most - self._slack, self._most, endpoint=True)))
        visit = Visit(self._users, "new", history)
        self._users += 1
        self._remember(visit)
        return visit

    def _return(self, rank: int) -> Visit:
        user, before = self._known[rank]
        history = np.concatenate([before, self._items(self._settings.new_items)])
        visitor: Visitor = "returning"
        if len(history) > self._most:
            kept = self._most - (self._slack if self._settings.window_step is None else 0)
            visitor, history = "cut", history[-kept:]
        self._known[rank] = user, history
        return Visit(user, visitor, history)

    def _rank(self) -> int:
        """By Zipf's law among those who are known."""
        shares = self._shares[: len(self._known)]
        return int(np.searchsorted(shares, self._draw.random() * shares[-1], side="right"))

    def _remember(self, visit: Visit) -> None:
        if len(self._known) < self._settings.users:
            self._known.append((visit.user, visit.history))
        else:
            self._known[int(self._draw.integers(len(self._known)))] = visit.user, visit.history

    def _items(self, count: int) -> Leaves:
        return self._draw.integers(0, self._leaves, count)
