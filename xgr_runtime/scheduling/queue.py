"""Who waits for a bounded pool (pages, rows), and in which order it is served.

The policy, in six lines:
- Batch work comes after all online work, shares no launch with it, and passes none of it.
- Higher priority first; within it, whoever is due first; within that, whoever came first.
- Whoever does not fit may be passed by those behind who do, so that a wide request holds up no narrow one.
- It is passed `PASSES` times at most, and only while it has time left to wait: `slack` says how much.
- From then on what comes free is kept for it, so that narrow ones do not starve it either.
- The order is all that changes: everybody is served once, or leaves unserved.
"""

from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

PASSES = 16
BATCH = 1_000_000  # by how much the priority of batch work is lower than it says: far beyond all others


class Waiter(Protocol):
    """What a queue needs to know of whoever waits in it; neither may change meanwhile."""

    @property
    def priority(self) -> int: ...
    @property
    def due(self) -> float:
        """When its turn must be over at the latest."""
        ...


W = TypeVar("W", bound=Waiter)
R = TypeVar("R")


def urgency(waiter: Waiter) -> tuple[int, float]:
    """Sorts the most urgent first."""
    return -waiter.priority, waiter.due


def is_batch(priority: int) -> bool:
    """Whether it is that of work that fills what online work leaves."""
    return priority < -BATCH // 2


def of_first_class(waiters: Sequence[W]) -> list[W]:
    """Those who may share a launch with the first of them, the most urgent; no batch work beside online."""
    return [waiter for waiter in waiters if is_batch(waiter.priority) == is_batch(waiters[0].priority)]


@dataclass(eq=False)
class _Place(Generic[W]):
    waiter: W
    passed: int = 0


@dataclass(eq=False)
class UrgencyQueue(Generic[W]):
    """Waiters, the most urgent first."""

    _places: list[_Place[W]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[W]:
        return iter([place.waiter for place in self._places])

    def add(self, waiter: W) -> None:
        insort(self._places, _Place(waiter), key=lambda place: urgency(place.waiter))

    def remove(self, waiter: W) -> None:
        """Whoever is not in the queue changes nothing."""
        self._places = [place for place in self._places if place.waiter is not waiter]

    def starves(self, fits: Callable[[W], bool]) -> bool:
        """Whether online work is the first to be served and does not fit: batch work may be in its way."""
        first = next(iter(self), None)
        return first is not None and not is_batch(first.priority) and not fits(first)

    def serve(
        self,
        take: Callable[[W], R | None],
        slack: Callable[[W], float],
        until: Callable[[W], bool] = lambda waiter: False,
    ) -> list[tuple[W, R]]:
        """Take out those who are served now, with what `take` gave them; it says None to those who must wait.

        `slack` is how many seconds a waiter can still wait. The first one of whom `until` holds ends it.
        """
        served: list[tuple[W, R]] = []
        passed: list[_Place[W]] = []
        for place in list(self._places):
            batch = is_batch(place.waiter.priority)
            if until(place.waiter) or (batch and passed and not is_batch(passed[0].waiter.priority)):
                break
            if (got := take(place.waiter)) is None:
                passed.append(place)
                if place.passed >= PASSES or slack(place.waiter) <= 0:
                    break
                continue
            self._places.remove(place)
            served.append((place.waiter, got))
            for earlier in passed:
                earlier.passed += 1
            if any(earlier.passed >= PASSES for earlier in passed):
                break
        return served
