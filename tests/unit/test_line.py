"""Who is served, in which order, and how long anybody is passed: invariants of every line."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from xgr_runtime.scheduling.line import PASSES, Line


@dataclass(eq=False)
class Waiter:
    size: int
    due: float = 1.0
    priority: int = 0


def serve(line: Line[Waiter], free: int, slack: float = 1.0) -> list[Waiter]:
    """Give out `free` units to those in the line."""
    left = [free]

    def take(waiter: Waiter) -> int | None:
        if waiter.size > left[0]:
            return None
        left[0] -= waiter.size
        return waiter.size

    return [waiter for waiter, _ in line.serve(take, lambda waiter: slack)]


def line_of(*waiters: Waiter) -> Line[Waiter]:
    line: Line[Waiter] = Line()
    for waiter in waiters:
        line.add(waiter)
    return line


def test_priority_then_due_then_arrival() -> None:
    waiters = [Waiter(1, 5.0), Waiter(1, 3.0), Waiter(1, 3.0), Waiter(1, 9.0, 1), Waiter(1, 0.0, -1)]
    assert serve(line_of(*waiters), 9) == [waiters[i] for i in (3, 1, 2, 0, 4)]


def test_whoever_does_not_fit_is_passed_while_it_has_time() -> None:
    wide, narrow = Waiter(5), Waiter(1)
    assert serve(line_of(wide, narrow), 4) == [narrow]
    assert serve(line_of(wide, narrow), 4, slack=0.0) == []


def test_the_line_ends_where_it_is_told() -> None:
    waiters = [Waiter(1), Waiter(2), Waiter(1)]
    line = line_of(*waiters)
    assert [w for w, _ in line.serve(lambda w: 1, lambda w: 1.0, until=lambda w: w.size == 2)] == waiters[:1]
    assert list(line) == waiters[1:]


def test_who_leaves_is_gone_and_strangers_change_nothing() -> None:
    first, second = Waiter(1), Waiter(1)
    line = line_of(first, second)
    line.remove(first)
    line.remove(first)
    assert list(line) == [second] and len(line) == 1


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5), st.integers(-1, 1)), max_size=60), st.data())
def test_everybody_is_served_once_within_bounds(
    drawn: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    waiters = [Waiter(size, due, priority) for size, due, priority in drawn]
    line, served = line_of(*waiters), list[Waiter]()
    while line:
        first = next(iter(line))
        free = data.draw(st.integers(0, 12))
        now = serve(line, free)
        assert sum(waiter.size for waiter in now) <= free
        assert (first in now) == (first.size <= free), "the most urgent is served whenever it fits"
        served += now
        if not now:
            served += serve(line, 9)  # in the end everything comes free
    assert len(served) == len(waiters) and set(map(id, served)) == set(map(id, waiters))


def test_nobody_is_passed_for_ever() -> None:
    wide = Waiter(5)
    line, passed = line_of(wide), 0
    for _ in range(3 * PASSES):
        line.add(Waiter(1))
        passed += len(serve(line, 4))
    assert passed == PASSES
    assert serve(line, 5) == [wide]
