"""An application behind a port of its own, and clients of it that speak in bytes."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import uvicorn

from router.http import ConnectionLimits, server_config
from xgr_runtime import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp

SOON = 0.3  # seconds: the bound that a test runs into
PATIENCE = 20.0  # seconds in which a busy machine gets to anything
PROBE = b"GET /liveness HTTP/1.1\r\nHost: xgr\r\n\r\n"
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON = b"Content-Type: application/json\r\n"


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


def read_many(client: socket.socket, count: int) -> list[bytes]:
    """Bodies of as many answers as were asked for; all of them 200."""
    got = b""
    bodies: list[bytes] = []
    while len(bodies) < count:
        got = got.removeprefix(GO_ON)
        head, mark, rest = got.partition(b"\r\n\r\n")
        if mark and len(rest) >= length(got):
            assert head.startswith(b"HTTP/1.1 200 "), got
            bodies.append(rest[: length(got)])
            got = rest[length(got) :]
            continue
        part = client.recv(1 << 16)
        assert part, f"closed after {len(bodies)} answers and {got!r}"
        got += part
    return bodies


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
