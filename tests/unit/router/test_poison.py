"""Which requests are refused because workers died of them: plain data, no clock."""

from dataclasses import replace

import numpy as np
import pytest
from played_workers import filter_of, job_of, view_of

from router.dispatch.poison import TOGETHER, PoisonRequests
from router.job import Candidates, Job
from xgr_runtime.errors import CrashedWorkers


def refused(poison: PoisonRequests, tokens: tuple[int, ...], now: float) -> bool:
    try:
        poison.check(job_of("other", tokens), now)
    except CrashedWorkers:
        return True
    return False


def convict(poison: PoisonRequests, job: Job) -> None:
    """Workers died of it at two different times, the later of which is 0."""
    poison.died(job, -TOGETHER)
    poison.died(job, 0.0)


def test_the_same_content_is_refused_for_a_while() -> None:
    poison = PoisonRequests(seconds=600.0)
    convict(poison, job_of("r", (1, 2)))
    with pytest.raises(CrashedWorkers, match="100 s more"):
        poison.check(job_of("again", (1, 2)), 500.0)
    assert not refused(poison, (1, 2, 3), 500.0)
    assert not refused(poison, (1, 2), 600.0)
    assert len(poison) == 0, "and nothing is kept of it"


@pytest.mark.parametrize(
    "change",
    [
        {"width": 5},
        {"results": 1},
        {"score_mode": "legal"},
        {"filter": filter_of(allow=[1])},
        {"filter": filter_of(allow=[])},
        {"filter": filter_of(deny=[1])},
        {"view": view_of(7)},
        {"candidates": Candidates(np.array([1, 2], np.int32), 8, np.array([1, 2], np.int32), (None, None))},
    ],
    ids=["width", "results", "score_mode", "allow", "allow nothing", "deny", "catalog", "candidates"],
)
def test_other_content_is_not(change: dict[str, object]) -> None:
    poison = PoisonRequests()
    convict(poison, job_of())
    poison.check(replace(job_of(), **change), 1.0)  # type: ignore[arg-type]
    with pytest.raises(CrashedWorkers):
        poison.check(replace(job_of("x", deadline=9.0), priority=3), 1.0)


def test_deaths_at_one_time_are_no_proof() -> None:
    """As when a machine is stopped under a request that had two of its workers."""
    poison = PoisonRequests()
    for now in (0.0, 0.5, 1.0, 1.5):
        poison.died(job_of(), now)
        poison.check(job_of(), now)
    poison.died(job_of(), 1.5 + TOGETHER)
    with pytest.raises(CrashedWorkers):
        poison.check(job_of(), 2.0 + TOGETHER)


def test_an_answer_acquits() -> None:
    poison = PoisonRequests()
    convict(poison, job_of())
    poison.survived(job_of())
    poison.check(job_of(), 0.0)
    assert len(poison) == 0


def test_it_remembers_a_bounded_number() -> None:
    poison = PoisonRequests(most=2)
    for token in (1, 2, 1, 3):
        convict(poison, job_of("r", (token,)))
    assert len(poison) == 2
    assert [refused(poison, (token,), 1.0) for token in (1, 2, 3)] == [True, False, True]


def test_the_routers_own_probe_is_never_refused() -> None:
    poison = PoisonRequests()
    probe = replace(job_of(), probe=True)
    convict(poison, probe)
    poison.check(probe, 1.0)
    assert len(poison) == 0
