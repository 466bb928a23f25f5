"""The search for the highest rate, against servers whose limit is known."""

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from xgr_runtime.cli.bench.judge import Verdict
from xgr_runtime.cli.bench.load import Recorder
from xgr_runtime.cli.bench.run import Run
from xgr_runtime.cli.bench.search import RateSearch
from xgr_runtime.cli.bench.settings import LoadSettings, SearchSettings
from xgr_runtime.cli.bench.traffic import Call


def search(limit: float, **settings: float) -> tuple[RateSearch, list[float]]:
    """A search on a server that keeps its promise up to `limit`, and the rates it tried."""
    found, tried = RateSearch(SearchSettings(**settings)), []  # type: ignore[arg-type]
    while (rate := found.next_rate()) is not None:
        tried.append(rate)
        found.note(rate, rate <= limit)
    return found, tried


@pytest.mark.parametrize("limit", [0.3, 1.0, 1.01, 7.3, 64.0, 100.0])
def test_finds_the_limit_in_few_runs(limit: float) -> None:
    found, tried = search(limit, most_runs=14)
    assert found.best is not None and found.best <= limit <= 1.05 * found.best
    assert len(tried) <= 14


def test_first_doubles_then_halves_what_is_left() -> None:
    assert search(5.0, most_runs=6)[1] == [1.0, 2.0, 4.0, 8.0, 6.0, 5.0]


def test_goes_down_where_the_first_rate_is_too_high() -> None:
    assert search(0.3, start=1.0, most_runs=4)[1] == [1.0, 0.5, 0.25, 0.375]


def test_ends_after_the_last_run_without_an_answer() -> None:
    found, tried = search(0.0, most_runs=5)
    assert found.best is None and len(tried) == 5


def test_does_not_go_where_a_run_has_no_requests() -> None:
    found, tried = search(0.0, start=1.0, lowest=0.2)
    assert found.best is None and tried == [1.0, 0.5, 0.25]


class Simulated:
    """One worker that serves 100 requests per second in order, on a clock that jumps: nobody waits."""

    def __init__(self) -> None:
        self.drained = 0

    async def send(self, call: Call) -> tuple[str, bytes]:
        raise AssertionError("the clock of this test does not run")

    async def drain(self) -> None:
        self.drained += 1


class _Judge:
    def judge(self, call: Call, body: bytes) -> Verdict:
        return Verdict(readable=True)


def endless() -> Iterator[Call]:
    return itertools.repeat(Call([1], 1, 1, b""))


def test_a_run_finds_the_rate_that_a_queue_can_bear(monkeypatch: pytest.MonkeyPatch) -> None:
    from xgr_runtime.cli.bench import run
    from xgr_runtime.cli.bench.measures import Sample

    async def queue(recorder: Recorder, calls: list[Call], due: list[float]) -> None:
        free = 0.0
        for at in due:
            free = max(free, at) + 0.01
            recorder.samples.append(Sample(at, at, free, "200", Verdict(readable=True)))

    monkeypatch.setattr(run, "open_loop", queue)
    server = Simulated()
    made = Run(server, _Judge(), endless(), LoadSettings(duration=200.0, slo=0.2))  # type: ignore[arg-type]
    best = asyncio.run(made.highest_rate(SearchSettings(start=4.0)))
    # An M/D/1 queue's wait has a tail of exp(-2 (1 - load) / load * wait / service): its p99 passes 190 ms
    # at a load of about 0.89. Twice five per cent for the search, and for chance in 200 s.
    assert best == pytest.approx(89.0, rel=0.1)
    assert server.drained == len(made.points) <= 12
