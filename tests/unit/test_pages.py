"""The page pool never hands a page to two owners and never exceeds its bound."""

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xgr_runtime.kv.pages import PageIds, PagePool, pages_for

CAPACITY = 12


@given(st.lists(st.one_of(st.integers(0, CAPACITY + 2), st.just(-1)), max_size=40), st.randoms())
def test_pages_have_one_owner(steps: list[int], random: Random) -> None:
    pool, held = PagePool(CAPACITY), list[PageIds]()
    for count in steps:
        if count < 0 and held:
            pool.release(held.pop(random.randrange(len(held))))
        elif count >= 0:
            free = pool.free
            pages = pool.allocate(count)
            assert (pages is None) == (count > free)
            if pages is not None:
                held.append(pages)
        owned = np.concatenate([*held, np.empty(0, np.int32)])
        assert len(set(owned.tolist())) == len(owned) == pool.used
        assert pool.used + pool.free == CAPACITY


def test_a_run_is_preferred_and_the_tightest_one_taken() -> None:
    pool = PagePool(10)
    blocks = [pool.allocate(n) for n in (2, 1, 3, 1, 3)]  # [0,2) [2,3) [3,6) [6,7) [7,10)
    assert all(b is not None for b in blocks)
    pool.release(blocks[0])  # type: ignore[arg-type]
    pool.release(blocks[2])  # type: ignore[arg-type]
    assert pool.allocate(2).tolist() == [0, 1]  # type: ignore[union-attr]
    assert pool.allocate(1).tolist() == [3]  # type: ignore[union-attr]
    pool.release(blocks[1])  # type: ignore[arg-type]
    assert pool.allocate(3).tolist() == [2, 4, 5], "scattered when no run is long enough"  # type: ignore[union-attr]


def test_pages_that_go_on_with_a_prompt_lie_behind_it_if_they_can() -> None:
    pool = PagePool(10)
    pool.allocate(4)
    other = pool.allocate(1, after=6)
    assert other is not None and other.tolist() == [7]
    assert pool.allocate(3, after=3).tolist() == [4, 5, 6]  # type: ignore[union-attr]
    assert pool.allocate(2, after=6).tolist() == [8, 9], "they are taken"  # type: ignore[union-attr]
    pool.release(other)
    assert pool.allocate(2, after=9) is None and pool.allocate(1, after=9).tolist() == [7]  # type: ignore[union-attr]


def test_pages_for_rounds_up() -> None:
    assert [pages_for(n, 16) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]
