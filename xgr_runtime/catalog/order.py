"""The order of a catalog's rows: by SID, then popularity, then id.

Rows are sorted by SID first; popularity and ids are looked at only where rows share a SID.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xgr_runtime.catalog.items import LONGEST_NUMBER, StringTable, id_order
from xgr_runtime.catalog.trie import pack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int32 = NDArray[np.int32]

_PIECE = 1 << 16  # ids whose letters are looked at together


def row_order(ids: StringTable, sids: Int32, popularity: NDArray[np.float64] | None) -> Int32:
    """Rows [N] by SID [N, depth], popularity [N] descending, id as `id_order` has them."""
    order = sid_order(sids)
    tied = _same(sids, order)
    edges = np.concatenate([[False], tied, [False]])
    places = np.flatnonzero(edges[1:] | edges[:-1])
    if not len(places):
        return order
    rows = order[places]
    keys = _id_keys(ids, rows)
    if popularity is not None:
        keys.append(-popularity[rows])
    keys += _sid_keys(sids[rows])
    inner = np.lexsort(keys)
    order[places] = rows[inner]
    _sort_rest(order, places, ids, [key[inner] for key in keys])
    return order


def sid_order(sids: Int32) -> Int32:
    """Rows [N] by SIDs [N, depth] lexicographically; rows with one SID in any order."""
    keys = _sid_keys(sids)
    order = np.argsort(keys[0]) if len(keys) == 1 else np.lexsort(keys)
    return order.astype(np.int32)


def _sid_keys(sids: Int32) -> list[NDArray[Any]]:
    packed = pack(sids)
    return [packed] if packed is not None else [sids[:, level] for level in reversed(range(sids.shape[1]))]


def _same(sids: Int32, order: Int32) -> NDArray[np.bool_]:
    """Whether neighbours [N - 1] in that order share their SID."""
    same = np.ones(len(order) - 1, np.bool_)
    for level in range(sids.shape[1]):
        column = sids[order, level]
        same &= column[1:] == column[:-1]
    return same


def _id_keys(ids: StringTable, rows: Int32) -> list[NDArray[Any]]:
    """Keys for `lexsort` that order most ids as `id_order` does, and leave equal what they cannot."""
    text = np.zeros(len(rows), np.bool_)
    major, minor = np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.uint64)
    for first in range(0, len(rows), _PIECE):
        piece = slice(first, first + _PIECE)
        begins = ids.offsets[rows[piece]]
        lengths = ids.offsets[rows[piece].astype(np.int64) + 1] - begins
        at = np.arange(LONGEST_NUMBER)
        inside = at < lengths[:, None]
        letters = np.where(inside, ids.blob[np.minimum(begins[:, None] + at, len(ids.blob) - 1)], 0)
        digits = (letters >= ord("0")) & (letters <= ord("9"))
        text[piece] = (lengths > LONGEST_NUMBER) | (inside & ~digits).any(axis=1)
        number = np.zeros(len(begins), np.uint64)
        for column in range(LONGEST_NUMBER):
            here = inside[:, column]
            number[here] = number[here] * np.uint64(10) + (letters[here, column] - ord("0"))
        words = np.ascontiguousarray(letters[:, :16]).astype(np.uint8).view(">u8").astype(np.uint64)
        major[piece] = np.where(text[piece], words[:, 0], number)
        minor[piece] = np.where(text[piece], words[:, 1], np.uint64(0))
    return [minor, major, text]


def _sort_rest(order: Int32, places: NDArray[np.int64], ids: StringTable, keys: list[NDArray[Any]]) -> None:
    """Puts runs of rows into order that all keys [places] have in common, by their whole ids."""
    same = np.ones(len(places) - 1, np.bool_)
    for key in keys:
        same &= key[1:] == key[:-1]
    edges = np.diff(np.concatenate([[False], same, [False]]).astype(np.int8))
    for first, last in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) + 1, strict=True):
        rows = order[places[first:last]]
        names = [name.decode() for name in ids.take(rows)]
        order[places[first:last]] = rows[sorted(range(len(rows)), key=lambda at: id_order(names[at]))]
