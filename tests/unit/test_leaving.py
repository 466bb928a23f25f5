"""When a worker ends that was told to stop: after what it has, once all routers know, and at a bound."""

from __future__ import annotations

import logging

import pytest

from xgr_runtime.wire.messages import STOPPING
from xgr_runtime.worker.leaving import BEATS, Leaving


class Played:
    def __init__(self, seconds: float) -> None:
        self.now = 100.0
        self.held = 0
        self.counters: dict[str, float] = {}
        self.leaving = Leaving(seconds, 0.5, lambda: self.held, self.counters, lambda: self.now)

    def over_after(self, seconds: float, stopping: bool = True) -> bool:
        self.now += seconds
        return self.leaving.over(stopping)


def test_it_goes_on_until_it_is_told_to_stop() -> None:
    played = Played(60.0)
    assert not played.over_after(1000.0, stopping=False)
    assert STOPPING not in played.counters


def test_without_time_it_ends_at_once() -> None:
    played = Played(0.0)
    played.held = 3
    assert played.over_after(0.0) and STOPPING not in played.counters


def test_it_says_so_and_waits_for_requests_that_are_on_their_way() -> None:
    played = Played(60.0)
    assert not played.over_after(0.0)
    assert played.counters[STOPPING] == 1
    assert not played.over_after(BEATS * 0.5 - 0.1)
    played.held = 1
    assert not played.over_after(0.2)
    assert not played.over_after(30.0)
    played.held = 0
    assert not played.over_after(BEATS * 0.5 - 0.1)
    assert played.over_after(0.2)


def test_its_time_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    played = Played(10.0)
    played.held = 2
    assert not played.over_after(0.0)
    assert not played.over_after(9.9)
    assert played.over_after(0.2)
    assert "2 requests under way" in caplog.text and "--leave-timeout" in caplog.text
