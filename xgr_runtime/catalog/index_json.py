"""Reader of index.json: one JSON object, item -> list of tokens.

A JSON parser loses repeated keys and line numbers; here pairs are kept, and a line is looked for on error.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from xgr_runtime.catalog.columns import Columns
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from pathlib import Path


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its keys in order, repeated ones included."""


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

    return Columns.of_lists(source, items, sids, place)


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
