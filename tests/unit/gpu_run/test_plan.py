"""Slicing: every cell in exactly one part, every part in time by estimate."""

import cells
import plan
import pytest
from plan import Cell, Part


def cell(name: str, seconds: float, *needs: str) -> Cell:
    return Cell(name, "module:function", seconds, needs)


def test_a_part_pays_once_for_what_its_cells_need() -> None:
    both = [cell("a", 10, "fa2"), cell("b", 20, "fa2", "triton")]
    assert plan.part_seconds(both) == plan.START + plan.SETUP["fa2"] + plan.SETUP["triton"] + 30


@pytest.mark.parametrize("compiled", [False, True], ids=["bare", "compiled"])
@pytest.mark.parametrize("more", [0, 1, 3])
def test_every_cell_is_in_one_part_that_ends_in_time(more: int, compiled: bool) -> None:
    every = cells.all_cells()
    count = plan.parts_needed(every, compiled) + more
    parts = [plan.cells_of(Part(index, count), every, compiled) for index in range(1, count + 1)]
    assert [cell for part in parts for cell in part] == every
    assert all(plan.part_seconds(part, compiled) <= plan.PART_SECONDS for part in parts)


def test_a_machine_that_has_compiled_pays_for_checkpoints_alone() -> None:
    one = [cell("a", 10, "fa2", "fa3 64 bfloat16", "triton", "rivals", "1.7B")]
    assert plan.part_seconds(one, compiled=True) == plan.START + plan.SETUP["1.7B"] + 10


def test_parts_are_about_equally_long() -> None:
    every = [cell(str(i), 10.0) for i in range(40)]
    parts = [plan.cells_of(Part(index, 4), every) for index in (1, 2, 3, 4)]
    assert [len(part) for part in parts] == [10, 10, 10, 10]


def test_more_parts_than_cells_leave_some_empty() -> None:
    every = [cell("a", 1), cell("b", 1)]
    assert [plan.cells_of(Part(index, 3), every) for index in (1, 2, 3)] == [[every[0]], [every[1]], []]


def test_too_few_parts_are_refused() -> None:
    every = [cell(str(i), 300.0) for i in range(3)]
    with pytest.raises(ValueError, match="take 3 parts"):
        plan.cells_of(Part(1, 2), every)


@pytest.mark.parametrize("text", ["0/3", "4/3", "2", "a/b", "1/", "/2", "-1/2"])
def test_a_part_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write i/n"):
        Part.parse(text)


def test_names_are_distinct_and_needs_are_known() -> None:
    for toy in (False, True):
        every = cells.all_cells(toy)
        assert len({cell.name for cell in every}) == len(every)
        assert {need for cell in every for need in cell.needs} <= set(plan.SETUP)


def test_each_kind_of_goal_has_its_cell() -> None:
    names = {cell.name for cell in cells.all_cells()}
    assert {
        "shared-16/8-W256-L2048-B4",
        "decode-1.7B-W256-L2048-B4",
        "prefill-1.7B-packed-8x1k",
        "prefill-1.7B-one-1k",
        "served-1.7B-W256-L5000-colocated",
        "served-1.7B-L2465-colocated",
    } <= names


def test_the_toy_run_has_every_kind_of_cell() -> None:
    assert {cell.work for cell in cells.all_cells(toy=True)} == {cell.work for cell in cells.all_cells()}


def test_no_cell_is_too_long_for_a_part() -> None:
    assert all(plan.part_seconds([cell]) <= plan.PART_SECONDS for cell in cells.all_cells())
