"""The decode side of one hand-over: from the router's request to a verified COMMIT."""

from enum import Enum

from xgr_runtime.handover.protocol.chunks import Buffer, chunk_checksum, digest_of, range_checksum
from xgr_runtime.wire.messages import (
    Ack,
    AttemptId,
    Commit,
    Credit,
    Grant,
    KvChunk,
    KvReady,
    Nack,
    Open,
    ProcessId,
    Renew,
    Way,
    brief,
)


class ReceiverState(Enum):
    """Where a hand-over stands, seen from the decode worker."""

    WAITING = "waiting"  # for OPEN, for pages, or for both
    STREAMING = "streaming"  # GRANT is out, chunks come in
    READY = "ready"  # COMMIT verified: decode may start
    DONE = "done"  # the same, and the prefill worker's memory is read no more
    FAILED = "failed"  # pages may be reused; `reason` says why


class Receiver:
    """One attempt's KV on its way in.

    Layers may come in any order and in turns, tokens of one layer in ascending order without gaps; where the
    prompt is read in place, nothing comes but COMMIT. Whatever breaks a rule fails the attempt with a NACK
    and touches nothing else; what comes after the end is ignored.
    """

    def __init__(
        self,
        id: AttemptId,
        prompt_tokens: int,
        layers: int,
        heads: int,
        layer_token_bytes: int,
        hidden_bytes: int,
    ) -> None:
        self.id = id
        self.prompt_tokens = prompt_tokens
        self.layers = layers
        self.heads = heads  # KV heads of the model
        self.state = ReceiverState.WAITING
        self.reason = ""
        self.queue_seconds = 0.0
        self.prefill_seconds = 0.0
        self.credits_out = 0
        self.opened = False
        self.has_pages = False
        self.way: Way = "frames"
        self._frame_token_bytes = layer_token_bytes // 2  # keys and values travel in a frame each
        self._hidden_bytes = hidden_bytes
        self._next_token = [0] * layers
        self._checksums: list[int] = []

    @property
    def wants_pages(self) -> bool:
        """True when pages should be reserved: the prefill worker has begun."""
        return self.state is ReceiverState.WAITING and self.opened and not self.has_pages

    def open(self, message: Open) -> Nack | None:
        """The prefill worker holds its pages and begins."""
        if self.state is not ReceiverState.WAITING or self.opened:
            return None
        if message.prompt_tokens != self.prompt_tokens:
            return self.fail(f"OPEN names {message.prompt_tokens} tokens, the request {self.prompt_tokens}")
        self.opened = True
        self.queue_seconds = message.queue
        return None

    def grant(
        self,
        credits: int,
        lease: float,
        held_tokens: int = 0,
        way: Way = "frames",
        reader: ProcessId | None = None,
    ) -> Grant:
        """There is a place for the prompt, our pages or the prefill worker's: let it come this way.

        `reader` are we, if we read in place.
        """
        assert self.wants_pages, "pages are granted once, after OPEN"
        assert (reader is not None) == (way == "in place"), "who reads in place says who that is"
        self.has_pages = True
        self.way = way
        self.state = ReceiverState.STREAMING
        self.credits_out = 0 if way == "in place" else credits
        self._next_token = [held_tokens] * self.layers
        return Grant(self.id, credits, lease, held_tokens, way, reader)

    @property
    def renewable(self) -> bool:
        """True while the prefill worker holds KV for us."""
        holding = (ReceiverState.WAITING, ReceiverState.STREAMING, ReceiverState.READY)
        return self.opened and self.state in holding

    def renew(self, lease: float) -> Renew | None:
        """Ask the prefill worker to go on holding; None when there is nothing to hold."""
        return Renew(self.id, lease) if self.renewable else None

    def chunk(self, message: KvChunk, keys: Buffer, values: Buffer) -> Credit | Nack | None:
        """A chunk is here. On `Credit` the caller copies the frames into its pages, then sends the credit."""
        if self.state is not ReceiverState.STREAMING:
            return None
        problem = self._problem_with(message) or self._problem_with_frames(message, keys, values)
        return self.fail(problem) if problem else self._taken(message, message.checksum)

    def ready(self, message: KvReady) -> Credit | Nack | None:
        """A chunk can be read. On `Credit` the caller copies it into its pages, then sends the credit."""
        if self.state is not ReceiverState.STREAMING:
            return None
        problem = self._problem_with(message)
        return self.fail(problem) if problem else self._taken(message, range_checksum(message))

    def commit(self, message: Commit, hidden: Buffer | None, intact: bool = True) -> Nack | None:
        """The closing message: verify that everything is here; afterwards we are READY, if all is well.

        `hidden` is the frame behind it; None: none came, so decode starts from KV alone. `intact` says, once
        all copies are done, that the prefill worker has not reused a page that we read.
        """
        if self.state is not ReceiverState.STREAMING:
            return None
        if message.chunks != len(self._checksums) or message.digest != digest_of(self._checksums):
            return self.fail("COMMIT's digest is not that of the chunks received")
        if self.way != "in place" and any(token != self.prompt_tokens for token in self._next_token):
            return self.fail("COMMIT came before all tokens of all layers")
        if not self._fits(message.checksum, hidden):
            return self.fail("the hidden state behind COMMIT is damaged")
        if not intact:
            return self.fail("the prompt's pages were reused before they had been read")
        self.state = ReceiverState.READY
        self.prefill_seconds = message.prefill
        self.credits_out = 0
        return None

    def release(self) -> Ack | None:
        """The prefill worker's memory is read no more: the message that lets it go, once, after COMMIT."""
        if self.state is not ReceiverState.READY:
            return None
        self.state = ReceiverState.DONE
        return Ack(self.id)

    def fail(self, reason: str) -> Nack:
        """The attempt is over: the message that tells the prefill worker."""
        if self.state is not ReceiverState.FAILED:
            self.state = ReceiverState.FAILED
            self.reason = brief(reason)
            self.credits_out = 0
        return Nack(self.id, self.reason)

    def _fits(self, checksum: int | None, hidden: Buffer | None) -> bool:
        """Whether the hidden state is the one that COMMIT names, or neither is there."""
        if checksum is None or hidden is None:
            return checksum is None and hidden is None
        return len(hidden) == self._hidden_bytes and checksum == chunk_checksum(hidden, b"")

    def _taken(self, message: KvChunk | KvReady, checksum: int) -> Credit:
        for layer in range(message.first_layer, message.last_layer):
            self._next_token[layer] += message.count
        self._checksums.append(checksum)
        return Credit(self.id, 1)

    def _problem_with(self, message: KvChunk | KvReady) -> str:
        """Why what this chunk names cannot be accepted, or an empty string."""
        if (self.way == "pull") != isinstance(message, KvReady) or self.way == "in place":
            return f"a chunk came as {type(message).__name__}, which is not the way {self.way!r}"
        if message.sequence != len(self._checksums):
            return f"chunk {message.sequence} came instead of {len(self._checksums)}"
        if not 0 <= message.first_layer < message.last_layer <= self.layers:
            return f"chunk names layers [{message.first_layer}, {message.last_layer}) of {self.layers}"
        if (message.first_head, message.heads) != (0, self.heads):
            end = message.first_head + message.heads
            return f"chunk names KV heads [{message.first_head}, {end}), not all {self.heads}"
        layers = range(message.first_layer, message.last_layer)
        if message.count < 1 or message.start + message.count > self.prompt_tokens:
            return f"chunk names tokens past the prompt's {self.prompt_tokens}"
        if any(self._next_token[layer] != message.start for layer in layers):
            return f"chunk starts at token {message.start}, which is not the next one"
        return ""

    def _problem_with_frames(self, message: KvChunk, keys: Buffer, values: Buffer) -> str:
        """The same of a chunk's bytes. Sizes first, the checksum last."""
        layers = message.last_layer - message.first_layer
        expected = layers * message.count * self._frame_token_bytes
        if len(keys) != expected or len(values) != expected:
            return f"frames of {len(keys)} and {len(values)} bytes, expected {expected}"
        if message.checksum != chunk_checksum(keys, values):
            return "chunk checksum does not match its bytes"
        return ""
