"""The data link's bound end: which prefill workers may send KV here."""

import logging
from collections.abc import Callable, Iterator

from xgr_runtime.transport import Listener, Received
from xgr_runtime.wire.messages import (
    PROTOCOL,
    LinkHello,
    LinkRefused,
    LinkWelcome,
    Message,
    ModelIdentity,
    OtherProtocol,
    brief,
)

log = logging.getLogger(__name__)

MOST_LINKS = 256


class PrefillLinks:
    """Welcomes prefill workers with the same model and refuses all others, with the reason.

    `greeted` is told of each such greeting, and may have a reason of its own to refuse.
    """

    def __init__(
        self,
        listener: Listener[Message],
        incarnation: int,
        model: ModelIdentity,
        greeted: Callable[[LinkHello], str] = lambda hello: "",
    ) -> None:
        self.listener = listener
        self.stale_messages = 0
        self._incarnation = incarnation
        self._model = model
        self._greeted = greeted
        self._welcome: dict[bytes, int] = {}  # peer -> prefill incarnation

    def receive(self) -> Iterator[Received[Message]]:
        """Messages of welcome peers, a turn's worth. Check `incarnation_of` against what a message claims."""
        for received in self.listener.receive_some():
            if isinstance(received.message, LinkHello):
                self._greet(received.peer, received.message)
            elif isinstance(received.message, OtherProtocol):
                self._refuse(received.peer, "", received.message.problem_with("worker"))
            elif received.peer in self._welcome:
                yield received
            else:
                self.stale_messages += 1
                self.listener.send(received.peer, LinkRefused(self._incarnation, "greet first"))

    def incarnation_of(self, peer: bytes) -> int | None:
        """Which run of a prefill worker this peer is; None for one that is gone."""
        return self._welcome.get(peer)

    def send(self, peer: bytes, message: Message) -> bool:
        """False when the prefill worker is gone."""
        if self.listener.send(peer, message):
            return True
        self._welcome.pop(peer, None)
        return False

    def _greet(self, peer: bytes, hello: LinkHello) -> None:
        problem = incompatibility(hello, self._model) or self._crowded(peer) or self._told(hello)
        if problem:
            self._refuse(peer, hello.worker, problem)
            return
        self._welcome = {p: i for p, i in self._welcome.items() if i != hello.incarnation}
        self._welcome[peer] = hello.incarnation
        self.listener.send(peer, LinkWelcome(self._incarnation))

    def _refuse(self, peer: bytes, worker: str, problem: str) -> None:
        log.warning("refused prefill worker %s: %s", worker, problem)
        self.listener.send(peer, LinkRefused(self._incarnation, brief(problem)))

    def _told(self, hello: LinkHello) -> str:
        """What `greeted` has against it; it must not fail for what a peer says of its memory."""
        try:
            return self._greeted(hello)
        except Exception:
            log.exception("the greeting of prefill worker %s could not be handled", hello.worker)
            return "the decode worker failed on this greeting"

    def _crowded(self, peer: bytes) -> str:
        """Why there is no room for one more peer, or an empty string. Those that are gone make room."""
        if peer in self._welcome or len(self._welcome) < MOST_LINKS:
            return ""
        here = LinkWelcome(self._incarnation)  # which says nothing new to those who still listen
        self._welcome = {p: i for p, i in self._welcome.items() if self.listener.send(p, here)}
        return "" if len(self._welcome) < MOST_LINKS else f"{MOST_LINKS} prefill workers send KV here already"


def incompatibility(hello: LinkHello, model: ModelIdentity) -> str:
    """Why KV of that worker would mean nothing here, or an empty string."""
    if hello.protocol != PROTOCOL:
        return OtherProtocol(hello.protocol).problem_with("worker")
    name = hello.model.difference(model)
    if name:
        return f"its {name} is {getattr(hello.model, name)}, this worker's {getattr(model, name)}"
    return ""
