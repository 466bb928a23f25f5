"""Prompt KV on its way out: every hand-over of one process, from OPEN until ACK, failure or a lapsed lease.

Whoever computes KV uses it: our prefill worker between the layers of a forward, another engine's process from
a loop of its own. Nothing here waits: `exchange` does what can be done now.
"""

import logging
from collections.abc import Callable
from functools import partial

from xgr_runtime.errors import ConfigError, DeadlineExceeded, InternalError, Overloaded, WorkerLost
from xgr_runtime.handover.decode_links import DecodeLink, DecodeLinks
from xgr_runtime.handover.protocol import ChunkPlan, Sender
from xgr_runtime.handover.transfer import KvSource, Transfer
from xgr_runtime.kv.shared_memory import lives
from xgr_runtime.trace.timeline import Timeline
from xgr_runtime.transport import OutOfSockets, Poller
from xgr_runtime.transport.keyring import Keyring
from xgr_runtime.wire.messages import (
    Ack,
    AttemptId,
    Cancel,
    Credit,
    Grant,
    LinkRefused,
    Message,
    ModelIdentity,
    Nack,
    ProcessId,
    Renew,
    SharedKv,
    brief,
)

log = logging.getLogger(__name__)


class Outbound:
    """All transfers of one process, and its links to the decode workers that they go to.

    `lease` is how many seconds KV is held before the first word of a decode worker. With a `poller`, answers
    wake whoever waits on it; without one, call `exchange` every few milliseconds while there are transfers.
    `memory` is where prompts lie, if decode workers may map it. `alive` says whether a process still lives.
    `timeline` is the process's, for one that answers `TraceAsk`. `keys` are its own.
    """

    def __init__(
        self,
        worker: str,
        incarnation: int,
        model: ModelIdentity,
        chunk_bytes: int,
        lease: float,
        poller: Poller | None = None,
        memory: SharedKv | None = None,
        alive: Callable[[ProcessId], bool] = lives,
        timeline: Timeline | None = None,
        keys: Keyring | None = None,
    ) -> None:
        self.transfers: dict[AttemptId, Transfer] = {}
        self.stale_messages = 0
        self.outlived_leases = 0  # transfers whose reader in place was silent, and alive
        self.timeline = timeline or Timeline(1)
        self._alive = alive
        self._model = model
        self._chunk_bytes = chunk_bytes
        self._lease = lease
        self._links = DecodeLinks(worker, incarnation, model, poller, memory, keys)

    @property
    def credits_out(self) -> int:
        """Chunks that may still leave."""
        return sum(transfer.sender.credits for transfer in self.transfers.values())

    @property
    def bad_messages(self) -> int:
        """Messages of decode workers that could not be read."""
        return self._links.bad_messages

    def close(self) -> None:
        """Close all links, once there are no transfers."""
        self._links.close()

    def connect(self, data_address: str) -> None:
        """Begin to connect to a decode worker that will be needed.

        Raises `WorkerLost` for an address that is refused here, `Overloaded` where there is no room for one
        more link.
        """
        try:
            self._links.to(data_address)
        except OutOfSockets as error:
            raise Overloaded(str(error)) from None
        except ConfigError as error:
            raise WorkerLost(str(error), "decode") from None

    def open(
        self,
        id: AttemptId,
        tokens: int,
        data_address: str,
        deadline: float,
        queue_seconds: float,
        source: KvSource,
        now: float,
    ) -> Transfer:
        """Pages for `tokens` tokens are reserved: say OPEN, now or once the socket takes it.

        `queue_seconds` is how long the request waited for this moment. Raises as `connect` does.
        """
        self.connect(data_address)
        model = self._model
        plan = ChunkPlan(model.layers, tokens, model.layer_token_bytes, self._chunk_bytes, model.kv_heads)
        sender = Sender(id, plan, now, self._lease, source.shared)
        link = self._links.to(data_address)
        transfer = self.transfers[id] = Transfer(
            id, sender, link, deadline, queue_seconds, source, self.timeline
        )
        self.flush(transfer)
        return transfer

    def flush(self, transfer: Transfer) -> bool:
        """Send what may leave of one transfer; False when the socket takes no more for now."""
        return self._guarded(transfer, transfer.flush)

    def exchange(self, now: float) -> bool:
        """Take answers, send all that may leave; False when a socket takes no more for now.

        What goes wrong with one transfer ends that one.
        """
        for link, message in self._links.receive():
            transfer = self._of(link, message)
            if transfer is not None:
                self._guarded(transfer, partial(self._handle, transfer, message, now))
        return all([self.flush(transfer) for transfer in self.transfers.values()])

    def expire(self, now: float) -> None:
        """End what has passed its deadline or its lease; close links that nothing has used for long."""
        for transfer in self.transfers.values():
            if transfer.deadline <= now:
                transfer.give_up(DeadlineExceeded("the deadline passed during the hand-over"))
            if transfer.sender.expire(now, self._alive) and not transfer.outlived:
                transfer.outlived = True
                self.outlived_leases += 1
                log.warning(
                    "request %d: its lease lapsed, but the decode worker that reads its pages lives: held on",
                    transfer.id.request,
                )
        self._links.close_idle({transfer.link for transfer in self.transfers.values()}, now)

    def retire(self) -> list[Transfer]:
        """Take out the transfers that are over; decode workers are told of those that failed.

        Their pages may be reused, so never call it during a forward that still writes to them.
        """
        over = [transfer for transfer in self.transfers.values() if transfer.over]
        for transfer in over:
            del self.transfers[transfer.id]
            if transfer.failure:
                transfer.link.send(transfer.id.decode, Cancel(transfer.id, brief(transfer.failure.message)))
        return over

    def _of(self, link: DecodeLink, message: Message) -> Transfer | None:
        """The transfer that a message is for; a link that is refused ends all of its transfers."""
        if isinstance(message, LinkRefused):
            for refused in self.transfers.values():
                if refused.link is link:
                    refused.fail(f"the decode worker refused the link: {message.reason}")
            return None
        transfer = self.transfers.get(message.id)  # type: ignore[attr-defined]
        if transfer is None or transfer.link is not link:
            self.stale_messages += 1
            return None
        return transfer

    def _guarded(self, transfer: Transfer, act: Callable[[], bool | None]) -> bool:
        """Do something for a transfer; what it raises is this one's end, unless it is the process's."""
        try:
            return act() is not False
        except Exception:
            log.exception("request %d: its hand-over failed", transfer.id.request)
            transfer.give_up(InternalError("the prefill worker failed on this request's hand-over"))
            return True

    def _handle(self, transfer: Transfer, message: Message, now: float) -> None:
        match message:
            case Grant():
                transfer.sender.granted(message, now)
            case Credit(chunks=chunks):
                transfer.sender.credited(chunks)
            case Renew(lease=lease):
                transfer.sender.renewed(lease, now)
            case Ack():
                transfer.sender.acknowledged()
            case Nack(reason=reason):
                transfer.sender.refused(f"the decode worker gave up: {reason}")
