"""Runs of pytest side by side: a test that is marked `alone` runs beside none, others beside each other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lanes import VARIABLE, those_alone_last, turn


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "lock"))
    return tmp_path / "lock"


@pytest.fixture
def other() -> Iterator[Any]:
    """`other(alone)` asks for a turn of another run and returns what is set once it has it."""
    over, threads = threading.Event(), []

    def begin(alone: bool) -> threading.Event:
        began = threading.Event()

        def run() -> None:
            with turn(alone):
                began.set()
                over.wait(20)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return began

    yield begin
    over.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize(("mine", "theirs"), [(True, False), (False, True), (True, True)])
def test_one_that_is_alone_runs_beside_none(other: Any, mine: bool, theirs: bool) -> None:
    with turn(mine):
        began = other(theirs)
        assert not began.wait(0.1)
    assert began.wait(20)


def test_others_run_beside_each_other(other: Any) -> None:
    with turn(False):
        assert other(False).wait(20)


def test_a_process_that_outlives_its_test_keeps_nobody_waiting(other: Any) -> None:
    go_on, told = os.pipe()
    with turn(True):
        child = os.fork()
        if not child:
            os.close(told)
            os.read(go_on, 1)
            os._exit(0)
    try:
        assert other(True).wait(20)
    finally:
        os.close(told)
        os.waitpid(child, 0)
        os.close(go_on)


def test_without_a_lock_nobody_waits(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with turn(True):
        assert other(True).wait(20)


def test_those_alone_come_last_and_the_others_stay_in_order() -> None:
    items: list[Any] = [
        SimpleNamespace(name=name, get_closest_marker=lambda mark, name=name: name in "bd" or None)
        for name in "abcde"
    ]
    those_alone_last(items)
    assert [item.name for item in items] == list("acebd")
