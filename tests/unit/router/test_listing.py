"""Which items an answer lists: against brute force over all choices, and over many seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.listing import Diversity, Listed, Listing, choose, sample_key, settled, shuffled
from router.listing.settled import ROUNDING

Values = Sequence[frozenset[str]]  # of each row

BEAMS = st.lists(st.lists(st.just(0), max_size=3), max_size=6)
CAPS = st.none() | st.integers(1, 4)


def numbered(beams: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows 0, 1, 2, ... one beam after the other, as many in each."""
    ends = np.cumsum([0, *map(len, beams)]).tolist()
    return [list(range(first, last)) for first, last in pairwise(ends)]


def is_legal(
    rows: Sequence[int], beams: Sequence[Sequence[int]], results: int, listing: Listing, values: Values
) -> bool:
    """The rules, of any set of rows."""
    per_sid = [sum(row in rows for row in own) for own in beams]
    counts = Counter(value for row in rows for value in values[row])
    return (
        sum(count > 0 for count in per_sid) <= results
        and (listing.per_sid is None or max(per_sid, default=0) <= listing.per_sid)
        and (listing.most_items is None or len(rows) <= listing.most_items)
        and (listing.diversity is None or max(counts.values(), default=0) <= listing.diversity.at_most)
    )


def first_of_all(beams: Sequence[Sequence[int]], results: int, listing: Listing, values: Values) -> list[int]:
    """Of all legal sets of rows those that have row 0 if any has, of these those with row 1, and so on."""
    rows = [row for own in beams for row in own]
    best: list[int] = []
    for mask in range(1 << len(rows)):
        chosen = [row for at, row in enumerate(rows) if mask >> at & 1]
        if is_legal(chosen, beams, results, listing, values):
            best = max(best, chosen, key=lambda some: [row in some for row in rows])
    return best


@given(BEAMS, st.data())
@settings(max_examples=150, deadline=None)
def test_equals_the_first_of_all_choices(shape: list[list[int]], data: st.DataObject) -> None:
    beams = numbered(shape)[:4]
    rows = sum(map(len, beams))
    some = st.frozensets(st.sampled_from("abc"), max_size=2)
    values = data.draw(st.lists(some, min_size=rows, max_size=rows))
    diversity = data.draw(st.none() | st.integers(1, 3).map(lambda most: Diversity("brand", most)))
    listing = Listing(per_sid=data.draw(CAPS), most_items=data.draw(CAPS), diversity=diversity)
    results = data.draw(st.integers(1, 4))
    found = choose(beams, results, listing, values.__getitem__ if diversity else None)
    flat = [row for own in found.rows for row in own]
    assert flat == first_of_all(beams, results, listing, values)
    assert all(set(own) <= set(beams[beam]) and own for beam, own in zip(*found[:2], strict=True))
    assert found.beams == sorted(set(found.beams))


@given(BEAMS, st.integers(1, 6), CAPS, CAPS)
def test_last_is_the_beam_after_which_nothing_counts(
    shape: list[list[int]], results: int, per_sid: int | None, most: int | None
) -> None:
    beams = numbered(shape)
    listing = Listing(per_sid=per_sid, most_items=most)
    found = choose(beams, results, listing)
    if found.last is None:
        further = choose([*beams, [99]], results, listing)
        assert further.beams == [*found.beams, len(beams)]
    else:
        assert choose(beams[: found.last + 1], results, listing) == found
        assert choose(beams[: found.last], results, listing).rows != found.rows


def test_without_beams_there_is_nothing() -> None:
    assert choose([], 3, Listing(most_items=1)) == Listed([], [], None)


def test_a_list_of_values_counts_for_each_and_none_is_free() -> None:
    values = [{"a", "b"}, {"b", "c"}, {"c"}, set(), set(), {"a"}]
    beams = [[row] for row in range(6)]
    found = choose(beams, 6, Listing(diversity=Diversity("tags", 1)), values.__getitem__)
    assert found.rows == [[0], [2], [3], [4]]


def test_another_item_of_the_sid_stands_in_for_one_that_is_too_many() -> None:
    values = [{"a"}, {"a"}, {"b"}]
    listing = Listing(per_sid=1, diversity=Diversity("brand", 1))
    assert choose([[0], [1, 2]], 2, listing, values.__getitem__).rows == [[0], [2]]


def names(rows: Sequence[int]) -> list[str]:
    return [f"item {row}" for row in rows]


def test_a_sample_favours_no_item() -> None:
    """Every order of three items, over seeds and over prompts: within 5 standard deviations of a sixth."""
    draws = 6000
    by_seed = Counter(tuple(*shuffled([[7, 8, 9]], names, seed)) for seed in range(draws))
    prompts = np.arange(draws, dtype=np.int32)[:, None]
    by_prompt = Counter(tuple(*shuffled([[7, 8, 9]], names, sample_key(3, prompt))) for prompt in prompts)
    for counts in (by_seed, by_prompt):
        assert set(counts) == set(permutations([7, 8, 9]))
        assert all(abs(count - draws / 6) < 5 * (draws * 5 / 36) ** 0.5 for count in counts.values())


def test_beams_of_one_sample_are_drawn_apart() -> None:
    pairs = [[2 * beam, 2 * beam + 1] for beam in range(4000)]
    firsts = sum(own[0] % 2 for own in shuffled(pairs, names, 5))
    assert abs(firsts - 2000) < 5 * 1000**0.5


@given(st.sets(st.integers(0, 30), min_size=1, max_size=9), st.integers(0, 2**63 - 1), st.data())
def test_what_is_filtered_leaves_the_others_in_their_order(
    rows: set[int], seed: int, data: st.DataObject
) -> None:
    whole = next(shuffled([sorted(rows)], names, seed))
    kept = data.draw(st.sets(st.sampled_from(sorted(rows)), min_size=1))
    assert next(shuffled([sorted(kept)], names, seed)) == [row for row in whole if row in kept]


def test_a_key_is_that_of_seed_and_prompt() -> None:
    tokens = np.array([5, 6, 7], np.int32)
    assert sample_key(1, tokens) == sample_key(1, tokens.copy()[::1])
    keys = {
        sample_key(1, tokens),
        sample_key(2, tokens),
        sample_key(1, tokens[:2]),
        sample_key(1, tokens[::-1]),
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("filled", "ceiling", "whole", "sure"),
    [
        (-1.0, -2.0, False, True),
        (-2.0, -2.0, False, False),
        (-2.0 + ROUNDING / 2, -2.0, False, False),
        (-1.0, None, False, False),
        (None, -2.0, False, False),
        (None, -1e30, False, False),
        (-9.0, -1e30, False, True),
        (None, None, True, True),
        (-3.0, -2.0, True, True),
    ],
)
def test_what_is_settled(filled: float | None, ceiling: float | None, whole: bool, sure: bool) -> None:
    assert settled(filled, ceiling, whole) is sure
