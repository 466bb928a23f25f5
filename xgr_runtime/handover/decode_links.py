"""A prefill process's links to the decode workers: connected on first use, greeted once per incarnation.

An SGLang server outlives deployments, each of which has decode workers at new addresses: what is not used any
more is closed.
"""

from collections.abc import Collection, Iterator

from xgr_runtime.transport import DATA_HIGH_WATER, DATA_MAX_BYTES, Frame, Link, OutOfSockets, Poller
from xgr_runtime.transport.keyring import Keyring
from xgr_runtime.wire.messages import (
    PROTOCOL,
    LinkHello,
    LinkRefused,
    LinkWelcome,
    Message,
    ModelIdentity,
    OtherProtocol,
    SharedKv,
    ToPrefillData,
)

IDLE = 300.0  # seconds without a transfer after which a link is closed
MOST_LINKS = 256  # requests name the addresses: they must not take all sockets


class DecodeLink:
    """One decode worker's data link."""

    def __init__(self, address: str, hello: LinkHello, keys: Keyring | None) -> None:
        self.link: Link[Message] = Link(
            address, ToPrefillData, DATA_MAX_BYTES, keys, high_water=DATA_HIGH_WATER
        )
        self._hello = hello
        self._greeted: int | None = None  # incarnation
        self.used: float | None = None  # when a transfer was last seen on it

    def send(self, decode: int, message: Message, *frames: Frame) -> bool:
        """Send to the incarnation `decode`, greeting it first; False when it cannot take the message now."""
        if self._greeted != decode:
            if not self.link.send(self._hello):
                return False
            self._greeted = decode
        return self.link.send(message, *frames)

    def forget_greeting(self) -> None:
        """The peer does not accept us: greet again before the next message."""
        self._greeted = None


class DecodeLinks:
    """All decode workers that routers have named so far."""

    def __init__(
        self,
        worker: str,
        incarnation: int,
        model: ModelIdentity,
        poller: Poller | None,
        memory: SharedKv | None,
        keys: Keyring | None = None,
    ) -> None:
        self._hello = LinkHello(PROTOCOL, worker, incarnation, model, memory)
        self._keys = keys
        self._poller = poller
        self._links: dict[str, DecodeLink] = {}
        self._closed_bad_messages = 0

    def to(self, address: str) -> DecodeLink:
        """The link to this data address.

        Raises `ConfigError` for an address that is refused, `OutOfSockets` where there is no room for one
        more.
        """
        link = self._links.get(address)
        if link is None:
            if len(self._links) >= MOST_LINKS:
                raise OutOfSockets(f"no link to {address}: there are {MOST_LINKS} to other decode workers")
            link = self._links[address] = DecodeLink(address, self._hello, self._keys)
            if self._poller is not None:
                self._poller.add(link.link)
        return link

    def receive(self) -> Iterator[tuple[DecodeLink, Message]]:
        """Answers that are here, a turn's worth of each link; welcomes need none."""
        for link in self._links.values():
            for received in link.link.receive_some():
                if isinstance(received.message, LinkRefused):
                    link.forget_greeting()
                if not isinstance(received.message, LinkWelcome | OtherProtocol):
                    yield link, received.message

    def close_idle(self, busy: Collection[DecodeLink], now: float) -> None:
        """Close what has not been among the `busy` ones for a long time."""
        for address, link in list(self._links.items()):
            if link in busy or link.used is None:
                link.used = now
            elif now - link.used >= IDLE:
                self._close(self._links.pop(address))

    def close(self) -> None:
        """Close all."""
        while self._links:
            self._close(self._links.popitem()[1])

    @property
    def bad_messages(self) -> int:
        return self._closed_bad_messages + sum(link.link.bad_messages for link in self._links.values())

    def _close(self, link: DecodeLink) -> None:
        if self._poller is not None:
            self._poller.remove(link.link)
        self._closed_bad_messages += link.link.bad_messages
        link.link.close()
