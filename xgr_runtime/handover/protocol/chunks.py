"""How a prompt's KV is cut into chunks, the checksums that prove it arrived whole, and where it lies."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash

from xgr_runtime.kv.pages import Generations, PageIds, pages_for
from xgr_runtime.wire.arrays import int32s, uint32s
from xgr_runtime.wire.messages import KvReady, Open, SharedKv

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Chunk:
    """Keys and values of layers [first_layer, last_layer) for tokens [start, start + count)."""

    first_layer: int
    last_layer: int
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count


class PromptPages(NamedTuple):
    """Where a prompt lies in the memory of its owner, and how to tell later whether it still does."""

    ids: PageIds  # [n]
    generations: Generations  # [n], as they were when the prompt got these pages


@dataclass(frozen=True)
class ChunkPlan:
    """Cuts `layers` x `tokens` into chunks of one layer and at most `chunk_bytes` (keys and values together).

    A chunk never spans layers, nor tokens of two forwards, so that KV can leave while the next is computed.
    """

    layers: int
    tokens: int
    layer_token_bytes: int  # keys and values of one token in one layer, all heads
    chunk_bytes: int
    heads: int  # KV heads of the model, which every chunk has

    def size_of(self, chunk: Chunk) -> int:
        """Bytes of KV in a chunk."""
        return (chunk.last_layer - chunk.first_layer) * chunk.count * self.layer_token_bytes

    def cut(self, layer: int, start: int, end: int) -> list[Chunk]:
        """The chunks of tokens [start, end) of one layer, in token order."""
        step = max(1, self.chunk_bytes // self.layer_token_bytes)
        return [Chunk(layer, layer + 1, first, min(step, end - first)) for first in range(start, end, step)]


def chunk_checksum(keys: Buffer, values: Buffer) -> int:
    """xxh3_64 over a chunk's two frames."""
    digest = xxhash.xxh3_64(keys)
    digest.update(values)
    return digest.intdigest()


def range_checksum(message: KvReady) -> int:
    """xxh3_64 over what a descriptor says: the KV itself is read where it was written."""
    m = message
    named = (m.sequence, m.first_layer, m.last_layer, m.start, m.count, m.first_head, m.heads)
    return xxhash.xxh3_64_intdigest(b"".join(n.to_bytes(8, "little", signed=True) for n in named))


def pages_named(message: Open, memory: SharedKv) -> PromptPages | None:
    """The pages that OPEN names in that memory; None where they cannot be those of its prompt."""
    if len(message.pages) % 4 or len(message.pages) != len(message.generations):
        return None
    ids = int32s(message.pages)
    if len(ids) != pages_for(message.prompt_tokens, memory.page_size):
        return None
    if not len(ids) or ids.min() < 0 or ids.max() >= memory.pages or len(np.unique(ids)) != len(ids):
        return None
    return PromptPages(ids, uint32s(message.generations))


def digest_of(checksums: Iterable[int]) -> int:
    """xxh3_64 over all chunk checksums in sequence: what COMMIT carries."""
    return xxhash.xxh3_64_intdigest(b"".join(c.to_bytes(8, "little") for c in checksums))
