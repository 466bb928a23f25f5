"""One try at a request on one pair of workers: what it is, and how it ended."""

import asyncio
from dataclasses import dataclass

from router.admission.admission import Promise
from router.job import Job
from router.workers.worker import Worker
from xgr_runtime.errors import RequestError
from xgr_runtime.wire.messages import AttemptId, Result


class Retry(Exception):
    """An attempt failed in a way that another pair may not. `crashed`: a worker died at work on it.

    `unreached`: the incarnation that nothing could be sent to, where that was it, else 0.
    """

    def __init__(self, error: RequestError, crashed: bool = False, unreached: int = 0) -> None:
        super().__init__(error.message)
        self.error = error
        self.crashed = crashed
        self.unreached = unreached


@dataclass(frozen=True)
class LiveRequest:
    """A job, its number, and where those who wait for it hear of attempts that ended."""

    job: Job
    number: int
    ended: "asyncio.Queue[Attempt]"


@dataclass(eq=False)
class Attempt:
    """One try: who works on it, and how it ended."""

    id: AttemptId
    request: LiveRequest
    prefill: Worker
    decode: Worker
    promise: Promise
    alone: bool  # begun by `Attempts.begin_alone`
    started: float
    ended: float = 0.0  # both monotonic
    committed: bool = False  # the decode worker has all KV: prefill is no longer needed
    outcome: Result | Exception | None = None

    @property
    def at_work(self) -> int:
        """The incarnation that could die of it now: decode only waits until all KV is there."""
        return self.id.decode if self.committed else self.id.prefill

    def finish(self, outcome: Result | Exception) -> None:
        """The first outcome counts."""
        if self.outcome is None:
            self.outcome = outcome
            self.request.ended.put_nowait(self)
