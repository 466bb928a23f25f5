"""Threads for long bodies: who goes first, and that nothing is worked out for nobody or too late."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from router.http.generate import READERS
from router.http.intake import Intake
from router.http.readers import Readers
from xgr_runtime.wire.messages import Limits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conftest import FakeDispatch, Server

PATIENCE = 20.0  # seconds in which a busy machine gets to anything


class Held:
    """Work that keeps its thread until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()

    def __call__(self) -> None:
        self.begun.release()
        assert self.gate.wait(PATIENCE)

    async def by(self, threads: int) -> None:
        """Until so many threads are held."""
        for _ in range(threads):
            assert await asyncio.to_thread(self.begun.acquire, timeout=PATIENCE)


def run(exchange: Callable[[Readers, Held], Awaitable[None]]) -> None:
    """With one reader, which is held."""

    async def holding() -> None:
        readers, held = Readers(1), Held()
        first = asyncio.ensure_future(readers.run(held, 0.0))
        await held.by(1)
        await exchange(readers, held)
        await first

    asyncio.run(asyncio.wait_for(holding(), PATIENCE))


def test_the_most_urgent_goes_first() -> None:
    order: list[float] = []

    async def exchange(readers: Readers, held: Held) -> None:
        def asking(due: float) -> asyncio.Future[None]:
            return asyncio.ensure_future(readers.run(lambda: order.append(due), due))

        waiting = [asking(due) for due in (3.0, 1.0, 2.0)]
        await asyncio.sleep(0)
        held.gate.set()
        await asyncio.gather(*waiting)

    run(exchange)
    assert order == [1.0, 2.0, 3.0]


def test_who_leaves_while_waiting_is_never_worked_out() -> None:
    worked: list[str] = []

    async def exchange(readers: Readers, held: Held) -> None:
        gone = asyncio.ensure_future(readers.run(lambda: worked.append("gone"), 1.0))
        there = asyncio.ensure_future(readers.run(lambda: worked.append("there"), 2.0))
        await asyncio.sleep(0)
        gone.cancel()
        held.gate.set()
        await there

    run(exchange)
    assert worked == ["there"]


def test_who_leaves_at_its_turn_passes_it_on() -> None:
    async def exchange(readers: Readers, held: Held) -> None:
        second = asyncio.ensure_future(readers.run(lambda: None, 1.0))
        await asyncio.sleep(0)
        readers._next()  # its turn, which it learns of in the next round of the loop
        second.cancel()
        third = asyncio.ensure_future(readers.run(lambda: None, 2.0))
        held.gate.set()
        await third

    run(exchange)


def test_an_error_reaches_its_caller_and_frees_the_thread() -> None:
    def fail() -> None:
        raise ValueError("no")

    async def exchange(readers: Readers, held: Held) -> None:
        held.gate.set()
        with pytest.raises(ValueError, match="no"):
            await readers.run(fail, 0.0)
        assert await readers.run(lambda: 1, 0.0) == 1

    run(exchange)


LONG: dict[str, dict[str, Any]] = {
    "text": {"text": "<a_0>" * 4000},
    "long text in a short body": {"text": "<a_0>" * 1000},
    "history": {"history": ["0"] * 5000},
    "input_ids": {"input_ids": [1] * 9000},
    "filters": {"history": ["0"], "filters": {"deny": ["x"] * 5000}},
}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, server: Server) -> Held:
    """What keeps the thread of every request whose rid begins with "held"."""
    server.set(max_body_bytes=1 << 20, max_prompt_tokens=None)
    server.dispatch.pair = Limits(20_000, 20)
    held, query = Held(), Intake.query

    def holding(self: Intake, body: Any, rid: str, *rest: Any) -> Any:
        if rid.startswith("held"):
            held()
        return query(self, body, rid, *rest)

    monkeypatch.setattr(Intake, "query", holding)
    return held


def beside_held(server: Server, held: Held, ask: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    """What `ask` returns while all readers work for others."""

    async def exchange() -> Any:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://xgr", timeout=PATIENCE) as client:
            body = {**LONG["text"], "timeout_ms": 60_000}
            others = [
                asyncio.ensure_future(client.post("/generate", json={**body, "rid": f"held-{n}"}))
                for n in range(READERS)
            ]
            await held.by(READERS)
            try:
                return await ask(client)
            finally:
                held.gate.set()
                assert {other.status_code for other in await asyncio.gather(*others)} == {200}

    return asyncio.run(exchange())


@pytest.mark.parametrize("body", LONG)
def test_a_deadline_passes_while_readers_are_busy(
    server: Server, held: Held, dispatch: FakeDispatch, body: str
) -> None:
    """It is answered then, and worked out no more once a reader is free."""

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/generate", json={**LONG[body], "rid": "late", "timeout_ms": 300})

    response = beside_held(server, held, ask)
    assert (response.status_code, response.json()["error"]["param"]) == (504, "timeout_ms")
    assert "late" not in [job.rid for job in dispatch.jobs]


def test_short_requests_do_not_wait_for_readers(server: Server, held: Held) -> None:
    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/generate", json={"text": "<a_0>" * 20, "timeout_ms": 2000})

    assert beside_held(server, held, ask).status_code == 200


@pytest.mark.parametrize("body", LONG)
def test_who_hangs_up_while_readers_are_busy_costs_nothing(
    server: Server, held: Held, dispatch: FakeDispatch, body: str
) -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        asking = asyncio.ensure_future(client.post("/generate", json={**LONG[body], "rid": "gone"}))
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    beside_held(server, held, ask)
    assert "gone" not in [job.rid for job in dispatch.jobs]
