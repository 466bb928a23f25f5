"""One prompt's KV on its way out: what its protocol allows is taken from where it lies, and sent."""

import time
from dataclasses import dataclass
from typing import Protocol

from xgr_runtime.errors import RequestError, WorkerLost
from xgr_runtime.handover.decode_links import DecodeLink
from xgr_runtime.handover.protocol import (
    Chunk,
    PromptPages,
    Sender,
    SenderState,
    chunk_checksum,
    range_checksum,
)
from xgr_runtime.trace.timeline import KV_OUT, Timeline
from xgr_runtime.transport import Frame
from xgr_runtime.wire.messages import AttemptId, Message


class KvSource(Protocol):
    """One prompt's KV where its owner keeps it: from here its transfer takes what may leave."""

    @property
    def shared(self) -> PromptPages | None:
        """Where it lies in the memory that the link's greeting offered; None where it must be sent."""
        ...

    def read(self, chunk: Chunk) -> tuple[Frame, Frame]:
        """The keys and the values of a chunk that is ready, [layers, count, kv_heads, head_dim] each."""
        ...


@dataclass(eq=False)
class Transfer:
    """One prompt whose KV is being made or handed over. Its pages stay as they are until it is `over`."""

    id: AttemptId
    sender: Sender
    link: DecodeLink
    deadline: float
    queue_seconds: float
    source: KvSource
    timeline: Timeline
    open_sent: bool = False
    outlived: bool = False  # a living reader in place held its pages past the lease
    hidden: bytes | None = None
    error: RequestError | None = None  # why we ended it ourselves

    @property
    def over(self) -> bool:
        """True once the prompt's pages may be reused."""
        return self.sender.over

    @property
    def failure(self) -> RequestError | None:
        """Why the prompt did not arrive; None if it did."""
        if self.sender.state is not SenderState.FAILED:
            return None
        return self.error or WorkerLost(f"hand-over failed: {self.sender.reason}")

    def layer_ready(self, layer: int, tokens: int) -> None:
        """Keys and values of `layer` can be read for tokens [0, tokens). See `Sender.layer_ready`."""
        self.sender.layer_ready(layer, tokens)

    def prompt_ready(self, seconds: float, hidden: bytes | None, cached_tokens: int = 0) -> None:
        """All KV can be read, after `seconds` in the model; that of `cached_tokens` tokens was there before.

        `hidden` is the last token's hidden state after the final norm, float32 [hidden]; None: the decode
        worker computes it.
        """
        self.hidden = hidden
        checksum = None if hidden is None else chunk_checksum(hidden, b"")
        self.sender.prompt_ready(seconds, checksum, cached_tokens)

    def fail(self, reason: str) -> None:
        """The prompt is wanted no more, or not here."""
        self.sender.fail(reason)

    def give_up(self, error: RequestError) -> None:
        """End it for a reason of our own, which is the request's answer."""
        if self.sender.state not in (SenderState.DONE, SenderState.FAILED):
            self.error = error
            self.sender.fail(error.message)

    def flush(self) -> bool:
        """Send what the protocol allows; False when the socket takes no more for now."""
        if self.over:
            return True
        if (cancel := self.sender.cancel()) is not None and self._send(cancel):
            self.sender.cancel_sent()
        if self.sender.state is SenderState.FAILED:
            return True
        self.open_sent = self.open_sent or self._send(self.sender.open(self.queue_seconds))
        return self.open_sent and self._send_chunks() and self._send_commit()

    def _send_chunks(self) -> bool:
        while (chunk := self.sender.next_chunk()) is not None:
            started = time.monotonic()
            sent = self._send_frames(chunk) if self.sender.way == "frames" else self._send_descriptor()
            if not sent:
                return False
            self.timeline.add(
                KV_OUT,
                self.sender.way,
                started,
                None,
                self.id,
                first_layer=chunk.first_layer,
                last_layer=chunk.last_layer,
                tokens=chunk.count,
            )
        return True

    def _send_frames(self, chunk: Chunk) -> bool:
        keys, values = self.source.read(chunk)
        checksum = chunk_checksum(keys, values)
        if not self._send(self.sender.chunk_message(checksum), keys, values):
            return False
        self.sender.chunk_sent(checksum)
        return True

    def _send_descriptor(self) -> bool:
        message = self.sender.ready_message()
        if not self._send(message):
            return False
        self.sender.chunk_sent(range_checksum(message))
        return True

    def _send_commit(self) -> bool:
        if (commit := self.sender.commit()) is None:
            return True
        if not self._send(commit, *([] if self.hidden is None else [self.hidden])):
            return False
        self.sender.commit_sent()
        return True

    def _send(self, message: Message, *frames: Frame) -> bool:
        return self.link.send(self.id.decode, message, *frames)
