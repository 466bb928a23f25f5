"""A link to a worker outlives whatever goes wrong in it, and never looks alive while it is deaf."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from played_workers import PlayedWorker, play, result_of, stage, until

from xgr_runtime.transport import AsyncLink
from xgr_runtime.wire.messages import Cancel, Committed, DecodeRequest


class Once:
    """Raises in place of the first call that comes after `armed`."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.armed = self.raised = False

    def __call__(self, *args: Any) -> Any:
        if self.armed and not self.raised:
            self.raised = True
            raise RuntimeError("a bug")
        return self.real(*args)


@pytest.mark.parametrize("part", ["receive", "disconnected", "send"])
def test_a_link_that_breaks_is_made_anew(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    once = Once(getattr(AsyncLink, part))
    monkeypatch.setattr(AsyncLink, part, lambda link, *args: once(link, *args))

    async def run() -> None:
        async with stage(tmp_path, 1, 1) as s:
            first = s.dispatcher._workers.decode[0]
            once.armed = True
            if part == "disconnected":
                s.decode[0].die()  # so that it is asked again
                s.decode[0] = PlayedWorker(s.decode[0].address, "decode", 99)
            await until(lambda: any("is made anew" in record.message for record in caplog.records))
            await until(lambda: all(w.alive for w in s.dispatcher.workers()))
            answer = s.ask()
            request = await s.decode[0].next(DecodeRequest)
            s.decode[0].send(Committed(request.id))
            s.decode[0].send(result_of(request))
            assert (await answer).attempts == 1
            assert first.alive

    with caplog.at_level(logging.ERROR):
        asyncio.run(asyncio.wait_for(run(), 30))
    assert any(record.exc_info for record in caplog.records if "is made anew" in record.message)


@play
async def test_a_message_that_cannot_be_handled_costs_the_worker_its_requests_not_its_link(
    folder: Path,
) -> None:
    async with stage(folder, 1, 2) as s:
        attempts = s.dispatcher._attempts
        once = attempts.heard = Once(attempts.heard)  # type: ignore[assignment, method-assign]
        answer = s.ask()
        first = await s.decode[0].next(DecodeRequest)
        once.armed = True
        s.decode[0].send(Committed(first.id))
        second = await s.decode[1].next(DecodeRequest)
        s.decode[1].send(result_of(second))
        assert (await answer).attempts == 2 and s.idle
        await until(lambda: all(w.alive for w in s.dispatcher.workers()))


@play
async def test_a_loss_that_cannot_be_told_does_not_end_the_link(folder: Path) -> None:
    async with stage(folder) as s:
        worker = s.dispatcher._workers.decode[0]
        once = worker._on_lost = Once(worker._on_lost)
        once.armed = True
        worker._on_message = Once(worker._on_message)
        worker._on_message.armed = True
        answer = s.ask()
        request = await s.decode[0].next(DecodeRequest)
        s.decode[0].send(Committed(request.id))
        await until(lambda: once.raised)
        await until(lambda: worker.alive)
        answer.cancel()


@play
async def test_a_send_that_raises_is_a_worker_out_of_reach_and_leaks_nothing(folder: Path) -> None:
    async with stage(folder, 1, 2) as s:
        link: Any = s.dispatcher._workers.decode[0]._link  # type: ignore[attr-defined]
        real = link.send

        def send(message: Any) -> bool:
            if isinstance(message, (DecodeRequest, Cancel)):
                raise OSError("no buffer space")
            return bool(real(message))

        link.send = send
        answer = s.ask()
        request = await s.decode[1].next(DecodeRequest)
        s.decode[1].send(Committed(request.id))
        s.decode[1].send(result_of(request))
        assert (await answer).attempts == 2 and s.idle


@play
async def test_a_bug_while_sending_leaves_nothing_in_the_books(folder: Path) -> None:
    async with stage(folder) as s:
        for worker in s.dispatcher._workers:
            worker.send = Once(worker.send)  # type: ignore[assignment, method-assign]
            worker.send.armed = True  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match="a bug"):
            await s.ask()
        assert s.idle
