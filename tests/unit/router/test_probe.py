"""The small request that all who ask share."""

import asyncio
import logging

import pytest

from router.http.probe import FRESH, Probe
from xgr_runtime.errors import Unhealthy, WorkerLost


class Runs:
    """Counts requests, and answers them when the test says so."""

    def __init__(self) -> None:
        self.now, self.count = 0.0, 0
        self.error: Exception | None = None
        self.go = asyncio.Event()
        self.probe = Probe(self.run, lambda: self.now)

    async def run(self) -> None:
        self.count += 1
        await self.go.wait()
        if self.error:
            raise self.error


def test_those_who_ask_at_once_or_soon_after_share_one_request() -> None:
    async def play() -> None:
        runs = Runs()
        asked = [asyncio.create_task(runs.probe.check()) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert runs.count == 1
        runs.go.set()
        await asyncio.gather(*asked)
        runs.now = 0.9 * FRESH
        await runs.probe.check()
        assert runs.count == 1
        runs.now = FRESH
        await runs.probe.check()
        assert runs.count == 2

    asyncio.run(play())


@pytest.mark.parametrize("error", [WorkerLost("it broke"), TimeoutError()], ids=repr)
def test_a_failure_is_shared_too_and_not_for_ever(error: Exception) -> None:
    async def play() -> None:
        runs = Runs()
        runs.error = error
        runs.go.set()
        for _ in range(3):
            with pytest.raises(Unhealthy, match=r"it broke|in time"):
                await runs.probe.check()
        assert runs.count == 1
        runs.error, runs.now = None, FRESH
        await runs.probe.check()

    asyncio.run(play())


def test_who_goes_away_leaves_the_request_to_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        runs = Runs()
        gone, stays = (asyncio.create_task(runs.probe.check()) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        runs.go.set()
        await stays
        assert gone.cancelled() and runs.count == 1

    with caplog.at_level(logging.ERROR):
        asyncio.run(play())
    assert not caplog.records


def test_a_request_that_was_cancelled_is_sent_again() -> None:
    async def play() -> None:
        runs = Runs()
        first = asyncio.create_task(runs.probe.check())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert runs.probe._task is not None
        runs.probe._task.cancel()
        await asyncio.gather(first, return_exceptions=True)
        runs.go.set()
        await runs.probe.check()
        assert runs.count == 2

    asyncio.run(play())
