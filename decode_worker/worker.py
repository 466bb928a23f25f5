"""The decode worker's loop: take requests, receive their KV, step all beams together, answer."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from decode_worker.engine import Engine
from decode_worker.links import PrefillLinks
from decode_worker.memories import PrefillMemories
from decode_worker.scheduler import DecodeScheduler
from decode_worker.search import Search
from decode_worker.task import Arrival, DecodeTask, EarlyOpen, TaskFactory
from xgr_kernels.beam_select.api import Trie
from xgr_runtime.catalog import Catalog
from xgr_runtime.config import DecodeConfig
from xgr_runtime.control import ROUTER_SILENT, ControlServer, new_incarnation
from xgr_runtime.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidLogits,
    Overloaded,
    RequestError,
    WorkerLost,
)
from xgr_runtime.gpu_turns import DECODE_SEAT, turns_of
from xgr_runtime.handover import FIRST_LEASE, ReceiverState
from xgr_runtime.messages import (
    PROTOCOL,
    AttemptId,
    Cancel,
    Commit,
    Committed,
    Credit,
    DecodeRequest,
    Failed,
    KvChunk,
    KvReady,
    Limits,
    Load,
    Message,
    ModelIdentity,
    Nack,
    Open,
    Result,
    ToDecode,
    ToDecodeData,
    WorkerHello,
)
from xgr_runtime.model.device import DeviceLost
from xgr_runtime.model.kv_copies import Copies
from xgr_runtime.pages import PageIds, PagePool
from xgr_runtime.shared_memory import CannotMap, this_process
from xgr_runtime.transport import DATA_MAX_BYTES, Frame, Listener, Poller, Received

log = logging.getLogger(__name__)

_EARLY_OPENS = 1024  # most OPENs kept for requests that the router has not sent yet
_COPY_WAIT = 0.001  # seconds until copies that a COMMIT waits for are looked at again
_LAST_WORDS = 0.2  # seconds for the last answers to leave: what a socket still holds ends with its process


class DecodeWorker:
    """Owns beams and received KV, from GRANT until the answer or an abort."""

    def __init__(
        self,
        config: DecodeConfig,
        engine: Engine,
        catalog: Catalog,
        identity: ModelIdentity,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.engine = engine
        self.catalog = catalog
        self.identity = identity
        trie = Trie(catalog.leaves, catalog.tokens, catalog.lo)
        self.factory = TaskFactory(catalog, trie, identity, limits)
        self.limits = limits
        self.clock = clock
        self.gpu_turns = turns_of(config.turns_file, DECODE_SEAT)
        self.incarnation = new_incarnation()
        self.tasks: dict[AttemptId, DecodeTask] = {}
        self.running: list[DecodeTask] = []
        self.leaving: list[DecodeTask] = []  # ended, but a launch still reads what they hold
        self.early_opens: dict[AttemptId, EarlyOpen] = {}
        self.arrivals: list[Arrival] = []
        self.counters: dict[str, float] = defaultdict(float)
        self.renewed_at = 0.0
        self.watched_at = 0.0
        self.ended_at = 0.0  # the last task
        self.worked = (
            False  # the last turn ran searches: pages, rows or messages may have come free meanwhile
        )
        self.inbox: list[Message] = []  # requests and cancels that came in during a launch
        self.scheduler: DecodeScheduler[DecodeTask] = DecodeScheduler(
            PagePool(0 if config.memory_of else engine.pool.pages),
            PagePool(engine.row_budget),
            config.page_size,
        )
        self.memories = PrefillMemories(engine.pool, bool(config.memory_of), config.kv_transfer == "auto")
        self.copies = Copies(engine.pool)
        control: Listener[Message] = Listener(config.control_address, ToDecode)
        data: Listener[Message] = Listener(config.data_address, ToDecodeData, DATA_MAX_BYTES)
        self.control = ControlServer(control, self.introduce, config.silence)
        self.data = PrefillLinks(data, self.incarnation, identity, self.memories.greeted)
        self.poller = Poller()
        self.poller.add(control)
        self.poller.add(data)

    def warm_up(self) -> None:
        """Pay all first-use costs before the first request."""
        self.engine.warm_up(self.factory.trie)

    def run(self, stopping: Callable[[], bool]) -> None:
        """Messages in, searches on, answers out; until `stopping`."""
        while not stopping():
            self.poller.wait(self.idle_seconds())
            now = self.clock()
            self.listen()
            self.handle_control(now)
            for received in self.data.receive():
                self.handle_data(received, now)
            self.drop_unreadable()
            self.expire(now)
            self.grant_pages()
            self.take_arrivals(now)
            self.start_searches()
            self.worked = bool(self.running)
            self.launch()
            self.answer_finished()

    def launch(self) -> None:
        """Hand the engine what may run next: a step of all searches, or a cohort of some."""
        waiting = [task.search for task in self.running if task.search and not task.search.launched]
        if not waiting:
            self.gpu_turns.forget()
        if not waiting or not self.engine.ready or not self.may_launch():
            return
        searches = self.engine.choose(waiting)
        try:
            self.engine.launch(searches, on_layer=lambda _: self.listen())
        except DeviceLost:
            raise  # nothing runs here any more: the process ends, and requests are tried elsewhere
        except Exception:
            log.exception("a launch of %d requests failed: each is tried alone", len(searches))
            self.launch_alone(searches)

    def may_launch(self) -> bool:
        """Whether the GPU is ours. When another worker waits for it, it goes there after what is queued."""
        return not (self.engine.busy and self.gpu_turns.wanted()) and self.gpu_turns.try_take()

    def launch_alone(self, searches: Sequence[Search]) -> None:
        """Find out whose launch fails: only that request ends."""
        for task in [t for t in self.running if t.search in searches]:
            assert task.search is not None
            while not self.engine.ready:
                self.answer_finished()
            try:
                self.engine.launch([task.search])
            except DeviceLost:
                raise
            except Exception:
                log.exception("request %d failed", task.id.request)
                self.fail(task, InternalError("the decode worker failed on this request"), retry=False)
            self.answer_finished()

    def answer_finished(self) -> None:
        """Answer the searches that are over; those whose request ended meanwhile only give back."""
        over = set(self.engine.collect())
        if not self.engine.busy:
            self.gpu_turns.give()
        for task in [t for t in self.leaving if t.search in over]:
            self.leaving.remove(task)
            self.give_back(task)
        for task in [t for t in self.running if t.search in over]:
            self.answer(task)

    def answer(self, task: DecodeTask) -> None:
        """Send the result of a search that is over, or the error that ended it."""
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
        """Answer heartbeats and keep the rest for later. Also runs between the layers of a launch."""
        self.inbox.extend(self.control.receive(self.clock()))

    def handle_control(self, now: float) -> None:
        """What routers sent since the last step."""
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
                case KvReady():
                    self.pull(task, message)
                case Commit():
                    self.take_commit(task, message, received.frames, now)
                case Cancel(reason=reason) if not task.committed_at:
                    self.fail(task, WorkerLost(f"prefill gave up: {reason}", "prefill"), retry=True)

    def drop_unreadable(self) -> None:
        """A message that cannot be read may be of any transfer of its sender: those fail, nothing else."""
        for peer in self.data.listener.take_bad_peers():
            waiting = [t for t in self.tasks.values() if t.receiver.renewable and not t.committed_at]
            for task in [t for t in waiting if t.peer == peer]:
                self.broken(task, task.receiver.fail("a message on its link could not be read"))

    def keep_early(self, peer: bytes, message: Message, now: float) -> None:
        """An OPEN may overtake the router's request; anything else without a task is late.

        A COMMIT or CANCEL may ask whether its prompt is still read in place.
        """
        if isinstance(message, Open) and len(self.early_opens) < _EARLY_OPENS:
            self.early_opens[message.id] = EarlyOpen(peer, message, now)
            return
        if isinstance(message, Cancel):
            self.early_opens.pop(message.id, None)
        else:
            self.counters["stale_messages"] += 1
        leaving = {task.id for task in self.leaving}
        if isinstance(message, Commit | Cancel) and self.memories.in_place and message.id not in leaving:
            self.data.send(peer, Nack(message.id, "the prompt is not read here"))

    def accept(self, request: DecodeRequest, now: float) -> DecodeTask:
        """The task of a request. Raises `Overloaded`, `BadRequest`."""
        if len(self.tasks) >= self.config.max_queued:
            raise Overloaded(f"decode worker {self.config.name} holds {len(self.tasks)} requests")
        if self.memories.orphaned:
            raise Overloaded(f"decode worker {self.config.name} starts again")
        return self.factory.make(request, now)

    # --- KV in ---

    def open(self, task: DecodeTask, peer: bytes, message: Open, now: float) -> None:
        """The prefill worker has begun: the task may wait for pages."""
        if task.receiver.opened:
            self.counters["stale_messages"] += 1
            return
        task.peer, task.opened_at = peer, now
        if nack := task.receiver.open(message):
            self.broken(task, nack)
            return
        try:
            task.source = self.memories.source_of(message)
        except CannotMap as error:
            self.broken(task, task.receiver.fail(str(error)))
            return
        if not task.receiver.wants_pages:
            return
        if task.source and self.memories.in_place:
            self.grant(task, task.source.pages.ids)
        else:
            self.scheduler.waiting.append(task)

    def grant_pages(self) -> None:
        """GRANT to every task for which pages are free now."""
        for task, pages in self.scheduler.next_grants():
            self.grant(task, pages)

    def grant(self, task: DecodeTask, pages: PageIds) -> None:
        """There is a place for the prompt: our `pages`, or those in which it lies already."""
        task.pages = pages
        way = self.memories.way_of(task.source)
        reader = this_process() if way == "in place" else None
        credits, lease = self.config.chunk_credits, self.config.lease
        if not self.data.send(task.peer, task.receiver.grant(credits, lease, way=way, reader=reader)):
            self.fail(task, WorkerLost("the prefill worker is gone", "prefill"), retry=True)

    def take_chunk(self, task: DecodeTask, message: KvChunk, frames: list[memoryview]) -> None:
        """Copy a checked chunk, keys and values in a frame each, into the task's pages."""
        keys, values = frames if len(frames) == 2 else (b"", b"")
        reply = task.receiver.chunk(message, keys, values)
        if isinstance(reply, Credit):
            self.write(task, message, keys, values)
            self.data.send(task.peer, reply)
        elif isinstance(reply, Nack):
            self.broken(task, reply)

    def write(self, task: DecodeTask, message: KvChunk, keys: Frame, values: Frame) -> None:
        task.copied = self.copies.write(message, task.pages, keys, values)
        self.counters["kv_bytes"] += len(keys) + len(values)
        self.counters["kv_bytes_as_frames"] += len(keys) + len(values)

    def pull(self, task: DecodeTask, message: KvReady) -> None:
        """Copy what a checked descriptor names out of the prefill worker's memory into the task's pages."""
        reply = task.receiver.ready(message)
        if isinstance(reply, Credit):
            assert task.source is not None, "the receiver takes descriptors only where it pulls"
            task.copied = self.copies.pull(message, task.source.pool, task.source.pages.ids, task.pages)
            layers = message.last_layer - message.first_layer
            size = layers * message.count * self.identity.layer_token_bytes
            self.counters["kv_bytes"] += size
            self.counters["kv_bytes_pulled"] += size
            self.data.send(task.peer, reply)
        elif isinstance(reply, Nack):
            self.broken(task, reply)

    def take_commit(self, task: DecodeTask, message: Commit, frames: list[memoryview], now: float) -> None:
        """The hand-over is complete once the copies before it are."""
        self.arrivals.append(Arrival(task, message, frames))
        self.take_arrivals(now)

    def take_arrivals(self, now: float) -> None:
        """Verify the hand-overs whose copies are done."""
        arrivals, self.arrivals = self.arrivals, []
        for arrival in arrivals:
            task = arrival.task
            if self.tasks.get(task.id) is not task:
                continue  # it ended meanwhile
            if task.copied is None or task.copied.done():
                self.verify(task, arrival.message, arrival.frames, now)
            else:
                self.arrivals.append(arrival)

    def verify(self, task: DecodeTask, message: Commit, frames: list[memoryview], now: float) -> None:
        """Take a hand-over that is whole; the search starts from the hidden state behind COMMIT, if any."""
        hidden = bytes(frames[0]) if frames else None
        intact = task.source is None or task.source.intact
        if nack := task.receiver.commit(message, hidden if len(frames) < 2 else b"", intact):
            self.broken(task, nack)
        elif task.receiver.state is ReceiverState.READY and not task.committed_at:
            task.hidden, task.committed_at = hidden, now
            if task.receiver.way == "in place":
                self.counters["kv_bytes_in_place"] += task.prompt_tokens * self.identity.token_bytes
            else:
                self.release(task)
            self.control.send(task.id.router, Committed(task.id))
            self.scheduler.ready.append(task)

    def release(self, task: DecodeTask) -> None:
        """We read the prefill worker's memory no more: it may have its pages back."""
        if ack := task.receiver.release():
            self.data.send(task.peer, ack)

    def start_searches(self) -> None:
        """Let tasks whose KV is here, and for which rows are free, take part in the next step."""
        for task, rows in self.scheduler.next_starts():
            hidden = None if task.hidden is None else np.frombuffer(task.hidden, np.float32).copy()
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
        self.ended_at = self.clock()
        self.running = [t for t in self.running if t is not task]
        if tell_prefill and task.peer and not task.committed_at:
            self.data.send(task.peer, task.receiver.fail(tell_prefill))
        if task.search and task.search.launched and not task.search.over:
            self.leaving.append(task)
        else:
            self.give_back(task)

    def give_back(self, task: DecodeTask) -> None:
        """Nothing reads its pages any more, nor those in which it was read in place."""
        self.scheduler.end(task)
        if task.committed_at:
            self.release(task)

    def expire(self, now: float) -> None:
        """Deadlines, orphaned OPENs, leases to renew, and routers that passed away."""
        for task in [t for t in self.tasks.values() if t.deadline <= now]:
            self.fail(task, DeadlineExceeded("the deadline passed in the decode worker"), retry=False)
        for router in self.control.silent(now):
            for task in [t for t in self.tasks.values() if t.id.router == router]:
                self.fail(task, WorkerLost(ROUTER_SILENT), retry=True)
            self.control.forget(router)
        late = [id for id, early in self.early_opens.items() if now - early.arrived > self.config.lease]
        for id in late:  # the router's request never came
            del self.early_opens[id]
        if now - self.renewed_at >= min(self.config.lease, FIRST_LEASE) / 3:
            self.renewed_at = now
            for task in self.tasks.values():
                if renew := task.receiver.renew(self.config.lease):
                    self.data.send(task.peer, renew)
        self.watch_owners(now)

    def watch_owners(self, now: float) -> None:
        """Let go of the memory of the dead; once our own owner is, no further prompt can come."""
        if now - self.watched_at < self.config.heartbeat:
            return
        self.watched_at = now
        self.memories.drop_dead([t.source.pool for t in self.tasks.values() if t.source])
        if self.memories.orphaned:
            for task in list(self.tasks.values()):
                if not task.committed_at or not self.memories.outlives_owner:
                    self.fail(task, WorkerLost("the prefill worker died", "prefill"), retry=True)

    @property
    def finished(self) -> bool:
        """Whether this process can be of no use any more, and neither holds nor sends what could be."""
        over = self.memories.orphaned and not self.tasks
        return over and self.clock() - self.ended_at >= _LAST_WORDS

    # --- state ---

    def idle_seconds(self) -> float:
        """How long the loop may sleep if nothing arrives."""
        if self.running or self.worked or self.engine.busy:
            return 0.0  # a launch whose requests are all gone still holds the GPU's turn
        return _COPY_WAIT if self.arrivals else self.config.heartbeat / 2

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
            rows_used=self.scheduler.rows.used,
            counters=dict(self.counters) | self.engine.counters,
        )
