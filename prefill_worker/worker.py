"""The prefill worker's loop: take prompts, run them, stream their KV, free it once it has arrived."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prefill_worker.engine import PrefillEngine
from prefill_worker.links import DecodeLink, DecodeLinks
from prefill_worker.scheduler import PrefillScheduler, Prompt
from xgr_runtime.config import PrefillConfig
from xgr_runtime.control import ROUTER_SILENT, ControlServer, new_incarnation
from xgr_runtime.errors import (
    BadRequest,
    ConfigError,
    DeadlineExceeded,
    InternalError,
    RequestError,
    WorkerLost,
)
from xgr_runtime.handover import ChunkPlan, Sender, SenderState, chunk_checksum
from xgr_runtime.messages import (
    PROTOCOL,
    Ack,
    AttemptId,
    Cancel,
    Credit,
    Failed,
    Grant,
    Limits,
    LinkRefused,
    Load,
    Message,
    ModelIdentity,
    Nack,
    PrefillRequest,
    Renew,
    ToPrefill,
    WorkerHello,
)
from xgr_runtime.pages import PageIds, PagePool
from xgr_runtime.transport import Listener, Poller

log = logging.getLogger(__name__)

_STALL_WAIT = 0.005  # seconds until a socket that took no more is tried again


@dataclass(eq=False)
class Transfer:
    """A prompt whose KV is being made or handed over."""

    prompt: Prompt
    pages: PageIds
    sender: Sender
    link: DecodeLink
    open_sent: bool = False
    hidden: bytes = b""
    error: RequestError | None = None  # why it ended, if not by the hand-over; final for the request


class PrefillWorker:
    """Owns prompt KV from the moment a prompt runs until ACK, failure or a lapsed lease."""

    def __init__(
        self,
        config: PrefillConfig,
        engine: PrefillEngine,
        pool: PagePool,
        identity: ModelIdentity,
        max_prompt_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.engine = engine
        self.pool = pool
        self.identity = identity
        self.max_prompt_tokens = max_prompt_tokens
        self.clock = clock
        self.incarnation = new_incarnation()
        self.scheduler = PrefillScheduler(pool, config.page_size, config.batch_tokens)
        self.transfers: dict[AttemptId, Transfer] = {}
        self.counters: dict[str, float] = defaultdict(float)
        self.stalled = False  # a socket took no more
        self.worked = False  # the last turn ran a batch: pages may have become free meanwhile
        listener: Listener[Message] = Listener(config.control_address, ToPrefill)
        self.control = ControlServer(listener, self.introduce, config.silence)
        self.poller = Poller()
        self.poller.add(listener)
        self.links = DecodeLinks(config.name, self.incarnation, identity, self.poller)

    def run(self, stopping: Callable[[], bool]) -> None:
        """Messages in, KV out, a forward when prompts wait; until `stopping`."""
        while not stopping():
            self.poller.wait(self.idle_seconds())
            self.exchange()
            self.expire(self.clock())
            self.retire()
            batch = [self.open(prompt, pages) for prompt, pages in self.scheduler.next_batch()]
            self.prefill(batch)
            self.worked = bool(batch)

    def exchange(self) -> None:
        """Everything in, everything out that may leave. Also runs between the layers of a forward."""
        now = self.clock()
        for message in self.control.receive(now):
            self.handle_control(message, now)
        for link, message in self.links.receive():
            self.handle_data(link, message, now)
        self.stalled = not all([self.flush(transfer) for transfer in self.transfers.values()])

    def prefill(self, batch: list[Transfer]) -> None:
        """One forward; each layer's KV leaves while the next layer is computed."""
        if not batch:
            return
        started = self.clock()

        def on_layer(layer: int) -> None:
            for transfer in batch:
                transfer.sender.layer_ready(layer, len(transfer.prompt.tokens))
            self.exchange()

        try:
            hidden = self.engine.run([(t.prompt.tokens, t.pages) for t in batch], on_layer)
        except Exception:
            log.exception("a forward of %d prompts failed", len(batch))
            self.prefill_alone(batch)
            return
        seconds = self.clock() - started
        for transfer, row in zip(batch, hidden, strict=True):
            transfer.hidden = row.astype(np.float32).tobytes()
            transfer.sender.prompt_ready(seconds, chunk_checksum(transfer.hidden, b""))
            self.flush(transfer)
        self.counters["prompts"] += len(batch)
        self.counters["prompt_tokens"] += sum(len(t.prompt.tokens) for t in batch)
        self.counters["forward_seconds"] += seconds

    def prefill_alone(self, batch: list[Transfer]) -> None:
        """Find out whose forward fails: only that request ends."""
        if len(batch) == 1:
            self.give_up(batch[0], InternalError("the prefill worker failed on this request"))
        else:
            for transfer in batch:
                self.prefill([transfer])

    # --- messages ---

    def handle_control(self, message: Message, now: float) -> None:
        match message:
            case PrefillRequest(id=id) if id.prefill == self.incarnation and not self.holds(id):
                try:
                    self.scheduler.add(self.accept(message, now))
                except RequestError as error:
                    self.fail(id, error, retry=False)
            case Cancel(id=id):
                self.scheduler.drop(id)
                if id in self.transfers:
                    self.transfers[id].sender.fail("cancelled by the router")
            case _:
                self.counters["stale_messages"] += 1

    def handle_data(self, link: DecodeLink, message: Message, now: float) -> None:
        if isinstance(message, LinkRefused):
            for refused in self.transfers.values():
                if refused.link is link:
                    refused.sender.fail(f"the decode worker refused the link: {message.reason}")
            return
        transfer = self.transfers.get(message.id)  # type: ignore[attr-defined]
        if transfer is None or transfer.link is not link:
            self.counters["stale_messages"] += 1
            return
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
                transfer.sender.fail(f"the decode worker gave up: {reason}")

    def accept(self, request: PrefillRequest, now: float) -> Prompt:
        """The prompt of a request, checked. Raises `BadRequest`."""
        whole = len(request.tokens) // 4 * 4
        tokens = np.frombuffer(request.tokens[:whole], np.int32)
        if not 0 < len(tokens) <= self.max_prompt_tokens:
            raise BadRequest(f"the prompt has {len(tokens)} tokens, the limit is {self.max_prompt_tokens}")
        if tokens.min() < 0 or tokens.max() >= self.identity.vocab:
            raise BadRequest(f"a prompt token is outside of the vocabulary of {self.identity.vocab}")
        try:
            self.links.to(request.data_address)  # connects while the prompt waits
        except ConfigError as error:
            raise BadRequest(str(error)) from None
        return Prompt(request.id, tokens, request.data_address, now, now + request.timeout)

    # --- transfers ---

    def open(self, prompt: Prompt, pages: PageIds) -> Transfer:
        """Pages are reserved: announce the prompt to its decode worker and begin."""
        now = self.clock()
        token_bytes = self.engine.model.geometry.token_bytes // self.identity.layers
        plan = ChunkPlan(self.identity.layers, len(prompt.tokens), token_bytes, self.config.chunk_bytes)
        sender = Sender(prompt.id, plan, now, self.config.lease)
        link = self.links.to(prompt.data_address)
        transfer = self.transfers[prompt.id] = Transfer(prompt, pages, sender, link)
        self.flush(transfer)
        return transfer

    def flush(self, transfer: Transfer) -> bool:
        """Send what the protocol allows; False when the socket takes no more for now."""
        sender, decode = transfer.sender, transfer.prompt.id.decode
        if not transfer.open_sent and not sender.over:
            wait = self.clock() - transfer.prompt.arrived
            transfer.open_sent = transfer.link.send(decode, sender.open(wait))
            if not transfer.open_sent:
                return False
        while (chunk := sender.next_chunk()) is not None:
            keys, values = self.engine.pool.read_bytes(
                chunk.first_layer, chunk.last_layer, transfer.pages, chunk.start, chunk.count
            )
            checksum = chunk_checksum(keys, values)
            if not transfer.link.send(decode, sender.chunk_message(checksum), keys, values):
                return False
            sender.chunk_sent(checksum)
        if (commit := sender.commit()) is not None:
            if not transfer.link.send(decode, commit, transfer.hidden):
                return False
            sender.commit_sent()
        return True

    def give_up(self, transfer: Transfer, error: RequestError) -> None:
        """End a transfer for a reason of our own; its pages are freed at the next retirement."""
        transfer.error = error
        transfer.sender.fail(error.message)

    def expire(self, now: float) -> None:
        """Deadlines, leases and routers that passed away."""
        for prompt in self.scheduler.drop_late(now):
            self.fail(prompt.id, DeadlineExceeded("the deadline passed in the prefill queue"), retry=False)
        for transfer in self.transfers.values():
            if transfer.prompt.deadline <= now:
                self.give_up(transfer, DeadlineExceeded("the deadline passed during the hand-over"))
            transfer.sender.expire(now)
        for router in self.control.silent(now):
            for prompt in [p for p in self.scheduler.waiting if p.id.router == router]:
                self.scheduler.drop(prompt.id)
                self.fail(prompt.id, WorkerLost(ROUTER_SILENT), retry=True)
            for id, transfer in self.transfers.items():
                if id.router == router:
                    transfer.sender.fail(ROUTER_SILENT)
            self.retire()  # which tells the router; so forget it afterwards
            self.control.forget(router)

    def retire(self) -> None:
        """Free the pages of hand-overs that are over. Never runs during a forward, which writes to them."""
        for id, transfer in list(self.transfers.items()):
            if transfer.sender.over:
                del self.transfers[id]
                self.pool.release(transfer.pages)
                if transfer.sender.state is SenderState.FAILED:
                    reason = f"hand-over failed: {transfer.sender.reason}"
                    transfer.link.send(id.decode, Cancel(id, reason))
                    self.fail(id, transfer.error or WorkerLost(reason), retry=transfer.error is None)

    def fail(self, id: AttemptId, error: RequestError, retry: bool) -> None:
        """Tell the router that this attempt is over; it ignores what it has cancelled itself."""
        self.counters["failed"] += 1
        self.control.send(id.router, Failed(id, "prefill", error.code, error.message, retry))

    # --- state ---

    def holds(self, id: AttemptId) -> bool:
        """Whether this attempt waits or is under way here."""
        return id in self.transfers or any(prompt.id == id for prompt in self.scheduler.waiting)

    def idle_seconds(self) -> float:
        """How long the loop may sleep if nothing arrives."""
        if self.worked:
            return 0.0
        return _STALL_WAIT if self.stalled else self.config.heartbeat / 2

    def introduce(self) -> WorkerHello:
        return WorkerHello(
            protocol=PROTOCOL,
            role="prefill",
            worker=self.config.name,
            incarnation=self.incarnation,
            model=self.identity,
            data_address="",
            catalogs=[],
            limits=Limits(self.max_prompt_tokens),
            load=self.load(),
        )

    def load(self) -> Load:
        senders = [t.sender for t in self.transfers.values()]
        self.counters["bad_messages"] = self.control.listener.bad_messages + self.links.bad_messages
        return Load(
            requests=len(self.scheduler.waiting) + len(senders),
            pages_used=self.pool.used,
            pages_cached=0,
            pages_total=self.pool.capacity,
            credits_out=sum(sender.credits for sender in senders),
            leases=len(senders),
            rows_used=0,
            counters=dict(self.counters),
        )
