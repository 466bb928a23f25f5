"""Who gets pages and rows: order, hard bounds, and everything freed at the end."""

from dataclasses import dataclass

import numpy as np

from decode_worker.scheduler import DecodeScheduler
from xgr_runtime.messages import AttemptId
from xgr_runtime.pages import PagePool
from xgr_runtime.prompt_cache import PromptCache, Tokens


@dataclass(eq=False)
class FakeTask:
    number: int
    prompt_tokens: int
    most_beams: int

    @property
    def tokens(self) -> Tokens:
        return np.zeros(self.prompt_tokens, np.int32)

    @property
    def id(self) -> AttemptId:
        return AttemptId(1, self.number, 1, 2, 3)


def scheduler(pages: int = 4, rows: int = 100) -> DecodeScheduler[FakeTask]:
    return DecodeScheduler(PromptCache(PagePool(pages), 16), PagePool(rows))


def numbers(granted: list[tuple[FakeTask, object]]) -> list[int]:
    return [task.number for task, _ in granted]


def test_pages_go_in_order_of_arrival() -> None:
    s = scheduler(pages=4)
    tasks = [FakeTask(0, 33, 1), FakeTask(1, 33, 1), FakeTask(2, 1, 1)]  # 3, 3 and 1 pages
    s.waiting.extend(tasks)
    assert numbers(s.next_grants()) == [0], "the third does not overtake the second"
    s.end(tasks[0])
    assert numbers(s.next_grants()) == [1, 2]


def test_rows_are_never_exceeded() -> None:
    s = scheduler(rows=100)
    tasks = [FakeTask(0, 1, 60), FakeTask(1, 1, 60), FakeTask(2, 1, 40)]
    s.ready.extend(tasks)
    assert numbers(s.next_starts()) == [0]
    s.end(tasks[0])
    started = s.next_starts()
    assert numbers(started) == [1, 2] and s.rows.free == 0
    assert not set(started[0][1].tolist()) & set(started[1][1].tolist())


def test_the_end_frees_everything_wherever_the_task_was() -> None:
    s = scheduler()
    waiting, granted, running = FakeTask(0, 64, 1), FakeTask(1, 16, 1), FakeTask(2, 16, 5)
    s.waiting.extend([granted, running])
    s.next_grants()
    s.ready.append(running)
    s.next_starts()
    s.waiting.append(waiting)
    for task in (waiting, granted, running, running):
        s.end(task)
    assert not s.waiting and not s.ready and not s.cache.used and not s.rows.used


def test_a_prompt_that_is_here_shares_its_pages_with_the_next() -> None:
    s = scheduler(pages=6)
    first, second = FakeTask(0, 40, 1), FakeTask(1, 60, 1)
    s.waiting.append(first)
    ((_, held),) = s.next_grants()
    s.keep(first)
    s.waiting.append(second)
    ((_, shared),) = s.next_grants()
    assert shared.cached_tokens == 32 and shared.pages[:2].tolist() == held.pages[:2].tolist()
    s.end(first)
    s.end(second)
    assert s.cache.used == 0 and s.cache.cached_pages == 2
