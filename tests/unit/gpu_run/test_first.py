"""The plan of half an hour: it fits, it names tests that exist, and no test takes another's time."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import first
import frame
import pytest
from first import ALL, CALL, CALLS, GRACE, RARE, START, Place, cells
from models import LAYERS

SCRIPT = Path(first.__file__).with_name("run")
OTHERS = ["one", "two", "three"][len(LAYERS) :]  # as many backends as there may be


@pytest.fixture(scope="module")
def shown() -> str:
    """What --first --collect-only says of the full sizes."""
    command = [sys.executable, str(SCRIPT), "--first", "--collect-only", "-q"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def seconds(shown: str) -> list[float]:
    """Of each planned test, in their order, with those of backends to come."""
    lines = re.findall(r"^ *\d+ s +(\d+) x +([\d.]+) s", shown, re.MULTILINE)
    to_come = [cell.seconds for cell in cells([*LAYERS, *OTHERS]) if cell not in cells(LAYERS)]
    return [float(each) for count, each in lines for _ in range(int(count))] + to_come


def test_all_of_it_fits(seconds: list[float]) -> None:
    assert len(seconds) > 150 and sum(seconds) + CALLS * START <= ALL <= CALLS * CALL


def test_three_calls_leave_nothing(seconds: list[float]) -> None:
    """A test that does not fit into what is left of a call makes room for shorter ones behind it."""
    left = seconds
    for _ in range(CALLS):
        at, later = START, []
        for each in left:
            if at + each > CALL + 1e-6:
                later.append(each)
            else:
                at += each
        left = later
    assert not left and max(seconds) < (CALL - START) / 2


def test_each_cell_is_a_test(shown: str) -> None:
    names = [line.partition("::test_")[2] for line in shown.splitlines() if "::" in line]
    for cell in (*cells(LAYERS), *RARE):
        assert any(name.startswith(cell.name) for name in names), cell.name
    assert names[0] == "compile[usual]" and not any(name.startswith("answers[split") for name in names)


def test_what_matters_most_comes_first() -> None:
    asked = [
        ("test_compile.py::test_compile[usual]", set[str]()),
        ("test_attention.py::test_paged[shared-odd-16/8x128-bfloat16-fa3]", set[str]()),
        ("test_later.py::test_a_kernel_that_nobody_planned[W=7]", set[str]()),
        ("test_end_to_end.py::test_engines[b]", set[str]()),
        ("test_served.py::test_answers[colocated-no-turns]", set[str]()),
        ("test_engine_times.py::test_decode[1.7B-W256-L2048-B4-a]", {"times"}),
        ("test_engine_times.py::test_prefill[1.7B-packed-8x1k-a]", {"times"}),
        ("test_engine_times.py::test_decode[1.7B-W256-L2048-B4-b]", {"times"}),
        ("test_served.py::test_load[1.7B-W256-L5000-colocated]", {"times", "timeout"}),
        ("test_served.py::test_load[1.7B-W50+128+512-L2465-colocated]", {"times"}),
        ("test_engine_times.py::test_in_turns[1.7B-W256-L5000-B8]", {"times"}),
        ("test_attention.py::test_paged[shared-odd-12/2x64-bfloat16-fa2]", {"rare"}),
    ]
    places = [first.place(name, marks, ["a", "b"]) for name, marks in asked]
    orders = [place.order for place in places if place]
    assert len(orders) == len(asked) and orders == sorted(set(orders))
    for name in ("test_served.py::test_load[1.7B-W256-L5000-colocated-no-turns]", "x.py::test_select[V64]"):
        assert first.place(name, {"times"}, ["a", "b"]) is None


@pytest.fixture
def item() -> Any:
    """A test of 10 seconds in a call that has 100 left."""
    made: Any = SimpleNamespace(nodeid="t.py::test_x", marks=[])
    made.add_marker = lambda mark, append: made.marks.append(mark)
    made.config = SimpleNamespace(stash=pytest.Stash(), option=SimpleNamespace(deadline=time.time() + 100))
    made.config.stash[frame.PLAN] = {made.nodeid: Place(0, 10.0)}
    return made


@pytest.mark.parametrize(("left", "limit"), [(100, 20), (12, 12), (-5, 1)])
def test_a_test_that_hangs_is_ended(item: Any, left: float, limit: float) -> None:
    item.config.option.deadline = time.time() + left
    next(frame.pytest_runtest_protocol(item))
    assert [mark.args[0] for mark in item.marks] == [pytest.approx(GRACE + limit, abs=1)]


def test_a_test_begins_if_it_ends_in_time(item: Any) -> None:
    frame.pytest_runtest_setup(item)
    item.config.option.deadline = time.time() + 9
    with pytest.raises(pytest.skip.Exception, match=frame.NO_TIME):
        frame.pytest_runtest_setup(item)


def test_without_a_plan_no_test_has_an_estimate(item: Any) -> None:
    item.config.stash[frame.PLAN] = {}
    item.config.option.deadline = time.time() + 1
    frame.pytest_runtest_setup(item)
    assert next(frame.pytest_runtest_protocol(item)) is None and not item.marks
