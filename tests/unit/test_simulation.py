"""The whole policy against first come, first served, in simulated time: see `tests/support/simulation.py`."""

from dataclasses import replace
from functools import cache

import pytest
from simulation import (
    Deployment,
    FirstComeFirstServed,
    Request,
    Traffic,
    Truth,
    capacity,
    goodput,
    kept,
    mixed_after,
)

TRUTH = Truth()
SECONDS, WARM_UP = 8.0, 3.0
MIXED = Traffic(1.0, SECONDS)
ALIKE = Traffic(1.0, SECONDS, deadlines=(0.3,), widths=(128,), prompts=(500,))
LOADS = (0.8, 1.5, 4.0)


@cache
def simulated(
    kind: type[Deployment], traffic: Traffic, load: float, truth: Truth = TRUTH, seed: int = 3
) -> list[Request]:
    """What became of the requests at `load` times the capacity, once costs are learned."""
    rate = capacity(truth, traffic)
    warm_up = traffic.at(rate / 2, WARM_UP, seed)
    measured = traffic.at(rate * load, SECONDS, seed + 1)
    deployment = kind(truth)
    deployment.run(mixed_after(warm_up, measured, WARM_UP))
    assert all(request.outcome for request in [*warm_up, *measured]), "nobody is lost"
    assert not deployment.held(), "nothing is held once all is over"
    return measured


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("traffic", [MIXED, ALIKE], ids=["mixed", "alike"])
def test_more_answers_are_in_time_than_first_come_first_served(traffic: Traffic, load: float) -> None:
    ours = goodput(simulated(Deployment, traffic, load), SECONDS)
    plain = goodput(simulated(FirstComeFirstServed, traffic, load), SECONDS)
    assert ours > plain * (1.0 if load < 1 else 1.3)


@pytest.mark.parametrize("traffic", [MIXED, ALIKE], ids=["mixed", "alike"])
def test_ten_times_too_much_keeps_goodput_and_promises(traffic: Traffic) -> None:
    peak = max(goodput(simulated(Deployment, traffic, load), SECONDS) for load in (*LOADS, 10.0))
    overloaded = simulated(Deployment, traffic, 10.0)
    assert goodput(overloaded, SECONDS) >= 0.9 * peak
    assert kept(overloaded) >= 0.99
    assert all(request.outcome != "answered" or request.good for request in overloaded)


def test_promises_are_kept_where_launches_stray_and_the_wire_is_slow() -> None:
    rough = Truth(noise=0.3, overhead=0.01)
    assert (
        kept(simulated(Deployment, MIXED, 4.0, rough)) >= 0.98
    )  # margins are still learning some of the time


def test_with_time_enough_everybody_is_admitted_and_answered() -> None:
    patient = Traffic(1.0, SECONDS, deadlines=(30.0,))
    assert all(request.good for request in simulated(Deployment, patient, 0.9))


def test_a_machine_that_was_slow_for_a_while_is_believed_again() -> None:
    """Nothing is answered in time meanwhile, so only trials can tell that it is over."""
    tight = replace(ALIKE, deadlines=(0.07,))
    slow = Truth(slow=(WARM_UP, WARM_UP + 3.0))
    measured = simulated(Deployment, tight, 0.3, slow)
    during = [request for request in measured if WARM_UP + 1.0 < request.arrived < WARM_UP + 3.0]
    after = [request for request in measured if request.arrived > WARM_UP + 6.0]
    assert during and not any(request.good for request in during)
    assert sum(request.good for request in after) >= 0.5 * len(after)  # margins come down more slowly


FIRST = {
    "alike": Traffic(1.0, 1.0, deadlines=(3.0,), widths=(50,), prompts=(2000,)),
    "short deadlines": Traffic(1.0, 1.0, deadlines=(0.5,), widths=(50,), prompts=(1000,)),
    "mixed": replace(MIXED, seconds=1.0, deadlines=(1.0, 3.0)),
    "wide": Traffic(1.0, 1.0, deadlines=(3.0,), widths=(512,), prompts=(500,)),
}


def at_once(traffic: Traffic, when: float, first: int) -> list[Request]:
    """Some 300 requests within 20 ms."""
    burst = traffic.at(300.0, 1.0, 5)
    for number, request in enumerate(burst):
        request.moved(first + number, when + number * 0.02 / len(burst) - request.arrived)
    return burst


@pytest.mark.parametrize("speed", [1.0, 1.5], ids="trials x{}".format)
@pytest.mark.parametrize("first", FIRST)
def test_of_the_first_burst_what_is_accepted_is_in_time(first: str, speed: float) -> None:
    """Before any request has run; and nearly as much is accepted as if many had, also after slow trials."""
    fresh = Deployment(TRUTH)
    fresh.try_launches(speed)
    burst = fresh.run(at_once(FIRST[first], 0.0, 0))
    before = FIRST[first].at(capacity(TRUTH, FIRST[first]) / 2, WARM_UP, 3)
    learned = at_once(FIRST[first], 2 * WARM_UP, len(before))
    Deployment(TRUTH).run([*before, *learned])
    refused = [request for request in burst if not request.accepted]
    assert refused and all(request.ended < 0.02 for request in refused), "at once"
    assert kept(burst) >= 0.95
    most = sum(request.good for request in learned)
    assert sum(request.good for request in burst) >= (0.8 if speed == 1.0 else 0.5) * most > 0


def test_nobody_starves() -> None:
    """At a load that can be served, each kind of request is served, the widest and the longest too."""
    measured = simulated(Deployment, MIXED, 0.8)
    for width in MIXED.widths:
        for tokens in MIXED.prompts:
            alike = [r for r in measured if r.width == width and len(r.tokens) == tokens]
            assert sum(request.good for request in alike) >= 0.8 * len(alike), (width, tokens)


def test_a_higher_priority_is_served_whoever_else_comes() -> None:
    traffic = Traffic(1.0, SECONDS, priorities=(0, 0, 0, 0, 0, 0, 0, 0, 0, 1))
    measured = simulated(Deployment, traffic, 4.0)  # two fifths of the capacity are of priority 1
    high = [request for request in measured if request.priority]
    low = [request for request in measured if not request.priority]
    assert sum(request.good for request in high) >= 0.95 * len(high)
    assert 0 < sum(request.good for request in low) < 0.7 * len(low)


def test_a_simulation_is_the_same_every_time() -> None:
    again = simulated.__wrapped__(Deployment, MIXED, 1.5)
    assert [r.ended for r in again] == [r.ended for r in simulated(Deployment, MIXED, 1.5)]
