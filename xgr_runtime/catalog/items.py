"""Item ids, titles and attributes as string tables, and the vectorised lookup from item ids to rows.

A table is one blob of UTF-8 with offsets, so that it is memory-mapped and never becomes a million objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xxhash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_LONGEST_NUMBER = 18  # digits; longer ids are compared as strings


class StringTable(NamedTuple):
    """`blob` uint8 [bytes], `offsets` int64 [N + 1]; a table without any text is two empty arrays."""

    blob: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def get(self, row: int) -> bytes:
        if not len(self.offsets):
            return b""
        return self.blob[self.offsets[row] : self.offsets[row + 1]].tobytes()


class HashIndex(NamedTuple):
    """xxh3_64 of every item id in ascending order, and the row of each."""

    hashes: NDArray[np.uint64]  # [items]
    rows: NDArray[np.int32]  # [items]


def id_order(item: str) -> tuple[int, int, str]:
    """Sort key of item ids: decimal numbers first and by value, all others after them by code point."""
    numeric = item.isascii() and item.isdecimal() and len(item) <= _LONGEST_NUMBER
    return (0, int(item), item) if numeric else (1, 0, item)


def pack_strings(texts: Sequence[bytes]) -> StringTable:
    """A table of `texts`; empty arrays when none of them holds a byte."""
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
    if not offsets[-1]:
        return StringTable(np.empty(0, np.uint8), np.empty(0, np.int64))
    return StringTable(np.frombuffer(b"".join(texts), np.uint8), offsets)


def hash_ids(encoded: Sequence[bytes]) -> NDArray[np.uint64]:
    """xxh3_64 of each id, [N]."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, encoded), np.uint64, len(encoded))


def index_hashes(hashes: NDArray[np.uint64]) -> HashIndex:
    """The index of ids whose hashes [items] come in row order."""
    rows = np.argsort(hashes, kind="stable").astype(np.int32)
    return HashIndex(hashes[rows], rows)


def find_rows(index: HashIndex, ids: StringTable, encoded: Sequence[bytes]) -> NDArray[np.int32]:
    """The row of each id in `encoded`, -1 where the catalog does not hold it.

    A hash only proposes a row, the bytes decide; ids that share a hash lie side by side in the index, so a
    proposal that fails moves on to the next one.
    """
    wanted = hash_ids(encoded)
    found = np.full(len(encoded), -1, np.int32)
    at = np.searchsorted(index.hashes, wanted)
    pending = np.arange(len(encoded))
    while pending.size:
        inside = at[pending] < len(index.hashes)
        pending = pending[inside]
        pending = pending[index.hashes[at[pending]] == wanted[pending]]
        rows = index.rows[at[pending]]
        same = equal_texts(ids, rows, [encoded[i] for i in pending])
        found[pending[same]] = rows[same]
        pending = pending[~same]
        at[pending] += 1
    return found


def equal_texts(table: StringTable, rows: NDArray[np.int32], texts: Sequence[bytes]) -> NDArray[np.bool_]:
    """Whether table[rows[i]] == texts[i], [N], by one gather of all bytes."""
    starts = table.offsets[rows]
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    same: NDArray[np.bool_] = table.offsets[rows.astype(np.int64) + 1] - starts == lengths
    lengths = np.where(same, lengths, 0)
    query = np.frombuffer(b"".join([text for text, keep in zip(texts, same, strict=True) if keep]), np.uint8)
    ends = np.cumsum(lengths)
    positions = np.repeat(starts - (ends - lengths), lengths) + np.arange(len(query))
    wrong = np.flatnonzero(table.blob[positions] != query)
    same[np.searchsorted(ends, wrong, side="right")] = False
    return same
