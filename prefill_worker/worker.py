"""The prefill worker's loop: take prompts, run them, stream their KV, free it once it has arrived."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prefill_worker.engine import PrefillEngine
from prefill_worker.scheduler import PrefillScheduler, Prompt
from xgr_runtime.config import PrefillConfig
from xgr_runtime.control import ROUTER_SILENT, ControlServer, new_incarnation
from xgr_runtime.errors import BadRequest, DeadlineExceeded, InternalError, RequestError, WorkerLost
from xgr_runtime.handover import Chunk
from xgr_runtime.messages import (
    PROTOCOL,
    AttemptId,
    Cancel,
    Failed,
    Limits,
    Load,
    Message,
    ModelIdentity,
    PrefillRequest,
    ToPrefill,
    WorkerHello,
)
from xgr_runtime.outbound import Outbound, Transfer
from xgr_runtime.pages import PageIds, PagePool
from xgr_runtime.transport import Frame, Listener, Poller

log = logging.getLogger(__name__)

_STALL_WAIT = 0.005  # seconds until a socket that took no more is tried again


@dataclass(eq=False)
class Running:
    """A prompt that has pages, from its turn until the decode worker has its KV."""

    prompt: Prompt
    pages: PageIds
    transfer: Transfer


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
        self.running: dict[AttemptId, Running] = {}
        self.counters: dict[str, float] = defaultdict(float)
        self.stale_messages = 0
        self.stalled = False  # a socket took no more
        self.worked = False  # the last turn ran a batch: pages may have become free meanwhile
        listener: Listener[Message] = Listener(config.control_address, ToPrefill)
        self.control = ControlServer(listener, self.introduce, config.silence)
        self.poller = Poller()
        self.poller.add(listener)
        self.outbound = Outbound(
            config.name, self.incarnation, identity, config.chunk_bytes, config.lease, self.poller
        )

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
        self.stalled = not self.outbound.exchange(now)

    def prefill(self, batch: list[Running]) -> None:
        """One forward; each layer's KV leaves while the next layer is computed."""
        if not batch:
            return
        started = self.clock()

        def on_layer(layer: int) -> None:
            for running in batch:
                running.transfer.layer_ready(layer, len(running.prompt.tokens))
            self.exchange()

        try:
            hidden = self.engine.run([(r.prompt.tokens, r.pages) for r in batch], on_layer)
        except Exception:
            log.exception("a forward of %d prompts failed", len(batch))
            self.prefill_alone(batch)
            return
        seconds = self.clock() - started
        for running, row in zip(batch, hidden, strict=True):
            running.transfer.prompt_ready(seconds, row.tobytes())
            running.transfer.flush()
        self.counters["prompts"] += len(batch)
        self.counters["prompt_tokens"] += sum(len(r.prompt.tokens) for r in batch)
        self.counters["forward_seconds"] += seconds

    def prefill_alone(self, batch: list[Running]) -> None:
        """Find out whose forward fails: only that request ends."""
        if len(batch) == 1:
            batch[0].transfer.give_up(InternalError("the prefill worker failed on this request"))
        else:
            for running in batch:
                self.prefill([running])

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
                if id in self.running:
                    self.running[id].transfer.fail("cancelled by the router")
            case _:
                self.stale_messages += 1

    def accept(self, request: PrefillRequest, now: float) -> Prompt:
        """The prompt of a request, checked. Raises `BadRequest`."""
        whole = len(request.tokens) // 4 * 4
        tokens = np.frombuffer(request.tokens[:whole], np.int32)
        if not 0 < len(tokens) <= self.max_prompt_tokens:
            raise BadRequest(f"the prompt has {len(tokens)} tokens, the limit is {self.max_prompt_tokens}")
        if tokens.min() < 0 or tokens.max() >= self.identity.vocab:
            raise BadRequest(f"a prompt token is outside of the vocabulary of {self.identity.vocab}")
        self.outbound.connect(request.data_address)  # while the prompt waits
        return Prompt(request.id, tokens, request.data_address, now, now + request.timeout)

    # --- hand-overs ---

    def open(self, prompt: Prompt, pages: PageIds) -> Running:
        """Pages are reserved: announce the prompt to its decode worker and begin."""
        now = self.clock()

        def read(chunk: Chunk) -> tuple[Frame, Frame]:
            return self.engine.pool.read_bytes(
                chunk.first_layer, chunk.last_layer, pages, chunk.start, chunk.count
            )

        transfer = self.outbound.open(
            prompt.id,
            len(prompt.tokens),
            prompt.data_address,
            prompt.deadline,
            now - prompt.arrived,
            read,
            now,
        )
        running = self.running[prompt.id] = Running(prompt, pages, transfer)
        return running

    def expire(self, now: float) -> None:
        """Deadlines, leases and routers that passed away."""
        for prompt in self.scheduler.drop_late(now):
            self.fail(prompt.id, DeadlineExceeded("the deadline passed in the prefill queue"), retry=False)
        self.outbound.expire(now)
        for router in self.control.silent(now):
            for prompt in [p for p in self.scheduler.waiting if p.id.router == router]:
                self.scheduler.drop(prompt.id)
                self.fail(prompt.id, WorkerLost(ROUTER_SILENT), retry=True)
            for id, running in self.running.items():
                if id.router == router:
                    running.transfer.fail(ROUTER_SILENT)
            self.retire()  # which tells the router; so forget it afterwards
            self.control.forget(router)

    def retire(self) -> None:
        """Free the pages of hand-overs that are over. Never runs during a forward, which writes to them."""
        for transfer in self.outbound.retire():
            self.pool.release(self.running.pop(transfer.id).pages)
            if transfer.failure:
                self.fail(transfer.id, transfer.failure, retry=transfer.error is None)

    def fail(self, id: AttemptId, error: RequestError, retry: bool) -> None:
        """Tell the router that this attempt is over; it ignores what it has cancelled itself."""
        self.counters["failed"] += 1
        self.control.send(id.router, Failed(id, "prefill", error.code, error.message, retry))

    # --- state ---

    def holds(self, id: AttemptId) -> bool:
        """Whether this attempt waits or is under way here."""
        return id in self.running or any(prompt.id == id for prompt in self.scheduler.waiting)

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
        self.counters["bad_messages"] = self.control.listener.bad_messages + self.outbound.bad_messages
        self.counters["stale_messages"] = self.stale_messages + self.outbound.stale_messages
        return Load(
            requests=len(self.scheduler.waiting) + len(self.running),
            pages_used=self.pool.used,
            pages_cached=0,
            pages_total=self.pool.capacity,
            credits_out=self.outbound.credits_out,
            leases=len(self.running),
            rows_used=0,
            counters=dict(self.counters),
        )
