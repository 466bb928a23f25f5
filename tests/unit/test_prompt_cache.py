"""Pages shared between prompts: what is found, who holds what, what is dropped first, and nothing is lost."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from xgr_runtime.kv.pages import PageIds, PagePool
from xgr_runtime.kv.prompt_cache import HeldPrompt, PromptCache, Tokens

SIZE = 4


def cache_of(pages: int, limit: int | None = None) -> PromptCache:
    return PromptCache(PagePool(pages), SIZE, limit)


def prompt(*tokens: int) -> Tokens:
    return np.array(tokens, np.int32)


def begun(cache: PromptCache, tokens: Tokens) -> HeldPrompt:
    held = cache.begin(tokens)
    assert held is not None
    return held


def left(cache: PromptCache, tokens: Tokens) -> HeldPrompt:
    """A prompt that was computed to its end and is over."""
    held = begun(cache, tokens)
    cache.keep(held, len(tokens))
    cache.end(held)
    return held


def ramp(count: int, start: int = 0) -> Tokens:
    return np.arange(start, start + count, dtype=np.int32)


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        pytest.param(ramp(10), ramp(10), 8, id="the-same"),
        pytest.param(ramp(8), ramp(8), 4, id="the-same-in-whole-pages"),
        pytest.param(ramp(8), ramp(9), 8, id="grown-by-one"),
        pytest.param(ramp(10), ramp(20), 8, id="grown-in-a-page"),
        pytest.param(ramp(20), ramp(10), 8, id="shorter"),
        pytest.param(ramp(20), ramp(1), 0, id="one-token"),
        pytest.param(ramp(20), np.concatenate([ramp(6), ramp(10, 50)]), 4, id="another-end"),
        pytest.param(ramp(20), np.concatenate([ramp(4, 50), ramp(16, 4)]), 0, id="another-beginning"),
    ],
)
def test_what_is_found(before: Tokens, after: Tokens, found: int) -> None:
    cache = cache_of(20)
    left(cache, before)
    assert cache.cached(after) == found and cache.cached_pages == len(before) // SIZE
    held = begun(cache, after)
    assert held.cached_tokens == found and len(held.pages) == -(-len(after) // SIZE)
    assert len(set(held.pages.tolist())) == len(held.pages)


def test_nothing_is_found_of_what_was_not_said_to_be_good() -> None:
    cache = cache_of(20)
    first = begun(cache, ramp(20))
    cache.keep(first, 11)
    assert cache.cached(ramp(20)) == 8
    cache.end(first)
    assert cache.cached(ramp(20)) == 8 and cache.cached_pages == 2 and cache.pool.free == 18


def test_a_prompt_shares_pages_with_one_that_is_under_way_and_outlives_it() -> None:
    cache = cache_of(10)
    first = begun(cache, ramp(12))
    cache.keep(first, 12)
    pages = first.pages.tolist()
    second = begun(cache, ramp(20))
    assert second.pages[:3].tolist() == pages and cache.used == 5
    cache.end(first)
    assert cache.used == 5 and cache.cached_pages == 0
    cache.end(second)
    assert cache.used == 0 and cache.cached_pages == 3


def test_of_two_that_compute_the_same_page_the_second_keeps_its_own() -> None:
    cache = cache_of(10)
    first, second = begun(cache, ramp(10)), begun(cache, ramp(12))
    cache.keep(first, 10)
    cache.keep(second, 12)
    assert not set(first.pages.tolist()) & set(second.pages.tolist())
    third = begun(cache, ramp(13))
    assert third.pages[:3].tolist() == [*first.pages[:2].tolist(), second.pages[2]]
    for held in (first, second, third):
        cache.end(held)
    assert cache.used == 0 and cache.cached_pages == 3 and cache.pool.free == 7


def test_a_page_is_not_dropped_under_one_that_goes_on_from_it() -> None:
    """The second prompt goes on from the first one's page, though it has the same in a page of its own."""
    cache = cache_of(6)
    first, second = begun(cache, ramp(5)), begun(cache, ramp(9))
    cache.keep(first, 5)
    cache.keep(second, 9)
    cache.end(first)
    assert cache.cached_pages == 0 and cache.flush() == 0
    assert cache.cached(ramp(9)) == 8


def test_the_oldest_goes_first_and_the_end_of_a_prompt_before_its_beginning() -> None:
    cache = cache_of(6)
    left(cache, ramp(12))
    left(cache, ramp(12, 100))
    assert cache.cached(ramp(13)) == 12, "asking is not using"
    left(cache, ramp(9))  # which finds two pages, and needs a page: the end of the first prompt
    assert cache.cached(ramp(13)) == 8 and cache.cached(ramp(13, 100)) == 12
    cache.end(begun(cache, ramp(8, 50)))
    assert cache.cached(ramp(13)) == 8 and cache.cached(ramp(13, 100)) == 8


def test_a_dropped_page_has_another_generation_and_a_cached_one_the_same() -> None:
    pool = PagePool(4)
    cache = PromptCache(pool, SIZE)
    held = begun(cache, ramp(10))
    pages = held.pages
    cache.keep(held, 10)
    cache.end(held)
    assert pool.generations[pages].tolist() == [0, 0, 1], "only the last page may get other content"
    cache.flush()
    assert pool.generations[pages].tolist() == [1, 1, 1]


def test_what_is_kept_for_nobody_is_bounded() -> None:
    cache = cache_of(20, limit=3)
    left(cache, ramp(20))
    assert cache.cached_pages == 3 and cache.cached(ramp(20)) == 12, "its beginning"
    left(cache, ramp(20, 100))
    assert cache.cached_pages == 3 and cache.cached(ramp(20)) == 0
    none = cache_of(20, limit=0)
    left(none, ramp(20))
    assert none.cached_pages == none.pool.used == 0


def test_pages_that_a_prompt_finds_are_not_dropped_to_make_room_for_it() -> None:
    cache = cache_of(5)
    left(cache, ramp(12))
    other = begun(cache, ramp(4, 100))
    assert cache.fits(ramp(16)) and not cache.fits(ramp(20)) and not cache.fits(ramp(20, 100))
    assert cache.begin(ramp(20)) is None and cache.cached(ramp(20)) == 12
    assert begun(cache, ramp(16)).cached_tokens == 12
    cache.end(other)


def test_what_goes_on_from_cached_pages_lies_behind_them_if_it_can() -> None:
    cache = cache_of(20)
    left(cache, ramp(10))
    held = begun(cache, ramp(18))
    assert held.pages.tolist() == list(range(int(held.pages[0]), int(held.pages[0]) + 5))


class PlayedTier:
    """Three pages beside the pool; it copies what the model says that a page holds."""

    def __init__(self, life: "Life") -> None:
        self.life = life
        self.kept: dict[bytes, bytes] = {}

    def __contains__(self, name: bytes) -> bool:
        return name in self.kept

    def save(self, name: bytes, page: int) -> None:
        self.kept[name] = self.life.written[page]
        if len(self.kept) > 3:
            del self.kept[next(iter(self.kept))]

    def load(self, names: Sequence[bytes], pages: PageIds) -> None:
        for name, page in zip(names, pages.tolist(), strict=True):
            self.life.written[page] = self.kept[name]

    def clear(self) -> None:
        self.kept.clear()


class Life(RuleBasedStateMachine):
    """Prompts over a small alphabet come and go; the model of the cache is what each page holds."""

    tiered = False

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(7)
        self.tier = PlayedTier(self)
        self.cache = PromptCache(self.pool, 2, limit=5, tier=self.tier if self.tiered else None)
        self.held: list[HeldPrompt] = []
        self.good: dict[int, int] = {}  # id(held) -> tokens that were kept
        self.written: dict[int, bytes] = {}  # page -> the tokens up to its end that were computed there
        self.generations: dict[int, int] = {}  # of pages that prompts were given to fill, when they were
        self.goes_on_from: dict[bytes, bytes | None] = {}

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def begin(self, tokens: list[int]) -> None:
        array = np.array(tokens, np.int32)
        fits, found, before = self.cache.fits(array), self.cache.cached(array), self.pool.generations.copy()
        pinned = {page for held in self.held for page in held.pages.tolist()}
        shared = {self.cache._pages[name].id for name in self.cache._found(array)}
        held = self.cache.begin(array)
        assert (held is not None) == fits
        changed = set(np.flatnonzero(self.pool.generations != before).tolist())
        assert not changed & pinned, "a page was dropped that somebody holds"
        if held is None:
            assert not changed
            return
        assert len(held.pages) == -(-len(array) // 2) and held.cached_tokens <= found < len(array)
        assert self.tiered or held.cached_tokens == found, "what a tier has may be dropped on the way"
        there = held.cached_tokens // 2
        for index, page in enumerate(held.pages[:there].tolist()):
            assert self.written[page] == array[: 2 * index + 2].tobytes(), "computed for another prompt"
        for page in held.pages.tolist():
            if page in shared:
                assert page not in changed
                continue
            assert page not in pinned
            if page in self.generations:
                assert self.pool.generations[page] != self.generations[page], "new content, old generation"
            self.generations[page] = int(self.pool.generations[page])
        for page in held.pages[there:].tolist():
            self.written.pop(page, None)
        self.held.append(held)
        names = self.cache._names_of(array.tobytes())
        self.goes_on_from |= zip(names, [None, *names], strict=False)
        self.good[id(held)] = held.cached_tokens

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        upto = data.draw(st.integers(self.good[id(held)], len(held.tokens)))
        for index in range(held.cached_tokens // 2, upto // 2):
            self.written[int(held.pages[index])] = held.tokens[: 2 * index + 2].tobytes()
        self.cache.keep(held, upto)
        self.good[id(held)] = upto
        assert self.cache.cached(held.tokens) >= min(upto, len(held.tokens) - 1) // 2 * 2

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        self.held.remove(held)
        self.cache.end(held)
        self.cache.end(held)  # which changes nothing

    @rule()
    def flush(self) -> None:
        pages = self.cache.cached_pages
        assert self.cache.flush() == pages and self.cache.cached_pages == 0

    @invariant()
    def no_page_is_lost(self) -> None:
        cache = self.cache
        assert cache.used + cache.cached_pages + self.pool.free == cache.capacity == 7
        assert cache.cached_pages <= 5
        assert {page for held in self.held for page in held.pages.tolist()} <= set(
            np.flatnonzero(~self.pool._free).tolist()
        )
        if not self.held:
            assert cache.used == 0

    @invariant()
    def every_cached_page_can_be_found(self) -> None:
        """It goes on from one that is cached too, and that is younger if nobody holds the two."""
        cache, age = self.cache, {name: n for n, name in enumerate(self.cache._idle)}
        for name in cache._pages:
            before = self.goes_on_from[name]
            if before is None:
                continue
            assert before in cache._pages
            assert before not in age or age.get(name, 99) < age[before]


Life.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestLife = Life.TestCase


class TieredLife(Life):
    """The same with a tier behind the pool."""

    tiered = True


TieredLife.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestTieredLife = TieredLife.TestCase


def test_what_batch_work_brought_goes_first_and_what_it_found_stays_where_it_was() -> None:
    cache = cache_of(9)
    left(cache, ramp(12))
    batch = begun(cache, np.concatenate([ramp(8), ramp(12, 500)]))
    cache.keep(batch, 20)
    cache.end(batch, first_to_go=True)
    left(cache, ramp(8, 100))
    assert cache.cached_pages == 8 and batch.cached_tokens == 8
    cache.end(begun(cache, ramp(8, 50)))  # needs one page more than is free: the last that the batch brought
    assert cache.cached(np.concatenate([ramp(8), ramp(13, 500)])) == 16
    cache.end(begun(cache, ramp(16, 200)))
    assert cache.cached(ramp(13)) == 12 and cache.cached(ramp(9, 100)) == 8
    assert cache.cached(np.concatenate([ramp(8), ramp(13, 500)])) == 8
