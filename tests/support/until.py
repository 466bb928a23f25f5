"""Wait for something that another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 150.0  # seconds: a worker that starts on a machine with no time to spare


def until(ask: Callable[[], T], what: str, seconds: float = PATIENCE, every: float = 0.02) -> T:
    """The first true answer of `ask`; an AssertionError names `what` if there is none in time."""
    end = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(every)
    return answer
