"""Which results may be answered: a list of cases."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from played_workers import TIMING, filter_of, job_of, view_of

from router.dispatch.validation import unsound
from router.job import Candidates, Job
from router.listing import Diversity, Listing
from xgr_runtime.wire.messages import AttemptId, Result

ID = AttemptId(1, 2, 3, 4, 5)
LEAVES = 10


def result(leaves: list[int], scores: list[float]) -> Result:
    return Result(ID, np.array(leaves, np.int32).tobytes(), np.array(scores, np.float32).tobytes(), TIMING)


def with_ceiling(found: Result, ceiling: float) -> Result:
    return msgspec.structs.replace(found, ceiling=ceiling)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


SOUND = result([5, 3], [-1.0, -2.0])
JOB = replace(job_of(), view=view_of(LEAVES))  # two results
FULL = replace(JOB, width=2)  # as many as its search keeps
SCORED = replace(FULL, candidates=Candidates(ints(3, 5), 8, ints(5, -1, 3), (None, "unknown", None)))
DIVERSE = replace(FULL, results=1, listing=Listing(diversity=Diversity("brand", 1)))


@pytest.mark.parametrize(
    ("job", "sound"),
    [
        (JOB, SOUND),
        (JOB, result([9, 0], [-1.0, -1.0])),
        (replace(JOB, filter=filter_of(allow=[7])), result([7], [-1.0])),
        (replace(JOB, filter=filter_of(allow=[])), result([], [])),
        (replace(JOB, filter=filter_of(deny=[*range(9)])), result([9], [-3.0])),
        (replace(JOB, filter=filter_of(deny=[0, 4])), SOUND),
        (JOB, msgspec.structs.replace(SOUND, cached_tokens=3)),
        (JOB, with_ceiling(SOUND, -3.0)),
        (FULL, with_ceiling(SOUND, -2.0)),
        (replace(FULL, filter=filter_of(allow=[3, 5])), with_ceiling(SOUND, -1e30)),
        (DIVERSE, SOUND),
        (SCORED, SOUND),
    ],
    ids=[
        "plain",
        "first-last-tied",
        "short-allow",
        "empty-allow",
        "short-deny",
        "deny",
        "cached",
        "low",
        "at-last",
        "whole",
        "diverse",
        "scored",
    ],
)
def test_what_may_be_answered(job: Job, sound: Result) -> None:
    assert unsound(sound, job) == ""


@pytest.mark.parametrize(
    ("job", "bad", "why"),
    [
        (JOB, result([5, -1], [-1.0, -2.0]), "not in the catalog"),
        (JOB, result([5, -(2**31)], [-1.0, -2.0]), "not in the catalog"),
        (JOB, result([5, LEAVES], [-1.0, -2.0]), "not in the catalog"),
        (JOB, result([5], [-1.0]), "1 leaves"),
        (SCORED, result([5], [-1.0]), "1 leaves"),
        (SCORED, result([5, 4], [-1.0, -2.0]), "no candidate"),
        (DIVERSE, result([5], [-1.0]), "1 leaves"),
        (FULL, with_ceiling(SOUND, -2.5), "ceiling"),
        (DIVERSE, with_ceiling(SOUND, -1e30), "ceiling"),
        (JOB, result([], []), "0 leaves"),
        (JOB, result([5, 3, 4], [-1.0, -2.0, -3.0]), "3 leaves"),
        (JOB, result([5, 3], [-1.0]), "1 scores"),
        (JOB, result([5, 5], [-1.0, -2.0]), "twice"),
        (JOB, result([5, 3], [-1.0, math.nan]), "finite"),
        (JOB, result([5, 3], [-1.0, -math.inf]), "finite"),
        (JOB, result([5, 3], [-2.0, -1.0]), "descend"),
        (replace(JOB, results=3), result([5, 3, 4], [-1.0, math.nan, -2.0]), "descend"),
        (JOB, result([5, 3], [math.inf, -1.0]), "finite"),
        (JOB, msgspec.structs.replace(SOUND, leaves=SOUND.leaves[:-1]), "within a number"),
        (JOB, msgspec.structs.replace(SOUND, scores=b"abc"), "within a number"),
        (replace(JOB, filter=filter_of(allow=[3, 4])), SOUND, "exclude"),
        (replace(JOB, filter=filter_of(allow=[5, 9])), SOUND, "exclude"),
        (replace(JOB, filter=filter_of(deny=[1, 5])), SOUND, "exclude"),
        (JOB, msgspec.structs.replace(SOUND, cached_tokens=4), "cached"),
        (JOB, msgspec.structs.replace(SOUND, cached_tokens=-1), "cached"),
        (
            JOB,
            msgspec.structs.replace(SOUND, timing=msgspec.structs.replace(TIMING, decode=math.nan)),
            "timing",
        ),
    ],
)
def test_what_may_not(job: Job, bad: Result, why: str) -> None:
    assert why in unsound(bad, job)
