"""Readers of the three source formats, all to the same columns.

Readers check the types of what they read and know where each row stands; what the rows mean is checked in
checks.py, once for all of them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from xgr_runtime.catalog.columns import EXPECTED, Columns, Row, canonical
from xgr_runtime.catalog.index_json import read_index
from xgr_runtime.catalog.parquet import read_parquet
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from pathlib import Path


def read_columns(source: Path) -> Columns:
    """The rows of `source`, by its suffix. Raises CatalogError that names the file and the line."""
    readers = {".json": read_index, ".jsonl": read_jsonl, ".parquet": read_parquet}
    reader = readers.get(source.suffix.lower())
    if reader is None:
        raise CatalogError(f"{source}: a catalog source ends in {', '.join(readers)}: rename or convert it")
    if source.exists() and not source.is_file():  # reading a pipe or a device may never end
        raise CatalogError(f"{source} cannot be read, it is no ordinary file: check the path")
    try:
        return reader(source)
    except OSError as error:
        raise CatalogError(f"{source} cannot be read ({error.strerror or error}): check the path") from error


def read_jsonl(source: Path) -> Columns:
    """One object per line; blank lines are skipped."""
    decode = msgspec.json.Decoder(Row).decode
    lines: list[int] = []
    items: list[str | int] = []
    tokens: list[str | int] = []
    lengths: list[int] = []
    titles: list[str | None] = []
    popularity: list[float | None] = []
    attributes: list[bytes] = []
    with source.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.isspace():
                continue
            try:
                row = decode(line)
                attributes.append(canonical(row.attributes))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, CatalogError) as error:
                hint = _item_hint(line)
                raise CatalogError(f"{source}: line {number}{hint}: {error!s:.300}: {EXPECTED}") from error
            lines.append(number)
            items.append(row.item)
            tokens.extend(row.sid)
            lengths.append(len(row.sid))
            titles.append(row.title)
            popularity.append(row.popularity)
    return Columns(items, tokens, lengths, lambda row: f"line {lines[row]}", titles, popularity, attributes)


def _item_hint(line: bytes) -> str:
    """The item of a line that could not be taken, where it can still be read."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return f", item {value['item']!r:.80}" if isinstance(value, dict) and "item" in value else ""
