"""Which prompts run next: order, token budget, pages, deadlines."""

import numpy as np
import pytest

from prefill_worker.scheduler import PrefillScheduler, Prompt
from xgr_runtime.messages import AttemptId
from xgr_runtime.pages import PagePool

PAGE = 16


def prompt(number: int, tokens: int, deadline: float = 100.0) -> Prompt:
    id = AttemptId(1, number, 1, 2, 3)
    return Prompt(id, np.zeros(tokens, np.int32), "ipc:///x", arrived=0.0, deadline=deadline)


@pytest.mark.parametrize(
    ("budget", "pages", "lengths", "expected"),
    [
        (100, 100, [40, 40, 40], [[0, 1], [2]]),
        (100, 100, [300, 40], [[0], [1]]),  # larger than the budget: alone
        (100, 100, [40, 300, 40], [[0], [1], [2]]),
        (1000, 4, [33, 33], [[0]]),  # three pages each: the second waits
        (1000, 2, [33], []),
    ],
)
def test_batches(budget: int, pages: int, lengths: list[int], expected: list[list[int]]) -> None:
    scheduler = PrefillScheduler(PagePool(pages), PAGE, budget)
    for number, length in enumerate(lengths):
        scheduler.add(prompt(number, length))
    batches = []
    while batch := scheduler.next_batch():
        batches.append([p.id.request for p, _ in batch])
    assert batches == expected


def test_each_prompt_gets_pages_of_its_own() -> None:
    pool = PagePool(10)
    scheduler = PrefillScheduler(pool, PAGE, 1000)
    for number in range(3):
        scheduler.add(prompt(number, 17))
    pages = np.concatenate([pages for _, pages in scheduler.next_batch()])
    assert len(set(pages.tolist())) == len(pages) == pool.used == 6


def test_dropped_and_late_prompts_never_run() -> None:
    scheduler = PrefillScheduler(PagePool(10), PAGE, 1000)
    for number, deadline in enumerate([5.0, 50.0, 50.0]):
        scheduler.add(prompt(number, 1, deadline))
    scheduler.drop(prompt(1, 1).id)
    scheduler.drop(prompt(9, 1).id)
    assert [p.id.request for p in scheduler.drop_late(now=5.0)] == [0]
    assert [p.id.request for p, _ in scheduler.next_batch()] == [2]
