"""What becomes of a run whose workers die."""

from collections.abc import Callable
from pathlib import Path

import command
import pytest
import results
from results import Record, Results

Worker = Callable[[Results], int]


def run(folder: Path, *workers: Worker) -> Results:
    """One after the other, each on what the last one left."""
    Results({}, "1/1", ["a", "b", "c"]).write(folder)
    left = list(workers)

    def start() -> int:
        found = results.read(folder)
        code = left.pop(0)(found)
        found.write(folder)
        return code

    ended = command.to_the_end(start, folder)
    assert not left and results.read(folder) == ended
    return ended


def does(*names: str, then: str = "", finished: bool = False, code: int = 0) -> Worker:
    """A worker that records these cells and ends, `then` while it runs another."""

    def work(found: Results) -> int:
        found.records += [Record(name).as_dict() for name in names]
        found.running, found.finished = then, finished
        return code

    return work


def test_a_worker_that_comes_to_the_end(tmp_path: Path) -> None:
    ended = run(tmp_path, does("a", "b", "c", finished=True))
    assert ended.finished and ended.sound and not ended.missing


def test_the_cell_that_ends_a_worker_is_blamed_and_the_rest_goes_on(tmp_path: Path) -> None:
    ended = run(tmp_path, does("a", then="b", code=-11), does("c", finished=True))
    assert [(r["name"], r["status"]) for r in ended.records] == [("a", "ok"), ("b", "error"), ("c", "ok")]
    assert ended.records[1]["errors"][0]["traceback"] == "ended with code -11"
    assert ended.finished and not ended.sound


def test_a_device_that_is_lost_behind_a_cell_costs_nothing_more(tmp_path: Path) -> None:
    ended = run(tmp_path, does("a", code=3), does("b", "c", finished=True))
    assert ended.finished and ended.sound


def test_a_worker_that_does_nothing_is_not_started_for_ever(tmp_path: Path) -> None:
    ended = run(tmp_path, does("a", code=3), does(code=1))
    assert not ended.finished and ended.missing == ["b", "c"]


@pytest.mark.parametrize("code", [0, 1])
def test_every_cell_may_end_its_worker(tmp_path: Path, code: int) -> None:
    workers = [does(then=name, code=code) for name in "abc"]
    ended = run(tmp_path, *workers, does(finished=True))
    assert [r["status"] for r in ended.records] == ["error"] * 3
