"""Prompt KV on its way in: from OPEN over pages, chunks and copies to a verified COMMIT.

Everything that comes over data links is handled here. The worker is told when a prompt is here, and which
requests failed.
"""

import logging
from collections import Counter
from collections.abc import Callable
from functools import cached_property, partial

from decode_worker.links import PrefillLinks
from decode_worker.memories import PrefillMemories
from decode_worker.scheduler import DecodeScheduler
from decode_worker.task import Arrival, DecodeTask, EarlyOpen
from xgr_runtime.config import DecodeConfig
from xgr_runtime.errors import RequestError, WorkerLost
from xgr_runtime.handover.protocol import FIRST_LEASE, ReceiverState
from xgr_runtime.kv.pages import PageIds
from xgr_runtime.kv.shared_memory import CannotMap, this_process
from xgr_runtime.model.device.device import Event, losing_the_device
from xgr_runtime.model.memory.kv_copies import Copies
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.trace.timeline import KV_IN, Timeline
from xgr_runtime.transport import DATA_HIGH_WATER, DATA_MAX_BYTES, Listener, Received
from xgr_runtime.transport.keyring import Keyring
from xgr_runtime.wire.messages import (
    AttemptId,
    Cancel,
    Commit,
    Credit,
    KvChunk,
    KvReady,
    Message,
    ModelIdentity,
    Nack,
    Open,
    ProcessId,
    ToDecodeData,
)

log = logging.getLogger(__name__)

_EARLY_OPENS = 1024  # most OPENs kept for requests that the router has not sent yet
_EARLY_BYTES = 64 << 20  # most bytes of pages that these name

Fail = Callable[[AttemptId, RequestError], None]
"""Ends a task with an error."""


class Inbound:
    """The data links' end in a decode worker, and the KV side of the worker's `tasks`.

    `arrived` is told of each task whose prompt is here, `fail` of each whose hand-over failed.
    """

    def __init__(
        self,
        config: DecodeConfig,
        identity: ModelIdentity,
        incarnation: int,
        pool: KvPool,
        scheduler: DecodeScheduler[DecodeTask],
        tasks: dict[AttemptId, DecodeTask],
        counters: dict[str, float],
        arrived: Callable[[DecodeTask], None],
        fail: Fail,
        timeline: Timeline,
        clock: Callable[[], float],
        keys: Keyring | None = None,
    ) -> None:
        self.config = config
        self.identity = identity
        self.incarnation = incarnation
        self.scheduler = scheduler
        self.tasks = tasks
        self.counters = counters
        self.arrived = arrived
        self.fail = fail
        self.timeline = timeline
        self.clock = clock
        self.leaving: list[DecodeTask] = []  # ended, but a launch still reads what they hold
        self.early_opens: dict[AttemptId, EarlyOpen] = {}
        self.arrivals: list[Arrival] = []
        self.renewed_at = 0.0
        self.watched_at = 0.0
        self.memories = PrefillMemories(pool, bool(config.memory_of), config.kv_transfer == "auto")
        self.copies = Copies(pool)
        listener: Listener[Message] = Listener(
            config.data_address, ToDecodeData, DATA_MAX_BYTES, keys, high_water=DATA_HIGH_WATER
        )
        self.data = PrefillLinks(listener, incarnation, identity, self.memories.greeted)

    def receive(self) -> None:
        """What prefill workers sent since the last turn."""
        batch = list(self.data.receive())
        self.drop_overdrawn(batch)
        for received in batch:
            self.handle(received, self.clock())  # while KV comes in, this may go on for long
        self.drop_unreadable()

    def handle(self, received: Received[Message], now: float) -> None:
        """A message. What goes wrong with it ends its hand-over and nothing else."""
        id: AttemptId = received.message.id  # type: ignore[attr-defined]
        self.guarded(self.tasks.get(id), partial(self.take, received, id, now))

    def guarded(self, task: DecodeTask | None, act: Callable[[], None]) -> None:
        """Do something for a task; what it raises is that task's end, unless it is the process's."""
        try:
            act()
        except Exception:
            log.exception("a hand-over failed")
            if task is not None and self.tasks.get(task.id) is task:
                self.broken(task, task.receiver.fail("the decode worker failed on this hand-over"))

    def take(self, received: Received[Message], id: AttemptId, now: float) -> None:
        message = received.message
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
                    self.fail(task.id, WorkerLost(f"prefill gave up: {reason}", "prefill"))

    def drop_overdrawn(self, batch: list[Received[Message]]) -> None:
        """More chunks than a hand-over has credits were under way at once: none of these was credited yet."""
        chunks = Counter((r.peer, r.message.id) for r in batch if isinstance(r.message, KvChunk | KvReady))
        for (peer, id), count in chunks.items():
            task = self.tasks.get(id)
            if task is not None and task.peer == peer and count > self.config.chunk_credits:
                problem = f"{count} chunks came at once, it has credits for {self.config.chunk_credits}"
                self.broken(task, task.receiver.fail(problem))

    def drop_unreadable(self) -> None:
        """A message that cannot be read may be of any transfer of its sender: those fail, nothing else."""
        for peer in self.data.listener.take_bad_peers():
            waiting = [t for t in self.tasks.values() if t.receiver.renewable and not t.committed_at]
            for task in [t for t in waiting if t.peer == peer]:
                self.broken(task, task.receiver.fail("a message on its link could not be read"))

    # --- requests come and go ---

    def keep_early(self, peer: bytes, message: Message, now: float) -> None:
        """An OPEN may overtake the router's request; anything else without a task is late.

        A COMMIT or CANCEL may ask whether its prompt is still read in place.
        """
        if isinstance(message, Open):
            if self.has_room_for(message):
                self.early_opens[message.id] = EarlyOpen(peer, message, now)
            else:
                self.counters["refused_opens"] += 1
                self.data.send(peer, Nack(message.id, "too many prompts came before their requests"))
            return
        if isinstance(message, Cancel):
            self.early_opens.pop(message.id, None)
        else:
            self.counters["stale_messages"] += 1
        leaving = {task.id for task in self.leaving}
        if isinstance(message, Commit | Cancel) and self.memories.in_place and message.id not in leaving:
            self.data.send(peer, Nack(message.id, "the prompt is not read here"))

    def has_room_for(self, message: Open) -> bool:
        """Whether an OPEN may wait for its request."""
        named = [
            len(early.message.pages) + len(early.message.generations) for early in self.early_opens.values()
        ]
        size = len(message.pages) + len(message.generations)
        return len(named) < _EARLY_OPENS and sum(named) + size <= _EARLY_BYTES

    def expect(self, task: DecodeTask) -> None:
        """The router's request is here; its OPEN may have been before it."""
        if (early := self.early_opens.pop(task.id, None)) is not None:
            self.open(task, early.peer, early.message, early.arrived)

    def forget(self, id: AttemptId) -> None:
        """The request is wanted no more, if it ever comes."""
        self.early_opens.pop(id, None)

    def refuse(self, task: DecodeTask, reason: str) -> None:
        """The task is over: a prefill worker that still sends is told why it may stop."""
        if task.peer and not task.committed_at:
            self.data.send(task.peer, task.receiver.fail(reason))

    def release(self, task: DecodeTask) -> None:
        """We read the prefill worker's memory no more: it may have its pages back."""
        if ack := task.receiver.release():
            self.data.send(task.peer, ack)

    # --- one hand-over ---

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
            self.scheduler.waiting.add(task)

    def grant_pages(self, now: float) -> None:
        """GRANT to every task for which pages are free now."""
        for task, held in self.scheduler.next_grants(now):
            self.guarded(task, partial(self.grant, task, held.pages, held.cached_tokens))

    @cached_property
    def reader(self) -> ProcessId:
        """Who we are to those in whose memory we read."""
        return this_process()

    def grant(self, task: DecodeTask, pages: PageIds, held_tokens: int = 0) -> None:
        """There is a place for the prompt, our `pages` or those in which it lies already.

        The KV of its first `held_tokens` tokens is there and need not come.
        """
        task.pages, task.granted_at = pages, self.clock()
        self.counters["cached_tokens"] += held_tokens
        way = self.memories.way_of(task.source)
        reader = self.reader if way == "in place" else None
        grant = task.receiver.grant(
            self.config.chunk_credits, self.config.lease, held_tokens, way=way, reader=reader
        )
        if not self.data.send(task.peer, grant):
            self.fail(task.id, WorkerLost("the prefill worker is gone", "prefill"))

    def take_chunk(self, task: DecodeTask, message: KvChunk, frames: list[memoryview]) -> None:
        """Copy a checked chunk, keys and values in a frame each, into the task's pages."""
        keys, values = frames if len(frames) == 2 else (b"", b"")
        began = self.clock()
        reply = task.receiver.chunk(message, keys, values)
        if isinstance(reply, Credit):
            size = len(keys) + len(values)
            if self.copied(task, lambda: self.copies.write(message, task.pages, keys, values)):
                self.counters["kv_bytes_as_frames"] += size
                self.note(task, message, began, size)
                self.data.send(task.peer, reply)
        elif isinstance(reply, Nack):
            self.broken(task, reply)

    def pull(self, task: DecodeTask, message: KvReady) -> None:
        """Copy what a checked descriptor names out of the prefill worker's memory into the task's pages."""
        began = self.clock()
        reply = task.receiver.ready(message)
        if isinstance(reply, Credit):
            assert task.source is not None, "the receiver takes descriptors only where it pulls"
            theirs = task.source
            size = (
                (message.last_layer - message.first_layer) * message.count * self.identity.layer_token_bytes
            )
            if self.copied(
                task, lambda: self.copies.pull(message, theirs.pool, theirs.pages.ids, task.pages)
            ):
                self.counters["kv_bytes_pulled"] += size
                self.note(task, message, began, size)
                self.data.send(task.peer, reply)
        elif isinstance(reply, Nack):
            self.broken(task, reply)

    def copied(self, task: DecodeTask, copy: Callable[[], Event]) -> bool:
        """Copy into the task's pages. What did not get there must not count as received: the task fails."""
        try:
            with losing_the_device():
                task.copied = copy()
        except Exception:  # no memory, for one
            log.exception("request %d: its KV could not be written", task.id.request)
            self.broken(task, task.receiver.fail("its KV could not be written"))
            return False
        return True

    def note(self, task: DecodeTask, message: KvChunk | KvReady, began: float, size: int) -> None:
        """A piece of a prompt has come in; on a GPU, its copy is queued."""
        self.counters["kv_bytes"] += size
        self.timeline.add(
            KV_IN,
            task.receiver.way,
            began,
            self.clock(),
            task.id,
            first_layer=message.first_layer,
            last_layer=message.last_layer,
            tokens=message.count,
            bytes=size,
        )

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
                self.guarded(task, partial(self.verify, task, arrival.message, arrival.frames, now))
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
            task.cached_tokens = message.cached_tokens
            if task.receiver.way == "in place":
                self.counters["kv_bytes_in_place"] += task.prompt_tokens * self.identity.token_bytes
            else:
                self.release(task)
            self.arrived(task)

    def broken(self, task: DecodeTask, nack: Nack) -> None:
        """The hand-over broke a rule: that attempt fails, nothing else."""
        self.counters["broken_transfers"] += 1
        log.warning("request %d attempt %d: %s", task.id.request, task.id.attempt, nack.reason)
        self.fail(task.id, WorkerLost(f"KV hand-over failed: {nack.reason}", "transfer"))

    # --- time passes ---

    def expire(self, now: float) -> None:
        """Orphaned OPENs, leases to renew, and owners of memory that passed away."""
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
                    self.fail(task.id, WorkerLost("the prefill worker died", "prefill"))
