"""A prefill process's links to the decode workers: connected on first use, greeted once per incarnation."""

from collections.abc import Iterator

from xgr_runtime.messages import (
    PROTOCOL,
    LinkHello,
    LinkRefused,
    LinkWelcome,
    Message,
    ModelIdentity,
    ToPrefillData,
)
from xgr_runtime.transport import DATA_MAX_BYTES, Frame, Link, Poller


class DecodeLink:
    """One decode worker's data link."""

    def __init__(self, address: str, hello: LinkHello) -> None:
        self.link: Link[Message] = Link(address, ToPrefillData, DATA_MAX_BYTES)
        self._hello = hello
        self._greeted: int | None = None  # incarnation

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

    def __init__(self, worker: str, incarnation: int, model: ModelIdentity, poller: Poller | None) -> None:
        self._hello = LinkHello(PROTOCOL, worker, incarnation, model)
        self._poller = poller
        self._links: dict[str, DecodeLink] = {}

    def to(self, address: str) -> DecodeLink:
        """The link to this data address. Raises `ConfigError` for an address that is not local."""
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = DecodeLink(address, self._hello)
            if self._poller is not None:
                self._poller.add(link.link)
        return link

    def receive(self) -> Iterator[tuple[DecodeLink, Message]]:
        """All answers that are here; welcomes need none."""
        for link in self._links.values():
            while (received := link.link.receive()) is not None:
                if isinstance(received.message, LinkRefused):
                    link.forget_greeting()
                if not isinstance(received.message, LinkWelcome):
                    yield link, received.message

    @property
    def bad_messages(self) -> int:
        return sum(link.link.bad_messages for link in self._links.values())
