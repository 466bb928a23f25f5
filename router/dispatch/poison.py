"""Requests that workers died of: whoever sends the same again is refused at once, for a while.

A client that repeats a request until it is answered would otherwise kill all workers, one after the other.
What kills several at once from outside (a machine that is stopped) looks the same to a request that had one
after the other, so deaths close together count once, and two are needed. In company anybody may be to blame:
only the death of a worker that had no other such request counts, and an answer acquits.
"""

import hashlib
import math
from collections import OrderedDict
from dataclasses import dataclass

from router.job import Job
from xgr_runtime.errors import CrashedWorkers

SECONDS = 600.0  # until it is forgotten
TOGETHER = 1.0  # seconds between deaths that count once
PROOF = 2  # times
MOST = 1024


@dataclass
class _Deaths:
    times: int
    last: float


class PoisonRequests:
    """Digests of the last `most` requests that had a worker which died. Plain data: no clock."""

    def __init__(self, seconds: float = SECONDS, most: int = MOST) -> None:
        self._seconds = seconds
        self._most = most
        self._deaths: OrderedDict[bytes, _Deaths] = OrderedDict()  # the latest last

    def __len__(self) -> int:
        return len(self._deaths)

    def died(self, job: Job, now: float) -> None:
        """A worker died on which this one was alone. Probes of the router itself are exempt."""
        if job.probe:
            return
        digest = content(job)
        deaths = self._deaths.setdefault(digest, _Deaths(0, -math.inf))
        if now - deaths.last >= TOGETHER:
            deaths.times += 1
        deaths.last = now
        self._deaths.move_to_end(digest)
        if len(self._deaths) > self._most:
            self._deaths.popitem(last=False)

    def survived(self, job: Job) -> None:
        """It was answered."""
        if self._deaths:
            self._deaths.pop(content(job), None)

    def check(self, job: Job, now: float) -> None:
        """Raises `CrashedWorkers` if workers lately died of the same content, more than once."""
        while self._deaths and next(iter(self._deaths.values())).last + self._seconds <= now:
            self._deaths.popitem(last=False)
        deaths = self._deaths.get(content(job)) if self._deaths else None
        if deaths is not None and deaths.times >= PROOF:
            left = deaths.last + self._seconds - now
            raise CrashedWorkers(
                f"workers died of a request like this one: it is refused for {left:.0f} s more"
            )


def content(job: Job) -> bytes:
    """A digest of all that workers get to see of a job, but for its time and its priority."""
    digest = hashlib.blake2b(digest_size=16)
    kind = (
        job.width,
        job.beams,
        job.score_mode,
        job.repetition_penalty,
        job.view.version,
        len(job.tokens),
        len(job.deny),
        job.where,
    )
    digest.update(repr((*kind, job.allow is None, job.candidates is None)).encode())
    scored = None if job.candidates is None else job.candidates.leaves
    for part in (job.tokens, job.deny, job.allow, scored):
        if part is not None:
            digest.update(part.tobytes())
    return digest.digest()
