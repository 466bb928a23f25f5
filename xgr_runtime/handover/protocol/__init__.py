"""The KV hand-over protocol as state machines: events in, messages out. No sockets, no tensors.

prefill: Sender                                 decode: Receiver
  OPEN{pages}    ----------------------------->   waits for OPEN and for pages, in either order
  streaming      <--------- GRANT{credits, way}
                 ----- KV chunks, one per credit ->  checks, copies, returns CREDIT
  committed      ----- COMMIT{digest[, hidden]} ->   verifies everything
  done           <-------------------------- ACK     ready to decode

GRANT says which way this prompt's KV takes. As frames, a chunk is a KvChunk and its bytes. Where the receiver
pulls, a chunk is a KvReady: the receiver copies it out of the sender's pages, and sees at COMMIT by their
generations whether they were the prompt's all the while. In place no chunk is sent, the receiver reads from
COMMIT on, and ACK comes when it reads no more.
"""

from xgr_runtime.handover.protocol.chunks import (
    Chunk,
    ChunkPlan,
    PromptPages,
    chunk_checksum,
    digest_of,
    pages_named,
    range_checksum,
)
from xgr_runtime.handover.protocol.receiver import Receiver, ReceiverState
from xgr_runtime.handover.protocol.sender import ASK_EVERY, FIRST_LEASE, Sender, SenderState

__all__ = [
    "ASK_EVERY",
    "FIRST_LEASE",
    "Chunk",
    "ChunkPlan",
    "PromptPages",
    "Receiver",
    "ReceiverState",
    "Sender",
    "SenderState",
    "chunk_checksum",
    "digest_of",
    "pages_named",
    "range_checksum",
]
