"""Runs of pytest side by side that share a machine: a test that is marked `alone` has it for itself.

`TEST_LANES` names a file that all of them lock, each for as long as a test of its own takes.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

VARIABLE = "TEST_LANES"
MARK = "alone: measures load or time; beside other runs it waits until no test of theirs runs"


def is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def those_alone_last(items: list[pytest.Item]) -> None:
    """So that they wait once, for the end of the other runs."""
    items.sort(key=is_alone)


@contextmanager
def turn(alone: bool) -> Iterator[None]:
    """While it is open no other is, if either is `alone`. Without the variable nobody waits."""
    if not (path := os.environ.get(VARIABLE)):
        yield
        return
    with Path(path).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # not by closing: a process that a test forked has it open, too
