"""Chunks of prompts on their way into our pool: checked, copied, counted and shown."""

import logging
from collections.abc import Callable

from decode_worker.task import DecodeTask
from xgr_runtime.model.device.device import Event, losing_the_device
from xgr_runtime.model.memory.kv_copies import Copies
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.trace.timeline import KV_IN, Timeline
from xgr_runtime.wire.messages import Credit, KvChunk, KvReady, ModelIdentity, Nack

log = logging.getLogger(__name__)


class ChunkCopies:
    """Copies into one pool. On a GPU they are only queued when a call returns: see `DecodeTask.copied`."""

    def __init__(
        self,
        pool: KvPool,
        identity: ModelIdentity,
        counters: dict[str, float],
        timeline: Timeline,
        clock: Callable[[], float],
    ) -> None:
        self.copies = Copies(pool)
        self.identity = identity
        self.counters = counters
        self.timeline = timeline
        self.clock = clock

    def write(self, task: DecodeTask, message: KvChunk, frames: list[memoryview]) -> Credit | Nack | None:
        """Copy a chunk, keys and values in a frame each, into the task's pages: what its sender hears."""
        keys, values = frames if len(frames) == 2 else (b"", b"")
        began = self.clock()
        reply = task.receiver.chunk(message, keys, values)
        if not isinstance(reply, Credit):
            return reply
        if nack := self.copied(task, lambda: self.copies.write(message, task.pages, keys, values)):
            return nack
        size = len(keys) + len(values)
        self.counters["kv_bytes_as_frames"] += size
        self.note(task, message, began, size)
        return reply

    def pull(self, task: DecodeTask, message: KvReady) -> Credit | Nack | None:
        """Copy what a descriptor names out of its sender's memory into the task's pages: what that hears."""
        began = self.clock()
        reply = task.receiver.ready(message)
        if not isinstance(reply, Credit):
            return reply
        assert task.source is not None, "the receiver takes descriptors only where it pulls"
        theirs = task.source
        copy = lambda: self.copies.pull(message, theirs.pool, theirs.pages.ids, task.pages)  # noqa: E731
        if nack := self.copied(task, copy):
            return nack
        layers = message.last_layer - message.first_layer
        size = layers * message.count * self.identity.layer_token_bytes
        self.counters["kv_bytes_pulled"] += size
        self.note(task, message, began, size)
        return reply

    def copied(self, task: DecodeTask, copy: Callable[[], Event]) -> Nack | None:
        """Copy into the task's pages. What did not get there must not count as received."""
        try:
            with losing_the_device():
                task.copied = copy()
        except Exception:  # no memory, for one
            log.exception("request %d: its KV could not be written", task.id.request)
            return task.receiver.fail("its KV could not be written")
        return None

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
