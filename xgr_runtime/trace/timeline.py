"""What a process did lately: a ring of spans that is always on, to look at a slow request afterwards.

Moments are CLOCK_MONOTONIC, which all processes of one machine share: their spans fit together as they are. A
span is recorded when it ends; what is under way is not in the ring yet.
"""

import time
from collections import deque

from xgr_runtime.wire.messages import AttemptId, Span, Spans, TraceAsk

CAPACITY = 32_768
"""Spans that a process keeps: some 12 MB, a few seconds of a busy one, and 5 MB on the wire."""

REQUEST = "request"
"""The track of spans that belong to the life of one request, of which many overlap."""

KV_OUT, KV_IN = "KV out", "KV in"
"""The tracks of prompt KV that leaves a prefill worker, and that a decode worker takes in."""

FORWARD, LAUNCH = "forward", "launch"
"""The tracks of what the models do for all requests at once: of prompts, and of beams."""


class Timeline:
    """The recorder of one process, for one thread. Recording costs about a microsecond."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._ring: deque[Span] = deque(maxlen=capacity)

    def add(
        self,
        track: str,
        name: str,
        start: float,
        end: float | None = None,
        id: AttemptId | None = None,
        rid: str = "",
        **numbers: int | float,
    ) -> None:
        """Something lasted from `start` to `end`, by default until now."""
        seconds = (time.monotonic() if end is None else end) - start
        self._ring.append(Span(track, name, start, seconds, id, rid, numbers))

    def since(self, moment: float) -> list[Span]:
        """All that is known to have ended after `moment`, oldest first."""
        return [span for span in self._ring if span.start + span.seconds > moment]

    @property
    def whole_since(self) -> float:
        """The moment from which on nothing was forgotten; 0 if nothing ever was."""
        full = len(self._ring) == self._ring.maxlen
        return self._ring[0].start + self._ring[0].seconds if full else 0.0

    def answer(self, ask: TraceAsk, worker: str, now: float) -> Spans:
        """What a router that asks is told."""
        return Spans(ask.number, worker, self.whole_since, self.since(now - ask.seconds))
