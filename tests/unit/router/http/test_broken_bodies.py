"""Requests that go wrong after their head: each is answered, and none costs more than its bytes."""

from __future__ import annotations

import socket
import time
import tracemalloc
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from live_http import JSON, PROBE, SOON, check, parsed, post, read_all, read_many, read_one, serving
from until import until

from router.http import ConnectionLimits

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server

    from router.http.server.connections import BoundedHttp

HEAD = b"POST /generate HTTP/1.1\r\nHost: xgr\r\n" + JSON
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
GOOD = b'{"input_ids": [1]}'

MALFORMED = [
    b"zz\r\n",
    b'5\r\n{"inpu\r\n',
    b"2\r\n{}x",
    b"-1\r\n",
    b"ffffffffffffffffff\r\n",
    b"1\r\n{\r\n\r\n",
    b"1\n{",
    b"0\r\nno trailer\r\n\r\n",
    b"\0\0\0\0",
]


@pytest.mark.parametrize("sent", MALFORMED, ids=repr)
@pytest.mark.parametrize("before", [b"", b"1\r\n{\r\n"], ids=["at once", "later"])
@pytest.mark.parametrize("together", [True, False], ids=["one packet", "more packets"])
def test_a_malformed_chunk_is_answered(
    server: Server, dispatch: FakeDispatch, sent: bytes, before: bytes, together: bool
) -> None:
    pieces = [CHUNKED + before + sent] if together else [CHUNKED, before, sent]
    with serving(server.app) as live:
        check(live.ask(*pieces, pause=0.0 if together else 0.05), 400, "invalid_value")
    assert not dispatch.jobs


def test_what_follows_a_whole_request_does_not_cost_its_answer(
    server: Server, dispatch: FakeDispatch
) -> None:
    with serving(server.app) as live, live.connect() as client:
        client.sendall(post(GOOD, len(GOOD)) * 2 + b"\x80\x80 nonsense\r\n\r\n")
        assert len(read_many(client, 2)) == 2
        assert read_all(client) == b""
    assert len(dispatch.jobs) == 2


CUT_SHORT = {
    "in the request line": b"POST /gen",
    "in the head": HEAD,
    "before the body": HEAD + b"Content-Length: 18\r\n\r\n",
    "in the body": post(b'{"inp', 18),
    "before a chunk": CHUNKED,
    "in a chunk": CHUNKED + b"5\r\n{",
    "before the last chunk": CHUNKED + b"12\r\n" + GOOD + b"\r\n",
    "in the trailers": CHUNKED + b"12\r\n" + GOOD + b"\r\n0\r\nA: b",
}


@pytest.mark.parametrize("sent", CUT_SHORT.values(), ids=CUT_SHORT)
@pytest.mark.parametrize("first", [b"", PROBE], ids=["first", "second"])
@pytest.mark.parametrize("pause", [0.0, 0.1], ids=["at once", "later"])
def test_who_stops_sending_is_told_so(
    server: Server, dispatch: FakeDispatch, sent: bytes, first: bytes, pause: float
) -> None:
    with serving(server.app) as live, live.connect() as client:
        client.sendall(first)
        assert not first or read_one(client)[0] == 200
        client.sendall(sent)
        time.sleep(pause)
        client.shutdown(socket.SHUT_WR)
        assert "stopped sending" in check(parsed(read_all(client)), 400, "invalid_value")
    assert not dispatch.jobs


@pytest.mark.parametrize(
    "sent", [PROBE, post(GOOD, len(GOOD)), CHUNKED + b"12\r\n" + GOOD + b"\r\n0\r\n\r\n"]
)
def test_who_sent_all_of_it_may_stop_sending(server: Server, sent: bytes) -> None:
    with serving(server.app, gone_seconds=20.0) as live, live.connect() as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert parsed(read_all(client))[0] == 200


def test_who_stops_sending_and_waits_long_is_gone(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.hang = True
    with serving(server.app, gone_seconds=SOON) as live, live.connect() as client:
        client.sendall(post(GOOD, len(GOOD)))
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
    assert len(dispatch.cancelled) == 1


def test_who_connects_and_says_nothing_may_leave(server: Server) -> None:
    with serving(server.app) as live, live.connect() as client:
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""


# --- small chunks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 30])
def test_a_body_of_crumbs_is_refused(server: Server, dispatch: FakeDispatch, size: int) -> None:
    crumbs = b"%x\r\n%b\r\n" % (size, b" " * size) * 400
    with serving(server.app) as live:
        assert "send larger ones" in check(live.ask(CHUNKED, crumbs), 400, "invalid_value")
    assert not dispatch.jobs


@pytest.mark.parametrize(("size", "count"), [(1, 200), (1000, 600), (65536, 20)])
def test_a_body_of_pieces_is_read(server: Server, size: int, count: int) -> None:
    server.set(max_body_bytes=4 << 20)
    pieces = b"%x\r\n%b\r\n" % (size, b" " * size) * count
    with serving(server.app) as live, live.connect() as client:
        # Inside of the list: what is long besides the long fields is refused.
        client.sendall(CHUNKED + b'f\r\n{"input_ids":[1\r\n' + pieces + b"2\r\n]}\r\n0\r\n\r\n")
        assert read_one(client)[0] == 200


@pytest.mark.parametrize("size", [1, 100, 4000])
def test_chunks_are_not_read_once_their_request_is_refused(server: Server, size: int) -> None:
    """Without a key, whatever follows the head is left to the socket."""
    server.set(api_key="k3y")
    chunks = b"%x\r\n%b\r\n" % (size, b" " * size) * (65536 // size)
    with serving(server.app, rest_seconds=2.0) as live, live.connect() as client:
        client.sendall(CHUNKED)
        assert read_one(client)[0] == 401
        (connection,) = live.server.server_state.connections
        heard: list[bytes] = []
        connection.on_body = heard.append  # type: ignore[method-assign, union-attr]
        with suppress(OSError):
            client.sendall(chunks)
        assert read_all(client) == b""
    assert not heard


def test_what_is_sent_after_a_refusal_is_left_in_the_socket(server: Server) -> None:
    """Some of it is taken, for the answer's sake; then the client has to wait until it is cut off."""
    server.set(api_key="k3y")
    with serving(server.app, rest_seconds=1.0, rest_bytes=1 << 16) as live, live.connect() as client:
        client.sendall(CHUNKED)
        assert read_one(client)[0] == 401
        (connection,) = live.server.server_state.connections
        taken: BoundedHttp = connection  # type: ignore[assignment]
        with suppress(OSError):
            while True:
                client.sendall(b"1\r\n \r\n" * 10_000)
        assert 1 << 16 < taken._overheard < 1 << 20


def test_requests_that_wait_on_one_connection_are_counted(server: Server) -> None:
    with serving(server.app, pipelined=4) as live, live.connect() as client:
        client.sendall(PROBE * 100)
        assert len(read_many(client, 5)) == 5
        assert read_all(client) == b""


def test_requests_that_wait_take_little_memory(server: Server, dispatch: FakeDispatch) -> None:
    """A head of 18 bytes becomes kilobytes; all connections together may take 50 MB of them."""
    dispatch.hang = True
    with serving(server.app) as live, ExitStack() as held:
        tracemalloc.start()
        try:
            before, count = tracemalloc.get_traced_memory()[0], 20
            for _ in range(count):
                client = held.enter_context(live.connect())
                client.sendall(post(GOOD, len(GOOD)) + b"GET /a HTTP/1.1\r\n\r\n" * 100)
            until(lambda: len(dispatch.tasks) == count, "all requests are under way")
            took = (tracemalloc.get_traced_memory()[0] - before) / count
        finally:
            tracemalloc.stop()
    assert took < 50_000_000 / ConnectionLimits().connections
