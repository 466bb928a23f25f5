"""What a launch of the engine looked like, for the timeline."""

from collections.abc import Sequence

from decode_worker.search import Search
from xgr_runtime.trace.timeline import LAUNCH, Timeline


class LaunchSpan:
    """One launch: its searches as they were before it.

    On a CPU it is a step, model first and selection last; on a GPU a cohort is only queued, and what the
    device does later shows in the searches of its requests.
    """

    def __init__(self, searches: Sequence[Search], began: float) -> None:
        self._first = searches[0]
        self._requests = len(searches)
        self._rows = sum(search.forward_rows for search in searches)
        self._in_model = self._first.forward_seconds
        self._began = began

    def record(self, timeline: Timeline, now: float) -> None:
        """It has returned."""
        began, model = self._began, self._began + self._first.forward_seconds - self._in_model
        timeline.add(LAUNCH, "launch", began, now, requests=self._requests, rows=self._rows)
        if model > began:
            timeline.add(LAUNCH, "model", began, min(model, now))
            timeline.add(LAUNCH, "selection", min(model, now), now)
