"""Checked rows of a source in arrays, gathered piece by piece: what a catalog of millions is built from.

A row costs its text and a few numbers, never an object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from xgr_runtime.catalog.checks import (
    EMPTY,
    check_lengths,
    checked_popularity,
    encoded,
    encoded_ids,
    raise_duplicate,
    resolved_sids,
)
from xgr_runtime.catalog.columns import placed
from xgr_runtime.catalog.declared import Declared, has_numbers, spell
from xgr_runtime.catalog.items import StringTable, TextSequence, hash_table, pack_strings
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from xgr_runtime.catalog.columns import Columns
    from xgr_runtime.catalog.vocabulary import Vocabulary

Number = TypeVar("Number", np.int32, np.float64)


@dataclass
class Rows:
    """In source order. A table without any text is two empty arrays."""

    ids: StringTable  # each one once
    sids: NDArray[np.int32]  # [N, depth]
    popularity: NDArray[np.float64] | None  # [N], minus infinity where a row has none
    titles: StringTable
    attributes: StringTable  # canonical JSON
    numbers: bool  # some token of a SID was a number

    def take(self, name: str) -> Any:
        """One of the columns, which is gone here then: a catalog's order needs room of its own."""
        column = getattr(self, name)
        delattr(self, name)
        return column


def gather(pieces: Iterable[Columns], form: Declared, vocabulary: Vocabulary) -> Rows:
    """Checks every piece as it comes. Raises CatalogError naming the row."""
    gathering = _Gathering(form, vocabulary)
    for piece in pieces:
        gathering.add(piece)
    return gathering.rows()


class _Gathering:
    def __init__(self, form: Declared, vocabulary: Vocabulary) -> None:
        self._form, self._vocabulary = form, vocabulary
        self._ids, self._titles, self._attributes = _Table(), _Table(), _Table()
        self._sids, self._popularity = _Array(np.int32), _Array(np.float64)
        self._depth: int | None = None
        self._places: list[tuple[int, Callable[[int], str]]] = []
        self._known: dict[str | int, int] = {}  # ids of tokens
        self._numbers = False
        self._count = 0

    def add(self, piece: Columns) -> None:
        piece = spell(piece, self._form)
        check_lengths(piece)
        ids = encoded_ids(piece)
        items, rows = TextSequence(ids), len(piece.items)
        sids = resolved_sids(piece, items, self._vocabulary, self._depth, self._known)
        self._depth = sids.shape[1]
        self._sids.add(sids)
        popularity = checked_popularity(piece, items)
        self._popularity.add(np.full(rows, -np.inf) if popularity is None else popularity)
        self._numbers = self._numbers or has_numbers(piece)
        self._places.append((self._count, piece.place))
        self._ids.add(ids, rows)
        self._titles.add(_titles(piece), rows)
        self._attributes.add(_attributes(piece), rows)
        self._count += rows

    def rows(self) -> Rows:
        """What came. Raises CatalogError for no row, and for an item that came twice."""
        if not self._count:
            raise CatalogError(EMPTY)
        ids = self._ids.taken()
        _check_distinct(ids, hash_table(ids), placed(self._places))
        popularity = self._popularity.taken()
        return Rows(
            ids,
            self._sids.taken().reshape(self._count, -1),
            popularity if np.isfinite(popularity).any() else None,
            _optional(self._titles.taken()),
            _optional(self._attributes.taken()),
            self._numbers,
        )


class _Table:
    """A table that grows, without a second copy of its text."""

    def __init__(self) -> None:
        self._blob = bytearray()
        self._lengths = bytearray()  # int32 of each row

    def add(self, table: StringTable | None, rows: int) -> None:
        """More rows; None: that have no text."""
        lengths = np.zeros(rows, np.int32) if table is None else np.diff(table.offsets).astype(np.int32)
        self._lengths += lengths.data
        if table is not None:
            self._blob += table.blob.data

    def taken(self) -> StringTable:
        """All rows. Nothing may be added after."""
        lengths = np.frombuffer(self._lengths, np.int32)
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        del lengths
        self._lengths = bytearray()
        return StringTable(np.frombuffer(self._blob, np.uint8), offsets)


class _Array(Generic[Number]):
    """Numbers that grow, without a second copy."""

    def __init__(self, dtype: type[Number]) -> None:
        self._bytes = bytearray()
        self._dtype: type[Number] = dtype

    def add(self, values: NDArray[Number]) -> None:
        self._bytes += np.ascontiguousarray(values, self._dtype).reshape(-1).data.cast("B")

    def taken(self) -> NDArray[Number]:
        """All of them [N]. Nothing may be added after."""
        return np.frombuffer(self._bytes, self._dtype)


def _optional(table: StringTable) -> StringTable:
    return table if len(table.blob) else StringTable(np.empty(0, np.uint8), np.empty(0, np.int64))


def _titles(piece: Columns) -> StringTable | None:
    if piece.titles is None or isinstance(piece.titles, TextSequence):
        return None if piece.titles is None else piece.titles.table
    return pack_strings(encoded([title or "" for title in piece.titles], piece, "title"))


def _attributes(piece: Columns) -> StringTable | None:
    given = piece.attributes
    return given if given is None or isinstance(given, StringTable) else pack_strings(given)


def _check_distinct(ids: StringTable, hashes: NDArray[np.uint64], place: Callable[[int], str]) -> None:
    """Ids whose hashes [N] are the only ones are so themselves. Raises CatalogError naming both rows."""
    ascending = np.sort(hashes)
    again = ascending[1:][ascending[1:] == ascending[:-1]]
    if not len(again):
        return
    rows = np.flatnonzero(np.isin(hashes, again))
    items = [item.decode() for item in ids.take(rows)]
    if len(set(items)) < len(items):
        raise_duplicate(items, rows.tolist(), place)
