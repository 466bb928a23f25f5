"""What the router guesses that workers hold."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from router.admission.reuse import ReuseIndex, Tokens


def ramp(count: int, start: int = 0) -> Tokens:
    return np.arange(start, start + count, dtype=np.int32)


def test_a_prompt_that_went_to_a_worker_is_expected_there_and_nowhere_else() -> None:
    index = ReuseIndex(block=4)
    index.note(1, ramp(10))
    assert [index.expected(worker, ramp(10)) for worker in (1, 2)] == [8, 0]
    assert index.expected(1, ramp(8)) == 4, "the last token is always computed"
    assert index.expected(1, ramp(9)) == index.expected(1, ramp(30)) == 8
    assert index.expected(1, np.concatenate([ramp(5), ramp(9, 50)])) == 4
    assert index.expected(1, ramp(10, 1)) == index.expected(1, ramp(1)) == index.expected(1, ramp(0)) == 0


def test_a_worker_that_starts_again_is_expected_to_hold_nothing() -> None:
    index = ReuseIndex(block=4)
    for worker in (1, 2):
        index.note(worker, ramp(20))
    index.forget(1)
    index.forget(9)
    assert [index.expected(worker, ramp(20)) for worker in (1, 2)] == [0, 16]
    index.flush()
    assert index.expected(2, ramp(20)) == len(index) == 0


def test_the_oldest_is_forgotten_first_and_the_end_of_a_prompt_before_its_beginning() -> None:
    index = ReuseIndex(most=6, block=4)
    index.note(1, ramp(13))
    index.note(1, ramp(13, 100))
    index.note(1, ramp(13))
    index.note(1, ramp(8, 200))
    assert index.expected(1, ramp(13)) == 12 and index.expected(1, ramp(9, 200)) == 8
    assert index.expected(1, ramp(13, 100)) == 4 and len(index) == 6


@given(
    st.lists(st.lists(st.integers(0, 1), max_size=12), max_size=20), st.lists(st.integers(0, 1), max_size=14)
)
def test_what_is_expected_was_noted(noted: list[list[int]], asked: list[int]) -> None:
    index = ReuseIndex(block=2)
    for tokens in noted:
        index.note(5, np.array(tokens, np.int32))
    expected = index.expected(5, np.array(asked, np.int32))
    most = 0
    for tokens in noted:
        for end in range(2, len(asked), 2):
            if tokens[:end] == asked[:end] and len(tokens) >= end:
                most = max(most, end)
    assert expected == most
