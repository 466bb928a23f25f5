"""A worker's control link: heartbeats are answered, and routers that are gone are reported."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xgr_runtime.control import ControlServer
from xgr_runtime.messages import (
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
from xgr_runtime.transport import Link, Listener, Poller

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


def hear(link: Link[Any]) -> Any:
    poller = Poller()
    poller.add(link)
    poller.wait(5)
    received = link.receive()
    return received.message if received else None


def test_a_heartbeat_is_answered_and_requests_are_passed_on(server: ControlServer) -> None:
    link: Link[Any] = Link(server.listener.address, ToRouter)
    assert say(server, link, Hello(PROTOCOL, 7)) == [] and hear(link) == ME
    cancel = Cancel(ID, "no longer wanted")
    assert say(server, link, cancel) == [cancel]
    assert server.send(7, Committed(ID)) and hear(link) == Committed(ID)
    assert not server.send(8, Committed(ID)), "a router that never greeted"
    link.close()


def test_another_protocol_is_told_who_is_here_and_not_counted_as_a_router(server: ControlServer) -> None:
    link: Link[Any] = Link(server.listener.address, ToRouter)
    say(server, link, Hello(PROTOCOL + 1, 7))
    assert hear(link) == ME and server.refused == 1 and not server.send(7, Committed(ID))
    link.close()


def test_a_silent_router_is_reported_until_it_is_forgotten(server: ControlServer) -> None:
    link: Link[Any] = Link(server.listener.address, ToRouter)
    say(server, link, Hello(PROTOCOL, 7), now=10.0)
    assert server.silent(15.0) == []
    assert server.silent(15.1) == [7] == server.silent(15.1)
    assert server.send(7, Committed(ID)), "it can still be told"
    server.forget(7)
    assert server.silent(99.0) == [] and not server.send(7, Committed(ID))
    link.close()


def test_a_router_that_cannot_be_reached_is_gone_at_once(server: ControlServer) -> None:
    link: Link[Any] = Link(server.listener.address, ToRouter)
    say(server, link, Hello(PROTOCOL, 7))
    link.close()
    while server.send(7, Committed(ID)):  # the socket notices a moment later
        pass
    assert server.silent(0.0) == [7]
