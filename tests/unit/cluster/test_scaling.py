"""How many workers there should be, for every load."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from xgr_runtime.cluster.scaling import (
    GROW_EVERY,
    Scale,
    WorkerBounds,
    decode_load,
    prefill_load,
    scaled,
)
from xgr_runtime.wire.messages import Load

BOUNDS = WorkerBounds(1, 4, 10.0, 60.0)
LOADS = st.lists(st.one_of(st.none(), st.floats(0, 1e6)), max_size=60)


def after(
    scale: Scale, load: float | None, seconds: int, begin: int = 0, bounds: WorkerBounds = BOUNDS
) -> Scale:
    """After that many seconds of one load, with a look at each."""
    for now in range(begin, begin + seconds):
        scale = scaled(scale, load, bounds, float(now))
    return scale


@given(LOADS, st.integers(1, 5), st.integers(0, 5), st.integers(0, 20))
def test_it_stays_within_the_bounds_and_moves_in_steps(
    loads: list[float | None], least: int, more: int, begin: int
) -> None:
    bounds = WorkerBounds(least, least + more, 10.0, 5.0)
    scale = Scale(begin)
    for now, load in enumerate(loads):
        before = min(max(scale.wanted, bounds.least), bounds.most)
        scale = scaled(scale, load, bounds, float(now))
        assert bounds.least <= scale.wanted <= bounds.most
        assert before - 1 <= scale.wanted <= 2 * before
        assert load is not None or scale.wanted == before, "nobody knows, so nothing changes"


@given(st.floats(0, 1e4), st.integers(1, 8))
def test_a_load_that_stays_is_met_and_then_nothing_moves(load: float, begin: int) -> None:
    bounds = WorkerBounds(1, 8, 10.0, 20.0)
    end = after(Scale(begin), load, 400, bounds=bounds)
    assert end.wanted == min(max(math.ceil(load / 10.0 - 1e-6), 1), 8)
    assert after(end, load, 200, 400, bounds).wanted == end.wanted


def test_a_short_burst_adds_nobody() -> None:
    scale = after(Scale(1), 5.0, 30)
    assert scaled(scale, 20.0, BOUNDS, 30.0).wanted == 1
    assert after(scale, 20.0, 10, 30).wanted == 2, "a longer one does"


def test_growth_waits_until_who_came_is_seen() -> None:
    scale = after(Scale(1), 1000.0, 1)
    assert scale.wanted == 2, "twice as many, not all at once"
    assert after(scale, 1000.0, int(GROW_EVERY) - 1, 1).wanted == 2
    assert after(scale, 1000.0, int(GROW_EVERY) + 1, 1).wanted == 4


def test_one_goes_after_patience_and_then_patience_again() -> None:
    scale = Scale(3)
    assert after(scale, 0.0, 60).wanted == 3
    assert after(scale, 0.0, 61).wanted == 2
    assert after(scale, 0.0, 121).wanted == 1


def test_a_moment_of_load_or_of_silence_begins_the_patience_anew() -> None:
    for moment in (25.0, None):
        scale = after(Scale(3, load=5.0), 5.0, 50)
        scale = after(scale, moment, 10, 50)
        assert after(scale, 5.0, 55, 60).wanted == 3


def load_of(rows_used: int = 0, **counters: float) -> Load:
    return Load(0, 0, 0, 0, 0, 0, rows_used, counters)


def test_prompts_weigh_by_the_tokens_that_are_left() -> None:
    assert prefill_load(load_of(waiting_tokens=300.0)) == 300.0
    assert prefill_load(load_of()) == 0.0


def test_beams_weigh_by_the_share_of_rows_and_a_wait_by_its_length() -> None:
    full = load_of(512, rows_total=1024.0)
    assert decode_load(full, 0.6, 0.25) == 0.5
    assert decode_load(load_of(512, rows_total=1024.0, waiting_seconds=0.25), 0.6, 0.25) == 0.6
    assert decode_load(load_of(512, rows_total=1024.0, waiting_seconds=0.1), 0.6, 0.25) == 0.5
    assert decode_load(load_of(waiting_seconds=1e9), 0.6, 0.25) == 1.2, "without end, and yet of this size"
    assert decode_load(load_of(), 0.6, 0.25) == 0.0
