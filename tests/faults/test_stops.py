"""A worker stopped for longer than anybody waits: what it sends or writes once awake spoils nothing."""

from signal import SIGCONT, SIGSTOP

import pytest
from fleet import TIMES, Fleet
from trial import MakeTrial, Trial
from until import until

STOPS = [
    ("prefill", "layer", "SIGSTOP prefill during transfer, then SIGCONT"),
    ("decode", "beams", "SIGSTOP decode mid-beam, then SIGCONT"),
]


@pytest.mark.in_turns("role")
@pytest.mark.parametrize(("role", "point", "case"), STOPS, ids=[f"{w}-{p}" for w, p, _ in STOPS])
def test_a_stopped_worker_is_done_without(
    fleet: Fleet, trial: MakeTrial, role: str, point: str, case: str
) -> None:
    with trial(case) as it, it.crowd(seed=2, callers=3):
        victim = fleet.strike(role, point, SIGSTOP)
        it.fault()
        until(lambda: victim not in fleet.incarnations(), "the stopped worker counts as lost")
        it.wait_answered()
        # Its leases lapse meanwhile, and others use the pages that it was about to fill.
        until(lambda: answered_without(it), "life goes on without it")
        fleet.signal(victim, SIGCONT)
        until(lambda: victim in fleet.incarnations(), "it is back")


def answered_without(it: Trial) -> bool:
    """Whether requests that came after the stopped worker's leases lapsed were answered."""
    assert it.struck_at is not None
    return it.row.tally.answered_after(it.struck_at + TIMES["lease"]) is not None
