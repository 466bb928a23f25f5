"""Which prompts run next: order, token budget, pages, deadlines."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefill_worker.scheduler import LEAST_PIECE, PrefillScheduler, Prompt, Turn
from xgr_runtime.kv.pages import PagePool
from xgr_runtime.kv.prompt_cache import PromptCache
from xgr_runtime.scheduling.cost_model import CostModel, worthwhile
from xgr_runtime.scheduling.queue import BATCH, PASSES
from xgr_runtime.wire.messages import AttemptId, StepCost

PAGE = 16


COST = StepCost(fixed=1e-3, per_token=1e-5, per_pair=0.0)  # 1150 tokens make the fixed cost small
WORTHWHILE = round(worthwhile(COST) / COST.per_token)


def prompt(
    number: int,
    tokens: int,
    deadline: float = 100.0,
    priority: int = 0,
    after: float = 0.0,
    arrived: float = 0.0,
) -> Prompt:
    id = AttemptId(1, number, 1, 2, 3)
    return Prompt(id, np.zeros(tokens, np.int32), "ipc:///x", arrived, deadline, priority, after)


def knowing(batch_tokens: int = 4096, pages: int = 1000, window: float = 0.0) -> PrefillScheduler:
    """A scheduler that knows what forwards cost."""
    costs = CostModel()
    costs.cost = COST
    return PrefillScheduler(PromptCache(PagePool(pages), PAGE), batch_tokens, None, costs, window)


def numbers(turns: list[Turn]) -> list[int]:
    return [turn.prompt.id.request for turn in turns]


def test_a_forward_has_at_most_so_many_prompts() -> None:
    scheduler = PrefillScheduler(PromptCache(PagePool(100), PAGE), batch_tokens=100, batch_prompts=2)
    for number in range(5):
        scheduler.add(prompt(number, 10))
    assert [[id for id, _, _ in forward] for forward in run_all(scheduler)] == [[0, 1], [2, 3], [4]]


def run_all(scheduler: PrefillScheduler) -> list[list[tuple[int, int, int]]]:
    """(prompt, start, end) of every forward until none can run; hand-overs never end."""
    forwards = []
    while scheduler.runnable(0.0):
        turns = scheduler.next_turns(0.0)
        assert turns
        forwards.append([(t.prompt.id.request, t.start, t.end) for t in turns])
        for turn in turns:
            scheduler.launched(turn)
    assert not scheduler.next_turns(0.0)
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
        pytest.param(
            10,
            5,
            [33, 33, 1],
            [[(0, 0, 10)], [(0, 10, 20)], [(0, 20, 30)], [(0, 30, 33), (2, 0, 1)]],
            id="past-one-that-waits-for-pages",
        ),
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
    prompts = [turn.prompt for turn in scheduler.next_turns(0.0)]
    pages = [page for p in prompts for page in p.pages.tolist()]
    assert len(set(pages)) == len(pages) == pool.used == 6
    for ended in prompts:
        scheduler.end(ended)
        scheduler.end(ended)
    assert not pool.used and not scheduler.next_turns(0.0)


def test_a_prompt_that_ends_between_its_turns_makes_room() -> None:
    pool = PagePool(10)
    scheduler = PrefillScheduler(PromptCache(pool, PAGE), 20)
    for number in range(2):
        scheduler.add(prompt(number, 100))
    (first,) = scheduler.next_turns(0.0)
    scheduler.launched(first)
    scheduler.end(first.prompt)
    (turn,) = scheduler.next_turns(0.0)
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
        turns = scheduler.next_turns(0.0)
        assert turns or held, "nothing is held, so somebody can run"
        assert sum(turn.end - turn.start for turn in turns) <= budget
        for turn in turns:
            assert len(turn.prompt.pages) * PAGE >= len(turn.prompt.tokens)
            ran[turn.prompt.id.request] += range(turn.start, turn.end)
            scheduler.launched(turn)
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
    assert [turn.prompt.id.request for turn in scheduler.next_turns(0.0)] == [2]


def test_what_the_cache_has_is_not_computed() -> None:
    pool = PagePool(10)
    cache = PromptCache(pool, PAGE)
    scheduler = PrefillScheduler(cache, 50)
    first, second = prompt(1, 40), prompt(2, 100)
    scheduler.add(first)
    (turn,) = scheduler.next_turns(0.0)
    scheduler.launched(turn)
    assert first.held is not None
    cache.keep(first.held, turn.end)
    scheduler.end(first)
    scheduler.add(second)
    (turn,) = scheduler.next_turns(0.0)
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
    assert [(turn.start, turn.end) for turn in scheduler.next_turns(0.0)] == [(16, 30), (64, 80)]


def test_the_most_urgent_run_first_by_priority_then_by_when_they_are_due() -> None:
    scheduler = PrefillScheduler(PromptCache(PagePool(100), PAGE), 10)
    for number, (deadline, priority, after) in enumerate(
        [(9.0, 0, 0.0), (5.0, 0, 0.0), (7.0, 0, 3.0), (99.0, 1, 0.0), (5.0, 0, 0.0), (1.0, -1, 0.0)]
    ):
        scheduler.add(prompt(number, 10, deadline, priority, after))
    assert [forward[0][0] for forward in run_all(scheduler)] == [3, 2, 1, 4, 0, 5]


def test_a_forward_takes_no_more_than_makes_its_fixed_cost_small() -> None:
    scheduler = knowing()
    for number in range(9):
        scheduler.add(prompt(number, WORTHWHILE // 3))
    assert numbers(scheduler.next_turns(0.0)) == [0, 1, 2, 3]  # three are a token short of it


def test_a_long_prompt_runs_in_equal_pieces_and_is_overtaken_between_them() -> None:
    scheduler = knowing()
    scheduler.add(prompt(0, 3 * WORTHWHILE))
    (first,) = scheduler.next_turns(0.0)
    assert first.end == WORTHWHILE
    scheduler.launched(first)
    scheduler.add(prompt(1, 2 * LEAST_PIECE, deadline=1.0))
    turns = scheduler.next_turns(0.0)
    assert numbers(turns) == [1, 0], (
        "the urgent one first, and the rest of the forward goes on with the other"
    )
    for turn in turns:
        scheduler.launched(turn)
    assert run_all(scheduler) == [[(0, 2 * WORTHWHILE, 3 * WORTHWHILE)]]


def test_a_prompt_a_little_longer_than_a_full_forward_is_not_cut() -> None:
    scheduler = knowing()
    scheduler.add(prompt(0, WORTHWHILE * 5 // 4))
    (turn,) = scheduler.next_turns(0.0)
    assert turn.last


def test_who_cannot_be_in_time_is_given_up_before_it_runs_and_between_its_pieces() -> None:
    scheduler = knowing()
    seconds = COST.fixed + 3 * WORTHWHILE * COST.per_token
    scheduler.add(prompt(0, 3 * WORTHWHILE, deadline=2 * seconds, after=seconds / 2))
    scheduler.add(prompt(1, 3 * WORTHWHILE, deadline=1.2 * seconds, after=seconds / 2))
    assert [p.id.request for p in scheduler.drop_late(0.0)] == [1], "its search would come too late"
    (turn,) = scheduler.next_turns(0.0)
    scheduler.launched(turn)
    scheduler.add(prompt(2, 10))
    assert not scheduler.late(seconds / 2)
    assert [p.id.request for p in scheduler.late(seconds)] == [0]


def test_alone_a_prompt_that_seems_late_has_its_try_until_its_deadline() -> None:
    scheduler = knowing()
    scheduler.add(prompt(0, 3 * WORTHWHILE, deadline=1e-3))
    assert not scheduler.drop_late(0.0)
    (turn,) = scheduler.next_turns(0.0)
    scheduler.launched(turn)
    assert not scheduler.late(0.0) and scheduler.late(1e-3)


def test_what_the_cache_has_counts_when_time_is_short() -> None:
    cache, costs = PromptCache(PagePool(1000), PAGE), CostModel()
    costs.cost = COST
    scheduler = PrefillScheduler(cache, 4096, None, costs)
    kept = cache.begin(np.zeros(3200, np.int32))
    assert kept is not None
    cache.keep(kept, 3200)
    scheduler.add(prompt(1, 10))
    scheduler.add(prompt(0, 3200, deadline=0.01))  # 3200 tokens take 33 ms
    assert not scheduler.drop_late(0.0)


def test_a_forward_waits_for_others_only_while_they_come_often_and_nobody_hurries() -> None:
    def after(gap: float, deadline: float = 9.0, tokens: int = 10, window: float = 1.0) -> float:
        scheduler = knowing(window=window)
        for number in range(3):
            scheduler.add(prompt(number, tokens, deadline, arrived=number * gap))
        return scheduler.hold(2 * gap)

    fixed = COST.fixed
    assert after(fixed / 4) == pytest.approx(fixed / 2), (
        "as long as the first has waited less than filling saves"
    )
    assert after(fixed / 4, window=fixed * 0.6) == pytest.approx(fixed * 0.1), "and less than the window"
    assert after(2 * fixed) == 0, "nobody is expected"
    assert after(fixed / 4, tokens=WORTHWHILE) == 0, "it is full"
    assert after(fixed / 4, deadline=0.0018) == pytest.approx(0.0002), "somebody hurries"
    assert after(fixed / 4, window=0.0) == 0


def test_a_held_forward_is_not_runnable_and_then_is() -> None:
    scheduler = knowing(window=1.0)
    for number in range(2):
        scheduler.add(prompt(number, 10, arrived=number * 1e-4))
    assert not scheduler.runnable(1e-4) and scheduler.runnable(COST.fixed + 1e-6)


def test_a_prompt_that_waits_for_pages_is_passed_so_often_and_no_more() -> None:
    scheduler = PrefillScheduler(PromptCache(PagePool(4), PAGE), 1000)
    scheduler.add(prompt(0, 17))
    (held,) = scheduler.next_turns(0.0)  # two of four pages
    scheduler.launched(held)
    scheduler.add(prompt(1, 64))
    served = 0
    for number in range(2, 2 + 2 * PASSES):
        scheduler.add(prompt(number, 1))
        for turn in scheduler.next_turns(0.0):
            served += 1
            scheduler.launched(turn)
            scheduler.end(turn.prompt)
    assert served == PASSES
    scheduler.end(held.prompt)
    assert numbers(scheduler.next_turns(0.0)) == [1]


def test_a_prompt_without_time_to_wait_keeps_free_pages_for_itself() -> None:
    scheduler = PrefillScheduler(PromptCache(PagePool(4), PAGE), 1000)
    scheduler.add(prompt(0, 17))
    scheduler.next_turns(0.0)
    scheduler.add(prompt(1, 64, deadline=0.0))
    scheduler.add(prompt(2, 1))
    assert numbers(scheduler.next_turns(0.0)) == [0]


def test_batch_prompts_share_no_forward_with_online_ones() -> None:
    scheduler = PrefillScheduler(PromptCache(PagePool(100), PAGE), batch_tokens=100)
    for number, priority in enumerate((-BATCH, 0, -BATCH, -100)):
        scheduler.add(prompt(number, 10, priority=priority))
    assert [[id for id, _, _ in forward] for forward in run_all(scheduler)] == [[1, 3], [0, 2]]


def test_online_prompts_are_starved_where_batch_ones_hold_the_pages() -> None:
    scheduler = PrefillScheduler(PromptCache(PagePool(4), PAGE), batch_tokens=100)
    scheduler.add(prompt(0, 4 * PAGE, priority=-BATCH))
    assert not scheduler.starved
    (turn,) = scheduler.next_turns(0.0)
    scheduler.add(prompt(1, PAGE, priority=-BATCH))
    assert not scheduler.starved, "batch work waits for its like"
    scheduler.add(prompt(2, PAGE))
    assert scheduler.starved
    scheduler.end(turn.prompt)
    assert not scheduler.starved
