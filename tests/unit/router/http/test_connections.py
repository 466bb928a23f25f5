"""Clients over real sockets that send too slowly or too much, or do not read: each is cut off."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from router.http import ConnectionLimits, server_config
from xgr_runtime import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import FakeDispatch, Server
    from starlette.requests import Request
    from starlette.types import ASGIApp

SOON = 0.3  # seconds: the bound that a test runs into
PATIENCE = 20.0  # seconds in which a busy machine gets to anything
START = b"GET /liveness HTTP/1.1\r\nHost: xgr\r\n"
PROBE = START + b"\r\n"


class Live:
    """An application behind a port, its event loop in a thread."""

    def __init__(self, app: ASGIApp, limits: ConnectionLimits) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.server = uvicorn.Server(server_config(app, limits))
        self.thread = threading.Thread(
            target=lambda: asyncio.run(self.server.serve(sockets=[self.listener])), daemon=True
        )
        self.address: tuple[str, int] = self.listener.getsockname()

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    def wait_connections(self, count: int) -> None:
        until = time.monotonic() + PATIENCE
        while self.connections != count:
            assert time.monotonic() < until, f"{self.connections} connections, not {count}"
            time.sleep(0.01)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE)

    def ask(self, *pieces: bytes, pause: float = 0.0) -> tuple[int, dict[str, str], bytes]:
        """The one answer to what is sent piece by piece, read until the connection ends."""
        with self.connect() as client:
            with suppress(OSError):  # it may have answered and closed already
                for piece in pieces:
                    client.sendall(piece)
                    time.sleep(pause)
            return parsed(read_all(client))


@contextmanager
def serving(app: ASGIApp, **limits: Any) -> Iterator[Live]:
    """Afterwards nobody is connected any more."""
    live = Live(app, ConnectionLimits(**{"rest_seconds": SOON, **limits}))
    live.thread.start()
    try:
        yield live
        live.wait_connections(0)
    finally:
        live.server.should_exit = True
        live.thread.join(PATIENCE)


def read_all(client: socket.socket) -> bytes:
    """Until the server closes; it must."""
    parts = []
    with suppress(ConnectionResetError):
        while part := client.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split(" ")[1]), headers, body[: int(headers["content-length"])]


def read_one(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One answer of a connection that stays open."""
    answer = b""
    while b"\r\n\r\n" not in answer or len(answer.partition(b"\r\n\r\n")[2]) < length(answer):
        part = client.recv(1 << 16)
        assert part, f"closed after {answer!r}"
        answer += part
    return parsed(answer)


def length(answer: bytes) -> int:
    return int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])


def check(answer: tuple[int, dict[str, str], bytes], status: int, code: str) -> str:
    """Asserts the error body of a refusal and returns its message."""
    got, headers, body = answer
    assert got == status, body
    error = json.loads(body)["error"]
    assert error["code"] == code and error["type"] == errors.BY_CODE[code].kind
    assert ("retry-after" in headers) == (status == 503)
    return str(error["message"])


def post(body: bytes, length: int) -> bytes:
    head = "POST /generate HTTP/1.1\r\nHost: xgr\r\nContent-Type: application/json\r\nContent-Length: "
    return f"{head}{length}\r\n\r\n".encode() + body


# --- heads ----------------------------------------------------------------------------------------------

LATE = {
    "nothing": [],
    "part of a head": [START],
    "a byte at a time": [START[i : i + 1] for i in range(len(START))],
    "a header at a time": [START, *[b"X-A: b\r\n"] * 100],
    "line ends": [b"\r\n"] * 100,
    "a second head": [PROBE, START],
}


@pytest.mark.parametrize("pieces", LATE.values(), ids=LATE)
def test_a_head_has_a_time_to_be_whole(server: Server, pieces: list[bytes]) -> None:
    with serving(server.app, head_seconds=SOON) as live, live.connect() as client:
        if pieces[:1] == [PROBE]:
            client.sendall(pieces[0])
            assert read_one(client)[0] == 200
            pieces = pieces[1:]
        with suppress(OSError):
            for piece in pieces:
                client.sendall(piece)
                time.sleep(SOON / 10)
        assert "whole within 0.3 s" in check(parsed(read_all(client)), 408, "request_timeout")


LARGE = {
    "one long header": [START, *[b"X-A: " + b"a" * 500] * 10],
    "one long name": [START, *[b"a" * 500] * 10],
    "short headers": [START, *[b"X-A: " + b"a" * 80 + b"\r\n"] * 60],
    "a long path": [b"GET /", *[b"a" * 500] * 10],
    "all at once": [START + b"X-A: " + b"a" * 5000 + b"\r\n\r\n"],
    "trailers": [
        b"POST /generate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n",
        *[b"X-A: " + b"a" * 500 + b"\r\n"] * 10,
    ],
}


@pytest.mark.parametrize("pieces", LARGE.values(), ids=LARGE)
def test_a_head_has_a_size(server: Server, dispatch: FakeDispatch, pieces: list[bytes]) -> None:
    with serving(server.app, head_bytes=4096) as live:
        if pieces[0].startswith(b"POST"):  # its request is under way: there is no place for an answer
            with live.connect() as client:
                with suppress(OSError):
                    for piece in pieces:
                        client.sendall(piece)
                assert read_all(client) == b""
        else:
            assert "more than 4096 bytes" in check(live.ask(*pieces), 431, "headers_too_large")
    assert not dispatch.jobs


def test_headers_are_counted(server: Server) -> None:
    with serving(server.app, headers=16) as live:
        answer = live.ask(START, *[b"A:b\r\n"] * 16, b"\r\n")
        assert "more than 16 headers" in check(answer, 431, "headers_too_large")
        with live.connect() as client:
            client.sendall(START + b"A:b\r\n" * 15 + b"\r\n")
            assert read_one(client)[0] == 200


def test_a_long_head_within_the_limit_is_served(server: Server) -> None:
    with serving(server.app) as live, live.connect() as client:
        client.sendall(START + b"X-A: " + b"a" * 30_000 + b"\r\n\r\n")
        assert read_one(client)[0] == 200


NOT_HTTP = [
    b"\x80\x04N.",
    b"NONE / HTTP/1.1\r\n\r\n",
    b"GET http:// HTTP/1.1\r\n\r\n",
    b"POST / HTTP/9.9\r\n\r\n",
    b"\0" * 99,
]


@pytest.mark.parametrize("sent", NOT_HTTP, ids=repr)
def test_what_is_not_http(server: Server, sent: bytes) -> None:
    with serving(server.app) as live:
        check(live.ask(sent), 400, "invalid_value")


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"], ids=repr)
def test_other_protocols_are_not_spoken(server: Server, protocol: bytes) -> None:
    """An offer is passed over; a body beside it could not be read, and is refused."""
    offer = b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n"
    with serving(server.app) as live:
        with live.connect() as client:
            for _ in range(2):
                client.sendall(START + offer)
                assert read_one(client)[0] == 200
        answer = live.ask(post(b"", 2).removesuffix(b"\r\n") + offer, b"{}")
        assert "Upgrade" in check(answer, 400, "invalid_value")


# --- bodies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[], [b"{"] * 40], ids=["none of it", "a byte at a time"])
def test_a_body_has_a_time_to_arrive(server: Server, pieces: list[bytes]) -> None:
    server.set(body_seconds=SOON)
    with serving(server.app) as live:
        answer = live.ask(post(b"", 1000), *pieces, pause=SOON / 10)
        assert "body did not arrive within 0.3 s" in check(answer, 408, "request_timeout")


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "in chunks"])
def test_a_body_has_a_size(server: Server, announced: bool) -> None:
    """The answer comes before the body has ended; what goes on sending is cut off."""
    chunk = b"1000\r\n" + b"a" * 4096 + b"\r\n"
    chunked = b"POST /generate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving(server.app) as live:
        answer = live.ask(post(b"", 4097)) if announced else live.ask(chunked, chunk, chunk)
        assert "larger than 4096 bytes" in check(answer, 413, "body_too_large")


def test_a_body_that_nobody_asked_for_must_end(server: Server) -> None:
    with serving(server.app, rest_seconds=2.0) as live, live.connect() as client:
        client.sendall(START + b"Content-Length: 9\r\n\r\n")
        assert read_one(client)[0] == 200
        client.sendall(b"a" * 9)
        client.sendall(PROBE)
        assert read_one(client)[0] == 200, "it came in time: the connection goes on"
        client.sendall(START + b"Content-Length: 9\r\n\r\n")
        assert parsed(read_all(client))[0] == 200, "it never came"


# --- waiting and reading --------------------------------------------------------------------------------


def test_an_idle_connection_ends(server: Server) -> None:
    with serving(server.app, idle_seconds=1) as live, live.connect() as client:
        client.sendall(PROBE)
        assert parsed(read_all(client))[0] == 200


def test_a_long_answer_outlives_the_bounds_of_a_head(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.hang = True
    body, end = b'{"input_ids": [1], "rid": "slow"}', b'{"rid": "slow"}'
    bounds = {"head_seconds": SOON, "idle_seconds": 1}
    with serving(server.app, **bounds) as live, live.connect() as client:
        client.sendall(post(body, len(body)))
        time.sleep(SOON)
        client.sendall(b"\r\n")  # as old browsers do
        time.sleep(2 * SOON)
        assert list(dispatch.tasks) == ["slow"]
        with live.connect() as other:
            other.sendall(post(end, len(end)).replace(b"/generate", b"/abort_request"))
            assert read_one(other)[0] == 200
        check(read_one(client), 499, "cancelled")


SIZE = 16 << 20  # more than all buffers between the two


async def large(request: Request) -> PlainTextResponse:
    return PlainTextResponse(b"a" * SIZE)


LARGE_ANSWER = Starlette(routes=[Route("/liveness", large)])


def test_an_answer_that_is_not_read_is_given_up() -> None:
    with serving(LARGE_ANSWER, unread_seconds=SOON) as live, live.connect() as client:
        client.sendall(PROBE)
        assert client.recv(1)
        live.wait_connections(0)  # while the client still holds its end


def test_an_answer_may_be_read_slowly() -> None:
    with serving(LARGE_ANSWER, unread_seconds=4 * SOON) as live, live.connect() as client:
        client.sendall(PROBE)
        got = 0
        for portion in range(1, 17):
            time.sleep(SOON / 2)
            while got < portion * SIZE // 16:
                part = client.recv(1 << 16)
                assert part, f"cut off after {got} bytes"
                got += len(part)


# --- many -----------------------------------------------------------------------------------------------


def test_connections_are_counted(server: Server) -> None:
    with serving(server.app, connections=3) as live:
        with ExitStack() as held:
            first, *_ = [held.enter_context(live.connect()) for _ in range(3)]
            live.wait_connections(3)
            assert "3 connections are open" in check(live.ask(), 503, "overloaded")
            first.sendall(PROBE)
            assert read_one(first)[0] == 200, "who is in stays in"
        live.wait_connections(0)
        with live.connect() as client:
            client.sendall(PROBE)
            assert read_one(client)[0] == 200, "there is room again"


def test_slow_clients_slow_nobody_else(server: Server) -> None:
    """Half a head, half a body, and an answer that is not read, by dozens."""
    with serving(server.app, head_seconds=60.0) as live, ExitStack() as held:
        for sent in (b"", START, post(b"{", 1000)) * 20:
            held.enter_context(live.connect()).sendall(sent)
        live.wait_connections(60)
        body = b'{"input_ids": [1]}'
        with live.connect() as client:
            for _ in range(20):
                client.sendall(post(body, len(body)))
                assert read_one(client)[0] == 200
        assert live.connections >= 60, "they are all still there"
