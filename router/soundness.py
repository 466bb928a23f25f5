"""Whether what a decode worker found can be the answer: whoever is broken may send anything."""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.job import Job
from xgr_runtime.messages import Result

Leaves = NDArray[np.int32]
Scores = NDArray[np.float32]

_BYTES = 4  # of a leaf, and of a score


def unsound(result: Result, job: Job, leaves: int) -> str:
    """Why this is no answer to the job, or an empty string. `leaves`: how many the catalog has."""
    if len(result.leaves) % _BYTES or len(result.scores) % _BYTES:
        return "its arrays end within a number"
    found, scores = found_in(result)
    wanted = min(job.results, live_leaves(job, leaves))
    if (len(found), len(scores)) != (wanted, wanted):
        return f"it has {len(found)} leaves and {len(scores)} scores, not {wanted} of each"
    if not all(map(math.isfinite, msgspec.structs.astuple(result.timing))):
        return "its timing is not finite"
    if not 0 <= result.cached_tokens <= len(job.tokens):
        return f"of {len(job.tokens)} tokens it found {result.cached_tokens} cached"
    return _wrong_leaves(found, job, leaves) or _wrong_scores(scores)


def found_in(result: Result) -> tuple[Leaves, Scores]:
    """Leaves and scores [n] of a result."""
    return np.frombuffer(result.leaves, np.int32), np.frombuffer(result.scores, np.float32)


def live_leaves(job: Job, leaves: int) -> int:
    """How many leaves the job's filters let live."""
    return leaves - len(job.deny) if job.allow is None else len(job.allow)


def _wrong_leaves(found: Leaves, job: Job, leaves: int) -> str:
    if ((found < 0) | (found >= leaves)).any():
        return "a leaf is not in the catalog"
    if len(np.unique(found)) < len(found):
        return "a leaf comes twice"
    if _members(found, job.deny).any() or (job.allow is not None and not _members(found, job.allow).all()):
        return "the filters exclude a leaf"
    return ""


def _wrong_scores(scores: Scores) -> str:
    if not np.isfinite(scores).all():
        return "a score is not finite"
    return "its scores do not descend" if (scores[1:] > scores[:-1]).any() else ""


def _members(found: Leaves, some: Leaves) -> NDArray[np.bool_]:
    """Which of `found` [n] are among `some`, which is sorted."""
    if not len(some):
        return np.zeros(len(found), np.bool_)
    places = np.searchsorted(some, found)
    same: NDArray[np.bool_] = some[np.minimum(places, len(some) - 1)] == found
    return same
