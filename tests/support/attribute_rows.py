"""Columns of attributes from rows that are in memory, and what SQL makes of a row, spelt out in Python."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from xgr_runtime.catalog.attributes import AttributeColumn, AttributeField, gathered
from xgr_runtime.catalog.columns import canonical
from xgr_runtime.catalog.items import pack_optional, pack_strings
from xgr_runtime.catalog.places import LeafPlaces
from xgr_runtime.catalog.where import ItemRows, LiveRows, live_rows

Row = dict[str, Any]


class Condition(NamedTuple):
    """An expression, and its value for a row: True, False or None."""

    sql: str
    of: Callable[[Row], Any]


def columns_of(
    rows: Sequence[Row], fields: Sequence[AttributeField] | None = None
) -> dict[str, AttributeColumn]:
    """The columns of items i0, i1, ... with these attributes."""
    texts = pack_optional([canonical(row) for row in rows])
    ids = pack_strings([b"i%d" % row for row in range(len(rows))])
    return {column.name: column for column in gathered(texts, ids, fields)}


def left_of(sql: str, rows: Sequence[Row], fields: Sequence[AttributeField] | None = None) -> list[int]:
    """The rows that an expression lets live, where every row has a leaf of its own."""
    live = live_on(sql, columns_of(rows, fields), np.arange(len(rows) + 1, dtype=np.int32))
    assert live.leaves.live(len(rows)) == int(np.bitwise_count(live.rows).sum())
    return np.flatnonzero(live.holds(np.arange(len(rows)))).tolist()


def live_on(sql: str, columns: dict[str, AttributeColumn], item_lo: Any) -> LiveRows:
    """`live_rows` of leaves whose first rows are `item_lo`."""
    leaf_of_row = np.repeat(np.arange(len(item_lo) - 1, dtype=np.int32), np.diff(item_lo))
    return live_rows(sql, ItemRows.built(columns, LeafPlaces(item_lo, leaf_of_row)))


def and_(left: Any, right: Any) -> Any:
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def not_(value: Any) -> Any:
    return None if value is None else not value


def or_(left: Any, right: Any) -> Any:
    return not_(and_(not_(left), not_(right)))


def lifted(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, and NULL where an argument is."""
    return lambda *values: None if None in values else function(*values)


def doubles(function: Callable[[float, float], float]) -> Callable[[Any, Any], Any]:
    """Arithmetic of doubles, NULL where it has no finite result."""

    def compute(left: Any, right: Any) -> Any:
        if left is None or right is None:
            return None
        try:
            result = function(float(left), float(right))
        except (ZeroDivisionError, OverflowError, ValueError):
            return None
        return result if abs(result) < float("inf") else None

    return compute


def like(text: str, pattern: str, fold: bool = False) -> bool:
    """LIKE by the book: any number of characters for %, one for _."""
    if fold:
        text, pattern = text.lower(), pattern.lower()
    matches = {(0, 0)}  # (characters of the text, of the pattern) that fit each other
    for p, letter in enumerate(pattern):
        for t in range(len(text) + 1):
            if (t, p) not in matches:
                continue
            if letter == "%":
                matches |= {(further, p + 1) for further in range(t, len(text) + 1)}
            elif t < len(text) and letter in ("_", text[t]):
                matches.add((t + 1, p + 1))
    return (len(text), len(pattern)) in matches


def instant(text: str) -> datetime:
    """A time as ISO 8601 writes it; UTC where it names no zone."""
    time = datetime.fromisoformat(re.sub("Z$", "+00:00", text))
    return time if time.tzinfo else time.replace(tzinfo=UTC)
