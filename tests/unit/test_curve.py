"""CURVE over real sockets: listed keys come in, and nothing of anybody else reaches whoever decodes."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import pytest
import zmq
from throw import throw

from xgr_runtime.errors import ConfigError
from xgr_runtime.transport import (
    AsyncLink,
    Link,
    Listener,
    Poller,
    check_listener,
    curve,
    new_key_pair,
    told_address,
)
from xgr_runtime.transport.addresses import is_wildcard
from xgr_runtime.transport.keyring import Keyring
from xgr_runtime.wire.messages import AttemptId, Grant, Hello, ToPrefill, ToPrefillData, ToRouter

BEAT = Hello(1, 2, "router-0")
GRANT = Grant(AttemptId(1, 2, 3, 4, 5), 1, 2.0, 0)
ANY = "tcp://127.0.0.1:*"


class Names:
    """Key pairs by name, and each one's keyring."""

    def __init__(self, *names: str) -> None:
        self.pairs = {name: new_key_pair() for name in names}

    def ring(self, name: str, *allowed: str) -> Keyring:
        """The keys of `name`, which knows `allowed`."""
        return Keyring(name, self.pairs[name][1], {other: self.pairs[other][0] for other in allowed})


@pytest.fixture
def names() -> Names:
    return Names("server", "friend", "other", "stranger")


@pytest.fixture
def listener(names: Names) -> Iterator[Listener[Any]]:
    """It is `server`, and lets `friend` and `other` in."""
    with closing(Listener[Any](ANY, ToPrefill, keys=names.ring("server", "friend", "other"))) as made:
        yield made


def sent(send: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it could be sent in that time."""
    until = time.monotonic() + seconds
    while not send():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def arrives(source: Any, seconds: float = 5.0) -> Any:
    poller = Poller()
    poller.add(source)
    poller.wait(seconds)
    return source.receive()


def untouched(listener: Listener[Any]) -> bool:
    """Whether nothing at all came out of the socket, good or bad."""
    return arrives(listener, 0.5) is None and listener.bad_messages == 0


def link_to(listener: Listener[Any], keys: Keyring | None, name: str = "#server") -> Link[Any]:
    return Link(f"{listener.address}{name}", ToPrefillData, keys=keys)


@pytest.mark.parametrize("name", ["friend", "other"])
def test_listed_keys_talk_in_both_directions(names: Names, listener: Listener[Any], name: str) -> None:
    with closing(link_to(listener, names.ring(name, "server"))) as link:
        assert sent(lambda: link.send(BEAT, b"frame"))
        received = arrives(listener)
        assert received is not None and received.message == BEAT
        assert [bytes(frame) for frame in received.frames] == [b"frame"]
        assert listener.send(received.peer, GRANT)
        answer = arrives(link)
        assert answer is not None and answer.message == GRANT


def test_an_asyncio_link_gets_in(names: Names, listener: Listener[Any]) -> None:
    async def run() -> None:
        link: AsyncLink[Any] = AsyncLink(
            f"{listener.address}#server", ToRouter, names.ring("friend", "server")
        )
        async with asyncio.timeout(5):
            while not link.send(BEAT):
                await asyncio.sleep(0.01)
        link.close()

    asyncio.run(run())
    assert arrives(listener) is not None


def test_a_key_that_is_not_listed_stays_outside(
    names: Names, listener: Listener[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with closing(link_to(listener, names.ring("stranger", "server"))) as link:
        assert not sent(lambda: link.send(BEAT), 1.0)
        assert untouched(listener)
    for _, secret in names.pairs.values():
        assert secret not in caplog.text


def test_a_stranger_under_a_listed_name_stays_outside(names: Names, listener: Listener[Any]) -> None:
    false_friend = replace(names.ring("stranger", "server"), name="friend")
    with closing(link_to(listener, false_friend)) as link:
        assert not sent(lambda: link.send(BEAT), 1.0)
        assert untouched(listener)


def test_a_client_sends_nothing_to_a_server_with_another_key(names: Names, listener: Listener[Any]) -> None:
    deceived = replace(names.ring("friend"), allowed={"server": names.pairs["other"][0]})
    with closing(link_to(listener, deceived)) as link:
        assert not sent(lambda: link.send(BEAT), 1.0)
        assert untouched(listener)


@pytest.mark.parametrize("mechanism", ["NULL", "PLAIN"])
def test_another_mechanism_stays_outside(listener: Listener[Any], mechanism: str) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        if mechanism == "PLAIN":
            stranger.plain_username, stranger.plain_password = b"friend", b"word"
        stranger.connect(listener.address)
        throw(stranger, b"junk", b"more")
        assert untouched(listener)


@pytest.mark.parametrize(
    "junk",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x80\x04K\x01.", b"\xff" + bytes(200), b"\xff" * 4096],
    ids=["nothing", "http", "pickle", "zeros", "ones"],
)
def test_bytes_that_are_no_handshake_stay_outside(names: Names, listener: Listener[Any], junk: bytes) -> None:
    port = int(listener.address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(junk)
        assert untouched(listener)
        with closing(link_to(listener, names.ring("friend", "server"))) as link:
            assert sent(lambda: link.send(BEAT)), "others get in meanwhile"


def test_each_socket_has_its_own_list(names: Names, listener: Listener[Any]) -> None:
    keys = names.ring("server", "other")
    with (
        closing(Listener[Any](ANY, ToPrefill, keys=keys)) as narrow,
        closing(link_to(narrow, names.ring("friend", "server"))) as refused,
        closing(link_to(listener, names.ring("friend", "server"))) as welcome,
    ):
        assert sent(lambda: welcome.send(BEAT))
        assert not sent(lambda: refused.send(BEAT), 0.5)
        assert untouched(narrow)


def test_without_a_doorkeeper_nobody_gets_in(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which ZeroMQ would otherwise take for a welcome to all."""
    context: zmq.Context[Any] = zmq.Context()
    monkeypatch.setattr(zmq.Context, "instance", lambda: context)
    monkeypatch.setattr(curve, "_doorkeeper", curve._Doorkeeper())
    monkeypatch.setattr(curve._Doorkeeper, "_bind", lambda self: None)
    with ExitStack() as open_sockets:
        alone = open_sockets.enter_context(
            closing(Listener[Any](ANY, ToPrefill, keys=names.ring("server", "friend")))
        )
        link = open_sockets.enter_context(closing(link_to(alone, names.ring("friend", "server"))))
        assert not sent(lambda: link.send(BEAT), 1.0)
        assert untouched(alone)
    context.term()


def test_a_link_that_was_refused_gets_in_once_it_is_listed(names: Names, listener: Listener[Any]) -> None:
    with closing(link_to(listener, names.ring("stranger", "server"))) as link:
        assert not sent(lambda: link.send(BEAT), 0.5)
        address = listener.address
        listener.close()
        with closing(_listen_again(address, names.ring("server", "stranger"))) as again:
            assert sent(lambda: link.send(BEAT), 10.0)
            assert arrives(again) is not None


def test_links_outlive_a_stranger_who_has_their_address_for_a_while(
    names: Names, listener: Listener[Any]
) -> None:
    """libzmq gives up for good after a handshake that breaks the rules."""
    address, friend = listener.address, names.ring("friend", "server")
    listener.close()
    with closing(_listen_again(address, None)) as impostor:
        link: Link[Any] = Link(f"{address}#server", ToPrefillData, keys=friend)
        assert not sent(lambda: link.send(BEAT), 0.5)
        asyncio.run(_outlive(address, names, impostor, link))
        link.close()


async def _watch(link: AsyncLink[Any]) -> None:
    """As the router does."""
    while True:
        await link.disconnected()


async def _outlive(address: str, names: Names, impostor: Listener[Any], link: Link[Any]) -> None:
    own: AsyncLink[Any] = AsyncLink(f"{address}#server", ToRouter, names.ring("other", "server"))
    watch = asyncio.create_task(_watch(own))
    await asyncio.sleep(0.5)
    assert not own.send(BEAT) and untouched(impostor)
    impostor.close()
    again = _listen_again(address, names.ring("server", "friend", "other"))
    async with asyncio.timeout(20):
        while not own.send(BEAT):
            await asyncio.sleep(0.05)
        while not link.send(BEAT):
            await asyncio.sleep(0.05)
    watch.cancel()
    own.close()
    again.close()


def _listen_again(address: str, keys: Keyring | None) -> Listener[Any]:
    """A port may stay taken for a moment after its socket was closed."""
    until = time.monotonic() + 5
    while True:
        try:
            return Listener(address, ToPrefill, keys=keys)
        except ConfigError:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_many_come_at_once(names: Names, listener: Listener[Any]) -> None:
    links = [link_to(listener, names.ring("friend", "server")) for _ in range(20)]
    threads = [threading.Thread(target=sent, args=(lambda link=link: link.send(BEAT),)) for link in links]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    peers = set()
    while (received := arrives(listener, 1.0)) is not None:
        peers.add(received.peer)
    assert len(peers) == 20
    for link in links:
        link.close()


BEYOND = [
    "tcp://0.0.0.0:7000",
    "tcp://*:7000",
    "tcp://10.0.0.1:7000",
    "tcp://gpu-1:7000",
    "tcp://[fe80::1]:7000",
]


@pytest.mark.parametrize("address", BEYOND)
def test_without_keys_nothing_leaves_the_machine(address: str) -> None:
    said = r"--curve-key and --curve-allow.*xgr keys new"
    with pytest.raises(ConfigError, match=said):
        Listener(address, ToPrefill)
    with pytest.raises(ConfigError, match=said):
        Link(address, ToPrefillData)


@pytest.mark.parametrize("address", BEYOND)
def test_with_keys_every_host_is_fine(names: Names, address: str) -> None:
    check_listener(address, names.ring("server", "friend"))


@pytest.mark.parametrize(
    "address",
    [
        "tcp://a b:7000",
        "tcp://:7000",
        "tcp://10.0.0.1",
        "tcp://10.0.0.1:x",
        "tcp://10.0.0.1:1/",
        "udp://10.0.0.1:1",
    ],
)
def test_keys_make_no_address_of_what_is_none(names: Names, address: str) -> None:
    with pytest.raises(ConfigError, match=r"tcp"):
        check_listener(address, names.ring("server", "friend"))


def test_a_link_says_whose_it_is_or_is_refused(names: Names) -> None:
    keys, address = names.ring("friend", "server"), "tcp://127.0.0.1:7000"
    with pytest.raises(ConfigError, match="#NAME"):
        Link(address, ToPrefillData, keys=keys)
    with pytest.raises(ConfigError, match="no key of other"):
        Link(f"{address}#other", ToPrefillData, keys=keys)
    with pytest.raises(ConfigError, match="--curve-key"):
        Link(f"{address}#server", ToPrefillData)
    with pytest.raises(ConfigError, match="leave out #NAME"):
        Listener(f"{address}#server", ToPrefill, keys=keys)


def test_others_are_told_our_name_with_our_address(names: Names) -> None:
    keys = names.ring("server", "friend")
    assert told_address("tcp://10.0.0.1:7000", keys) == "tcp://10.0.0.1:7000#server"
    assert told_address("tcp://10.0.0.1:7000#proxy", keys) == "tcp://10.0.0.1:7000#proxy"
    assert told_address("tcp://127.0.0.1:7000", None) == "tcp://127.0.0.1:7000"
    for address in ("tcp://*:7000", "tcp://0.0.0.0:7000", "tcp://[::]:7000", "tcp://10.0.0.1:*"):
        assert is_wildcard(address)
        with pytest.raises(ConfigError, match="--advertise-data-address"):
            told_address(address, keys)
