"""Costly cases take turns: two commits that follow each other may run all, and --long does."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from turns import take_turns


class Case:
    """An item of pytest as far as turns read it."""

    def __init__(self, test: str, marked: str = "", how: dict[str, int] | None = None, **params: Any) -> None:
        self.nodeid = f"{test}[{'-'.join(map(str, params.values()))}]"
        self.marked, self.how = marked, how or {}
        if params:
            self.callspec = SimpleNamespace(params=params)

    def iter_markers(self, name: str) -> Iterator[Any]:
        assert name == "in_turns"
        yield from [SimpleNamespace(args=(self.marked,), kwargs=self.how)] if self.marked else []


def run(*cases: Case, turn: int) -> list[str]:
    """Which of them have their turn."""
    items: list[Any] = list(cases)
    left_out = take_turns(items, turn)
    assert {case.nodeid for case in cases} == {case.nodeid for case in [*items, *left_out]}
    return [item.nodeid for item in items]


def cases(values: list[Any], others: list[str], marked: str = "value") -> list[Case]:
    return [Case("t", marked, value=value, other=other) for other in others for value in values]


@pytest.mark.parametrize("values", [["a"], ["a", "b"], [None, 0, 1], [[1], [2], [3], [1, 2]]], ids=str)
@pytest.mark.parametrize("others", [["x"], ["x", "y"], ["x", "y", "z"]], ids=len)
def test_each_value_has_its_turn_beside_every_other_one(values: list[Any], others: list[str]) -> None:
    all_of_them = cases(values, others)
    even, odd = (run(*all_of_them, turn=turn) for turn in (0, 1))
    assert sorted(even + odd) == sorted(case.nodeid for case in all_of_them)
    assert even == [f"t[{value}-{other}]" for other in others for value in values[::2]]


@pytest.mark.parametrize("values", [1, 3, 4, 9])
def test_a_smaller_share_comes_round_as_well(values: int) -> None:
    """Eight commits that follow each other run each case twice."""
    some = [Case("t", "value", {"share": 4}, value=value) for value in range(values)]
    ran = [run(*some, turn=turn) for turn in range(8)]
    assert ran[0] == [f"t[{value}]" for value in range(0, values, 4)]
    assert sorted(name for names in ran for name in names) == sorted(2 * [case.nodeid for case in some])


def test_what_is_not_marked_runs_always() -> None:
    others = [Case("u", value=1), Case("u", value=2), Case("v")]
    for turn in range(8):
        assert run(*others, turn=turn) == ["u[1]", "u[2]", "v[]"]


def test_tests_count_for_themselves() -> None:
    mixed = [Case("t", "value", value="a"), Case("u", "value", value="b"), Case("t", "value", value="c")]
    assert run(*mixed, turn=0) == ["t[a]", "u[b]"]


@pytest.mark.parametrize("case", [Case("t", "gone", value=1), Case("t", "value")], ids=["renamed", "none"])
def test_a_mark_of_no_argument_is_an_error(case: Case) -> None:
    with pytest.raises(pytest.UsageError, match="none of its arguments"):
        run(case, turn=0)
