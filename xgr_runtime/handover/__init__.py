"""The KV hand-over protocol as state machines: events in, messages out. No sockets, no tensors.

prefill: Sender                              decode: Receiver
  OPEN        ----------------------------->   waits for OPEN and for pages, in either order
  streaming   <-------------- GRANT{credits}
              ----- KV chunks, one per credit ->  checks, copies, returns CREDIT
  committed   ----- COMMIT{digest[, hidden]} ->   verifies everything
  done        <-------------------------- ACK     ready to decode
"""

from xgr_runtime.handover.chunks import Chunk, ChunkPlan, chunk_checksum, digest_of
from xgr_runtime.handover.receiver import Receiver, ReceiverState
from xgr_runtime.handover.sender import FIRST_LEASE, Sender, SenderState

__all__ = [
    "FIRST_LEASE",
    "Chunk",
    "ChunkPlan",
    "Receiver",
    "ReceiverState",
    "Sender",
    "SenderState",
    "chunk_checksum",
    "digest_of",
]
