"""Who is served, in which order, and how long anybody is passed: invariants of every queue."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from xgr_runtime.scheduling.queue import BATCH, PASSES, UrgencyQueue, of_first_class


@dataclass(eq=False)
class Waiter:
    size: int
    due: float = 1.0
    priority: int = 0


def serve(queue: UrgencyQueue[Waiter], free: int, slack: float = 1.0) -> list[Waiter]:
    """Give out `free` units to those in the queue."""
    left = [free]

    def take(waiter: Waiter) -> int | None:
        if waiter.size > left[0]:
            return None
        left[0] -= waiter.size
        return waiter.size

    return [waiter for waiter, _ in queue.serve(take, lambda waiter: slack)]


def queue_of(*waiters: Waiter) -> UrgencyQueue[Waiter]:
    queue: UrgencyQueue[Waiter] = UrgencyQueue()
    for waiter in waiters:
        queue.add(waiter)
    return queue


def test_priority_then_due_then_arrival() -> None:
    waiters = [Waiter(1, 5.0), Waiter(1, 3.0), Waiter(1, 3.0), Waiter(1, 9.0, 1), Waiter(1, 0.0, -1)]
    assert serve(queue_of(*waiters), 9) == [waiters[i] for i in (3, 1, 2, 0, 4)]


def test_whoever_does_not_fit_is_passed_while_it_has_time() -> None:
    wide, narrow = Waiter(5), Waiter(1)
    assert serve(queue_of(wide, narrow), 4) == [narrow]
    assert serve(queue_of(wide, narrow), 4, slack=0.0) == []


def test_the_queue_ends_where_it_is_told() -> None:
    waiters = [Waiter(1), Waiter(2), Waiter(1)]
    queue = queue_of(*waiters)
    assert [w for w, _ in queue.serve(lambda w: 1, lambda w: 1.0, until=lambda w: w.size == 2)] == waiters[:1]
    assert list(queue) == waiters[1:]


def test_who_leaves_is_gone_and_others_change_nothing() -> None:
    first, second = Waiter(1), Waiter(1)
    queue = queue_of(first, second)
    queue.remove(first)
    queue.remove(first)
    assert list(queue) == [second] and len(queue) == 1


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5), st.integers(-1, 1)), max_size=60), st.data())
def test_everybody_is_served_once_within_bounds(
    drawn: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    waiters = [Waiter(size, due, priority) for size, due, priority in drawn]
    queue, served = queue_of(*waiters), list[Waiter]()
    while queue:
        first = next(iter(queue))
        free = data.draw(st.integers(0, 12))
        now = serve(queue, free)
        assert sum(waiter.size for waiter in now) <= free
        assert (first in now) == (first.size <= free), "the most urgent is served whenever it fits"
        served += now
        if not now:
            served += serve(queue, 9)  # in the end everything comes free
    assert len(served) == len(waiters) and set(map(id, served)) == set(map(id, waiters))


def test_nobody_is_passed_for_ever() -> None:
    wide = Waiter(5)
    queue, passed = queue_of(wide), 0
    for _ in range(3 * PASSES):
        queue.add(Waiter(1))
        passed += len(serve(queue, 4))
    assert passed == PASSES
    assert serve(queue, 5) == [wide]


def test_batch_work_comes_last_and_passes_no_online_work() -> None:
    batch, online, late = Waiter(1, 0.0, 100 - BATCH), Waiter(5, 9.0, -100), Waiter(1, 10.0, -100)
    assert serve(queue_of(batch, late, online), 9) == [online, late, batch]
    assert serve(queue_of(batch, late, online), 4) == [late], "what is left is kept for the online one"
    waiters = [online, late, batch]
    assert of_first_class(waiters) == [online, late] and of_first_class([batch]) == [batch]
