"""How a worker ends that nobody drains before: it says that it is stopping, finishes what it has, and goes.

A launcher stops its router first and needs none of this. Elsewhere a worker is told to stop while routers
still send: they hear it with the next heartbeat, and what they had sent before is served.
"""

import logging
import time
from collections.abc import Callable, MutableMapping

from xgr_runtime.wire.messages import STOPPING

log = logging.getLogger(__name__)

BEATS = 4  # heartbeats without a request, after which all routers know


class Leaving:
    """When a worker that was asked to stop may end: `over` says so, asked in each turn."""

    def __init__(
        self,
        seconds: float,
        heartbeat: float,
        held: Callable[[], int],
        counters: MutableMapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`seconds`: the longest it may take, 0: it ends at once. `held`: requests that are not over."""
        self._seconds = seconds
        self._quiet = BEATS * heartbeat
        self._held = held
        self._counters = counters
        self._clock = clock
        self._asked: float | None = None
        self._busy = 0.0  # when it last held a request, or was asked

    def over(self, stopping: bool) -> bool:
        """Whether it may end now."""
        if not stopping or not self._seconds:
            return stopping
        now = self._clock()
        if self._asked is None:
            self._asked = self._busy = now
            self._counters[STOPPING] = 1.0
            log.info("stopping: what is here is finished, in at most %g s", self._seconds)
        if held := self._held():
            self._busy = now
        if now - self._asked >= self._seconds:
            if held:
                log.warning("stopped with %d requests under way: --leave-timeout has passed", held)
            return True
        return now - self._busy >= self._quiet
