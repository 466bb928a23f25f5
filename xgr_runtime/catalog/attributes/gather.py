"""From attributes in JSON, row by row, to columns. Memory: the columns, a piece of rows, distinct texts."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from xgr_runtime.catalog.attributes.kinds import (
    AttributeField,
    AttributeKind,
    as_stored,
    check_number,
    kind_of,
    seen_as,
)
from xgr_runtime.catalog.attributes.stored import MAX_TEXTS, AttributeColumn, packed_bits
from xgr_runtime.catalog.items import StringTable, pack_strings
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

PIECE = 1 << 15  # rows that are decoded together

_DTYPES = {"bool": "|u1", "int": "<i8", "time": "<i8", "float": "<f8", "string": "<i4", "strings": "<i4"}


def gathered(
    attributes: StringTable, ids: StringTable, fields: Sequence[AttributeField] | None
) -> list[AttributeColumn]:
    """A column for each field, in order of names; fields None: of what the attributes hold.

    Raises CatalogError naming the item for a value that does not fit what is declared.
    """
    rows = len(ids.offsets) - 1
    declared = fields is not None
    writers: dict[str, _Writer] = {}
    if fields is None:
        fields, writers = _seen(attributes, ids)
    missing = {field.name: _Writer(field, rows) for field in fields if field.kind != "other"}
    missing = {name: writer for name, writer in missing.items() if name not in writers}
    for first, objects in _pieces(attributes) if missing else ():
        for name in missing.keys() & set().union(*objects):
            missing[name].take(*_cells(first, objects, name), ids)
    writers |= missing
    full = [name for name, writer in writers.items() if len(writer.codes) > MAX_TEXTS]
    if full and declared:
        raise CatalogError(
            f"attribute {full[0]!r:.80} holds more than {MAX_TEXTS} different texts: take it out of "
            '"attributes" in catalog.json, filters cannot use it'
        )
    kept = {name: writer.column() for name, writer in writers.items() if name not in full}
    return [kept.get(field.name) or AttributeColumn.without(field.name) for field in fields]


def _seen(attributes: StringTable, ids: StringTable) -> tuple[list[AttributeField], dict[str, _Writer]]:
    """Every attribute that an item has, with the kind that fits all its values.

    Most columns have one kind from their first rows on: they are written as their values are looked at, and
    come along. Those that turn out to be of another are written in a second pass.
    """
    seen: dict[str, set[str]] = {}
    writers: dict[str, _Writer] = {}
    for first, objects in _pieces(attributes):
        for name in set().union(*objects):
            places, values = _cells(first, objects, name)
            new = name not in seen
            kinds = seen.setdefault(name, set())
            kinds |= seen_as(values, "string" in kinds)
            kind = kind_of(kinds)
            if new and kind != "other":
                writers[name] = _Writer(AttributeField(name, kind), len(ids.offsets) - 1)
            if name in writers and writers[name].kind == kind:
                writers[name].take(places, values, ids)
            else:
                writers.pop(name, None)
        check_number(len(seen))
    return [AttributeField(name, kind_of(seen[name])) for name in sorted(seen)], writers


def _pieces(attributes: StringTable) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(first row, objects) of some rows after the other."""
    decode = msgspec.json.Decoder(list[dict[str, Any]]).decode
    rows = max(0, len(attributes.offsets) - 1)
    for first in range(0, rows, PIECE):
        texts = attributes.take(np.arange(first, min(first + PIECE, rows)))
        yield first, decode(b"[" + b",".join([text or b"{}" for text in texts]) + b"]")


def _cells(first: int, objects: list[dict[str, Any]], name: str) -> tuple[list[int], list[Any]]:
    """The rows that have that attribute, and its values. No value is None: see `canonical`."""
    values = [*map(dict.get, objects, repeat(name))]
    if None not in values:
        return [*range(first, first + len(objects))], values
    places = [place for place, value in enumerate(values, start=first) if value is not None]
    return places, [value for value in values if value is not None]


class _Writer:
    """One column while its rows come in."""

    def __init__(self, field: AttributeField, rows: int) -> None:
        self._field, self.kind = field, field.kind
        self._known = np.zeros(rows, np.bool_)
        self._values = np.zeros(0 if field.kind == "strings" else rows, _DTYPES[field.kind])
        self._lengths = np.zeros(rows if field.kind == "strings" else 0, np.int64)
        self._pieces: list[NDArray[np.int32]] = []  # codes of lists
        self.codes: dict[str, int] = {}  # of distinct texts, in the order in which they came

    def take(self, places: list[int], values: list[Any], ids: StringTable) -> None:
        """The values of some more rows, in ascending order. Raises CatalogError."""
        if len(self.codes) > MAX_TEXTS:
            return
        found = as_stored(self._field.kind, values)
        if None in found:
            places, found = self._without_blanks(places, values, found, ids)
        self._known[places] = True
        if self._field.kind == "strings":
            self._lengths[places] = [*map(len, found)]
            texts = [text for texts in found for text in texts]
            self._pieces.append(np.array(self._coded(texts), np.int32))
        else:
            self._values[places] = self._coded(found) if self._field.kind == "string" else found

    def column(self) -> AttributeColumn:
        """What came in, with codes in the order of the texts."""
        kind, values = self._field.kind, self._values
        starts, table = np.zeros(0, np.int64), StringTable(np.zeros(0, np.uint8), np.zeros(0, np.int64))
        if kind in ("string", "strings"):
            if kind == "strings":
                values = np.concatenate([np.zeros(0, np.int32), *self._pieces])
                starts = np.concatenate([[0], np.cumsum(self._lengths)]).astype(np.int64)
            texts = sorted((text.encode(), code) for text, code in self.codes.items())
            ranks = np.zeros(max(1, len(texts)), np.int32)
            ranks[[code for _, code in texts]] = np.arange(len(texts), dtype=np.int32)
            values, table = ranks[values], pack_strings([text for text, _ in texts])
            if kind == "string":
                values[~self._known] = 0
        valid = np.zeros(0, np.uint8) if self._known.all() else packed_bits(self._known)
        return AttributeColumn(self._field.name, kind, values, valid, starts, table)

    def _coded(self, texts: list[str]) -> list[int]:
        """The code of each text; new ones get the next."""
        for text in dict.fromkeys(texts):
            self.codes.setdefault(text, len(self.codes))
        return [*map(self.codes.__getitem__, texts)]

    def _without_blanks(
        self, places: list[int], values: list[Any], found: list[Any], ids: StringTable
    ) -> tuple[list[int], list[Any]]:
        """What fits: an empty text is how tables of text say NULL. Raises CatalogError for the rest."""
        kept: tuple[list[int], list[Any]] = [], []
        for place, value, stored in zip(places, values, found, strict=True):
            if stored is not None:
                kept[0].append(place)
                kept[1].append(stored)
            elif value != "":
                item = ids.get(place).decode()
                raise CatalogError(f"item {item!r:.80}: {_misfit(self._field, value)}")
        return kept


def misfit(fields: Mapping[str, AttributeField], attributes: Mapping[str, Any]) -> str:
    """What of an item's attributes does not fit its column; empty if all do. None is for one without."""
    for name, value in attributes.items():
        field = fields.get(name)
        if field is None or field.kind == "other" or value is None or value == "":
            continue
        if as_stored(field.kind, [value]) == [None]:
            return _misfit(field, value)
    return ""


def _misfit(field: AttributeField, value: Any) -> str:
    return (
        f"attribute {field.name!r:.80} is {value!r:.80}, which is no {_NAMES[field.kind]}: correct it, or "
        "the type that the catalog is built with"
    )


_NAMES: dict[AttributeKind, str] = {
    "bool": "bool (true or false)",
    "int": "int of 64 bits",
    "float": "float",
    "string": "string",
    "strings": "list of strings",
    "time": "time (such as 2026-01-31 or 2026-01-31T12:00:00Z)",
}
