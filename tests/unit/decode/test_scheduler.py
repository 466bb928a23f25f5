"""Who gets pages and rows: order, hard bounds, and everything freed at the end."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from decode_worker.phases import TaskPhase
from decode_worker.scheduler import DecodeScheduler, share_step
from xgr_runtime.kv.pages import PagePool
from xgr_runtime.kv.prompt_cache import PromptCache, Tokens
from xgr_runtime.scheduling.cost_model import Work, worthwhile
from xgr_runtime.scheduling.queue import BATCH, PASSES
from xgr_runtime.wire.messages import AttemptId, StepCost

THREE_STEPS = Work(3, 100, 0)


@dataclass(eq=False)
class FakeTask:
    number: int
    prompt_tokens: int
    most_beams: int
    due: float = 100.0
    priority: int = 0
    work_left: Work = THREE_STEPS
    phase: TaskPhase = TaskPhase.ROWS
    leased: bool = True

    def let_go(self) -> None:
        self.leased = False

    @property
    def tokens(self) -> Tokens:
        return np.zeros(self.prompt_tokens, np.int32)

    @property
    def id(self) -> AttemptId:
        return AttemptId(1, self.number, 1, 2, 3)


def scheduler(pages: int = 4, rows: int = 100) -> DecodeScheduler[FakeTask]:
    return DecodeScheduler(PromptCache(PagePool(pages), 16), PagePool(rows))


def numbers(granted: Sequence[tuple[FakeTask, object]]) -> list[int]:
    return [task.number for task, _ in granted]


def test_pages_go_to_the_most_urgent_and_past_those_who_do_not_fit() -> None:
    s = scheduler(pages=4)
    first, second, third = FakeTask(0, 33, 1, due=2.0), FakeTask(1, 33, 1, due=3.0), FakeTask(2, 1, 1)
    for task in (third, second, first):
        s.waiting.add(task)
    assert numbers(s.next_grants(0.0)) == [0, 2]
    s.end(first)
    assert numbers(s.next_grants(0.0)) == [1]


def test_who_leaves_in_flight_holds_pages_and_rows_until_its_launch_is_over() -> None:
    s = scheduler(pages=1, rows=100)
    flying, waiting = FakeTask(0, 1, 100), FakeTask(1, 1, 100)
    s.waiting.add(flying)
    assert numbers(s.next_grants(0.0)) == [0]
    s.ready.add(flying)
    s.next_starts(0.0)
    flying.phase = TaskPhase.IN_FLIGHT
    s.waiting.add(waiting)
    s.ready.add(waiting)
    assert not s.leave(flying) and not s.landed() and flying.leased
    assert not s.next_grants(0.0) and not s.next_starts(0.0)
    flying.phase = TaskPhase.OVER
    assert s.landed() == [flying] and not s.landed() and not s.leaving and not flying.leased
    assert numbers(s.next_grants(0.0)) == [1] and numbers(s.next_starts(0.0)) == [1]
    assert s.leave(waiting) and not s.cache.used and not s.rows.used


def test_rows_are_never_exceeded() -> None:
    s = scheduler(rows=100)
    tasks = [FakeTask(0, 1, 60), FakeTask(1, 1, 60), FakeTask(2, 1, 40)]
    for task in tasks:
        s.ready.add(task)
    started = s.next_starts(0.0)
    assert numbers(started) == [0, 2] and s.rows.free == 0
    assert not set(started[0][1].tolist()) & set(started[1][1].tolist())
    s.end(tasks[0])
    assert numbers(s.next_starts(0.0)) == [1]


def test_a_wide_request_without_time_keeps_the_rows_that_come_free() -> None:
    s = scheduler(rows=100)
    s.ready.add(FakeTask(0, 1, 60))
    s.next_starts(0.0)
    s.cost = StepCost(1.0, 0.0, 0.0)
    s.ready.add(FakeTask(1, 1, 60, due=3.0))  # three steps of a second
    s.ready.add(FakeTask(2, 1, 10))
    assert numbers(s.next_starts(0.0)) == []
    s.cost = None
    assert numbers(s.next_starts(0.0)) == [2], "nobody knows that it hurries"


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(-1, 1), st.floats(1, 9)), max_size=30), st.data())
def test_everybody_is_served_once_and_whoever_is_first_never_waits_for_ever(
    drawn: list[tuple[int, int, float]], data: st.DataObject
) -> None:
    s = scheduler(rows=60)
    tasks = [FakeTask(i, 1, w, due, priority) for i, (w, priority, due) in enumerate(drawn)]
    served: list[int] = []
    running: list[FakeTask] = []
    for task in tasks:
        s.ready.add(task)
    while s.ready:
        started = [task for task, _ in s.next_starts(0.0)]
        assert started or running, "nobody holds rows, so somebody gets some"
        running += started
        served += [task.number for task in started]
        assert sum(task.most_beams for task in running) == s.rows.used <= 60
        if running:
            s.end(running.pop(data.draw(st.integers(0, len(running) - 1))))
    assert sorted(served) == list(range(len(tasks)))


def test_a_wide_request_is_passed_so_often_and_no_more() -> None:
    s = scheduler(rows=100)
    s.ready.add(FakeTask(0, 1, 10))
    s.next_starts(0.0)
    s.ready.add(FakeTask(1, 1, 100, due=1e9))
    narrow = [FakeTask(2 + i, 1, 1, due=2e9) for i in range(2 * PASSES)]
    passed = 0
    for task in narrow:
        s.ready.add(task)
        for started, _ in s.next_starts(0.0):
            passed += 1
            s.end(started)
    assert passed == PASSES


@dataclass
class FakeSearch:
    next_work: Work


def test_a_step_takes_so_many_that_its_fixed_cost_is_small_and_one_at_least() -> None:
    cost = StepCost(fixed=1e-3, per_token=1e-5, per_pair=0.0)
    enough = worthwhile(cost) / cost.per_token
    wide, narrow = FakeSearch(Work(1, 2 * enough, 0)), FakeSearch(Work(1, enough / 3.5, 0))
    assert share_step([wide, narrow], cost) == [wide]
    assert share_step([narrow] * 9, cost) == [narrow] * 4
    assert share_step([narrow, wide, narrow], cost) == [narrow, wide]
    assert share_step([wide] * 9, None) == [wide] * 9, "all, where nobody knows"


def test_who_cannot_be_in_time_is_hopeless() -> None:
    s = scheduler()
    task = FakeTask(0, 1, 1, due=3.0)
    assert not s.hopeless(task, 2.9) and s.hopeless(task, 3.0)
    s.cost = StepCost(0.5, 0.0, 0.0)  # three steps are left
    assert not s.hopeless(task, 1.4) and s.hopeless(task, 1.6)
    assert not s.hopeless(task, 1.6, others=False), "alone it wastes nobody's time"
    assert s.hopeless(task, 3.0, others=False)


def test_the_end_frees_everything_wherever_the_task_was() -> None:
    s = scheduler()
    waiting, granted, running = FakeTask(0, 64, 1), FakeTask(1, 16, 1), FakeTask(2, 16, 5)
    s.waiting.add(granted)
    s.waiting.add(running)
    s.next_grants(0.0)
    s.ready.add(running)
    s.next_starts(0.0)
    s.waiting.add(waiting)
    for task in (waiting, granted, running, running):
        s.end(task)
    assert not s.waiting and not s.ready and not s.cache.used and not s.rows.used


def test_a_prompt_that_is_here_shares_its_pages_with_the_next() -> None:
    s = scheduler(pages=6)
    first, second = FakeTask(0, 40, 1), FakeTask(1, 60, 1)
    s.waiting.add(first)
    ((_, held),) = s.next_grants(0.0)
    s.keep(first)
    s.waiting.add(second)
    ((_, shared),) = s.next_grants(0.0)
    assert shared.cached_tokens == 32 and shared.pages[:2].tolist() == held.pages[:2].tolist()
    s.end(first)
    s.end(second)
    assert s.cache.used == 0 and s.cache.cached_pages == 2


def test_batch_work_makes_room_for_online_work_that_waits() -> None:
    s = scheduler(pages=4, rows=10)
    batch = [FakeTask(number, 16, 4, priority=-BATCH) for number in range(2)]
    online = FakeTask(2, 16, 9)
    for task in batch:
        s.waiting.add(task)
    s.next_grants(0.0)
    for task in batch:
        s.ready.add(task)
    s.next_starts(0.0)
    assert s.to_give_up(batch) is None, "nobody waits"
    s.ready.add(FakeTask(3, 16, 9, priority=-BATCH))
    assert s.to_give_up(batch) is None, "batch work makes no room for its like"
    s.ready.add(online)
    assert s.to_give_up([*batch, online]) is batch[1]
    batch[1].phase = TaskPhase.IN_FLIGHT
    assert not s.leave(batch[1])
    assert s.to_give_up([batch[0], online]) is None, "what leaves may be enough"
    batch[1].phase = TaskPhase.OVER
    s.landed()
    assert s.to_give_up([batch[0], online]) is batch[0]
    s.end(batch[0])
    assert s.to_give_up([online]) is None and numbers(s.next_starts(0.0)) == [2]


def test_batch_work_makes_room_in_pages_too() -> None:
    s = scheduler(pages=4)
    batch = FakeTask(0, 48, 1, priority=-BATCH)
    s.waiting.add(batch)
    s.next_grants(0.0)
    s.waiting.add(FakeTask(1, 17, 1))
    assert s.to_give_up([batch]) is batch
    s.waiting.add(FakeTask(2, 1, 1, priority=-BATCH))
    assert not s.next_grants(0.0), "other batch work does not take what there is"
