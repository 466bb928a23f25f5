"""Transport over real sockets: typed messages, bad bytes, peers that are gone, and addresses refused."""

import asyncio
import errno
import marshal
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from until import until

from xgr_runtime.errors import ConfigError
from xgr_runtime.transport import A_TURN, AsyncLink, Link, Listener, OutOfSockets, Poller, Received
from xgr_runtime.transport.addresses import check_address
from xgr_runtime.wire.messages import (
    PROTOCOL,
    AttemptId,
    Committed,
    Credit,
    Grant,
    Hello,
    KvChunk,
    OtherProtocol,
    ToDecodeData,
    ToPrefill,
    ToPrefillData,
    ToRouter,
)

FEW_DESCRIPTORS = """
import os, resource, time
from xgr_runtime.wire.messages import AttemptId, Ack, ToDecodeData, ToPrefillData
from xgr_runtime.transport import Link, Listener, OutOfSockets, Poller

listener = Listener("tcp://127.0.0.1:*", ToDecodeData)
most = len(os.listdir("/proc/self/fd")) + 40
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
links = []
try:
    while True:
        links.append(Link(listener.address, ToPrefillData))
except OutOfSockets as error:
    print(error)
time.sleep(0.5)  # they connect, or cannot
for link in links[4:]:
    link.close()
poller, until = Poller(), time.monotonic() + 20
poller.add(listener)
while listener.bad_messages == 0 and time.monotonic() < until:
    links[0].send(Ack(AttemptId(1, 2, 3, 4, 5)))  # not of this link's union
    poller.wait(0.05)
    listener.receive()
print(listener.bad_messages)
"""
ID = AttemptId(1, 2, 3, 4, 5)
NESTED = b"\x91" * 100_000 + b"\xc0"
MALFORMED = {
    "nothing": b"",
    "junk": b"junk",
    "nested": NESTED,
    "nested before the tag": b"\x82\xa1x" + NESTED + b"\xa4type\xa2kv",
    "nested behind the tag": b"\x82\xa4type\xa2kv\xa1x" + NESTED,
    "map of 2^32 fields": b"\xdf\xff\xff\xff\xff\xa4type",
    "list of 2^32 elements": b"\xdd\xff\xff\xff\xff",
    "text of 2^32 bytes": b"\x81\xa4type\xdb\xff\xff\xff\xff",
    "bytes of 2^32 bytes": b"\x81\xa4type\xc6\xff\xff\xff\xff",
    "text that is none": b"\x81\xa4type\xa1\xff",
    "pickle": pickle.dumps({"type": "kv"}),
    "pickle that runs": b"cos\nabort\n(tR.",
    "marshal": marshal.dumps({"type": "kv"}),
}
CHUNK = KvChunk(ID, 0, 0, 1, 0, 2, 0, 1, 2**64 - 1)


@pytest.fixture
def address(tmp_path: Path) -> str:
    tmp_path.chmod(0o700)
    return f"ipc://{tmp_path}/s"


@pytest.fixture
def pair(address: str) -> Iterator[tuple[Listener[Any], Link[Any]]]:
    listener: Listener[Any] = Listener(address, ToDecodeData)
    link: Link[Any] = Link(address, ToPrefillData)
    send(link, Credit(ID, 1))  # not of this link's union: dropped, and proves the connection
    wait(listener)
    yield listener, link
    link.close()
    listener.close()


def send(link: Link[Any], *message: Any) -> None:
    """Send as soon as the link is connected."""
    until = time.monotonic() + 5
    while not link.send(*message):
        assert time.monotonic() < until, "never connected"
        time.sleep(0.002)


def wait(socket: Listener[Any] | Link[Any]) -> Received[Any] | None:
    poller = Poller()
    poller.add(socket)
    poller.wait(5)
    return socket.receive()


def test_a_message_and_its_frames_come_back_whole(pair: tuple[Listener[Any], Link[Any]]) -> None:
    listener, link = pair
    assert link.send(CHUNK, b"keys", memoryview(b"values"))
    received = wait(listener)
    assert received is not None and received.message == CHUNK
    assert [bytes(frame) for frame in received.frames] == [b"keys", b"values"]
    assert listener.send(received.peer, Grant(ID, 1, 2.0, 0))
    answer = wait(link)
    assert answer is not None and answer.message == Grant(ID, 1, 2.0, 0)


@pytest.mark.parametrize(
    "parts",
    [[b""], [b"junk"], [b"\x80"], [b"\x81\xa4type\xa4grnt"], [b"\xc1" * 100], [b"\x80", b"frame"]],
    ids=repr,
)
def test_bad_bytes_are_dropped_and_counted(pair: tuple[Listener[Any], Link[Any]], parts: list[bytes]) -> None:
    listener, link = pair
    before = listener.bad_messages
    link.socket.send_multipart(parts)
    assert link.send(CHUNK)
    received = wait(listener) or wait(listener)
    assert received is not None and received.message == CHUNK
    assert listener.bad_messages == before + 1


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
def test_whatever_a_frame_holds_is_bad_bytes_at_worst(
    pair: tuple[Listener[Any], Link[Any]], frame: bytes
) -> None:
    listener, link = pair
    before = listener.bad_messages
    link.socket.send(frame)
    assert wait(listener) is None and listener.bad_messages == before + 1
    (peer,) = listener.take_bad_peers()
    listener.socket.send_multipart([peer, frame])
    assert wait(link) is None and link.bad_messages == 1


@pytest.mark.parametrize(
    "frame", [*MALFORMED.values(), msgspec.msgpack.encode(Committed(ID))[:-1]], ids=[*MALFORMED, "cut"]
)
def test_a_bad_frame_does_not_deafen_the_loop_that_listens(address: str, frame: bytes) -> None:
    async def run() -> None:
        link: AsyncLink[Any] = AsyncLink(address, ToRouter)
        listener: Listener[Any] = Listener(address, ToPrefill)
        async with asyncio.timeout(10):
            while not link.send(Hello(PROTOCOL, 2, "router-0")):
                await asyncio.sleep(0.01)
            received = await asyncio.to_thread(wait, listener)
            assert received is not None
            listener.socket.send_multipart([received.peer, frame])
            assert listener.send(received.peer, Committed(ID))
            assert await link.receive() == Committed(ID) and link.bad_messages == 1
        link.close()
        listener.close()

    asyncio.run(run())


def test_messages_that_are_here_let_the_rest_of_the_loop_run(address: str) -> None:
    """A peer that never stops talking must not stop heartbeats and answers of others."""

    async def run() -> None:
        link: AsyncLink[Any] = AsyncLink(address, ToRouter)
        listener: Listener[Any] = Listener(address, ToPrefill)
        async with asyncio.timeout(10):
            while not link.send(Hello(PROTOCOL, 2, "router-0")):
                await asyncio.sleep(0.01)
            received = await asyncio.to_thread(wait, listener)
            assert received is not None
            for _ in range(2 * A_TURN):
                assert listener.send(received.peer, Committed(ID))
            time.sleep(0.1)  # all of them have arrived
            ran: list[bool] = []
            asyncio.get_running_loop().call_soon(ran.append, True)
            for _ in range(A_TURN):
                await link.receive()
            assert ran
        link.close()
        listener.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("union", "greeting"),
    [
        (ToPrefill, {"type": "hello", "protocol": 99, "router": "another"}),
        (ToRouter, {"type": "worker_hello", "protocol": 99}),
        (ToDecodeData, {"type": "link_hello", "protocol": 99, "news": [1, 2]}),
    ],
    ids=["hello", "worker_hello", "link_hello"],
)
def test_a_greeting_in_another_protocol_tells_its_number(
    address: str, union: Any, greeting: dict[str, Any]
) -> None:
    listener: Listener[Any] = Listener(address, union)
    link: Link[Any] = Link(address, ToPrefillData)
    send(link, Credit(ID, 1))
    wait(listener)
    link.socket.send(msgspec.msgpack.encode(greeting))
    received = wait(listener)
    assert received is not None and received.message == OtherProtocol(99)
    link.socket.send(msgspec.msgpack.encode(greeting | {"protocol": PROTOCOL, "type": "hello"}))
    assert wait(listener) is None, "in our own protocol the rest must be right, too"
    link.close()
    listener.close()


def test_nobody_can_make_a_receiver_turn_for_ever(pair: tuple[Listener[Any], Link[Any]]) -> None:
    listener, link = pair
    before = listener.bad_messages
    for _ in range(A_TURN + 1):
        link.socket.send(b"junk")
    assert link.send(CHUNK)
    time.sleep(0.1)  # all of it has arrived
    assert listener.receive() is None and listener.bad_messages == before + A_TURN
    received = listener.receive()
    assert received is not None and received.message == CHUNK


def test_a_process_without_a_free_socket_says_so(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(kind: int) -> None:
        raise zmq.ZMQError(errno.EMFILE)

    monkeypatch.setattr(zmq.Context.instance(), "socket", none_left)
    for kind, union in ((Listener, ToPrefill), (Link, ToPrefillData)):
        with pytest.raises(OutOfSockets, match="ulimit"):
            kind(address, union)


def test_sending_to_nobody_is_false_at_once(pair: tuple[Listener[Any], Link[Any]], address: str) -> None:
    listener, _ = pair
    assert not listener.send(b"stranger", Grant(ID, 1, 2.0, 0))
    alone: Link[Any] = Link(address + "-nobody", ToPrefillData)
    assert not alone.send(CHUNK)
    alone.close()


def test_a_broken_connection_is_noticed_at_once(address: str) -> None:
    async def run() -> None:
        link: AsyncLink[Any] = AsyncLink(address, ToRouter)
        listener: Listener[Any] = Listener(address, ToPrefill)
        async with asyncio.timeout(10):
            while not link.send(Hello(PROTOCOL, 2, "router-0")):
                await asyncio.sleep(0.01)
            listener.close()
            await link.disconnected()
            while link.send(Hello(PROTOCOL, 2, "router-0")):  # the queue closes a moment after the event
                await asyncio.sleep(0.01)
        link.close()

    asyncio.run(run())


def test_an_answer_that_arrives_before_a_send_still_wakes_its_reader(address: str) -> None:
    """ZeroMQ tells of an arrival once, and a send in between may be the one that is told."""

    async def run() -> None:
        link: AsyncLink[Any] = AsyncLink(address, ToRouter)
        listener: Listener[Any] = Listener(address, ToPrefill)
        async with asyncio.timeout(10):
            while not link.send(Hello(PROTOCOL, 2, "router-0")):
                await asyncio.sleep(0.01)
            received = await asyncio.to_thread(wait, listener)
            assert received is not None
            for _ in range(20):
                reader = asyncio.create_task(link.receive())
                await asyncio.sleep(0.01)  # it waits now
                assert listener.send(received.peer, Committed(ID))
                time.sleep(0.02)  # the answer arrives while the loop is busy
                assert link.send(Hello(PROTOCOL, 2, "router-0"))
                assert await reader == Committed(ID)
        link.close()
        listener.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "address",
    [
        "tcp://0.0.0.0:1",
        "tcp://10.0.0.1:1",
        "tcp://*:1",
        "tcp://example.org:1",
        "udp://x",
        "/path",
        "ipc:///nowhere/s",
    ],
)
def test_addresses_that_let_others_in_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"tcp|ipc|folder"):
        check_address(address)


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1:port", "tcp://127.0.0.1:1/", "tcp://[::1:5", "tcp://127.example.com:5", "tcp://"],
)
def test_an_address_that_means_nothing_is_refused(address: str) -> None:
    with pytest.raises(ConfigError):
        Link(address, ToPrefillData)


def test_a_listener_outlives_a_lack_of_descriptors() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS], capture_output=True, text=True, timeout=60, check=True
    )
    said, bad_messages = ran.stdout.splitlines()
    assert "ulimit" in said and int(bad_messages) > 0


def test_who_sent_bad_bytes_is_told_once(pair: tuple[Listener[Any], Link[Any]]) -> None:
    listener, link = pair
    listener.take_bad_peers()
    link.socket.send(b"junk")
    assert wait(listener) is None
    link.send(CHUNK)
    received = wait(listener)
    assert received is not None
    assert listener.take_bad_peers() == {received.peer}
    assert not listener.take_bad_peers()


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        check_address(f"ipc://{tmp_path}/s")


def test_an_address_in_use_is_a_clear_error() -> None:
    first: Listener[Any] = Listener("tcp://127.0.0.1:*", ToDecodeData)
    with pytest.raises(ConfigError, match="cannot listen"):
        Listener(first.address, ToDecodeData)
    first.close()


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    check_address(f"ipc://{tmp_path}/s")
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="somebody else's"):
        check_address(f"ipc://{tmp_path}/s")


@pytest.mark.parametrize("kind", ["ipc", "tcp"])
def test_a_listener_that_is_withdrawn_makes_room_at_once(kind: str, tmp_path: Path) -> None:
    """Whoever was connected finds the next one there by itself, also after several."""
    tmp_path.chmod(0o700)
    listener: Listener[Any] = Listener(
        f"ipc://{tmp_path}/s" if kind == "ipc" else "tcp://127.0.0.1:*", ToPrefill
    )
    link: Link[Any] = Link(listener.address, ToRouter)

    def heard(number: int) -> bool:
        link.send(Hello(PROTOCOL, number, "r"))  # lost if it is still on its way to the one before
        return any(received.message.router == number for received in listener.receive_some())

    for number in range(5):
        until(partial(heard, number), f"heard of {number}", 30)
        listener.withdraw()
        listener = Listener(listener.address, ToPrefill)
    time.sleep(0.1)  # nothing of the ones before takes the file away
    until(partial(heard, 5), "heard of the last", 30)
    link.close()
    listener.close()
