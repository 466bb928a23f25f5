"""Item ids, titles and attributes as string tables, and the vectorised lookup from item ids to rows.

A table is one blob of UTF-8 with offsets, so that it is memory-mapped and never becomes a million objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import xxhash

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST_NUMBER = 18  # digits; longer ids are compared as strings
_GATHERED = 1 << 15  # texts that are put into order together
_HASHED = 1 << 12  # ids that are hashed together: other threads wait meanwhile


class StringTable(NamedTuple):
    """`blob` uint8 [bytes], `offsets` int64 [N + 1]; a table without any text is two empty arrays."""

    blob: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def get(self, row: int) -> bytes:
        if not len(self.offsets):
            return b""
        return self.blob[self.offsets[row] : self.offsets[row + 1]].tobytes()

    def take(self, rows: NDArray[Any]) -> list[bytes]:
        """The texts of `rows` [N]."""
        first, last = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        view = memoryview(self.blob.data)
        return [bytes(view[a:b]) for a, b in zip(first, last, strict=True)]

    def strings(self, rows: NDArray[Any]) -> list[str]:
        """The same, decoded."""
        first, last = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        view = memoryview(self.blob.data)
        return [str(view[a:b], "utf-8") for a, b in zip(first, last, strict=True)]

    def texts(self, first: int = 0, last: int | None = None) -> list[bytes]:
        """Every text of rows [first, last), in their order."""
        ends = self.offsets[first : None if last is None else last + 1]
        whole = self.blob[ends[0] : ends[-1]].tobytes() if len(ends) else b""
        return [whole[a:b] for a, b in pairwise((ends - ends[:1]).tolist())]

    def ordered(self, order: NDArray[Any]) -> StringTable:
        """The texts of the rows `order` [N] as a table. Beside it, only a piece of rows takes memory."""
        if not len(self.offsets):
            return self
        offsets = np.zeros(len(order) + 1, np.int64)
        offsets[1:] = np.diff(self.offsets)[order]
        np.cumsum(offsets, out=offsets)
        blob = np.empty(int(offsets[-1]), np.uint8)
        for first in range(0, len(order), _GATHERED):
            last = min(first + _GATHERED, len(order))
            shift = self.offsets[order[first:last]] - offsets[first:last]
            at = np.repeat(shift, np.diff(offsets[first : last + 1]))
            at += np.arange(offsets[first], offsets[last])
            np.take(self.blob, at, out=blob[offsets[first] : offsets[last]], mode="clip")
        return StringTable(blob, offsets)


class TextSequence(Sequence[str]):
    """TextSequence that lie in a table, as a sequence: each is made when somebody asks for it."""

    def __init__(self, table: StringTable) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table.offsets) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.table.get(row).decode()


class HashIndex(NamedTuple):
    """xxh3_64 of every item id in ascending order, and the row of each."""

    hashes: NDArray[np.uint64]  # [items]
    rows: NDArray[np.int32]  # [items]
    starts: NDArray[np.int32]  # [2**k] the first hash with each value of the top k bits


def id_order(item: str) -> tuple[int, int, str]:
    """Sort key of item ids: decimal numbers first and by value, all others after them by code point."""
    numeric = item.isascii() and item.isdecimal() and len(item) <= LONGEST_NUMBER
    return (0, int(item), item) if numeric else (1, 0, item)


def pack_strings(texts: Sequence[bytes]) -> StringTable:
    """A table of `texts`."""
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
    return StringTable(np.frombuffer(b"".join(texts), np.uint8), offsets)


def pack_optional(texts: Sequence[bytes]) -> StringTable:
    """A table of `texts`; two empty arrays when none of them holds a byte."""
    table = pack_strings(texts)
    return table if len(table.blob) else StringTable(np.empty(0, np.uint8), np.empty(0, np.int64))


def encode_ids(item_ids: Sequence[str | int]) -> list[bytes]:
    """UTF-8 of each id; integers become their decimal text."""
    try:
        return [*map(str.encode, item_ids)]  # type: ignore[arg-type]
    except (TypeError, UnicodeEncodeError):
        # An id that is not valid Unicode cannot be in a catalog; it must be unknown, not an error.
        return [str(item).encode("utf-8", "surrogatepass") for item in item_ids]


def hash_ids(encoded: Sequence[bytes]) -> NDArray[np.uint64]:
    """xxh3_64 of each id, [N]."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, encoded), np.uint64, len(encoded))


def hash_table(ids: StringTable) -> NDArray[np.uint64]:
    """`hash_ids` of a table; some ids at a time become objects."""
    hashes = np.empty(len(ids.offsets) - 1, np.uint64)
    for first in range(0, len(hashes), _HASHED):
        last = min(first + _HASHED, len(hashes))
        hashes[first:last] = hash_ids(ids.texts(first, last))
    return hashes


def index_hashes(hashes: NDArray[np.uint64]) -> HashIndex:
    """The index of ids whose hashes [items] come in row order."""
    rows = np.argsort(hashes, kind="stable").astype(np.int32)
    return _with_starts(hashes[rows], rows)


def _with_starts(hashes: NDArray[np.uint64], rows: NDArray[np.int32]) -> HashIndex:
    buckets = np.arange(bucket_count(len(rows)), dtype=np.uint64)
    starts = np.searchsorted(hashes, buckets << _bucket_shift(len(buckets)))
    return HashIndex(hashes, rows, starts.astype(np.int32))


def index_again(index: HashIndex, more: NDArray[np.uint64], rows: NDArray[np.integer]) -> HashIndex:
    """The index of ids of which `rows` [N] says which they are: those of `index`, then those of `more`.

    What `index_hashes` gives, without sorting what is sorted.
    """
    number = np.full(len(index.rows) + len(more), -1, np.int32)
    number[rows] = np.arange(len(rows), dtype=np.int32)
    before, behind = number[index.rows], number[len(index.rows) :]
    hashes, before = index.hashes[before >= 0], before[before >= 0]
    more, behind = more[behind >= 0], behind[behind >= 0]
    order = np.argsort(more, kind="stable")
    at = np.searchsorted(hashes, more[order])
    hashes, found = np.insert(hashes, at, more[order]), np.insert(before, at, behind[order])
    if (hashes[1:] == hashes[:-1]).any():  # ids that share a hash lie in the order of their rows
        found = found[np.lexsort((found, hashes))]
    return _with_starts(hashes, found)


def bucket_count(items: int) -> int:
    """A power of two, for about 4 to 8 hashes per bucket."""
    return int(1 << max(1, items.bit_length() - 3))


def _bucket_shift(buckets: int) -> np.uint64:
    return np.uint64(65 - buckets.bit_length())


def first_not_below(index: HashIndex, wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """searchsorted(index.hashes, wanted), [N].

    Hashes are evenly spread, so the top bits lead to within a few entries: a few short rounds instead of
    twenty scattered reads each.
    """
    bucket = wanted >> _bucket_shift(len(index.starts))
    at: NDArray[np.int64] = index.starts[bucket].astype(np.int64)
    below = np.arange(len(wanted))
    while below.size:
        below = below[at[below] < len(index.hashes)]
        below = below[index.hashes[at[below]] < wanted[below]]
        at[below] += 1
    return at


def find_rows(index: HashIndex, ids: StringTable, encoded: Sequence[bytes]) -> NDArray[np.int32]:
    """The row of each id in `encoded`, -1 where the catalog does not hold it.

    A hash only proposes a row, the bytes decide; ids that share a hash lie side by side in the index, so a
    proposal that fails moves on to the next one.
    """
    wanted = hash_ids(encoded)
    query = pack_strings(encoded)
    found = np.full(len(encoded), -1, np.int32)
    at = first_not_below(index, wanted)
    pending = np.arange(len(encoded))
    while pending.size:
        pending = pending[at[pending] < len(index.hashes)]
        pending = pending[index.hashes[at[pending]] == wanted[pending]]
        rows = index.rows[at[pending]]
        same = equal_texts(ids, rows, query, pending)
        found[pending[same]] = rows[same]
        pending = pending[~same]
        at[pending] += 1
    return found


def equal_texts(
    table: StringTable, rows: NDArray[np.int32], other: StringTable, others: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether table[rows[i]] == other[others[i]], [N], by one gather of all bytes on each side."""
    starts, other_starts = table.offsets[rows], other.offsets[others]
    lengths = other.offsets[others + 1] - other_starts
    same: NDArray[np.bool_] = table.offsets[rows.astype(np.int64) + 1] - starts == lengths
    lengths = np.where(same, lengths, 0)
    ends = np.cumsum(lengths)
    within = np.arange(int(ends[-1]) if len(ends) else 0)
    begins = ends - lengths
    left = table.blob[np.repeat(starts - begins, lengths) + within]
    right = other.blob[np.repeat(other_starts - begins, lengths) + within]
    same[np.searchsorted(ends, np.flatnonzero(left != right), side="right")] = False
    return same
