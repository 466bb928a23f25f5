"""Which requests are refused because workers died of them: plain data, no clock."""

from dataclasses import replace

import pytest
from played_workers import filter_of, job_of, view_of

from router.dispatch.poison import TOGETHER, Suspects
from router.job import Job
from xgr_runtime.errors import CrashedWorkers


def refused(suspects: Suspects, tokens: tuple[int, ...], now: float) -> bool:
    try:
        suspects.check(job_of("other", tokens), now)
    except CrashedWorkers:
        return True
    return False


def convict(suspects: Suspects, job: Job) -> None:
    """Workers died of it at two different times, the later of which is 0."""
    suspects.died(job, -TOGETHER)
    suspects.died(job, 0.0)


def test_the_same_content_is_refused_for_a_while() -> None:
    suspects = Suspects(seconds=600.0)
    convict(suspects, job_of("r", (1, 2)))
    with pytest.raises(CrashedWorkers, match="100 s more"):
        suspects.check(job_of("again", (1, 2)), 500.0)
    assert not refused(suspects, (1, 2, 3), 500.0)
    assert not refused(suspects, (1, 2), 600.0)
    assert len(suspects) == 0, "and nothing is kept of it"


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
    ],
    ids=str,
)
def test_other_content_is_not(change: dict[str, object]) -> None:
    suspects = Suspects()
    convict(suspects, job_of())
    suspects.check(replace(job_of(), **change), 1.0)  # type: ignore[arg-type]
    with pytest.raises(CrashedWorkers):
        suspects.check(replace(job_of("x", deadline=9.0), priority=3), 1.0)


def test_deaths_at_one_time_are_no_proof() -> None:
    """As when a machine is stopped under a request that had two of its workers."""
    suspects = Suspects()
    for now in (0.0, 0.5, 1.0, 1.5):
        suspects.died(job_of(), now)
        suspects.check(job_of(), now)
    suspects.died(job_of(), 1.5 + TOGETHER)
    with pytest.raises(CrashedWorkers):
        suspects.check(job_of(), 2.0 + TOGETHER)


def test_an_answer_acquits() -> None:
    suspects = Suspects()
    convict(suspects, job_of())
    suspects.survived(job_of())
    suspects.check(job_of(), 0.0)
    assert len(suspects) == 0


def test_it_remembers_a_bounded_number() -> None:
    suspects = Suspects(most=2)
    for token in (1, 2, 1, 3):
        convict(suspects, job_of("r", (token,)))
    assert len(suspects) == 2
    assert [refused(suspects, (token,), 1.0) for token in (1, 2, 3)] == [True, False, True]


def test_the_routers_own_probe_is_never_refused() -> None:
    suspects = Suspects()
    probe = replace(job_of(), probe=True)
    convict(suspects, probe)
    suspects.check(probe, 1.0)
    assert len(suspects) == 0
