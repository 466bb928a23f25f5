"""Columns of some rows of several parts, as they would be gathered anew from the attributes of these rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xgr_runtime.catalog.attributes.stored import AttributeColumn, packed_bits
from xgr_runtime.catalog.items import StringTable, pack_strings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from xgr_runtime.catalog.attributes.kinds import AttributeField

    Rows = NDArray[np.integer]
    Part = tuple[int, Mapping[str, AttributeColumn]]


def taken(fields: Sequence[AttributeField], parts: Sequence[Part], rows: Rows) -> list[AttributeColumn]:
    """A column for each field. parts: how many rows, and their columns; rows [N] count through all parts."""
    lengths = [length for length, _ in parts]
    return [
        AttributeColumn.without(field.name)
        if field.kind == "other"
        else _taken([columns[field.name] for _, columns in parts], lengths, rows)
        for field in fields
    ]


def _taken(columns: Sequence[AttributeColumn], lengths: Sequence[int], rows: Rows) -> AttributeColumn:
    kind = columns[0].kind
    known = _known(columns, lengths)[rows]
    values, texts = [column.values for column in columns], columns[0].texts
    if kind in ("string", "strings"):
        texts, values = _one_table(columns)
    if kind == "strings":
        starts, found = _lists([column.starts for column in columns], values, rows)
    else:
        starts, found = columns[0].starts, np.concatenate(values)[rows]
    if kind in ("string", "strings"):
        texts, found = _used(texts, found, known if kind == "string" else None)
    valid = np.zeros(0, np.uint8) if known.all() else packed_bits(known)
    return AttributeColumn(columns[0].name, kind, found, valid, starts, texts)


def _known(columns: Sequence[AttributeColumn], lengths: Sequence[int]) -> NDArray[np.bool_]:
    found = [
        known if (known := column.known(0, length)) is not None else np.ones(length, np.bool_)
        for column, length in zip(columns, lengths, strict=True)
    ]
    return np.concatenate(found)


def _lists(
    starts: Sequence[NDArray[np.int64]], values: Sequence[NDArray[Any]], rows: Rows
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Starts [N + 1] and values of the lists of `rows`."""
    lengths = np.concatenate([np.diff(some) for some in starts])
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])[rows]
    lengths = lengths[rows]
    begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    at = np.repeat(before - begins[:-1], lengths) + np.arange(int(begins[-1]))
    return begins, np.concatenate(values)[at]


def _one_table(columns: Sequence[AttributeColumn]) -> tuple[StringTable, list[NDArray[Any]]]:
    """The texts of all columns, and what each column holds as numbers of these."""
    if len(columns) == 1:
        return columns[0].texts, [columns[0].values]
    tables = [column.texts.texts() for column in columns]
    texts = sorted(set().union(*tables))
    numbers = {text: number for number, text in enumerate(texts)}
    values = []
    for column, own in zip(columns, tables, strict=True):
        table = np.fromiter(map(numbers.__getitem__, own), np.int32, len(own))
        values.append(table[column.values] if len(own) else np.zeros_like(column.values))
    return pack_strings(texts), values


def _used(
    texts: StringTable, values: NDArray[Any], known: NDArray[np.bool_] | None
) -> tuple[StringTable, NDArray[Any]]:
    """Without texts that no value has; known [N]: values that are one."""
    count = len(texts.offsets) - 1
    used = np.zeros(max(1, count), np.bool_)
    used[values if known is None else values[known]] = True
    if used[:count].all():
        return texts, values if known is None else np.where(known, values, np.int32(0))
    numbers = (np.cumsum(used) - 1).astype(np.int32)
    kept = [text for text, one in zip(texts.texts(), used.tolist(), strict=False) if one]
    found = numbers[values]
    return pack_strings(kept), found if known is None else np.where(known, found, np.int32(0))
