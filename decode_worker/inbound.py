"""Prompt KV on its way in: from OPEN over pages, chunks and copies to a verified COMMIT.

Everything that comes over data links is handled here. A task is ours from its request until its prompt is
here; then the worker has it, and we only keep the memory for it that is read in place.
"""

import logging
from collections import Counter
from collections.abc import Callable
from functools import cached_property, partial
from typing import NamedTuple

from decode_worker.chunk_copies import ChunkCopies
from decode_worker.early_opens import EarlyOpen, EarlyOpens
from decode_worker.links import PrefillLinks
from decode_worker.memories import PrefillMemories
from decode_worker.phases import TaskPhase
from decode_worker.scheduler import DecodeScheduler
from decode_worker.task import DecodeTask
from xgr_runtime.config import DecodeConfig
from xgr_runtime.errors import RequestError, WorkerLost
from xgr_runtime.handover.protocol import FIRST_LEASE, ReceiverState
from xgr_runtime.kv.pages import PageIds
from xgr_runtime.kv.shared_memory import CannotMap, this_process
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.transport import DATA_HIGH_WATER, DATA_MAX_BYTES, Listener, Received
from xgr_runtime.transport.keyring import Keyring
from xgr_runtime.wire.messages import (
    AttemptId,
    Cancel,
    Commit,
    Credit,
    DecodeRequest,
    KvChunk,
    KvReady,
    Message,
    ModelIdentity,
    Nack,
    Open,
    ProcessId,
    ToDecodeData,
)
from xgr_runtime.worker.desk import Desk

log = logging.getLogger(__name__)


class WaitingCommit(NamedTuple):
    """A COMMIT that waits for the copies before it."""

    task: DecodeTask
    message: Commit
    frames: list[memoryview]


class Inbound:
    """The data links' end in a decode worker, and the tasks whose prompts are on their way here."""

    def __init__(
        self,
        config: DecodeConfig,
        identity: ModelIdentity,
        pool: KvPool,
        scheduler: DecodeScheduler[DecodeTask],
        desk: Desk[DecodeRequest],
        clock: Callable[[], float],
        keys: Keyring | None = None,
    ) -> None:
        self.config = config
        self.identity = identity
        self.scheduler = scheduler
        self.desk = desk
        self.clock = clock
        self.arriving: dict[AttemptId, DecodeTask] = {}  # from the request until COMMIT is verified
        self.reading: dict[AttemptId, DecodeTask] = {}  # in place, from then until nothing reads them
        self.early_opens = EarlyOpens()
        self.commits: list[WaitingCommit] = []
        self.ended_at = 0.0  # the last task that did not arrive
        self.renewed_at = 0.0
        self.watched_at = 0.0
        self.memories = PrefillMemories(pool, bool(config.memory_of), config.kv_transfer == "auto")
        self.chunks = ChunkCopies(pool, identity, desk.counters, desk.timeline, clock)
        listener: Listener[Message] = Listener(
            config.data_address, ToDecodeData, DATA_MAX_BYTES, keys, high_water=DATA_HIGH_WATER
        )
        self.data = PrefillLinks(listener, desk.incarnation, identity, self.memories.greeted)
        self._arrived: list[DecodeTask] = []

    # --- requests come and go ---

    def expect(self, task: DecodeTask) -> None:
        """The router's request is here; its OPEN may have been before it."""
        self.arriving[task.id] = task
        if (early := self.early_opens.pop(task.id)) is not None:
            self.open(task, early.peer, early.message, early.arrived)

    def end(self, id: AttemptId, reason: str) -> None:
        """An attempt is over, or will be when it comes; a prefill worker that sends is told why."""
        self.early_opens.pop(id)
        if (task := self.arriving.pop(id, None)) is None:
            return
        if task.peer:
            self.data.send(task.peer, task.receiver.fail(reason))
        self.ended_at = self.clock()
        task.record(self.desk.timeline, self.ended_at)
        self.scheduler.end(task)

    def fail(self, task: DecodeTask, error: RequestError) -> None:
        """A prompt cannot arrive."""
        self.end(task.id, error.message)
        self.desk.report(task.id, error)

    def release(self, task: DecodeTask) -> None:
        """Nothing reads the prompt any more: where it lay in another's memory, that has its pages back."""
        if self.reading.pop(task.id, None) and (ack := task.receiver.release()):
            self.data.send(task.peer, ack)

    # --- messages ---

    def receive(self) -> list[DecodeTask]:
        """Take what prefill workers sent since the last turn: the tasks whose prompts are here now."""
        batch = list(self.data.receive())
        self.drop_overdrawn(batch)
        for received in batch:
            self.handle(received, self.clock())  # while KV comes in, this may go on for long
        self.drop_unreadable()
        return self._take_arrived()

    def handle(self, received: Received[Message], now: float) -> None:
        """A message. What goes wrong with it ends its hand-over and nothing else."""
        id: AttemptId = received.message.id  # type: ignore[attr-defined]
        self.guarded(self.arriving.get(id), partial(self.take, received, id, now))

    def guarded(self, task: DecodeTask | None, act: Callable[[], None]) -> None:
        """Do something for a task; what it raises is that task's end, unless it is the process's."""
        try:
            act()
        except Exception:
            log.exception("a hand-over failed")
            if task is not None and self.arriving.get(task.id) is task:
                self.broken(task, task.receiver.fail("the decode worker failed on this hand-over"))

    def take(self, received: Received[Message], id: AttemptId, now: float) -> None:
        message = received.message
        task = self.arriving.get(id)
        if id.decode != self.desk.incarnation or id.prefill != self.data.incarnation_of(received.peer):
            self.desk.counters["stale_messages"] += 1
        elif task is None:
            self.take_unexpected(received.peer, message, now)
        else:
            match message:
                case Open():
                    self.open(task, received.peer, message, now)
                case KvChunk():
                    self.answer(task, self.chunks.write(task, message, received.frames))
                case KvReady():
                    self.answer(task, self.chunks.pull(task, message))
                case Commit():
                    self.take_commit(task, message, received.frames, now)
                case Cancel(reason=reason):
                    self.fail(task, WorkerLost(f"prefill gave up: {reason}", "prefill"))

    def take_unexpected(self, peer: bytes, message: Message, now: float) -> None:
        """An OPEN may overtake the router's request; anything else of a prompt that is not awaited is late.

        A COMMIT or CANCEL may ask whether its prompt is still read in place: while it is, leases say so.
        """
        match message:
            case Open():
                self.keep_early(EarlyOpen(peer, message, now))
            case Commit(id=id) | Cancel(id=id):
                self.early_opens.pop(id)
                if self.memories.in_place and id not in self.reading:
                    self.data.send(peer, Nack(id, "the prompt is not read here"))
            case _:
                self.desk.counters["stale_messages"] += 1

    def keep_early(self, early: EarlyOpen) -> None:
        """An OPEN whose request may still come."""
        if not self.early_opens.add(early):
            self.desk.counters["refused_opens"] += 1
            nack = Nack(early.message.id, "too many prompts came before their requests")
            self.data.send(early.peer, nack)

    def drop_overdrawn(self, batch: list[Received[Message]]) -> None:
        """More chunks than a hand-over has credits were under way at once: none of these was credited yet."""
        chunks = Counter((r.peer, r.message.id) for r in batch if isinstance(r.message, KvChunk | KvReady))
        for (peer, id), count in chunks.items():
            task = self.arriving.get(id)
            if task is not None and task.peer == peer and count > self.config.chunk_credits:
                problem = f"{count} chunks came at once, it has credits for {self.config.chunk_credits}"
                self.broken(task, task.receiver.fail(problem))

    def drop_unreadable(self) -> None:
        """A message that cannot be read may be of any transfer of its sender: those fail, nothing else."""
        for peer in self.data.listener.take_bad_peers():
            for task in [t for t in self.arriving.values() if t.receiver.renewable and t.peer == peer]:
                self.broken(task, task.receiver.fail("a message on its link could not be read"))

    # --- one hand-over ---

    def open(self, task: DecodeTask, peer: bytes, message: Open, now: float) -> None:
        """The prefill worker has begun: the task may wait for pages."""
        if task.receiver.opened:
            self.desk.counters["stale_messages"] += 1
            return
        task.peer = peer
        task.enter(TaskPhase.PAGES, now)
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
        task.pages = pages
        task.enter(TaskPhase.KV, self.clock())
        self.desk.counters["cached_tokens"] += held_tokens
        way = self.memories.way_of(task.source)
        reader = self.reader if way == "in place" else None
        grant = task.receiver.grant(
            self.config.chunk_credits, self.config.lease, held_tokens, way=way, reader=reader
        )
        if not self.data.send(task.peer, grant):
            self.fail(task, WorkerLost("the prefill worker is gone", "prefill"))

    def answer(self, task: DecodeTask, reply: Credit | Nack | None) -> None:
        """What the sender of a chunk hears of it."""
        if isinstance(reply, Credit):
            self.data.send(task.peer, reply)
        elif isinstance(reply, Nack):
            self.broken(task, reply)

    def take_commit(self, task: DecodeTask, message: Commit, frames: list[memoryview], now: float) -> None:
        """The hand-over is complete once the copies before it are."""
        self.commits.append(WaitingCommit(task, message, frames))
        self.verify_copied(now)

    def settle(self, now: float) -> list[DecodeTask]:
        """Look at the copies that COMMITs wait for: the tasks whose prompts are here now."""
        self.verify_copied(now)
        return self._take_arrived()

    def verify_copied(self, now: float) -> None:
        """Verify the hand-overs whose copies are done."""
        commits, self.commits = self.commits, []
        for commit in commits:
            task = commit.task
            if self.arriving.get(task.id) is not task:
                continue  # it ended meanwhile
            if task.copied is None or task.copied.done():
                self.guarded(task, partial(self.verify, task, commit.message, commit.frames, now))
            else:
                self.commits.append(commit)

    def verify(self, task: DecodeTask, message: Commit, frames: list[memoryview], now: float) -> None:
        """Take a hand-over that is whole; the search starts from the hidden state behind COMMIT, if any."""
        hidden = bytes(frames[0]) if frames else None
        intact = task.source is None or task.source.intact
        if nack := task.receiver.commit(message, hidden if len(frames) < 2 else b"", intact):
            self.broken(task, nack)
        elif task.receiver.state is ReceiverState.READY:
            task.hidden, task.cached_tokens = hidden, message.cached_tokens
            task.enter(TaskPhase.ROWS, now)
            self.arrive(task)

    def arrive(self, task: DecodeTask) -> None:
        """All of a prompt is here: the worker may have its task."""
        self.reading[task.id] = self.arriving.pop(task.id)
        self._arrived.append(task)
        if task.receiver.way == "in place":
            self.desk.counters["kv_bytes_in_place"] += task.prompt_tokens * self.identity.token_bytes
        else:
            self.release(task)

    def broken(self, task: DecodeTask, nack: Nack) -> None:
        """The hand-over broke a rule: that attempt fails, nothing else."""
        self.desk.counters["broken_transfers"] += 1
        log.warning("request %d attempt %d: %s", task.id.request, task.id.attempt, nack.reason)
        self.fail(task, WorkerLost(f"KV hand-over failed: {nack.reason}", "transfer"))

    # --- time passes ---

    def expire(self, now: float) -> None:
        """Orphaned OPENs, leases to renew, and owners of memory that passed away."""
        self.early_opens.expire(now - self.config.lease)
        if now - self.renewed_at >= min(self.config.lease, FIRST_LEASE) / 3:
            self.renewed_at = now
            for task in self.holding:
                if renew := task.receiver.renew(self.config.lease):
                    self.data.send(task.peer, renew)
        self.watch_owners(now)

    def watch_owners(self, now: float) -> None:
        """Let go of the memory of the dead; once our own owner is, no further prompt can come."""
        if now - self.watched_at < self.config.heartbeat:
            return
        self.watched_at = now
        self.memories.drop_dead([task.source.pool for task in self.holding if task.source])
        if self.memories.orphaned:
            for task in list(self.arriving.values()):
                self.fail(task, WorkerLost("the prefill worker died", "prefill"))

    @property
    def holding(self) -> list[DecodeTask]:
        """Tasks for which prefill workers hold memory, if they have begun."""
        return [*self.arriving.values(), *self.reading.values()]

    def _take_arrived(self) -> list[DecodeTask]:
        arrived, self._arrived = self._arrived, []
        return arrived
