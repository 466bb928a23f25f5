"""A source that is watched: it tells of changes, and one that is lost changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from xgr_runtime.discovery import WorkerAddress
from xgr_runtime.discovery.file import FileList
from xgr_runtime.discovery.watch import Watch
from xgr_runtime.errors import ConfigError

ONE, TWO = WorkerAddress("prefill", "ipc:///r/p"), WorkerAddress("decode", "ipc:///r/d")


class Played:
    """A source, and whoever is told of it."""

    def __init__(self) -> None:
        self.names: Sequence[WorkerAddress] | str = [ONE]
        self.refuses = ""
        self.told: list[Sequence[WorkerAddress]] = []

    def look(self) -> Sequence[WorkerAddress]:
        if isinstance(self.names, str):
            raise ConfigError(self.names)
        return self.names

    def tell(self, named: Sequence[WorkerAddress]) -> None:
        if self.refuses:
            raise ConfigError(self.refuses)
        self.told.append(named)


@pytest.fixture
def played() -> Played:
    return Played()


@pytest.fixture
def watch(played: Played) -> Watch:
    return Watch(played, [ONE], played.tell)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_it_tells_of_changes_alone(played: Played, watch: Watch) -> None:
    watch.look()
    played.names = [ONE, TWO]
    watch.look()
    watch.look()
    played.names = [TWO]
    watch.look()
    assert played.told == [[ONE, TWO], [TWO]]


def test_a_source_that_is_lost_changes_nothing_and_is_said_once(
    played: Played, watch: Watch, logged: pytest.LogCaptureFixture
) -> None:
    played.names = "the file cannot be read"
    for _ in range(3):
        watch.look()
    assert [record.message for record in logged.records] == [
        "the workers stay as they are: the file cannot be read"
    ]
    played.names = "another reason"
    watch.look()
    played.names = [ONE]
    watch.look()
    watch.look()
    assert len(logged.records) == 3 and "the same workers as before" in logged.records[-1].message
    assert played.told == []


def test_a_list_that_is_refused_is_told_again(
    played: Played, watch: Watch, logged: pytest.LogCaptureFixture
) -> None:
    played.names, played.refuses = [TWO], "no socket is left"
    watch.look()
    watch.look()
    assert len(logged.records) == 1 and "no socket is left" in logged.records[0].message
    played.refuses = ""
    watch.look()
    assert played.told == [[TWO]]


def test_a_file_that_could_not_be_read_at_first_is_told_once_it_can(tmp_path: Path, played: Played) -> None:
    path = tmp_path / "workers.json"
    watch = Watch(FileList(path), None, played.tell)
    watch.look()
    path.write_text('{"prefill": ["ipc:///r/p"], "decode": []}')
    watch.look()
    assert played.told == [[ONE]]
