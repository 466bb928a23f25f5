"""Time of a simulation: what happens when, also where launches share cores."""

import pytest

from xgr_runtime.planning.clock import OneAtATime, SharedCores, SimulatedClock


def ended(cores: int, *seconds: float) -> list[float]:
    """When launches of so many seconds are over that begin at once."""
    clock, ends = SimulatedClock(), [0.0] * len(seconds)
    shared = SharedCores(clock, cores)

    def begin(at: int) -> None:
        shared.begin(seconds[at], lambda: ends.__setitem__(at, clock.now))

    for at in range(len(seconds)):
        begin(at)
    clock.run(lambda: False)
    return ends


def test_launches_with_cores_of_their_own_do_not_know_of_each_other() -> None:
    assert ended(0, 1.0, 2.0, 3.0) == [1.0, 2.0, 3.0]
    assert ended(3, 1.0, 2.0, 3.0) == pytest.approx([1.0, 2.0, 3.0])


def test_more_launches_than_cores_share_them() -> None:
    # One core: at a third of the speed until the first is over, then at half, then alone.
    assert ended(1, 1.0, 2.0, 3.0) == pytest.approx([3.0, 5.0, 6.0])
    # Two cores: at two thirds until 1.5, then at full speed.
    assert ended(2, 1.0, 2.0, 3.0) == pytest.approx([1.5, 2.5, 3.5])


def test_who_comes_later_slows_the_others_from_then_on() -> None:
    clock, ends = SimulatedClock(), []
    cores = SharedCores(clock, 1)
    cores.begin(2.0, lambda: ends.append(("first", clock.now)))
    clock.at(1.0, lambda: cores.begin(0.5, lambda: ends.append(("second", clock.now))))
    clock.run(lambda: False)
    assert ends == [("second", pytest.approx(2.0)), ("first", pytest.approx(2.5))]


def test_a_process_does_one_thing_after_the_other() -> None:
    clock, ends = SimulatedClock(), []
    process = OneAtATime(SharedCores(clock))
    for seconds in (1.0, 0.0, 2.0):
        process.do(seconds, lambda: ends.append(clock.now))
    clock.run(lambda: False)
    assert ends == [0.0, 1.0, 3.0], "what takes nothing is done at once"
    assert process.busy == 3.0
