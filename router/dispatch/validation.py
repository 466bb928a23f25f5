"""Whether what a decode worker found can be the answer: whoever is broken may send anything."""

import math
import operator

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.job import Job
from xgr_runtime.wire.arrays import float32s, int32s
from xgr_runtime.wire.messages import Result

Leaves = NDArray[np.int32]
Scores = NDArray[np.float32]

_BYTES = 4  # of a leaf, and of a score


def unsound(result: Result, job: Job) -> str:
    """Why this is no answer to the job, or an empty string."""
    if len(result.leaves) % _BYTES or len(result.scores) % _BYTES:
        return "its arrays end within a number"
    found, scores = found_in(result)
    wanted = min(job.beams, job.live_leaves)
    if (len(found), len(scores)) != (wanted, wanted):
        return f"it has {len(found)} leaves and {len(scores)} scores, not {wanted} of each"
    if not all(map(math.isfinite, msgspec.structs.astuple(result.timing))):
        return "its timing is not finite"
    if not 0 <= result.cached_tokens <= len(job.tokens):
        return f"of {len(job.tokens)} tokens it found {result.cached_tokens} cached"
    if not wanted:
        return ""
    return _wrong_leaves(found, job) or _wrong_scores(scores.tolist()) or _wrong_ceiling(result, scores, job)


def found_in(result: Result) -> tuple[Leaves, Scores]:
    """Leaves and scores [n] of a result."""
    return int32s(result.leaves), float32s(result.scores)


def _wrong_leaves(found: Leaves, job: Job) -> str:
    plain = found.tolist()  # a few dozen: plain numbers are faster
    if min(plain) < 0 or max(plain) >= job.view.leaves:
        return "a leaf is not in the catalog"
    if len(set(plain)) < len(plain):
        return "a leaf comes twice"
    denied = bool(len(job.deny) and _members(found, job.deny).any())
    live = job.filter.live
    if live is not None and job.allow is None:
        denied |= not live.leaves.holds(found).all()
    if denied or (job.allow is not None and not _members(found, job.allow).all()):
        return "the filters exclude a leaf"
    if job.candidates is not None and not _members(found, job.candidates.leaves).all():
        return "a leaf is no candidate"
    return ""


def _wrong_scores(scores: list[float]) -> str:
    """NaN is not above anything, so that what descends between finite ends is finite."""
    if not (math.isfinite(scores[0]) and math.isfinite(scores[-1])):
        return "a score is not finite"
    return "" if all(map(operator.ge, scores, scores[1:])) else "its scores do not descend"


def _wrong_ceiling(result: Result, scores: Scores, job: Job) -> str:
    """A search that kept as many leaves as it may, and not all, has passed over some that come next."""
    cut = len(scores) == job.width < job.live_leaves
    if result.ceiling is not None and cut and result.ceiling < scores[-1]:
        return "its ceiling is below a leaf that it kept last"
    return ""


def _members(found: Leaves, some: Leaves) -> NDArray[np.bool_]:
    """Which of `found` [n] are among `some`, which is sorted and not empty."""
    places = np.searchsorted(some, found)
    same: NDArray[np.bool_] = some[np.minimum(places, len(some) - 1)] == found
    return same
