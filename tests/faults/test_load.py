"""Load that goes on while callers leave, and load while things break at random."""

import random
import time

import pytest
from crowd import Crowd, Question
from faulty_worker import Fault
from fleet import Fleet
from trial import MakeTrial
from upsets import Upsets

SEED = 20


def test_soak_with_callers_who_leave(fleet: Fleet, trial: MakeTrial, long: bool) -> None:
    with trial("soak, 20% of the callers leave") as it, it.crowd(seed=23, callers=8, leaving=0.2):
        time.sleep(120 if long else 6)


@pytest.mark.alone
def test_ten_times_too_much(fleet: Fleet, questions: list[Question], trial: MakeTrial, long: bool) -> None:
    """What four workers bear comes while each of them takes ten times as long.

    Ten times the requests would need cores that the workers have. Work goes on: whoever is answered is so
    correctly, and the others are told when to come again.
    """
    seconds = 60.0 if long else 7.0
    with Crowd(fleet.url, questions, seed=24, callers=8) as crowd:
        time.sleep(3)
        bearable = len(crowd.tally.correct) / 3
    with trial("ten-fold overload", refusals=("overloaded", "deadline_exceeded")) as it:
        for name in fleet.workers:
            fleet.break_(name, Fault("slow"))
        it.fault()
        with it.crowd(seed=25, rate=bearable, timeout_ms=3000):
            time.sleep(seconds)
        fleet.mend()
        tally = it.row.tally
        assert len(tally.records) > bearable * seconds / 4, "they came"
        assert tally.refusals and len(tally.correct) >= 3, tally.counts


def test_chaos(fleet: Fleet, trial: MakeTrial, long: bool) -> None:
    """Kill, stop, slow, refuse, hold links, bad frames; callers leave. See `Upsets`."""
    print(f"chaos: seed {SEED}")
    # Three attempts may all meet a worker to which something happens just then.
    with trial(f"chaos, seed {SEED}", refusals=("worker_lost", "no_workers")) as it:
        it.fault()
        with it.crowd(seed=SEED, leaving=0.2):
            Upsets(fleet, random.Random(SEED)).run(300 if long else 10)
            it.wait_answered()
