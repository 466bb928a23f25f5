"""Whether one worker gets requests: not for a while after failures in a row, then one at a time.

The policy:
- Closed, all may go there. `most` failures in a row open it: nothing goes there for `FIRST` seconds.
- Then it is half open: one live request at a time is its trial. An answer closes it, a failure opens it for
  twice as long, up to `LONGEST`; the request is tried again elsewhere, like any other.
- A failure counts if its attempt began after the failure before: what breaks many at once is one failure.
"""

import logging
import time
from collections.abc import Callable
from typing import Literal

from xgr_runtime.wire.messages import AttemptId

log = logging.getLogger(__name__)

FIRST, LONGEST = 1.0, 30.0

State = Literal["closed", "open", "half open"]


class Breaker:
    """Of one worker, whichever incarnation of it. `name` is what logs call the worker."""

    def __init__(self, name: str, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._most = most
        self._clock = clock
        self._failures = 0  # in a row
        self._failed_at = 0.0
        self._pause = 0.0  # seconds for which it was opened last; 0: it is closed
        self._trial: AttemptId | None = None

    @property
    def state(self) -> State:
        if not self._pause:
            return "closed"
        return "half open" if self._clock() >= self._failed_at + self._pause else "open"

    @property
    def problem(self) -> str:
        """Why nothing may go there, or an empty string."""
        if self.state != "open":
            return ""
        return f"it failed {self._failures} times in a row: it is tried again after {self._pause:g} s"

    @property
    def admits(self) -> bool:
        """Whether another attempt may go there."""
        return self.state == "closed" or (self.state == "half open" and self._trial is None)

    def began(self, id: AttemptId) -> None:
        """This attempt goes there."""
        if self.state == "half open":
            log.info("%s: its breaker is half open, one request tries it", self._name)
            self._trial = id

    def ended(self, id: AttemptId) -> None:
        """This attempt is over: where it told nothing of the worker, another may be the trial."""
        if self._trial == id:
            self._trial = None

    def succeeded(self) -> None:
        """It did its part of an attempt."""
        if self._pause:
            log.info("%s: its breaker is closed, it serves again", self._name)
        self._failures, self._pause, self._trial = 0, 0.0, None

    def failed(self, id: AttemptId, began: float) -> None:
        """An attempt that began then failed, and it is to blame."""
        if began < self._failed_at or (self._pause and self._trial != id):
            return
        self._failures, self._failed_at, self._trial = self._failures + 1, self._clock(), None
        if self._failures >= self._most:
            self._pause = min(LONGEST, 2 * self._pause or FIRST)
            log.warning("%s: its breaker is open: %s", self._name, self.problem)
