"""Ranked lists held against each other: what is the same, what is a tie, and what is not looked over."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgr_runtime.cli.verify.compare import TIE, Lists, compare

SIDS = list(itertools.product(range(3), range(3)))  # the catalog
Ranked = list[tuple[tuple[int, ...], float | None]]
Theirs = list[tuple[tuple[int, ...] | None, float | None]]


def lists(ours: Ranked, theirs: Theirs, width: int = 4) -> Lists:
    return compare(ours, theirs, SIDS.__contains__, width)


def ranked(*places: int, step: float = 0.1) -> Ranked:
    return [(SIDS[place], -step * rank) for rank, place in enumerate(places)]


def test_the_same_list() -> None:
    found = lists(ranked(0, 1, 2, 3), [*ranked(0, 1, 2, 3)])
    assert (found.problem, found.swapped, found.missing, found.score_difference) == ("", 0, 0, 0.0)
    assert found.overlaps == {"1": 1.0, "10": 1.0, "width": 1.0}


def test_a_shorter_list_of_theirs_is_compared_with_the_best_of_ours() -> None:
    assert lists(ranked(0, 1, 2, 3), [*ranked(0, 1)]).problem == ""


@pytest.mark.parametrize(
    ("gap", "problem"), [(TIE / 2, ""), (2 * TIE, "rank 1: [0, 2], theirs has [0, 1], and that is no tie")]
)
def test_only_ties_may_swap(gap: float, problem: str) -> None:
    theirs = [(SIDS[0], 0.0), (SIDS[1], -1.0), (SIDS[2], -1.0 - gap), (SIDS[3], -2.0)]
    ours = [theirs[0], (SIDS[2], -1.0), (SIDS[1], -1.0 - gap), theirs[3]]
    found = lists([*ours], [*theirs])
    assert found.problem == problem and found.swapped == 2


@pytest.mark.parametrize(("gap", "missing"), [(TIE / 2, 0), (2 * TIE, 1)])
def test_a_tie_at_the_end_may_be_cut_either_way(gap: float, missing: int) -> None:
    theirs: Ranked = [(SIDS[0], 0.0), (SIDS[1], -1.0)]
    found = lists([(SIDS[0], 0.0), (SIDS[2], -1.0 - gap)], [*theirs])
    assert found.missing == missing and bool(found.problem) == bool(missing)


def test_a_list_that_ends_too_soon() -> None:
    assert (
        lists(ranked(0, 1), [*ranked(0, 1, 2)]).problem
        == "1 legal beams of theirs are not in ours, first [0, 2]"
    )


def test_scores_are_compared_by_sid() -> None:
    ours = [(sid, None if score is None else score + 0.25) for sid, score in ranked(0, 1, 2)]
    assert lists(ours, [*ranked(0, 1, 2)]).score_difference == pytest.approx(0.25)


def test_lists_without_scores_are_compared_by_their_order() -> None:
    theirs = [(sid, None) for sid, _ in ranked(0, 1, 2)]
    assert lists(ranked(0, 1, 2), [*theirs]).problem == ""
    assert (
        lists(ranked(1, 0, 2), [*theirs]).problem == "rank 0: [0, 1], theirs has [0, 0], and that is no tie"
    )
    assert lists(ranked(1, 0, 2), [*theirs]).score_difference is None


def test_legal_beams_of_a_loose_search_are_a_subsequence_of_ours() -> None:
    theirs: Theirs = [(None, -0.1), (SIDS[1], -0.2), ((9, 9), -0.3), (SIDS[4], -0.4)]
    ours: Ranked = [(SIDS[0], -0.15), (SIDS[1], -0.2), (SIDS[2], -0.35), (SIDS[4], -0.4)]
    found = lists(ours, theirs)
    assert (found.problem, found.missing, found.illegal_theirs, found.legal) == ("", 0, 2, 2)
    assert not found.exact
    assert found.overlaps == {"1": None, "10": 1.0, "width": 1.0}


def test_a_loose_search_excuses_neither_order_nor_loss() -> None:
    theirs: Theirs = [((9, 9), -0.1), (SIDS[1], -0.2), (SIDS[4], -0.4)]
    assert "no tie" in lists([(SIDS[4], -0.4), (SIDS[1], -0.2)], theirs).problem
    lost = lists([(SIDS[0], -0.15), (SIDS[1], -0.2), (SIDS[2], -0.6)], theirs)
    assert lost.missing == 1 and "[1, 1]" in lost.problem


def test_wrong_beams_are_counted_on_either_side() -> None:
    theirs = [*ranked(0, 1), (SIDS[1], -0.2), (None, -0.3)]
    ours: Ranked = [(SIDS[0], 0.0), (SIDS[0], -0.1), ((9, 9), -0.2)]
    found = lists(ours, theirs)
    assert (found.illegal_theirs, found.double_theirs, found.illegal_ours, found.double_ours) == (1, 1, 1, 1)


@given(st.permutations(SIDS), st.integers(1, 9), st.sets(st.integers(0, 8)))
def test_dropping_beams_of_an_exact_list_and_adding_illegal_ones_changes_nothing(
    order: list[tuple[int, int]], width: int, dropped: set[int]
) -> None:
    """What a loose search does to an exact one."""
    ours: Ranked = [*ranked(*map(SIDS.index, order))][:width]
    theirs = [
        ((9, rank), score) if rank in dropped else (sid, score) for rank, (sid, score) in enumerate(ours)
    ]
    found = lists(ours, [*theirs], width)
    assert (found.problem, found.missing) == ("", 0)
    assert found.illegal_theirs == len([rank for rank in dropped if rank < width])


@given(st.permutations(SIDS), st.integers(2, 9), st.data())
def test_any_two_beams_that_change_places_are_found(
    order: list[tuple[int, int]], width: int, data: st.DataObject
) -> None:
    theirs = ranked(*map(SIDS.index, order))[:width]
    one, other = data.draw(st.sets(st.integers(0, width - 1), min_size=2, max_size=2))
    ours = [*theirs]
    ours[one], ours[other] = (theirs[other][0], theirs[one][1]), (theirs[one][0], theirs[other][1])
    assert "no tie" in lists(ours, [*theirs], width).problem
