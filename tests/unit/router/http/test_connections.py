"""Clients over real sockets that send too slowly or too much, or do not read: each is cut off."""

from __future__ import annotations

import errno
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from live_http import JSON, PROBE, SOON, check, parsed, post, read_all, read_many, read_one, serving
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from until import until

from router.http.server.counting import ConnectionLimits
from router.http.server.places import DOOR
from xgr_runtime.config import RouterConfig, ServeConfig

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server
    from starlette.requests import Request

START = b"GET /liveness HTTP/1.1\r\nHost: xgr\r\n"
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


def test_a_client_that_is_gone_before_it_is_refused_is_no_error(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop learns of a reset connection later than the socket does."""

    def gone(self: object) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr("asyncio.selector_events._SelectorSocketTransport.write_eof", gone)
    with serving(server.app, head_seconds=SOON) as live, live.connect() as client:
        assert parsed(read_all(client))[0] == 408
    assert "Exception" not in caplog.text


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


OFFERS = {
    "curl": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "java": b"Upgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIA\r\nConnection: Upgrade, HTTP2-Settings\r\n",
    "websocket": b"connection: keep-alive, Upgrade\r\nUPGRADE: websocket\r\n",
    "twice": b"Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
}
BODY = b'{"input_ids": [1]}'
HEAD = b"POST /generate HTTP/1.1\r\nHost: xgr\r\nContent-Type: application/json\r\n"
IN_CHUNKS = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:5], BODY[5:])) + b"0\r\n\r\n"
FRAMED = {
    "whole": b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
    "in chunks": b"Transfer-Encoding: chunked\r\n\r\n" + IN_CHUNKS,
    "asked for first": b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("framed", FRAMED.values(), ids=FRAMED)
@pytest.mark.parametrize("piece", [1, 7, 1 << 20], ids=lambda size: f"{size}-bytes")
def test_an_offer_of_another_protocol_is_passed_over(
    server: Server, dispatch: FakeDispatch, offer: bytes, framed: bytes, piece: int
) -> None:
    """Its request is answered, and so are those before and behind it on the connection."""
    request = HEAD + offer + framed
    sent = request + PROBE + request + START + offer + b"\r\n" + request
    with serving(server.app) as live, live.connect() as client:
        for start in range(0, len(sent), piece):
            client.sendall(sent[start : start + piece])
        bodies = read_many(client, 5)
    assert [b'"items"' in body for body in bodies] == [True, False, True, False, True]
    assert [job.tokens.tolist() for job in dispatch.jobs] == [[1]] * 3


def test_an_offer_beside_a_broken_body_is_still_broken(server: Server) -> None:
    head = HEAD + OFFERS["curl"] + b"Transfer-Encoding: chunked\r\n\r\n"
    with serving(server.app) as live:
        check(live.ask(head, b"zz\r\n"), 400, "invalid_value")
        check(live.ask(b"CONNECT xgr:80 HTTP/1.1\r\nHost: xgr\r\n\r\n"), 400, "invalid_value")


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


LEFT = 1 << 20  # bytes of a refused body that are heard
CHUNKED = b"POST /generate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
TOO_MUCH = {
    "announced": [post(b"", 3 * LEFT), b"a" * (3 * LEFT)],
    "in chunks": [CHUNKED, *[b"10000\r\n" + b"a" * (1 << 16) + b"\r\n"] * (3 * LEFT >> 16)],
    "the last": [
        post(b"", 3 * LEFT).replace(b"Host", b"Connection: close\r\nHost"),
        b"a" * (3 * LEFT),
    ],
    "less than is heard": [post(b"", LEFT).replace(b"Host", b"Connection: close\r\nHost"), b"a" * LEFT],
}


@pytest.mark.parametrize("pieces", TOO_MUCH.values(), ids=TOO_MUCH)
@pytest.mark.parametrize("all_first", [False, True], ids=["reads first", "sends first"])
def test_an_early_answer_says_that_it_is_the_last(
    server: Server, pieces: list[bytes], all_first: bool
) -> None:
    """Whoever reads the answer gets all of it, and uses the connection for nothing more."""
    with serving(server.app, rest_bytes=LEFT) as live, live.connect() as client:
        client.sendall(pieces[0])
        if not all_first:
            client.sendall(pieces[1][:8192])
            answer = read_one(client)
        with suppress(OSError):  # more than is heard
            for piece in pieces[1:]:
                client.sendall(piece)
        answer = parsed(read_all(client)) if all_first else answer
        assert "larger than 4096 bytes" in check(answer, 413, "body_too_large")
        assert answer[1]["connection"] == "close"


def test_after_a_body_that_was_heard_the_connection_goes_on(server: Server) -> None:
    with serving(server.app, rest_bytes=LEFT, rest_seconds=2.0) as live, live.connect() as client:
        for _ in range(2):
            client.sendall(post(b"a" * LEFT, LEFT))
            answer = read_one(client)
            assert "connection" not in answer[1]
            check(answer, 413, "body_too_large")
        client.sendall(PROBE)
        assert read_one(client)[0] == 200


# --- waiting and reading --------------------------------------------------------------------------------


def test_an_idle_connection_ends(server: Server) -> None:
    with serving(server.app, idle_seconds=1) as live, live.connect() as client:
        client.sendall(PROBE)
        assert parsed(read_all(client))[0] == 200


@pytest.mark.parametrize("seconds", [31, 75, 90, 3600])
def test_an_idle_connection_is_kept_as_long_as_is_said(server: Server, seconds: int) -> None:
    """A balancer that keeps it for 60 to 90 s must not find it closed."""
    with serving(server.app, idle_seconds=seconds) as live, live.connect() as client:
        connections: Any = live.server.server_state.connections
        for _ in range(2):  # it counts anew behind every answer
            client.sendall(PROBE)
            assert read_one(client)[0] == 200
            until(lambda: all(c.timeout_keep_alive_task for c in connections), "it waits")
            (connection,) = connections
            left = connection.timeout_keep_alive_task.when() - connection.loop.time()
            assert seconds - 20 < left <= seconds
            assert connection.limits.idle_seconds == seconds


def test_without_a_word_it_is_kept_for_75_seconds() -> None:
    for config in (ServeConfig, RouterConfig):
        (said,) = (f.default for f in msgspec.structs.fields(config) if f.name == "keep_alive_timeout")
        assert said == ConnectionLimits().idle_seconds == 75


EARLY = {
    "a probe": START,
    "no such route": START.replace(b"liveness", b"no"),
    "no such method": b"PUT" + START[3:],
}


@pytest.mark.parametrize("start", EARLY.values(), ids=EARLY)
@pytest.mark.parametrize("after", [b"", PROBE, b"\r\n"], ids=["nothing", "a request", "a line end"])
def test_who_is_answered_before_its_body_ends_is_idle_then(
    server: Server, start: bytes, after: bytes
) -> None:
    """It ends as others do, and gives its place to who asks."""
    limits = {"connections": 1, "idle_seconds": 1, "head_seconds": 1.0, "rest_seconds": 20.0}
    with serving(server.app, **limits) as live:
        for wanted in (False, True):
            with live.connect() as client:
                client.sendall(start + b"Content-Length: 9\r\n\r\n")
                read_one(client)
                client.sendall(b"a" * 9 + after)
                assert after != PROBE or read_one(client)[0] == 200
                if wanted:
                    assert live.ask(START + b"Connection: close\r\n\r\n")[0] == 200
                read_all(client)
            live.wait_connections(0)


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
    with serving(server.app, connections=3, door_seconds=SOON) as live:
        with ExitStack() as held:
            first, *_ = [held.enter_context(live.connect()) for _ in range(3)]
            live.wait_connections(3)
            assert "3 connections are open" in check(live.ask(), 503, "overloaded"), "it asked for nothing"
            first.sendall(PROBE)
            assert read_one(first)[0] == 200, "who is in stays in"
        live.wait_connections(0)
        with live.connect() as client:
            client.sendall(PROBE)
            assert read_one(client)[0] == 200, "there is room again"


IDLE = {
    "nothing sent": b"",
    "kept for later": PROBE,
    "half a head": b"POST /generate HTTP/1.1\r\nHo",
    "half a second head": PROBE + b"POST /generate HTTP/1.1\r\nHo",
}


@pytest.mark.parametrize("sent", IDLE.values(), ids=IDLE)
def test_who_waits_gives_way_to_who_asks(server: Server, sent: bytes) -> None:
    """One at a time, the longest first; and whoever took a place keeps it."""
    with serving(server.app, connections=3) as live, ExitStack() as held:
        waiting = [held.enter_context(live.connect()) for _ in range(3)]
        for client in waiting:
            client.sendall(sent)
            assert PROBE not in sent or read_one(client)[0] == 200
        live.wait_connections(3)
        asking = [held.enter_context(live.connect()) for _ in range(2)]
        for client in asking:
            client.sendall(post(BODY, len(BODY)))
            assert read_one(client)[0] == 200
        told = [read_all(client) for client in waiting[:2]]
        assert [not one or parsed(one)[0] for one in told] == [True if sent == PROBE else 503] * 2
        rest = b"st: xgr\r\n" + JSON + b"Content-Length: 18\r\n\r\n" + BODY
        for client in (waiting[2], *asking):
            client.sendall(rest if client is waiting[2] and sent.endswith(b"Ho") else PROBE)
            assert read_one(client)[0] == 200


AT_WORK = {"half a body": post(b"{", 1000), "a request under way": post(BODY, len(BODY))}


@pytest.mark.parametrize("sent", AT_WORK.values(), ids=AT_WORK)
def test_probes_are_answered_where_all_are_at_work(
    server: Server, dispatch: FakeDispatch, sent: bytes
) -> None:
    dispatch.hang = True
    with serving(server.app, connections=3) as live, ExitStack() as held:
        for _ in range(3):
            held.enter_context(live.connect()).sendall(sent)
        live.wait_connections(3)
        (places,) = {connection.places for connection in live.server.server_state.connections}  # type: ignore[union-attr]
        until(lambda: not places._waiting, "all are at work")
        for path in (b"/liveness", b"/readiness", b"/health?a=b", b"/metrics"):
            status, headers, _ = live.ask(PROBE.replace(b"/liveness", path))
            assert (status, headers["connection"]) == (200, "close")
        for asked in (post(BODY, len(BODY)), PROBE.replace(b"/liveness", b"/health_generate")):
            assert "3 connections are open" in check(live.ask(asked), 503, "overloaded")


def test_a_crowd_at_the_door_does_not_keep_probes_out(server: Server) -> None:
    with serving(server.app, connections=2, door_seconds=60.0) as live, ExitStack() as held:
        for sent in (post(b"{", 1000),) * 2 + (b"",) * 200:
            held.enter_context(live.connect()).sendall(sent)
        assert live.ask(PROBE)[0] == 200
        assert live.connections <= 2 + DOOR + 1


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
