"""Time of a simulation, and cores that several launches share. Plain numbers: nothing here waits."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

Then = Callable[[], None]

_WHOLE = 1e-12  # seconds that are left of a job which is over: rounding


@dataclass(eq=False)
class SimulatedClock:
    """What happens when, in the order of time; what is due at once, in the order in which it was said."""

    now: float = 0.0
    _events: list[tuple[float, int, Then]] = field(default_factory=list)
    _number: itertools.count[int] = field(default_factory=itertools.count)

    def at(self, time: float, then: Then) -> None:
        """Not before now, whatever `time` says."""
        heapq.heappush(self._events, (max(time, self.now), next(self._number), then))

    def run(self, over: Callable[[], bool]) -> None:
        """Until `over`, or until nothing is due any more."""
        while self._events and not over():
            self.now, _, then = heapq.heappop(self._events)
            then()


@dataclass(eq=False)
class _Launched:
    left: float  # seconds on a core of its own
    then: Then


@dataclass(eq=False)
class SharedCores:
    """Launches that run side by side, on `count` cores: with more of them, all are slower alike.

    0 cores: everything has its own, as devices do that compute for themselves.
    """

    clock: SimulatedClock
    count: int = 0
    _running: list[_Launched] = field(default_factory=list)
    _since: float = 0.0
    _turn: int = 0  # of the plan when the next of them is over: older ones are void

    def begin(self, seconds: float, then: Then) -> None:
        """Something that takes so long alone."""
        if not self.count:
            self.clock.at(self.clock.now + seconds, then)
            return
        self._pass()
        self._running.append(_Launched(seconds, then))
        self._plan()

    @property
    def _speed(self) -> float:
        return min(1.0, self.count / len(self._running)) if self._running else 1.0

    def _pass(self) -> None:
        """What was computed since the last look."""
        done = (self.clock.now - self._since) * self._speed
        self._since = self.clock.now
        for job in self._running:
            job.left -= done

    def _plan(self) -> None:
        self._turn += 1
        if self._running:
            turn, soonest = self._turn, max(0.0, min(job.left for job in self._running))
            self.clock.at(self.clock.now + soonest / self._speed, lambda: self._over(turn))

    def _over(self, turn: int) -> None:
        if turn != self._turn:
            return
        self._pass()
        soonest = min(job.left for job in self._running) + _WHOLE
        over = [job for job in self._running if job.left <= soonest]
        self._running = [job for job in self._running if job.left > soonest]
        self._plan()
        for job in over:
            job.then()


@dataclass(eq=False)
class OneAtATime:
    """A process that does one thing after the other, on the cores that it shares."""

    cores: SharedCores
    busy: float = 0.0  # seconds of work so far
    _waiting: deque[tuple[float, Then]] = field(default_factory=deque)
    _running: bool = False

    def do(self, seconds: float, then: Then) -> None:
        """Behind all that it has been given before."""
        if not seconds:
            then()
            return
        self._waiting.append((seconds, then))
        self._next()

    def _next(self) -> None:
        if self._running or not self._waiting:
            return
        self._running = True
        seconds, then = self._waiting.popleft()
        self.busy += seconds
        self.cores.begin(seconds, lambda: self._done(then))

    def _done(self, then: Then) -> None:
        self._running = False
        then()
        self._next()
