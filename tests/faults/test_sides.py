"""Only one side is left alive: refusals that say so, and answers as soon as the other is back."""

from signal import SIGKILL

import pytest
from fleet import Fleet
from trial import MakeTrial
from until import until


@pytest.mark.in_turns("role")
@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_without_one_side_requests_are_refused_until_it_is_back(
    fleet: Fleet, trial: MakeTrial, role: str
) -> None:
    with trial(f"no {role} worker alive", refusals=("no_workers", "worker_lost", "crashed_workers")) as it:
        victims = {n: i for n, i in fleet.incarnations().items() if n.startswith(role)}
        with it.crowd(seed=6, callers=3), fleet.client() as client:
            until(lambda: it.row.tally.correct, "an answer")
            for name in victims:
                fleet.signal(name, SIGKILL)
            it.fault(victims)
            until(lambda: not client.ready(), "/readiness says so", 30)
            until(lambda: it.row.tally.refusals["no_workers"], "a refusal", 30)
            it.wait_answered(120)
            assert client.ready()
