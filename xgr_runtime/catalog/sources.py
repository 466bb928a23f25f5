"""Readers of the three source formats: index.json, JSONL and Parquet, all to the same columns.

Readers check the types of what they read and know where each row stands; what the rows mean is checked once,
in build.py.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

COLUMNS = ("item", "sid", "title", "popularity", "attributes")


class Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One line of a JSONL source; the columns of a Parquet source are the same."""

    item: str | int
    sid: list[str | int]
    title: str | None = None
    popularity: float | None = None
    attributes: dict[str, Any] | None = None


@dataclass
class Columns:
    """Rows in source order. `place` says where row i stands, for messages ("line 7").

    SIDs lie flat, row after row: a million small lists would keep the garbage collector busy.
    """

    items: Sequence[Any]
    tokens: Sequence[Any]  # of all SIDs
    lengths: Sequence[int]  # tokens per SID
    place: Callable[[int], str]
    titles: Sequence[str | None] | None = None
    popularity: Sequence[float | None] | None = None
    attributes: Sequence[bytes] | None = None  # canonical JSON


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its keys in order, repeated ones included."""


def read_columns(source: Path) -> Columns:
    """The rows of `source`, by its suffix. Raises CatalogError that names the file and the line."""
    readers = {".json": read_index, ".jsonl": read_jsonl, ".parquet": read_parquet}
    reader = readers.get(source.suffix.lower())
    if reader is None:
        raise CatalogError(f"{source}: a catalog source ends in {', '.join(readers)}: rename or convert it")
    try:
        return reader(source)
    except OSError as error:
        raise CatalogError(f"{source} cannot be read ({error.strerror or error}): check the path") from error


def read_index(source: Path) -> Columns:
    """index.json: one object, item -> list of tokens."""
    text = _text(source)
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise CatalogError(f"{source} is not JSON ({error}): correct it") from error
    if not isinstance(pairs, _Pairs):
        raise CatalogError(f"{source} must be one JSON object of item: [SID tokens]")
    items = [item for item, _ in pairs]
    sids = [sid for _, sid in pairs]

    def place(row: int) -> str:
        return f"line {_line_of_key(text, row)}"

    return Columns(items, *_flat(source, items, sids, place), place)


def read_jsonl(source: Path) -> Columns:
    """One object per line; blank lines are skipped."""
    decode = msgspec.json.Decoder(Row).decode
    lines: list[int] = []
    items: list[str | int] = []
    tokens: list[str | int] = []
    columns = Columns(items, tokens, [], lambda row: f"line {lines[row]}", [], [], [])
    with source.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.isspace():
                continue
            try:
                row = decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                hint = _item_hint(line)
                raise CatalogError(f"{source}: line {number}{hint}: {error}: {_EXPECTED}") from error
            lines.append(number)
            _append(columns, row)
    return columns


def read_parquet(source: Path) -> Columns:
    """A table with the columns of `Row`; `attributes` is a struct or a map."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(source).read()
    except pa.ArrowException as error:
        raise CatalogError(f"{source} is not a Parquet file ({error}): write it again") from error
    _check_columns(source, table.column_names)
    cells: dict[str, list[Any]] = {name: table[name].to_pylist() for name in table.column_names}
    _check_cells(source, cells)
    items, attributes = cells["item"], cells.get("attributes")

    def place(row: int) -> str:
        return f"row {row + 1}"

    return Columns(
        items,
        *_flat(source, items, cells["sid"], place),
        place,
        cells.get("title"),
        cells.get("popularity"),
        None if attributes is None else [canonical(dict(value or {})) for value in attributes],
    )


def canonical(attributes: dict[str, Any] | None) -> bytes:
    """Attributes as JSON with sorted keys and without absent values, so that every format agrees."""
    present = {key: value for key, value in (attributes or {}).items() if value is not None}
    if not present:
        return b""
    try:
        return _encode_sorted(present)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise CatalogError(
            f"attributes {present!r:.80} cannot be stored ({error}): use JSON values"
        ) from error


_encode_sorted = msgspec.json.Encoder(order="sorted").encode
_EXPECTED = (
    'a row is {"item": "...", "sid": [...]} and optionally "title" (text), "popularity" (a number), '
    '"attributes" (an object; put further fields there)'
)


def _append(columns: Any, row: Row) -> None:
    """Adds one row to the lists of a JSONL reader."""
    columns.items.append(row.item)
    columns.tokens.extend(row.sid)
    columns.lengths.append(len(row.sid))
    columns.titles.append(row.title)
    columns.popularity.append(row.popularity)
    columns.attributes.append(canonical(row.attributes))


def _flat(
    source: Path, items: Sequence[Any], sids: Sequence[Any], place: Callable[[int], str]
) -> tuple[list[Any], list[int]]:
    """(tokens, lengths) of SIDs that must be lists."""
    for row, sid in enumerate(sids):
        if type(sid) is not list:
            raise CatalogError(
                f"{source}: {place(row)}, item {items[row]!r}: the SID is {sid!r:.80}: "
                "it must be a list of token strings or ids"
            )
    return list(chain.from_iterable(sids)), [*map(len, sids)]


def _text(source: Path) -> str:
    try:
        return source.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CatalogError(f"{source} is not UTF-8 text ({error}): convert it") from error


def _line_of_key(text: str, row: int) -> int:
    """The line of the row-th key of a JSON object that is known to be well formed."""
    decoder = json.JSONDecoder()
    at = text.index("{") + 1
    for _ in range(row):
        at = _skip(text, decoder.raw_decode(text, _skip(text, at))[1])  # past the key, at ":"
        at = _skip(text, decoder.raw_decode(text, _skip(text, at + 1))[1]) + 1  # past the value and ","
    return text.count("\n", 0, _skip(text, at)) + 1


def _skip(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at


def _item_hint(line: bytes) -> str:
    """The item of a line that could not be taken, where it can still be read."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return f", item {value['item']!r}" if isinstance(value, dict) and "item" in value else ""


def _check_columns(source: Path, names: list[str]) -> None:
    missing = [name for name in COLUMNS[:2] if name not in names]
    unknown = [name for name in names if name not in COLUMNS]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if missing or unknown or repeated:
        raise CatalogError(
            f"{source}: columns missing {missing}, unknown {unknown}, repeated {repeated}: {_EXPECTED}"
        )


def _check_cells(source: Path, columns: dict[str, list[Any]]) -> None:
    """The types that Parquet's own column types leave open, by column: all cells of one share a type."""
    accepted: dict[str, tuple[type, ...]] = {
        "title": (str, type(None)),
        "popularity": (int, float, type(None)),
        "attributes": (dict, list, type(None)),
    }
    for name, types in accepted.items():
        wrong = set(map(type, columns.get(name, []))) - set(types)
        if wrong:
            found = ", ".join(kind.__name__ for kind in wrong)
            raise CatalogError(f"{source}: column {name!r} holds {found}: {_EXPECTED}")
