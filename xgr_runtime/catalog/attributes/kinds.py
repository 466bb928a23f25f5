"""The kinds of columns: which values fit each, and which kind fits the values that were seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from pathlib import Path

AttributeKind = Literal["bool", "int", "float", "string", "strings", "time", "other"]
"""`strings` is a list of texts; `other` has no column, as its values are of several kinds or of none."""

MAX_COLUMNS = 256
INT64 = range(-(2**63), 2**63)
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:\d{2})?)?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class AttributeField(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The name of an attribute and the kind of its column."""

    name: str
    kind: AttributeKind


def declared_fields(fields: Mapping[str, Any], path: Path) -> tuple[AttributeField, ...] | None:
    """What catalog.json says of attributes, by name; None if it says nothing. Raises CatalogError."""
    if "attributes" not in fields:
        return None
    kinds = get_args(AttributeKind)[:-1]
    found = fields["attributes"]
    wrong = [kind for kind in found.values() if kind not in kinds] if isinstance(found, dict) else [found]
    if wrong:
        raise CatalogError(
            f"{path}: attributes holds {wrong[0]!r:.80}: write an object of names, each with one of "
            f"{', '.join(kinds)}"
        )
    check_number(len(found))
    return tuple(AttributeField(name, found[name]) for name in sorted(found))


def check_number(columns: int) -> None:
    """Raises CatalogError for more columns than a catalog may have."""
    if columns > MAX_COLUMNS:
        raise CatalogError(
            f"items have {columns} different attributes, filters take {MAX_COLUMNS}: name those that filters "
            'may use, and their types, under "attributes" in catalog.json ({} for none)'
        )


@lru_cache(1 << 16)  # days come again and again
def microseconds(text: str) -> int | None:
    """Since 1970 UTC, of `2026-01-31` or `2026-01-31T12:00:00+01:00`; None for what is no such time."""
    if not _TIME.fullmatch(text):
        return None
    try:
        time = datetime.fromisoformat(text)
        return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        return None


def seen_as(values: list[Any], text_known: bool) -> set[str]:
    """What JSON values are: kinds, or `big` for a whole number beyond 64 bits.

    text_known: some text was no time already, so no further one is looked at.
    """
    seen: set[str] = set()
    types: set[type[Any]] = {*map(type, values)}
    for kind in types:
        own = values if len(types) == 1 else [value for value in values if type(value) is kind]
        if kind is str:
            texts: set[str] = set() if text_known else set(own)
            seen |= {"string" if microseconds(text) is None else "time" for text in texts} or {"string"}
        elif kind is int:
            seen.add("int" if min(own) in INT64 and max(own) in INT64 else "big")
        elif kind is list:
            seen |= {"strings" if set(map(type, texts)) <= {str} else "other" for texts in own}
        else:
            seen.add({bool: "bool", float: "float"}.get(kind, "other"))
    return seen


def as_stored(kind: AttributeKind, values: list[Any]) -> list[Any]:
    """Values as a column of that kind stores them, None where one does not fit."""
    types = set(map(type, values))
    plain = types <= {_PLAIN.get(kind)}
    if plain and (kind != "int" or not values or (min(values) in INT64 and max(values) in INT64)):
        return values
    return [*map(AS_KIND[kind], values)]


_PLAIN: dict[AttributeKind, type] = {"bool": bool, "int": int, "float": float, "string": str}
"""JSON's own types, whose values need no further look."""


def kind_of(seen: set[str]) -> AttributeKind:
    """The one kind that holds all of them, without loss of meaning; `other` if there is none."""
    for kind in get_args(AttributeKind):
        if seen == {kind}:
            return kind  # type: ignore[no-any-return]
    if seen == {"int", "float"}:
        return "float"
    return "string" if seen == {"string", "time"} else "other"


def _whole(value: Any) -> int | None:
    if type(value) is str:
        value = int(value) if re.fullmatch(r"[+-]?[0-9]{1,19}", value) else None
    return value if type(value) is int and value in INT64 else None


def _number(value: Any) -> float | None:
    try:
        number = float(value) if type(value) in (int, float, str) else None
    except (ValueError, OverflowError):
        return None
    return number if number is not None and abs(number) < float("inf") else None


def _truth(value: Any) -> bool | None:
    if type(value) is str:
        return {"true": True, "false": False}.get(value.lower())
    return value if type(value) is bool else None


def _texts(value: Any) -> list[str] | None:
    return value if type(value) is list and all(type(text) is str for text in value) else None


AS_KIND: dict[AttributeKind, Callable[[Any], Any]] = {
    "bool": _truth,
    "int": _whole,
    "float": _number,
    "string": lambda value: value if type(value) is str else None,
    "strings": _texts,
    "time": lambda value: microseconds(value) if type(value) is str else None,
}
"""A value as its column stores it, None where it does not fit. Tables of text hold numbers as text."""
