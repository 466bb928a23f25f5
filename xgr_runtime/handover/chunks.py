"""How a prompt's KV is cut into chunks, and the checksums that prove it arrived whole."""

from collections.abc import Iterable
from dataclasses import dataclass

import xxhash

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Chunk:
    """Keys and values of layers [first_layer, last_layer) for tokens [start, start + count)."""

    first_layer: int
    last_layer: int
    start: int
    count: int


@dataclass(frozen=True)
class ChunkPlan:
    """Cuts `layers` x `tokens` into chunks of one layer and at most `chunk_bytes` (keys and values together).

    A chunk never spans layers, nor tokens of two forwards, so that KV can leave while the next is computed.
    """

    layers: int
    tokens: int
    layer_token_bytes: int  # keys and values of one token in one layer
    chunk_bytes: int

    def cut(self, layer: int, start: int, end: int) -> list[Chunk]:
        """The chunks of tokens [start, end) of one layer, in token order."""
        step = max(1, self.chunk_bytes // self.layer_token_bytes)
        return [Chunk(layer, layer + 1, first, min(step, end - first)) for first in range(start, end, step)]


def chunk_checksum(keys: Buffer, values: Buffer) -> int:
    """xxh3_64 over a chunk's two frames."""
    digest = xxhash.xxh3_64(keys)
    digest.update(values)
    return digest.intdigest()


def digest_of(checksums: Iterable[int]) -> int:
    """xxh3_64 over all chunk checksums in sequence: what COMMIT carries."""
    return xxhash.xxh3_64_intdigest(b"".join(c.to_bytes(8, "little") for c in checksums))
