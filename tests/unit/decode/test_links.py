"""The data link's greeting: who is welcome, who is refused and why, and what happens to the ungreeted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from decode_worker import links
from decode_worker.links import PrefillLinks, incompatibility
from xgr_runtime.transport import Link, Listener, Poller
from xgr_runtime.wire.messages import (
    PROTOCOL,
    AttemptId,
    LinkHello,
    LinkRefused,
    LinkWelcome,
    ModelIdentity,
    Open,
    ToDecodeData,
    ToPrefillData,
)

MODEL = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)
HELLO = LinkHello(PROTOCOL, "prefill-0", incarnation=3, model=MODEL)
OPEN = Open(AttemptId(1, 2, 1, 3, 4), 10, 0.0)


class Pair:
    """A decode worker's side and one prefill worker's socket."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o700)
        self.links = PrefillLinks(Listener(f"ipc://{folder}/d", ToDecodeData), incarnation=4, model=MODEL)
        self.link: Link[Any] = Link(f"ipc://{folder}/d", ToPrefillData)
        self._decode, self._prefill = Poller(), Poller()
        self._decode.add(self.links.listener)
        self._prefill.add(self.link)

    def say(self, message: Any) -> list[Any]:
        """Send to the decode worker; the messages that its loop gets to see."""
        while not self.link.send(message):
            pass
        self._decode.wait(5)
        return [received.message for received in self.links.receive()]

    def hear(self) -> Any:
        """What the decode worker answered."""
        self._prefill.wait(5)
        received = self.link.receive()
        return received.message if received else None


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.link.close()
    made.links.listener.close()


def test_a_worker_with_the_same_model_is_welcome(pair: Pair) -> None:
    assert pair.say(HELLO) == [] and pair.hear() == LinkWelcome(4)
    assert pair.say(OPEN) == [OPEN]


def test_who_has_not_greeted_is_told_to(pair: Pair) -> None:
    assert pair.say(OPEN) == []
    assert pair.hear() == LinkRefused(4, "greet first") and pair.links.stale_messages == 1


@pytest.mark.parametrize(
    "change",
    [{"weights_hash": "other"}, {"dtype": "bfloat16"}, {"layers": 3}, {"head_dim": 8}, {"tp_size": 2}],
    ids=lambda change: next(iter(change)),
)
def test_another_model_is_refused_with_the_reason(pair: Pair, change: dict[str, Any]) -> None:
    hello = msgspec.structs.replace(HELLO, model=msgspec.structs.replace(MODEL, **change))
    assert pair.say(hello) == []
    refused = pair.hear()
    assert isinstance(refused, LinkRefused) and next(iter(change)) in refused.reason
    assert pair.say(OPEN) == []


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL + 1])
def test_another_protocol_is_refused(protocol: int) -> None:
    hello = msgspec.structs.replace(HELLO, protocol=protocol)
    assert f"protocol {protocol}" in incompatibility(hello, MODEL)
    assert incompatibility(HELLO, MODEL) == ""


def test_a_peer_speaks_for_the_incarnation_that_it_greeted_with(pair: Pair) -> None:
    pair.say(HELLO)
    pair.hear()
    while not pair.link.send(OPEN):
        pass
    pair._decode.wait(5)
    (received,) = pair.links.receive()
    assert pair.links.incarnation_of(received.peer) == HELLO.incarnation


def test_a_greeting_of_another_version_is_refused_by_number(pair: Pair) -> None:
    """Of which nothing but the protocol can be read."""
    while not pair.link.send(LinkWelcome(1)):
        pass
    pair._decode.wait(5)
    assert list(pair.links.receive()) == []
    greeting = {"type": "link_hello", "protocol": PROTOCOL + 1, "news": "all of it"}
    pair.link.socket.send(msgspec.msgpack.encode(greeting))
    pair._decode.wait(5)
    assert list(pair.links.receive()) == []
    assert pair.hear() == LinkRefused(4, f"it speaks protocol {PROTOCOL + 1}, this worker {PROTOCOL}")


def test_a_greeting_that_cannot_be_handled_is_refused(pair: Pair) -> None:
    def broken(hello: LinkHello) -> str:
        raise KeyError("nobody had thought of this")

    pair.links._greeted = broken
    assert pair.say(HELLO) == []
    assert isinstance(pair.hear(), LinkRefused) and pair.say(OPEN) == []


def test_links_are_bounded_and_those_that_are_gone_make_room(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MOST_LINKS", 2)
    pair.links._welcome = {b"gone": 1, b"gone, too": 2}
    assert pair.say(HELLO) == [] and pair.hear() == LinkWelcome(4)
    assert list(pair.links._welcome.values()) == [3]
    monkeypatch.setattr(links, "MOST_LINKS", 1)
    other: Link[Any] = Link(pair.links.listener.address, ToPrefillData)
    poller = Poller()
    poller.add(other)
    while not other.send(msgspec.structs.replace(HELLO, incarnation=9)):
        pass
    pair._decode.wait(5)
    assert list(pair.links.receive()) == []
    poller.wait(5)
    refused = other.receive()
    assert refused is not None and isinstance(refused.message, LinkRefused)
    assert pair.links.incarnation_of(b"gone") is None
    other.close()
