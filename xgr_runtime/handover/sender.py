"""The prefill side of one hand-over: from OPEN until ACK, NACK, CANCEL or a lapsed lease."""

from collections import deque
from enum import Enum

from xgr_runtime.handover.chunks import Chunk, ChunkPlan, digest_of
from xgr_runtime.messages import AttemptId, Commit, Grant, KvChunk, Open

FIRST_LEASE = 15.0
"""Seconds that KV is held before the first word of a decode worker, where no setting says otherwise."""


class SenderState(Enum):
    """Where a hand-over stands, seen from the prefill worker."""

    OPENED = "opened"  # waiting for GRANT; layers pile up in our own pages
    STREAMING = "streaming"  # chunks leave as layers are ready and credits allow
    COMMITTED = "committed"  # everything left; waiting for ACK
    DONE = "done"  # pages may be reused
    FAILED = "failed"  # pages may be reused; `reason` says why


class Sender:
    """One attempt's KV on its way out.

    The caller computes KV (`layer_ready`, `prompt_ready`), feeds answers (`granted`, `credited`, ...), and
    sends whatever `next_chunk` and `commit` allow. An event that comes too late or twice changes nothing.
    """

    def __init__(self, id: AttemptId, plan: ChunkPlan, now: float, lease: float) -> None:
        self.id = id
        self.plan = plan
        self.state = SenderState.OPENED
        self.reason = ""
        self.credits = 0
        self.lease_until = now + lease
        self._ready = [0] * plan.layers  # tokens of each layer that are in our pages
        self._held_tokens = 0
        self._queue: deque[Chunk] = deque()
        self._checksums: list[int] = []
        self._prompt_ready = False
        self._prefill_seconds = 0.0
        self._hidden_checksum: int | None = None

    @property
    def over(self) -> bool:
        """True once the prompt's pages may be reused."""
        return self.state in (SenderState.DONE, SenderState.FAILED)

    def open(self, queue_seconds: float) -> Open:
        """The first message."""
        return Open(self.id, self.plan.tokens, queue_seconds)

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
            self._queue.extend(self.plan.cut(layer, max(before, self._held_tokens), tokens))

    def prompt_ready(self, prefill_seconds: float, hidden_checksum: int | None) -> None:
        """All KV is ready, and so is the last hidden state; None: the receiver computes that itself."""
        assert self._ready[-1] == self.plan.tokens, "the prompt ends with the last token of its last layer"
        self._prompt_ready = True
        self._prefill_seconds = prefill_seconds
        self._hidden_checksum = hidden_checksum

    # --- events from the decode worker ---

    def granted(self, grant: Grant, now: float) -> None:
        """The receiver holds pages: start streaming all that is ready."""
        if self.state is not SenderState.OPENED:
            return
        if not 0 <= grant.held_tokens <= self.plan.tokens or grant.credits < 1:
            self.fail("GRANT is out of range")
            return
        self.state = SenderState.STREAMING
        self.credits = grant.credits
        self._held_tokens = grant.held_tokens
        self.lease_until = now + grant.lease
        for layer, tokens in enumerate(self._ready):
            self._queue.extend(self.plan.cut(layer, self._held_tokens, tokens))

    def credited(self, chunks: int) -> None:
        """The receiver has room for `chunks` more."""
        if self.state is SenderState.STREAMING and chunks > 0:
            self.credits += chunks

    def renewed(self, lease: float, now: float) -> None:
        """The receiver still wants this prompt."""
        if not self.over:
            self.lease_until = max(self.lease_until, now + lease)

    def acknowledged(self) -> None:
        """The receiver has verified everything."""
        if self.state is SenderState.COMMITTED:
            self.state = SenderState.DONE

    def fail(self, reason: str) -> None:
        """NACK, CANCEL, a lost link: the attempt is over."""
        if not self.over:
            self.state = SenderState.FAILED
            self.reason = reason

    def expire(self, now: float) -> bool:
        """Fail when the lease has lapsed; True if it just did."""
        if self.over or now < self.lease_until:
            return False
        self.fail("the lease lapsed")
        return True

    # --- what to send ---

    def next_chunk(self) -> Chunk | None:
        """The next chunk that may leave now. After sending it, call `chunk_sent`."""
        if self.state is not SenderState.STREAMING or not self.credits or not self._queue:
            return None
        return self._queue[0]

    def chunk_message(self, checksum: int) -> KvChunk:
        """The header of `next_chunk`."""
        c = self._queue[0]
        sequence = len(self._checksums)
        return KvChunk(self.id, sequence, c.first_layer, c.last_layer, c.start, c.count, checksum)

    def chunk_sent(self, checksum: int) -> None:
        """The chunk went to the socket: one credit is spent."""
        self._queue.popleft()
        self._checksums.append(checksum)
        self.credits -= 1

    def commit(self) -> Commit | None:
        """The closing message, once every chunk has left. After sending it, call `commit_sent`."""
        if self.state is not SenderState.STREAMING or self._queue or not self._prompt_ready:
            return None
        digest = digest_of(self._checksums)
        chunks = len(self._checksums)
        return Commit(self.id, chunks, digest, self._hidden_checksum, self._prefill_seconds)

    def commit_sent(self) -> None:
        """COMMIT went to the socket."""
        self.state = SenderState.COMMITTED
        self.credits = 0
