"""A worker's control link: heartbeats are answered, and routers that are gone are reported."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from xgr_runtime.transport import A_TURN, Link, Listener, Poller
from xgr_runtime.wire.messages import (
    PROTOCOL,
    AttemptId,
    Cancel,
    Committed,
    Hello,
    Limits,
    Load,
    ModelIdentity,
    ToDecode,
    ToRouter,
    WorkerHello,
)
from xgr_runtime.worker.control import MOST_ROUTERS, ROUTER_REPLACED, ROUTER_SILENT, ControlServer

MODEL = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)
ME = WorkerHello(PROTOCOL, "decode", "d", 4, MODEL, "", [], Limits(8), Load(0, 0, 0, 1, 0, 0, 0, {}))
ID = AttemptId(router=7, request=1, attempt=1, prefill=3, decode=4)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlServer]:
    tmp_path.chmod(0o700)
    made = ControlServer(Listener(f"ipc://{tmp_path}/c", ToDecode), lambda: ME, silence=5.0)
    yield made
    made.listener.close()


def say(server: ControlServer, link: Link[Any], message: Any, now: float = 0.0) -> list[Any]:
    """Send a message of a router; what the worker has to act on."""
    poller = Poller()
    poller.add(server.listener)
    while not link.send(message):
        pass
    poller.wait(5)
    return list(server.receive(now))


def say_raw(server: ControlServer, link: Link[Any], frame: bytes) -> None:
    poller = Poller()
    poller.add(server.listener)
    link.socket.send(frame)
    poller.wait(5)
    assert list(server.receive(0.0)) == []


def hear(link: Link[Any]) -> Any:
    poller = Poller()
    poller.add(link)
    poller.wait(5)
    received = link.receive()
    return received.message if received else None


def test_a_heartbeat_is_answered_and_requests_are_passed_on(server: ControlServer) -> None:
    link: Link[Any] = Link(server.listener.address, ToRouter)
    assert say(server, link, Hello(PROTOCOL, 7, "router-0")) == [] and hear(link) == ME
    say(server, link, Hello(PROTOCOL, 7, "router-0", number=3))
    assert hear(link) == replace(ME, number=3), "so that a router knows which question it answers"
    cancel = Cancel(ID, "no longer wanted")
    assert say(server, link, cancel) == [cancel]
    assert server.send(7, Committed(ID)) and hear(link) == Committed(ID)
    assert not server.send(8, Committed(ID)), "a router that never greeted"
    link.close()


def test_another_protocol_is_told_who_is_here_and_not_counted_as_a_router(server: ControlServer) -> None:
    link: Link[Any] = Link(server.listener.address, ToRouter)
    say(server, link, Hello(PROTOCOL + 1, 7, "router-0"))
    assert hear(link) == ME and server.refused == 1 and not server.send(7, Committed(ID))
    link.close()


def test_a_silent_router_is_reported_until_it_is_forgotten(server: ControlServer) -> None:
    link: Link[Any] = Link(server.listener.address, ToRouter)
    say(server, link, Hello(PROTOCOL, 7, "router-0"), now=10.0)
    assert server.gone(15.0) == []
    assert server.gone(15.1) == [(7, ROUTER_SILENT)] == server.gone(15.1)
    assert server.send(7, Committed(ID)), "it can still be told"
    server.forget(7)
    assert server.gone(99.0) == [] and not server.send(7, Committed(ID))
    link.close()


def test_a_router_that_cannot_be_reached_is_gone_at_once(server: ControlServer) -> None:
    link: Link[Any] = Link(server.listener.address, ToRouter)
    say(server, link, Hello(PROTOCOL, 7, "router-0"))
    link.close()
    while server.send(7, Committed(ID)):  # the socket notices a moment later
        pass
    assert server.gone(0.0) == [(7, ROUTER_SILENT)]


def test_the_next_run_of_a_router_ends_the_requests_of_the_one_before(server: ControlServer) -> None:
    link: Link[Any] = Link(server.listener.address, ToRouter)
    for router, name in ((7, "a"), (8, "b"), (9, "a")):
        say(server, link, Hello(PROTOCOL, router, name))
    assert server.gone(0.0) == [(7, ROUTER_REPLACED)], "and not the router of another name"
    server.forget(7)
    assert server.gone(0.0) == [] and server.send(9, Committed(ID))
    link.close()


def test_two_routers_of_one_name_do_not_end_each_other_for_ever(
    server: ControlServer, caplog: pytest.LogCaptureFixture
) -> None:
    link: Link[Any] = Link(server.listener.address, ToRouter)
    for router in (7, 8):
        say(server, link, Hello(PROTOCOL, router, "a"))
    server.forget(7)
    for router in (7, 8, 7, 8):
        say(server, link, Hello(PROTOCOL, router, "a"))
    assert server.gone(0.0) == [], "whoever comes back was not dead"
    assert len([r for r in caplog.records if "two routers are named a" in r.message]) == 1
    link.close()


def test_there_is_room_for_so_many_routers(server: ControlServer) -> None:
    link: Link[Any] = Link(server.listener.address, ToRouter)
    for router in range(MOST_ROUTERS + 1):
        say(server, link, Hello(PROTOCOL, router, str(router)))
    assert server.refused == 1 and not server.send(MOST_ROUTERS, Committed(ID))
    link.close()


def test_a_greeting_that_only_shows_its_protocol_is_answered(
    server: ControlServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The version before ours had no name in it, and the next one may have anything."""
    link: Link[Any] = Link(server.listener.address, ToRouter)
    say(server, link, Hello(PROTOCOL, 7, "a"))
    hear(link)
    greetings: list[dict[str, Any]] = [
        {"type": "hello", "protocol": PROTOCOL - 1, "router": 7},
        {"type": "hello", "protocol": PROTOCOL + 1, "router": "seven", "more": [None]},
    ]
    for greeting in greetings:
        say_raw(server, link, msgspec.msgpack.encode(greeting))
        assert hear(link) == ME
    assert server.refused == 2 and server.listener.bad_messages == 0
    for protocol in (PROTOCOL - 1, PROTOCOL + 1):
        assert f"it speaks protocol {protocol}, this worker {PROTOCOL}" in caplog.text
    link.close()


def test_a_turn_takes_so_many_messages_and_leaves_the_rest_for_the_next(server: ControlServer) -> None:
    link: Link[Any] = Link(server.listener.address, ToRouter)
    say(server, link, Hello(PROTOCOL, 7, "a"))
    cancel = Cancel(ID, "no longer wanted")
    for _ in range(A_TURN):
        assert link.send(cancel)
        link.socket.send(b"junk")
    taken: list[int] = []
    while sum(taken) < A_TURN:
        taken.append(len(list(server.receive(0.0))))
    assert max(taken) <= A_TURN / 2 and server.listener.bad_messages >= A_TURN - 1
    link.close()
