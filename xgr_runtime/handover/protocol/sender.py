"""The prefill side of one hand-over: from OPEN until ACK, NACK, CANCEL or a lapsed lease."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from enum import Enum

from xgr_runtime.handover.protocol.chunks import Chunk, ChunkPlan, PromptPages, digest_of
from xgr_runtime.wire.arrays import pack
from xgr_runtime.wire.messages import (
    MOST_CREDITS,
    AttemptId,
    Cancel,
    Commit,
    Grant,
    KvChunk,
    KvReady,
    Open,
    ProcessId,
    Way,
    brief,
)

FIRST_LEASE = 15.0
"""Seconds that KV is held before the first word of a decode worker, where no setting says otherwise."""

ASK_EVERY = 1.0
"""Seconds between looks at a reader in place, and between questions to one that is silent for long."""


class SenderState(Enum):
    """Where a hand-over stands, seen from the prefill worker."""

    OPENED = "opened"  # waiting for GRANT; layers pile up in our own pages
    STREAMING = "streaming"  # chunks leave as layers are ready and credits allow
    COMMITTED = "committed"  # everything left; waiting for ACK
    DONE = "done"  # the prompt has arrived
    FAILED = "failed"  # it will not; `reason` says why


class Sender:
    """One attempt's KV on its way out.

    The caller computes KV (`layer_ready`, `prompt_ready`), feeds answers (`granted`, `credited`, ...), and
    sends whatever `next_chunk`, `commit` and `cancel` allow. An event that comes too late or twice changes
    nothing. `pages` says where the prompt lies, if the receiver may read it there. From COMMIT on a receiver
    may do that in place: then the prompt's pages are its to read until it lets go or has died, whatever
    becomes of the request.
    """

    def __init__(
        self, id: AttemptId, plan: ChunkPlan, now: float, lease: float, pages: PromptPages | None = None
    ) -> None:
        self.id = id
        self.plan = plan
        self.pages = pages
        self.way: Way = "frames"
        self.state = SenderState.OPENED
        self.reason = ""
        self.credits = 0
        self.lease_until = now + lease
        self.read_in_place = False  # the receiver may be reading our pages
        self._reader: ProcessId | None = None
        self._look_at = -math.inf  # whether it lives
        self._ask = False  # whether it still does: say again what we said last
        self._ready = [0] * plan.layers  # tokens of each layer that are in our pages
        self._held_tokens = 0
        self._queue: deque[Chunk] = deque()
        self._checksums: list[int] = []
        self._prompt_ready = False
        self._prefill_seconds = 0.0
        self._cached_tokens = 0
        self._hidden_checksum: int | None = None

    @property
    def over(self) -> bool:
        """True once the prompt's pages may be reused."""
        return self.state in (SenderState.DONE, SenderState.FAILED) and not self.read_in_place

    def open(self, queue_seconds: float) -> Open:
        """The first message."""
        if self.pages is None:
            return Open(self.id, self.plan.tokens, queue_seconds)
        ids, generations = self.pages
        return Open(self.id, self.plan.tokens, queue_seconds, pack(ids), pack(generations))

    # --- events from the model ---

    def layer_ready(self, layer: int, tokens: int) -> None:
        """Keys and values of `layer` are in our pages for tokens [0, tokens).

        A prompt may take several forwards, each of which adds tokens to every layer in order.
        """
        before = self._ready[layer]
        if tokens <= before:
            return  # a forward that is repeated
        assert tokens <= (self._ready[layer - 1] if layer else self.plan.tokens), (
            "layers are computed in order"
        )
        self._ready[layer] = tokens
        if self.state is SenderState.STREAMING:
            self._offer(layer, max(before, self._held_tokens), tokens)

    def prompt_ready(
        self, prefill_seconds: float, hidden_checksum: int | None, cached_tokens: int = 0
    ) -> None:
        """All KV is ready, and so is the last hidden state; None: the receiver computes that itself.

        The KV of `cached_tokens` tokens was there before the request.
        """
        assert self._ready[-1] == self.plan.tokens, "the prompt ends with the last token of its last layer"
        self._prompt_ready = True
        self._prefill_seconds = prefill_seconds
        self._hidden_checksum = hidden_checksum
        self._cached_tokens = cached_tokens

    # --- events from the decode worker ---

    def granted(self, grant: Grant, now: float) -> None:
        """The receiver holds pages: start streaming all that is ready."""
        if self.state is not SenderState.OPENED:
            return
        if not 0 <= grant.held_tokens <= self.plan.tokens or not 1 <= grant.credits <= MOST_CREDITS:
            self.fail("GRANT is out of range")
            return
        if grant.way != "frames" and self.pages is None:
            self.fail("GRANT asks for memory that was not offered")
            return
        if grant.way == "in place" and grant.reader is None:
            self.fail("GRANT does not say who reads in place")
            return
        self.state = SenderState.STREAMING
        self.way, self._reader = grant.way, grant.reader
        self.credits = 0 if grant.way == "in place" else grant.credits
        self._held_tokens = grant.held_tokens
        self.lease_until = now + grant.lease
        for layer, tokens in enumerate(self._ready):
            self._offer(layer, self._held_tokens, tokens)

    def credited(self, chunks: int) -> None:
        """The receiver has room for `chunks` more."""
        if self.state is not SenderState.STREAMING or self.way == "in place":
            return
        self.credits += max(0, chunks)
        if self.credits > MOST_CREDITS:
            self.fail(f"the decode worker has room for {self.credits} chunks, the limit is {MOST_CREDITS}")

    def renewed(self, lease: float, now: float) -> None:
        """The receiver still wants this prompt."""
        if self.state not in (SenderState.DONE, SenderState.FAILED):
            self.lease_until = max(self.lease_until, now + lease)

    def acknowledged(self) -> None:
        """The receiver has verified everything, and reads our pages no more."""
        self.read_in_place = False
        if self.state is SenderState.COMMITTED:
            self.state = SenderState.DONE

    def refused(self, reason: str) -> None:
        """NACK: the receiver gives up, and reads our pages no more."""
        self.read_in_place = False
        self.fail(reason)

    def fail(self, reason: str) -> None:
        """CANCEL, a lost link, a deadline: the attempt is over, though it may still be read."""
        if self.state not in (SenderState.DONE, SenderState.FAILED):
            self.state = SenderState.FAILED
            self.reason = brief(reason)
            self.credits = 0
            self.lease_until = -math.inf  # whoever reads in place is asked at once

    def expire(self, now: float, lives: Callable[[ProcessId], bool]) -> bool:
        """Act on a lapsed lease, True where a living reader in place holds the prompt all the same.

        Such a reader is asked again and again, and so is one whose request is over. One that died is noticed
        within a second: a lease would keep its pages from the prompts that wait for the next one.
        """
        if self.over:
            return False
        look = self.read_in_place and now >= min(self._look_at, self.lease_until)
        if look and self._reader is not None:
            self._look_at = now + ASK_EVERY
            if not lives(self._reader):
                self.fail("the decode worker died")
                self.read_in_place = False
                return False
        if now < self.lease_until:
            return False
        if self.read_in_place:
            self.lease_until = now + ASK_EVERY
            self._ask = True
            return self.state is SenderState.COMMITTED
        self.fail("the lease lapsed")
        return False

    # --- what to send ---

    def next_chunk(self) -> Chunk | None:
        """The next chunk that may leave now. After sending it, call `chunk_sent`."""
        if self.state is not SenderState.STREAMING or not self.credits or not self._queue or self._grows:
            return None
        return self._queue[0]

    def chunk_message(self, checksum: int) -> KvChunk:
        """The header of `next_chunk`."""
        return KvChunk(*self._named(), checksum)

    def ready_message(self) -> KvReady:
        """The descriptor of `next_chunk`, where the receiver pulls."""
        return KvReady(*self._named())

    def _named(self) -> tuple[AttemptId, int, int, int, int, int, int, int]:
        """What either message says of `next_chunk`."""
        c, sequence = self._queue[0], len(self._checksums)
        return self.id, sequence, c.first_layer, c.last_layer, c.start, c.count, 0, self.plan.heads

    def chunk_sent(self, checksum: int) -> None:
        """The chunk went to the socket: one credit is spent. A descriptor has a checksum of its own."""
        self._queue.popleft()
        self._checksums.append(checksum)
        self.credits -= 1

    def commit(self) -> Commit | None:
        """The closing message, once every chunk has left. After sending it, call `commit_sent`."""
        whole = self.state is SenderState.STREAMING and not self._queue and self._prompt_ready
        if not whole and not (self.state is SenderState.COMMITTED and self._ask):
            return None
        digest = digest_of(self._checksums)
        seconds, cached = self._prefill_seconds, self._cached_tokens
        return Commit(self.id, len(self._checksums), digest, self._hidden_checksum, seconds, cached)

    def commit_sent(self) -> None:
        """COMMIT went to the socket: from now on a receiver may read in place."""
        self.state = SenderState.COMMITTED
        self.credits = 0
        self.read_in_place = self.way == "in place"
        self._ask = False

    def cancel(self) -> Cancel | None:
        """What to tell a receiver that still reads a prompt which is over. Afterwards call `cancel_sent`."""
        asking = self.state is SenderState.FAILED and self.read_in_place and self._ask
        return Cancel(self.id, self.reason) if asking else None

    def cancel_sent(self) -> None:
        """CANCEL went to the socket."""
        self._ask = False

    def _offer(self, layer: int, start: int, end: int) -> None:
        """Tokens [start, end) of a layer may leave: in chunks, or told in one piece to whoever pulls them."""
        if self.way == "frames":
            self._queue.extend(self.plan.cut(layer, start, end))
        elif self.way == "pull" and start < end:
            last = self._queue[-1] if self._queue else None
            if (
                last
                and self._is_small(last)
                and (last.last_layer, last.start, last.end) == (layer, start, end)
            ):
                self._queue[-1] = replace(last, last_layer=layer + 1)
            else:
                self._queue.append(Chunk(layer, layer + 1, start, end - start))

    @property
    def _grows(self) -> bool:
        """Whether the only chunk that could leave waits for its next layer.

        Telling of every layer interrupts a forward that has all cores.
        """
        only = self._queue[0] if self.way == "pull" and len(self._queue) == 1 else None
        return only is not None and self._is_small(only) and only.last_layer < self.plan.layers

    def _is_small(self, chunk: Chunk) -> bool:
        return self.plan.size_of(chunk) < self.plan.chunk_bytes
