"""Windows of a returning user's history begin at the same item for several requests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgr_runtime.prompts.windows import largest, newest

MOST = 64
QUICK = settings(max_examples=100, deadline=None, derandomize=True)


def reused(step: int, sent: int | None, seed: int = 0) -> float:
    """Share of the shown items that the prompt before began with, one new item a request."""
    history = np.random.default_rng(seed).integers(0, 10_000, 400)
    before: list[int] = []
    shares = []
    for end in range(100, 300):
        shown = newest(history[0 if sent is None else end - sent : end], MOST, step).tolist()
        same = next((n for n, (a, b) in enumerate(zip(before, shown, strict=False)) if a != b), len(before))
        shares.append(min(same, len(shown)) / len(shown))
        before = shown
    return float(np.mean(shares[1:]))


@pytest.mark.parametrize(("step", "least"), [(4, 0.5), (8, 0.7), (16, 0.8), (32, 0.9)])
@pytest.mark.parametrize("sent", [None, MOST], ids=["all-sent", "newest-sent"])
def test_most_items_are_used_again(step: int, least: float, sent: int | None) -> None:
    assert reused(1, sent) < 0.01
    assert reused(step, sent) > least


@QUICK
@given(
    leaves=st.lists(st.integers(0, 50), max_size=90),
    most=st.integers(1, 70) | st.none(),
    step=st.integers(1, 80),
)
def test_the_newest_items_less_some_of_the_oldest(leaves: list[int], most: int | None, step: int) -> None:
    shown = newest(np.array(leaves, np.int64), most, step).tolist()
    assert shown == leaves[len(leaves) - len(shown) :]
    if most is None or len(leaves) < most:
        assert shown == leaves
    else:
        assert most - min(step, most) < len(shown) <= most


def test_a_client_that_sends_less_gets_the_same_prompt() -> None:
    history = np.random.default_rng(1).integers(0, 10_000, 300)
    for sent in (MOST, MOST + 1, 200, 300):
        assert newest(history[-sent:], MOST, 16).tolist() == newest(history, MOST, 16).tolist()


@QUICK
@given(upper=st.integers(0, 300), limit=st.integers(-1, 300), guess=st.integers(-5, 400))
def test_the_largest_count_that_fits(upper: int, limit: int, guess: int) -> None:
    asked: list[int] = []

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= limit

    assert largest(upper, fits, guess) == min(upper, limit)
    assert len(asked) == len(set(asked)) <= 2 * (upper + 2).bit_length() + 2
    assert all(0 <= count <= upper for count in asked)
