"""The decode side of one hand-over: from the router's request to a verified COMMIT."""

from enum import Enum

from xgr_runtime.handover.chunks import Buffer, chunk_checksum, digest_of
from xgr_runtime.messages import Ack, AttemptId, Commit, Credit, Grant, KvChunk, Nack, Open, Renew


class ReceiverState(Enum):
    """Where a hand-over stands, seen from the decode worker."""

    WAITING = "waiting"  # for OPEN, for pages, or for both
    STREAMING = "streaming"  # GRANT is out, chunks come in
    READY = "ready"  # COMMIT verified: decode may start
    FAILED = "failed"  # pages may be reused; `reason` says why


class Receiver:
    """One attempt's KV on its way in.

    Layers may come in any order and in turns, tokens of one layer in ascending order without gaps. Whatever
    breaks a rule fails the attempt with a NACK and touches nothing else; what comes after the end is ignored.
    """

    def __init__(
        self, id: AttemptId, prompt_tokens: int, layers: int, layer_token_bytes: int, hidden_bytes: int
    ) -> None:
        self.id = id
        self.prompt_tokens = prompt_tokens
        self.layers = layers
        self.state = ReceiverState.WAITING
        self.reason = ""
        self.queue_seconds = 0.0
        self.prefill_seconds = 0.0
        self.credits_out = 0
        self.opened = False
        self.has_pages = False
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

    def grant(self, credits: int, lease: float, held_tokens: int = 0) -> Grant:
        """Our pages are reserved: let the chunks come."""
        assert self.wants_pages, "pages are granted once, after OPEN"
        self.has_pages = True
        self.state = ReceiverState.STREAMING
        self.credits_out = credits
        self._next_token = [held_tokens] * self.layers
        return Grant(self.id, credits, lease, held_tokens)

    @property
    def renewable(self) -> bool:
        """True while the prefill worker holds KV for us."""
        return self.opened and self.state in (ReceiverState.WAITING, ReceiverState.STREAMING)

    def renew(self, lease: float) -> Renew | None:
        """Ask the prefill worker to go on holding; None when there is nothing to hold."""
        return Renew(self.id, lease) if self.renewable else None

    def chunk(self, message: KvChunk, keys: Buffer, values: Buffer) -> Credit | Nack | None:
        """A chunk is here. On `Credit` the caller copies the frames into its pages, then sends the credit."""
        if self.state is not ReceiverState.STREAMING:
            return None
        problem = self._problem_with(message, keys, values)
        if problem:
            return self.fail(problem)
        for layer in range(message.first_layer, message.last_layer):
            self._next_token[layer] += message.count
        self._checksums.append(message.checksum)
        return Credit(self.id, 1)

    def commit(self, message: Commit, hidden: Buffer | None) -> Ack | Nack | None:
        """The closing message: verify that everything is here, bit by bit.

        `hidden` is the frame behind it; None: none came, so decode starts from KV alone.
        """
        if self.state is not ReceiverState.STREAMING:
            return None
        if message.chunks != len(self._checksums) or message.digest != digest_of(self._checksums):
            return self.fail("COMMIT's digest is not that of the chunks received")
        if any(token != self.prompt_tokens for token in self._next_token):
            return self.fail("COMMIT came before all tokens of all layers")
        if not self._fits(message.checksum, hidden):
            return self.fail("the hidden state behind COMMIT is damaged")
        self.state = ReceiverState.READY
        self.prefill_seconds = message.prefill
        self.credits_out = 0
        return Ack(self.id)

    def fail(self, reason: str) -> Nack:
        """The attempt is over: the message that tells the prefill worker."""
        if self.state is not ReceiverState.FAILED:
            self.state = ReceiverState.FAILED
            self.reason = reason
            self.credits_out = 0
        return Nack(self.id, self.reason)

    def _fits(self, checksum: int | None, hidden: Buffer | None) -> bool:
        """Whether the hidden state is the one that COMMIT names, or neither is there."""
        if checksum is None or hidden is None:
            return checksum is None and hidden is None
        return len(hidden) == self._hidden_bytes and checksum == chunk_checksum(hidden, b"")

    def _problem_with(self, message: KvChunk, keys: Buffer, values: Buffer) -> str:
        """Why this chunk cannot be accepted, or an empty string. Sizes first, the checksum last."""
        if message.sequence != len(self._checksums):
            return f"chunk {message.sequence} came instead of {len(self._checksums)}"
        if not 0 <= message.first_layer < message.last_layer <= self.layers:
            return f"chunk names layers [{message.first_layer}, {message.last_layer}) of {self.layers}"
        layers = range(message.first_layer, message.last_layer)
        if message.count < 1 or message.start + message.count > self.prompt_tokens:
            return f"chunk names tokens past the prompt's {self.prompt_tokens}"
        if any(self._next_token[layer] != message.start for layer in layers):
            return f"chunk starts at token {message.start}, which is not the next one"
        expected = len(layers) * message.count * self._frame_token_bytes
        if len(keys) != expected or len(values) != expected:
            return f"frames of {len(keys)} and {len(values)} bytes, expected {expected}"
        if message.checksum != chunk_checksum(keys, values):
            return "chunk checksum does not match its bytes"
        return ""
