"""What half an hour of a machine must show: which tests, in the order of their worth, and how long each is.

Seconds are estimates for one H200 with 16 cores, made without one, with compilation, loading and capture.
They decide whether a test still fits into a call, and one that takes twice as long is ended.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import NamedTuple

CALLS, CALL = (
    3,
    510.0,
)  # how often the suite is started, and seconds from its start to the end of its last test
START = 30.0  # seconds of a call before its first test: libraries, and the rates of the device
ALL = 1500.0  # seconds of all calls
GRACE = 15.0  # seconds that a test may outlast its call, or twice its estimate


class Cell(NamedTuple):
    """Every test whose name, without "test_", begins so; seconds of each."""

    name: str
    seconds: float


COMPILE = Cell("compile[usual]", 150)
CHECKS = (
    Cell("paged[", 1),
    Cell("tail[", 3),
    Cell("replays[", 4),
    Cell("against_reference[", 1.5),
    Cell("a_bad_row_fails_its_request_alone[", 2),
    Cell("the_order_of_parallel_writes_does_not_matter[", 3),
    Cell("shared_kv", 12),
    Cell("dead_owner", 12),
    Cell("shared_weights", 12),
    Cell("", 3),  # any other check
)
COLOCATED = (Cell("answers[colocated]", 60), Cell("answers[colocated-no-turns]", 60))
SERVED = (
    Cell("load[1.7B-W256-L5000-colocated]", 90),
    Cell("load[1.7B-W50+128+512-L2465-colocated]", 100),  # FlashRec's
    Cell("in_turns[1.7B-W256-L1000-B8]", 40),  # NVIDIA's
    Cell("in_turns[1.7B-W256-L5000-B8]", 40),
    Cell("swaps[1.7B-W256-L2048-B4]", 40),
)
RARE = (Cell("compile[rare]", 180), Cell("paged[", 0.7))
LEFT_OUT = ("answers[split",)


class Place(NamedTuple):
    """Where a test stands among the others, and how many seconds it takes."""

    order: int
    seconds: float


def cells(layers: Sequence[str]) -> list[Cell]:
    """Best first. What is measured in the same layers follows each other: the model is loaded once."""
    engines = [Cell(f"engines[{name}]", 40) for name in layers]
    measured = [
        cell
        for name in layers
        for cell in (
            Cell(f"decode[1.7B-W256-L2048-B4-{name}]", 60),
            Cell(f"prefill[1.7B-packed-8x1k-{name}]", 30),
        )
    ]
    return [COMPILE, *CHECKS, *engines, *COLOCATED, *measured, *SERVED]


def place(nodeid: str, marks: Collection[str], layers: Sequence[str]) -> Place | None:
    """Of a test with these markers; None if it is left out. `layers` are the names of all model backends."""
    name = nodeid.partition("::")[2].removeprefix("test_")
    usual = cells(layers)
    known = RARE if "rare" in marks else usual
    found = [
        (len(cell.name), -order, cell.seconds)
        for order, cell in enumerate(known, len(usual) if "rare" in marks else 0)
        if name.startswith(cell.name) and (cell.name or "times" not in marks)
    ]
    if not found or name.startswith(LEFT_OUT):
        return None
    _, order, seconds = max(found)  # the longest name says most of it
    return Place(-order, seconds)


def shown(plan: dict[str, Place]) -> list[str]:
    """What is planned, as lines: seconds before it, how many tests of how many seconds each, their name."""
    lines, at = [], CALLS * START
    for place_, tests in groupby(plan.items(), key=lambda pair: pair[1]):
        names = [nodeid.partition("::")[2].removeprefix("test_") for nodeid, _ in tests]
        name = names[0] if len(names) == 1 else names[0].partition("[")[0]
        lines.append(f"{at:5.0f} s  {len(names):3d} x {place_.seconds:5.1f} s  {name}")
        at += len(names) * place_.seconds
    return [
        *lines,
        f"{at:5.0f} s of {ALL:.0f}: {CALLS} calls of {CALL:.0f}, each {START:.0f} before its first test",
    ]
