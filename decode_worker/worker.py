"""The decode worker's loop: take requests, receive their KV, step all beams together, answer."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from decode_worker.engine import DecodeEngine
from decode_worker.links import PrefillLinks
from decode_worker.scheduler import DecodeScheduler
from decode_worker.search import Question, Search
from xgr_kernels.beam_select.api import LeafFilter, Trie
from xgr_runtime.catalog import Catalog, leaf_filter
from xgr_runtime.config import DecodeConfig
from xgr_runtime.control import ControlServer, new_incarnation
from xgr_runtime.errors import (
    BadRequest,
    CatalogError,
    DeadlineExceeded,
    InvalidLogits,
    Overloaded,
    RequestError,
    WorkerLost,
)
from xgr_runtime.handover import Receiver
from xgr_runtime.messages import (
    PROTOCOL,
    Ack,
    AttemptId,
    Cancel,
    Commit,
    Committed,
    Credit,
    DecodeRequest,
    Failed,
    KvChunk,
    Limits,
    Load,
    Message,
    ModelIdentity,
    Nack,
    Open,
    Result,
    Timing,
    ToDecode,
    ToDecodeData,
    WorkerHello,
)
from xgr_runtime.pages import PageIds, PagePool
from xgr_runtime.transport import DATA_MAX_BYTES, Frame, Listener, Poller, Received

log = logging.getLogger(__name__)

_EARLY_OPENS = 1024  # most OPENs kept for requests that the router has not sent yet


@dataclass(eq=False)
class DecodeTask:
    """One attempt, from the router's request to the answer."""

    id: AttemptId
    question: Question
    receiver: Receiver
    deadline: float
    peer: bytes = b""  # of the prefill worker, once it opened
    pages: PageIds = field(default_factory=lambda: np.empty(0, np.int32))
    hidden: bytes = b""
    opened_at: float = 0.0
    committed_at: float = 0.0
    search: Search | None = None

    @property
    def prompt_tokens(self) -> int:
        return self.question.prompt_tokens

    @property
    def most_beams(self) -> int:
        return self.question.most_beams

    def timing(self, now: float) -> Timing:
        """Where the time went, in seconds."""
        arrived = self.committed_at - self.opened_at
        return Timing(
            queue=self.receiver.queue_seconds,
            prefill=self.receiver.prefill_seconds,
            transfer=max(0.0, arrived - self.receiver.prefill_seconds),
            decode=now - self.committed_at,
            forward=self.search.forward_seconds if self.search else 0.0,
        )


class EarlyOpen(NamedTuple):
    """An OPEN that overtook the router's request."""

    peer: bytes
    message: Open
    arrived: float


class DecodeWorker:
    """Owns beams and received KV, from GRANT until the answer or an abort."""

    def __init__(
        self,
        config: DecodeConfig,
        engine: DecodeEngine,
        catalog: Catalog,
        identity: ModelIdentity,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.engine = engine
        self.catalog = catalog
        self.trie = Trie(catalog.leaves, catalog.tokens, catalog.lo)
        self.identity = identity
        self.limits = limits
        self.clock = clock
        self.incarnation = new_incarnation()
        self.tasks: dict[AttemptId, DecodeTask] = {}
        self.running: list[DecodeTask] = []
        self.early_opens: dict[AttemptId, EarlyOpen] = {}
        self.counters: dict[str, float] = defaultdict(float)
        self.renewed_at = 0.0
        self.inbox: list[Message] = []  # requests and cancels that came in during a step
        self.scheduler: DecodeScheduler[DecodeTask] = DecodeScheduler(
            PagePool(engine.pool.pages), PagePool(config.max_rows), config.page_size
        )
        control: Listener[Message] = Listener(config.control_address, ToDecode)
        data: Listener[Message] = Listener(config.data_address, ToDecodeData, DATA_MAX_BYTES)
        self.control = ControlServer(control, self.introduce, config.silence)
        self.data = PrefillLinks(data, self.incarnation, identity)
        self.poller = Poller()
        self.poller.add(control)
        self.poller.add(data)

    def warm_up(self) -> None:
        """Pay all first-use costs before the first request."""
        self.engine.warm_up(self.trie)

    def run(self, stopping: Callable[[], bool]) -> None:
        while not stopping():
            self.poller.wait(0 if self.running else self.config.heartbeat / 2)
            now = self.clock()
            self.listen()
            self.handle_control(now)
            for received in self.data.receive():
                self.handle_data(received, now)
            self.expire(now)
            self.grant_pages()
            self.start_searches()
            if self.running:
                self.step()

    def step(self) -> None:
        """One level for every running search; those that are over are answered."""
        searches = [task.search for task in self.running if task.search]
        selection = self.engine.step(searches, on_layer=lambda _: self.listen())
        self.counters["steps"] += 1
        self.counters["rows"] += len(selection.score)
        self.counters["rows_skipped"] += int(selection.rows_skipped.sum())
        self.counters["elements_visited"] += int(selection.elements_visited.sum())
        self.counters["elements_total"] += int(selection.elements_total.sum())
        for task in [t for t in self.running if t.search and t.search.over]:
            self.answer(task)

    def answer(self, task: DecodeTask) -> None:
        assert task.search is not None
        if task.search.invalid:
            self.fail(task, InvalidLogits("the model returned NaN or infinity for this request"), retry=False)
            return
        leaves, scores = task.search.answer()
        timing = task.timing(self.clock())
        self.end(task)
        self.counters["answered"] += 1
        self.control.send(task.id.router, Result(task.id, leaves.tobytes(), scores.tobytes(), timing))

    # --- messages ---

    def listen(self) -> None:
        """Answer heartbeats and keep the rest for later. Also runs between the layers of a step."""
        self.inbox.extend(self.control.receive(self.clock()))

    def handle_control(self, now: float) -> None:
        messages, self.inbox = self.inbox, []
        for message in messages:
            self.handle_request(message, now)

    def handle_request(self, message: Message, now: float) -> None:
        match message:
            case DecodeRequest(id=id) if id.decode == self.incarnation and id not in self.tasks:
                try:
                    self.tasks[id] = self.accept(message, now)
                except RequestError as error:
                    self.report(id, error, retry=isinstance(error, Overloaded))
                    return
                if id in self.early_opens:
                    early = self.early_opens.pop(id)
                    self.open(self.tasks[id], early.peer, early.message, early.arrived)
            case Cancel(id=id):
                self.early_opens.pop(id, None)
                if id in self.tasks:
                    self.end(self.tasks[id], tell_prefill="cancelled by the router")
            case _:
                self.counters["stale_messages"] += 1

    def handle_data(self, received: Received[Message], now: float) -> None:
        message = received.message
        id: AttemptId = message.id  # type: ignore[attr-defined]
        task = self.tasks.get(id)
        if id.decode != self.incarnation or id.prefill != self.data.incarnation_of(received.peer):
            self.counters["stale_messages"] += 1
        elif task is None:
            self.keep_early(received.peer, message, now)
        else:
            match message:
                case Open():
                    self.open(task, received.peer, message, now)
                case KvChunk():
                    self.take_chunk(task, message, received.frames)
                case Commit():
                    self.take_commit(task, message, received.frames, now)
                case Cancel(reason=reason):
                    self.fail(task, WorkerLost(f"prefill gave up: {reason}", "prefill"), retry=True)

    def keep_early(self, peer: bytes, message: Message, now: float) -> None:
        """An OPEN may overtake the router's request; anything else without a task is late."""
        if isinstance(message, Open) and len(self.early_opens) < _EARLY_OPENS:
            self.early_opens[message.id] = EarlyOpen(peer, message, now)
        elif isinstance(message, Cancel):
            self.early_opens.pop(message.id, None)
        else:
            self.counters["stale_messages"] += 1

    def accept(self, request: DecodeRequest, now: float) -> DecodeTask:
        """The task of a request, checked. Raises `Overloaded`, `BadRequest`."""
        if len(self.tasks) >= self.config.max_queued:
            raise Overloaded(f"decode worker {self.config.name} holds {len(self.tasks)} requests")
        if not 0 < request.prompt_tokens <= self.limits.max_prompt_tokens:
            raise BadRequest(f"the prompt has {request.prompt_tokens} tokens, see the limits announced")
        if not 0 < request.results <= request.width <= self.limits.max_beam_width:
            raise BadRequest(f"width {request.width} or results {request.results} out of range")
        if request.catalog != self.catalog.version:
            raise BadRequest(f"this worker has no catalog {request.catalog}", "catalog")
        question = Question(
            request.prompt_tokens,
            request.width,
            request.results,
            request.score_mode,
            self.trie,
            self.filter_of(request),
        )
        model = self.identity
        token_bytes = self.engine.model.geometry.token_bytes // model.layers
        receiver = Receiver(request.id, request.prompt_tokens, model.layers, token_bytes, 4 * model.hidden)
        return DecodeTask(request.id, question, receiver, now + request.timeout)

    def filter_of(self, request: DecodeRequest) -> LeafFilter:
        """The request's live leaves, from the leaf numbers that the router sent."""
        try:
            allow = None if request.allow is None else np.frombuffer(request.allow, np.int32)
            deny = np.frombuffer(request.deny, np.int32)
            return LeafFilter(*leaf_filter(self.catalog.leaves, allow, deny))
        except (CatalogError, ValueError) as error:
            raise BadRequest(f"filter: {error}", "filters") from None

    # --- KV in ---

    def open(self, task: DecodeTask, peer: bytes, message: Open, now: float) -> None:
        task.peer, task.opened_at = peer, now
        if nack := task.receiver.open(message):
            self.broken(task, nack)
        elif task.receiver.wants_pages:
            self.scheduler.waiting.append(task)

    def grant_pages(self) -> None:
        for task, pages in self.scheduler.next_grants():
            task.pages = pages
            grant = task.receiver.grant(self.config.chunk_credits, self.config.lease)
            if not self.data.send(task.peer, grant):
                self.fail(task, WorkerLost("the prefill worker is gone", "prefill"), retry=True)

    def take_chunk(self, task: DecodeTask, message: KvChunk, frames: list[memoryview]) -> None:
        keys, values = frames if len(frames) == 2 else (b"", b"")
        reply = task.receiver.chunk(message, keys, values)
        if isinstance(reply, Credit):
            self.write(task, message, keys, values)
            self.data.send(task.peer, reply)
        elif isinstance(reply, Nack):
            self.broken(task, reply)

    def write(self, task: DecodeTask, m: KvChunk, keys: Frame, values: Frame) -> None:
        pool = self.engine.pool
        pool.write_bytes(m.first_layer, m.last_layer, task.pages, m.start, m.count, keys, values)
        self.counters["kv_bytes"] += len(keys) + len(values)

    def take_commit(self, task: DecodeTask, message: Commit, frames: list[memoryview], now: float) -> None:
        hidden = bytes(frames[0]) if len(frames) == 1 else b""
        reply = task.receiver.commit(message, hidden)
        if isinstance(reply, Ack):
            task.hidden, task.committed_at = hidden, now
            self.data.send(task.peer, reply)
            self.control.send(task.id.router, Committed(task.id))
            self.scheduler.ready.append(task)
        elif isinstance(reply, Nack):
            self.broken(task, reply)

    def start_searches(self) -> None:
        for task, rows in self.scheduler.next_starts():
            hidden = np.frombuffer(task.hidden, np.float32).copy()
            task.search = Search(task.question, task.pages, rows, hidden, self.engine.tail_tokens)
            self.running.append(task)

    # --- ends ---

    def broken(self, task: DecodeTask, nack: Nack) -> None:
        """The hand-over broke a rule: that attempt fails, nothing else."""
        self.counters["broken_transfers"] += 1
        log.warning("request %d attempt %d: %s", task.id.request, task.id.attempt, nack.reason)
        self.fail(task, WorkerLost(f"KV hand-over failed: {nack.reason}", "transfer"), retry=True)

    def fail(self, task: DecodeTask, error: RequestError, retry: bool) -> None:
        self.end(task, tell_prefill=error.message)
        self.report(task.id, error, retry)

    def report(self, id: AttemptId, error: RequestError, retry: bool) -> None:
        self.counters["failed"] += 1
        self.control.send(id.router, Failed(id, "decode", error.code, error.message, retry))

    def end(self, task: DecodeTask, tell_prefill: str = "") -> None:
        """Free all that the task holds; a prefill worker that still sends is told why it may stop."""
        del self.tasks[task.id]
        self.scheduler.end(task)
        self.running = [t for t in self.running if t is not task]
        if tell_prefill and task.peer and not task.committed_at:
            self.data.send(task.peer, task.receiver.fail(tell_prefill))

    def expire(self, now: float) -> None:
        """Deadlines, orphaned OPENs, leases to renew, and routers that passed away."""
        for task in [t for t in self.tasks.values() if t.deadline <= now]:
            self.fail(task, DeadlineExceeded("the deadline passed in the decode worker"), retry=False)
        for router in self.control.lost(now):
            for task in [t for t in self.tasks.values() if t.id.router == router]:
                self.end(task, tell_prefill="the router is gone")
        late = [id for id, early in self.early_opens.items() if now - early.arrived > self.config.lease]
        for id in late:  # the router's request never came
            del self.early_opens[id]
        if now - self.renewed_at >= self.config.lease / 3:
            self.renewed_at = now
            for task in self.tasks.values():
                if renew := task.receiver.renew(self.config.lease):
                    self.data.send(task.peer, renew)

    # --- state ---

    def introduce(self) -> WorkerHello:
        return WorkerHello(
            protocol=PROTOCOL,
            role="decode",
            worker=self.config.name,
            incarnation=self.incarnation,
            model=self.identity,
            data_address=self.config.advertise_data_address or self.config.data_address,
            catalogs=[self.catalog.version],
            limits=self.limits,
            load=self.load(),
        )

    def load(self) -> Load:
        bad = self.control.listener.bad_messages + self.data.listener.bad_messages
        self.counters["bad_messages"] = bad
        return Load(
            requests=len(self.tasks),
            pages_used=self.scheduler.pages.used,
            pages_cached=0,
            pages_total=self.scheduler.pages.capacity,
            credits_out=sum(task.receiver.credits_out for task in self.tasks.values()),
            leases=sum(task.receiver.renewable for task in self.tasks.values()),
            counters={**self.counters, "rows_used": self.scheduler.rows.used},
        )
