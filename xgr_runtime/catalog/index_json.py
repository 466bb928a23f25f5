"""Reader of index.json: one JSON object of items and their SIDs.

A JSON parser loses repeated keys and line numbers; here pairs are kept, and a line is looked for on error.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from xgr_runtime.catalog.columns import Columns, canonical, decoded
from xgr_runtime.errors import CatalogError
from xgr_runtime.files import distinct

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from xgr_runtime.catalog.declared import Names


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its keys in order, repeated ones included."""


def read_index(source: Path, names: Names) -> Columns:
    """index.json: one object, item -> SID, or -> an object with the SID and more."""
    text = decoded(source, source.read_bytes())
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

    if sids and all(isinstance(sid, _Pairs) for sid in sids):
        rows = [_fields(sid, source, place, row) for row, sid in enumerate(sids)]
        return _described(source, items, rows, names, place)
    return Columns.of_sids(source, items, sids, place)


def _described(
    source: Path, items: list[str], rows: list[dict[str, Any]], names: Names, place: Callable[[int], str]
) -> Columns:
    """Each item with an object of its SID, title and more; what is no column of ours is an attribute."""
    own = (names.sid, names.title)
    others = [{key: value for key, value in row.items() if key not in own} for row in rows]
    others = [_flat(other, names.attributes, f"{source}: {place(row)}") for row, other in enumerate(others)]
    titles = [row.get(names.title) for row in rows]
    for row, title in enumerate(titles):
        if title is not None and type(title) is not str:
            raise CatalogError(f"{source}: {place(row)}: the title is {title!r:.80}: it must be text")
    popularity = [other.pop(names.popularity, None) for other in others]
    for row, number in enumerate(popularity):
        if type(number) not in (int, float, type(None)):
            raise CatalogError(
                f"{source}: {place(row)}: popularity is {number!r:.80}: write a number or leave it out"
            )
    return Columns.of_sids(
        source,
        items,
        [row.get(names.sid) for row in rows],
        place,
        titles=titles,
        popularity=popularity,
        attributes=[canonical(other) for other in others],
    )


def _flat(fields: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """The fields and those of the field `name`, as tables have all of them there."""
    inner = fields.pop(name, None)
    if inner is None:
        return fields
    if not isinstance(inner, dict) or inner.keys() & fields.keys():
        raise CatalogError(
            f"{where}: {name} is {inner!r:.80}: write an object of fields that are not beside it"
        )
    return {**fields, **inner}


def _fields(pairs: _Pairs, source: Path, place: Callable[[int], str], row: int) -> dict[str, Any]:
    try:
        return {key: _plain(value) for key, value in distinct(pairs).items()}
    except ValueError as error:
        raise CatalogError(f"{source}: {place(row)}: {error}") from error


def _plain(value: Any) -> Any:
    """JSON objects as dictionaries again. Raises ValueError for a name that is in one twice."""
    if isinstance(value, _Pairs):
        return {key: _plain(inner) for key, inner in distinct(value).items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


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
