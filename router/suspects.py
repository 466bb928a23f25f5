"""Requests that workers died of: whoever sends the same again is refused at once, for a while.

A client that repeats a request until it is answered would otherwise kill all workers, one after the other.
"""

import hashlib
from collections import OrderedDict

from router.job import Job
from xgr_runtime.errors import CrashedWorkers

SECONDS = 600.0
MOST = 1024


class Suspects:
    """Digests of the last `most` such requests. Plain data: no clock."""

    def __init__(self, seconds: float = SECONDS, most: int = MOST) -> None:
        self._seconds = seconds
        self._most = most
        self._until: OrderedDict[bytes, float] = OrderedDict()  # digest -> when it is forgotten

    def __len__(self) -> int:
        return len(self._until)

    def add(self, job: Job, now: float) -> None:
        """Workers died of this one. The router's own probes are exempt: they are known to be harmless."""
        if job.probe:
            return
        digest = content(job)
        self._until[digest] = now + self._seconds
        self._until.move_to_end(digest)
        if len(self._until) > self._most:
            self._until.popitem(last=False)

    def check(self, job: Job, now: float) -> None:
        """Raises `CrashedWorkers` if workers lately died of the same content."""
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        if self._until and (until := self._until.get(content(job))) is not None:
            raise CrashedWorkers(
                f"workers died of a request like this one: it is refused for {until - now:.0f} s more"
            )


def content(job: Job) -> bytes:
    """A digest of all that workers get to see of a job, but for its time and its priority."""
    digest = hashlib.blake2b(digest_size=16)
    kind = (job.width, job.results, job.score_mode, job.catalog, len(job.tokens), len(job.deny))
    digest.update(repr((*kind, job.allow is None)).encode())
    for part in (job.tokens, job.deny, job.allow):
        if part is not None:
            digest.update(part.tobytes())
    return digest.digest()
