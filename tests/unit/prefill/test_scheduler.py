"""Which prompts run next: order, token budget, pages, deadlines."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefill_worker.scheduler import PrefillScheduler, Prompt
from xgr_runtime.messages import AttemptId
from xgr_runtime.pages import PagePool
from xgr_runtime.prompt_cache import PromptCache

PAGE = 16


def prompt(number: int, tokens: int, deadline: float = 100.0) -> Prompt:
    id = AttemptId(1, number, 1, 2, 3)
    return Prompt(id, np.zeros(tokens, np.int32), "ipc:///x", arrived=0.0, deadline=deadline)


def test_a_forward_has_at_most_so_many_prompts() -> None:
    scheduler = PrefillScheduler(PromptCache(PagePool(100), PAGE), batch_tokens=100, batch_prompts=2)
    for number in range(5):
        scheduler.add(prompt(number, 10))
    assert [[id for id, _, _ in forward] for forward in run_all(scheduler)] == [[0, 1], [2, 3], [4]]


def run_all(scheduler: PrefillScheduler) -> list[list[tuple[int, int, int]]]:
    """(prompt, start, end) of every forward until none can run; hand-overs never end."""
    forwards = []
    while scheduler.runnable:
        turns = scheduler.next_turns()
        assert turns
        forwards.append([(t.prompt.id.request, t.start, t.end) for t in turns])
        for turn in turns:
            scheduler.done(turn)
    assert not scheduler.next_turns()
    return forwards


@pytest.mark.parametrize(
    ("budget", "pages", "lengths", "expected"),
    [
        pytest.param(100, 100, [40, 40, 40], [[(0, 0, 40), (1, 0, 40)], [(2, 0, 40)]], id="packed"),
        pytest.param(
            100,
            100,
            [250, 40, 20],
            [[(0, 0, 100)], [(0, 100, 200)], [(0, 200, 250), (1, 0, 40)], [(2, 0, 20)]],
            id="long-first",
        ),
        pytest.param(
            100,
            100,
            [40, 130, 40, 10],
            [[(0, 0, 40), (1, 0, 60)], [(1, 60, 130)], [(2, 0, 40), (3, 0, 10)]],
            id="long-fills-the-rest",
        ),
        pytest.param(
            10,
            100,
            [15, 25, 1],
            [[(0, 0, 10)], [(0, 10, 15), (1, 0, 5)], [(1, 5, 15)], [(1, 15, 25)], [(2, 0, 1)]],
            id="two-long",
        ),
        pytest.param(100, 100, [200], [[(0, 0, 100)], [(0, 100, 200)]], id="twice-the-budget"),
        pytest.param(1000, 4, [33, 33], [[(0, 0, 33)]], id="no-pages-for-the-second"),
        pytest.param(10, 5, [33, 33, 1], [[(0, n, min(n + 10, 33))] for n in range(0, 33, 10)], id="in-line"),
        pytest.param(1000, 2, [33], [], id="no-pages"),
    ],
)
def test_what_runs_together(
    budget: int, pages: int, lengths: list[int], expected: list[list[tuple[int, int, int]]]
) -> None:
    scheduler = PrefillScheduler(PromptCache(PagePool(pages), PAGE), budget)
    for number, length in enumerate(lengths):
        scheduler.add(prompt(number, length))
    assert run_all(scheduler) == expected and not scheduler.begun


def test_each_prompt_gets_pages_of_its_own() -> None:
    pool = PagePool(10)
    scheduler = PrefillScheduler(PromptCache(pool, PAGE), 1000)
    for number in range(3):
        scheduler.add(prompt(number, 17))
    prompts = [turn.prompt for turn in scheduler.next_turns()]
    pages = [page for p in prompts for page in p.pages.tolist()]
    assert len(set(pages)) == len(pages) == pool.used == 6
    for ended in prompts:
        scheduler.end(ended)
        scheduler.end(ended)
    assert not pool.used and not scheduler.next_turns()


def test_a_prompt_that_ends_between_its_turns_makes_room() -> None:
    pool = PagePool(10)
    scheduler = PrefillScheduler(PromptCache(pool, PAGE), 20)
    for number in range(2):
        scheduler.add(prompt(number, 100))
    (first,) = scheduler.next_turns()
    scheduler.done(first)
    scheduler.end(first.prompt)
    (turn,) = scheduler.next_turns()
    assert (turn.prompt.id.request, turn.start, turn.end) == (1, 0, 20) and pool.used == 7


@given(st.lists(st.integers(1, 60), max_size=12), st.integers(1, 40), st.randoms(use_true_random=False))
def test_every_token_runs_once_and_no_forward_exceeds_the_budget(
    lengths: list[int], budget: int, random: Random
) -> None:
    pool = PagePool(8)
    scheduler = PrefillScheduler(PromptCache(pool, PAGE), budget)
    prompts = [prompt(number, length) for number, length in enumerate(lengths)]
    for p in prompts:
        scheduler.add(p)
    ran: dict[int, list[int]] = {p.id.request: [] for p in prompts}
    held: list[Prompt] = []
    while scheduler.waiting or scheduler.begun:
        turns = scheduler.next_turns()
        assert turns or held, "nothing is held, so somebody can run"
        assert sum(turn.end - turn.start for turn in turns) <= budget
        for turn in turns:
            assert len(turn.prompt.pages) * PAGE >= len(turn.prompt.tokens)
            ran[turn.prompt.id.request] += range(turn.start, turn.end)
            scheduler.done(turn)
            held += [turn.prompt] if turn.last else []
        if held and (not turns or random.random() < 0.5):
            scheduler.end(held.pop(random.randrange(len(held))))
    assert ran == {number: list(range(length)) for number, length in enumerate(lengths)}


def test_dropped_and_late_prompts_never_run() -> None:
    scheduler = PrefillScheduler(PromptCache(PagePool(10), PAGE), 1000)
    for number, deadline in enumerate([5.0, 50.0, 50.0]):
        scheduler.add(prompt(number, 1, deadline))
    scheduler.drop(prompt(1, 1).id)
    scheduler.drop(prompt(9, 1).id)
    assert [p.id.request for p in scheduler.drop_late(now=5.0)] == [0]
    assert [turn.prompt.id.request for turn in scheduler.next_turns()] == [2]


def test_what_the_cache_has_is_not_computed() -> None:
    pool = PagePool(10)
    cache = PromptCache(pool, PAGE)
    scheduler = PrefillScheduler(cache, 50)
    first, second = prompt(1, 40), prompt(2, 100)
    scheduler.add(first)
    (turn,) = scheduler.next_turns()
    scheduler.done(turn)
    assert first.held is not None
    cache.keep(first.held, turn.end)
    scheduler.end(first)
    scheduler.add(second)
    (turn,) = scheduler.next_turns()
    assert (turn.start, turn.end) == (32, 82) and cache.used == 7
    scheduler.end(second)
    assert cache.used == 0 and cache.cached_pages == 2 and pool.free == 8


def test_what_is_left_behind_a_cached_beginning_fits_into_a_forward() -> None:
    cache = PromptCache(PagePool(20), PAGE)
    scheduler = PrefillScheduler(cache, 50)
    kept = cache.begin(np.zeros(64, np.int32))
    assert kept is not None
    cache.keep(kept, 64)
    scheduler.add(prompt(1, 30))
    scheduler.add(prompt(2, 80))  # 64 of which are there: 16 are left
    assert [(turn.start, turn.end) for turn in scheduler.next_turns()] == [(16, 30), (64, 80)]
