"""Clients that go away, requests that are aborted, and the line that each request leaves in the log."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.requests import Request

from router.http import HttpSettings
from router.http.server.inbound import LARGE_AT_ONCE, Bodies
from xgr_runtime.errors import Overloaded, RequestTimeout

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server
    from starlette.types import Message


class Talk:
    """One ASGI exchange whose client can go away."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.incoming.put_nowait(
            {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        )
        self.sent: list[dict[str, Any]] = []

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def hang_up(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})


async def until_live(dispatch: FakeDispatch) -> None:
    async with asyncio.timeout(10):
        while not dispatch.tasks:
            await asyncio.sleep(0)


def test_disconnect_cancels_the_work(
    server: Server, dispatch: FakeDispatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "router.http")
    dispatch.hang = True

    async def exchange() -> Talk:
        talk = Talk({"input_ids": [1], "rid": "left"})
        app = asyncio.ensure_future(server.app(server.scope(), talk.incoming.get, talk.send))  # type: ignore[arg-type]
        await until_live(dispatch)
        talk.hang_up()
        await asyncio.wait_for(app, 10)
        # here, not after the loop: closing it would cancel whatever was left over
        assert (dispatch.cancelled, dispatch.tasks) == (["left"], {})
        return talk

    assert asyncio.run(exchange()).sent == []
    assert "POST /generate 499" in caplog.text
    assert 'xgr_requests_total{status="499"} 1.0' in server.get("/metrics").text


def test_disconnect_before_the_body_ends(server: Server, dispatch: FakeDispatch) -> None:
    async def exchange() -> Talk:
        talk = Talk({})
        talk.incoming = asyncio.Queue()
        talk.hang_up()
        await asyncio.wait_for(server.app(server.scope(), talk.incoming.get, talk.send), 10)  # type: ignore[arg-type]
        return talk

    assert asyncio.run(exchange()).sent == []
    assert dispatch.jobs == []


def test_who_stops_waits_for_no_body(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.draining = True

    async def exchange() -> Talk:
        talk = Talk({})
        talk.incoming = asyncio.Queue()  # of a client that never sends its body
        await asyncio.wait_for(server.app(server.scope(), talk.incoming.get, talk.send), 10)  # type: ignore[arg-type]
        return talk

    start, body = asyncio.run(exchange()).sent
    assert (start["status"], json.loads(body["body"])["error"]["code"]) == (503, "draining")


def test_cancelled_server_cancels_the_work(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.hang = True

    async def exchange() -> None:
        talk = Talk({"input_ids": [1], "rid": "r"})
        app = asyncio.ensure_future(server.app(server.scope(), talk.incoming.get, talk.send))  # type: ignore[arg-type]
        await until_live(dispatch)
        app.cancel()
        await asyncio.wait({app}, timeout=10)
        assert app.cancelled()
        assert (dispatch.cancelled, dispatch.tasks) == (["r"], {})

    asyncio.run(exchange())


def test_abort_by_rid(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.hang = True

    async def exchange() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://xgr") as client:
            waiting = asyncio.ensure_future(client.post("/generate", json={"input_ids": [1], "rid": "r"}))
            await until_live(dispatch)
            twin = await client.post("/generate", json={"input_ids": [1], "rid": "r"})
            aborted = await client.post("/abort_request", json={"rid": "r"})
            return twin, aborted, await asyncio.wait_for(waiting, 10)

    twin, aborted, answer = asyncio.run(exchange())
    assert (twin.status_code, twin.json()["error"]["code"]) == (409, "duplicate_rid")
    assert aborted.json() == {"rid": "r", "aborted": True}
    assert (answer.status_code, answer.json()["error"]["code"]) == (499, "cancelled")


def test_late_dispatcher_is_cut_off(
    server: Server, dispatch: FakeDispatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.http.server.inbound.GRACE", 0.0)
    dispatch.hang = True

    async def exchange() -> Talk:
        talk = Talk({"input_ids": [1], "rid": "slow", "timeout_ms": 20})
        await asyncio.wait_for(server.app(server.scope(), talk.incoming.get, talk.send), 10)  # type: ignore[arg-type]
        assert (dispatch.cancelled, dispatch.tasks) == (["slow"], {})
        return talk

    start, body = asyncio.run(exchange()).sent
    assert (start["status"], json.loads(body["body"])["error"]["code"]) == (504, "deadline_exceeded")


def test_a_body_that_never_ends_has_a_deadline() -> None:
    async def silence() -> Message:
        await asyncio.sleep(60)
        raise AssertionError("nobody waits that long")

    request = Request({"type": "http", "method": "POST", "headers": []}, silence)
    with pytest.raises(RequestTimeout, match="body"):
        asyncio.run(read(Bodies(HttpSettings("1", body_seconds=0.05)), request))


async def read(bodies: Bodies, request: Request) -> bytes:
    async with bodies.read(request) as body:
        return body  # type: ignore[return-value]


def test_bodies_share_a_bounded_memory() -> None:
    """Many that are each small enough are refused together, and what was read is given back."""
    bodies = Bodies(HttpSettings("1", max_body_bytes=100))

    def sending(*parts: bytes) -> Request:
        waiting = iter(parts)

        async def receive() -> Message:
            part = next(waiting, None)
            if part is None:  # the client is in no hurry
                await asyncio.sleep(60)
            return {"type": "http.request", "body": part, "more_body": part != b"end"}

        return Request({"type": "http", "method": "POST", "headers": []}, receive)

    async def crowd() -> None:
        slow = [asyncio.create_task(read(bodies, sending(b"x" * 100))) for _ in range(LARGE_AT_ONCE)]
        await asyncio.sleep(0.05)
        assert bodies.room == 0
        with pytest.raises(Overloaded, match="memory"):
            await read(bodies, sending(b"end"))
        slow[0].cancel()
        await asyncio.wait(slow[:1])
        assert await read(bodies, sending(b"the ", b"end")) == b"the end"
        for task in slow:
            task.cancel()
        await asyncio.wait(slow)

    asyncio.run(crowd())
    assert bodies.room == LARGE_AT_ONCE * 100


def test_access_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "router.http")
    server.generate(input_ids=[1, 3], rid="abc", sampling_params={"beam_width": 7})
    server.get("/liveness")  # a probe that succeeds leaves no line
    server.get("/a%0Ab")
    server.get("/" + "a" * 5000)
    first, second, third = (record.getMessage() for record in caplog.records if record.name == "router.http")
    assert first.startswith("POST /generate 200 ")
    assert first.endswith(" ms rid=abc prompt=2 width=7")
    assert "\n" not in second
    assert len(third) < 400
