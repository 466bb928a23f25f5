"""Prompt KV of other processes that this worker has mapped, and which way each one's KV comes here."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from xgr_runtime.handover.protocol import PromptPages, pages_named
from xgr_runtime.kv.shared_memory import CannotMap, lives
from xgr_runtime.model.memory.kv_memory import mapped_memory
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.wire.messages import HostRegion, LinkHello, Open, ProcessId, SharedKv, Way

log = logging.getLogger(__name__)

MOST_MEMORIES = 256  # mappings, of which a process has a bounded number


@dataclass(frozen=True)
class MappedPrompt:
    """Where one prompt lies in another worker's memory."""

    pool: KvPool
    pages: PromptPages

    @property
    def intact(self) -> bool:
        """Whether these pages have been the prompt's all the while, up to now."""
        ids, generations = self.pages
        return bool((self.pool.memory.generations[ids] == generations).all())


class PrefillMemories:
    """What prefill workers offer when they greet, mapped once per run of theirs, until that run is over.

    A pool that is itself another worker's memory is read in place, and no other prompt can be taken in.
    """

    def __init__(
        self, pool: KvPool, in_place: bool, pull: bool, alive: Callable[[ProcessId], bool] = lives
    ) -> None:
        self.in_place = in_place
        self.orphaned = False  # the memory that we read in place is history: nothing new can come
        self._pool = pool
        self._pull = pull
        self._alive = alive
        self._mapped: dict[int, KvPool] = {}  # prefill incarnation -> its pool

    def greeted(self, hello: LinkHello) -> str:
        """A prefill worker with the same model is here. Returns why its KV cannot be taken, or nothing."""
        if self.in_place:
            return self._meet_owner(hello)
        if not self._pull or hello.memory is None:
            reason = "as asked for" if not self._pull else "it offers no memory"
            log.info("KV of %s comes as frames: %s", hello.worker, reason)
        elif hello.incarnation not in self._mapped:
            self._know(hello, hello.memory)
        return ""

    def source_of(self, message: Open) -> MappedPrompt | None:
        """Where that prompt lies for us to read; None where its KV comes as frames. Raises `CannotMap`."""
        pool = self._pool if self.in_place else self._mapped.get(message.id.prefill)
        if pool is None:
            return None
        assert pool.memory.shared is not None, "it is another worker's"
        pages = pages_named(message, pool.memory.shared)
        if pages is None:
            raise CannotMap("OPEN names pages that cannot be its prompt's")
        return MappedPrompt(pool, pages)

    def way_of(self, source: MappedPrompt | None) -> Way:
        """By which way a prompt comes."""
        if source is None:
            return "frames"
        return "in place" if self.in_place else "pull"

    def drop_dead(self, reading: Collection[KvPool]) -> None:
        """Unmap the memory of the dead, but for what is being read; notice the death of our owner."""
        self._mapped = {
            incarnation: pool
            for incarnation, pool in self._mapped.items()
            if any(pool is used for used in reading) or self._alive(_owner(pool))
        }
        if self.in_place and not self.orphaned and not self._alive(_owner(self._pool)):
            self._orphan("has died")

    @property
    def read_in_place(self) -> int:
        """The id of the memory outside which no prompt can be; 0 where prompts come from any."""
        shared = self._pool.memory.shared if self.in_place else None
        return shared.id if shared is not None else 0

    @property
    def took_prompts_along(self) -> bool:
        """Whether prompts that were read in place are gone with their owner; main memory outlives it."""
        if not self.orphaned:
            return False
        shared = self._pool.memory.shared
        return shared is None or not isinstance(shared.kv, HostRegion)

    def _know(self, hello: LinkHello, memory: SharedKv) -> None:
        """A process that took beams for a while has the same memory under another incarnation."""
        for incarnation, pool in list(self._mapped.items()):
            if pool.memory.shared == memory:
                self._mapped[hello.incarnation] = self._mapped.pop(incarnation)
                return
        self._map(hello, memory)

    def _map(self, hello: LinkHello, memory: SharedKv) -> None:
        if len(self._mapped) >= MOST_MEMORIES:
            log.warning("KV of %s comes as frames: %d memories are mapped", hello.worker, MOST_MEMORIES)
            return
        try:
            mapped = mapped_memory(memory, self._pool.identity)
        except CannotMap as error:
            log.warning("KV of %s comes as frames: %s", hello.worker, error)
            return
        pool = KvPool(self._pool.identity, memory.pages, memory.page_size, mapped)
        self._mapped[hello.incarnation] = pool
        log.info("KV of %s is pulled out of its memory (%d bytes)", hello.worker, memory.kv.size)

    def _meet_owner(self, hello: LinkHello) -> str:
        ours = self._pool.memory.shared
        assert ours is not None, "a pool that is read in place is another worker's"
        if hello.memory is not None and hello.memory.id == ours.id:
            log.info("KV of %s is read in place", hello.worker)
            return ""
        if not self._alive(_owner(self._pool)):
            self._orphan("was started again")
        return "this worker reads the memory of another prefill worker in place, and can take in no KV"

    def _orphan(self, what: str) -> None:
        self.orphaned = True
        log.error("the prefill worker whose memory this one reads %s: it must start again, too", what)


def _owner(pool: KvPool) -> ProcessId:
    assert pool.memory.shared is not None, "it is another worker's"
    return pool.memory.shared.generations.owner
