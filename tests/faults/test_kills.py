"""kill -9 of a worker in each phase of a request, under load: whoever survives answers everybody."""

from signal import SIGKILL

import pytest
from fleet import Fleet
from trial import SURVIVORS_ANSWER, MakeTrial

# Where the worker is when it dies (see `faulty_worker`), and what the table calls it.
DEATHS = [
    ("prefill", "run", "before transfer"),
    ("decode", "queued", "queued"),
    ("prefill", "layer", "during transfer"),
    ("decode", "chunk", "while KV comes in"),
    ("prefill", "sent", "after transfer"),
    ("decode", "beams", "mid-beam"),
]


@pytest.mark.alone
@pytest.mark.in_turns("point")
@pytest.mark.parametrize(("role", "point", "when"), DEATHS, ids=[f"{r}-{p}" for r, p, _ in DEATHS])
def test_a_killed_worker_costs_no_request(
    fleet: Fleet, trial: MakeTrial, role: str, point: str, when: str
) -> None:
    with trial(f"kill -9 {role}, {when}") as it:
        before = fleet.incarnations()
        with it.crowd(seed=1):
            victim = fleet.strike(role, point, SIGKILL)
            it.fault({victim: before[victim]})
            it.wait_answered()
    assert it.row.answered is not None and it.row.answered < SURVIVORS_ANSWER
