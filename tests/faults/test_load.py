"""Load that goes on while callers leave, and load while things break at random."""

import random
import time

from fleet import Fleet
from trial import MakeTrial
from upsets import Upsets

SEED = 20


def test_soak_with_callers_who_leave(fleet: Fleet, trial: MakeTrial, long: bool) -> None:
    with trial("soak, 20% of the callers leave") as it, it.crowd(seed=23, callers=8, leaving=0.2):
        time.sleep(120 if long else 10)


def test_chaos(fleet: Fleet, trial: MakeTrial, long: bool) -> None:
    """Kill, stop, slow, refuse, hold links, bad frames; callers leave. See `Upsets`."""
    print(f"chaos: seed {SEED}")
    # Three attempts may all meet a worker to which something happens just then.
    with trial(f"chaos, seed {SEED}", refusals=("worker_lost", "no_workers")) as it:
        it.fault()
        with it.crowd(seed=SEED, leaving=0.2):
            Upsets(fleet, random.Random(SEED)).run(300 if long else 15)
            it.wait_answered()
