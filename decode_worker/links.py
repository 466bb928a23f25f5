"""The data link's bound end: which prefill workers may send KV here."""

import logging
from collections.abc import Callable, Iterator

from xgr_runtime.messages import PROTOCOL, LinkHello, LinkRefused, LinkWelcome, Message, ModelIdentity
from xgr_runtime.transport import Listener, Received

log = logging.getLogger(__name__)


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
        """The next messages of welcome peers. Check `incarnation_of` against what a message claims."""
        while (received := self.listener.receive()) is not None:
            if isinstance(received.message, LinkHello):
                self._greet(received.peer, received.message)
            elif received.peer in self._welcome:
                yield received
            else:
                self.stale_messages += 1
                self.listener.send(received.peer, LinkRefused(self._incarnation, "greet first"))

    def incarnation_of(self, peer: bytes) -> int:
        """Which run of a prefill worker this peer is."""
        return self._welcome[peer]

    def send(self, peer: bytes, message: Message) -> bool:
        """False when the prefill worker is gone."""
        if self.listener.send(peer, message):
            return True
        self._welcome.pop(peer, None)
        return False

    def _greet(self, peer: bytes, hello: LinkHello) -> None:
        problem = incompatibility(hello, self._model) or self._greeted(hello)
        if problem:
            log.warning("refused prefill worker %s: %s", hello.worker, problem)
            self.listener.send(peer, LinkRefused(self._incarnation, problem))
            return
        self._welcome = {p: i for p, i in self._welcome.items() if i != hello.incarnation}
        self._welcome[peer] = hello.incarnation
        self.listener.send(peer, LinkWelcome(self._incarnation))


def incompatibility(hello: LinkHello, model: ModelIdentity) -> str:
    """Why KV of that worker would mean nothing here, or an empty string."""
    if hello.protocol != PROTOCOL:
        return f"it speaks protocol {hello.protocol}, this worker {PROTOCOL}"
    name = hello.model.difference(model)
    if name:
        return f"its {name} is {getattr(hello.model, name)}, this worker's {getattr(model, name)}"
    return ""
