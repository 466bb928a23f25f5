"""Columns as arrays of the built file, and what must hold of such arrays before anything reads them.

attributes.fields   msgpack of the names and kinds, in the order of the numbers n below
column.n.values     per row: |u1 bool, <i8 int and time (microseconds since 1970 UTC), <f8 float,
                    <i4 string (its number in `texts`); of `strings` one after the other, row by row
column.n.valid      bit r is set where row r is not NULL; empty if no row is
column.n.starts     of `strings` alone [items + 1]: where the texts of each row begin in `values`
column.n.texts.*    of string and strings: distinct texts in ascending order of their UTF-8
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from xgr_runtime.catalog.attributes.kinds import MAX_COLUMNS, AttributeField, AttributeKind
from xgr_runtime.catalog.items import StringTable
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]
    Shapes = dict[str, tuple[str, tuple[int, ...]]]

FIELDS = "attributes.fields"
MAX_TEXTS = 1 << 20
"""Different texts of one column. Beyond it texts tell items apart, and are in nobody's filter."""

_VALUES = {"bool": "|u1", "int": "<i8", "time": "<i8", "float": "<f8", "string": "<i4", "strings": "<i4"}


class AttributeColumn(NamedTuple):
    """One attribute of all rows. Arrays are as the module says, empty where a kind has no use for them."""

    name: str
    kind: AttributeKind
    values: NDArray[Any]
    valid: NDArray[np.uint8]  # [ceil(items / 8)], [] without NULLs
    starts: NDArray[np.int64]
    texts: StringTable

    @classmethod
    def without(cls, name: str) -> AttributeColumn:
        """Of an attribute whose values have no one kind."""
        none = StringTable(np.zeros(0, np.uint8), np.zeros(0, np.int64))
        return cls(name, "other", np.zeros(0, np.int32), none.blob, none.offsets, none)

    def known(self, first: int, last: int) -> NDArray[np.bool_] | None:
        """Which rows of [first, last) are not NULL, `first` a multiple of 8; None if all are."""
        if not len(self.valid):
            return None
        bits = np.unpackbits(self.valid[first >> 3 : -(-last >> 3)], count=last - first, bitorder="little")
        return bits.view(np.bool_)


def packed_bits(flags: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Flags [N] as bits [ceil(N / 8)], the lowest bit first."""
    return np.packbits(flags, bitorder="little")


def column_arrays(columns: Sequence[AttributeColumn]) -> dict[str, NDArray[Any]]:
    """All arrays under their names in the built file; none if there are no columns."""
    if not columns:
        return {}
    fields = [AttributeField(column.name, column.kind) for column in columns]
    arrays: dict[str, NDArray[Any]] = {FIELDS: np.frombuffer(msgspec.msgpack.encode(fields), np.uint8)}
    for number, column in enumerate(columns):
        for part, array in _parts(column).items():
            arrays[f"column.{number}.{part}"] = array
    return arrays


def _parts(column: AttributeColumn) -> dict[str, NDArray[Any]]:
    if column.kind == "other":
        return {}
    parts: dict[str, NDArray[Any]] = {"values": column.values, "valid": column.valid}
    if column.kind == "strings":
        parts["starts"] = column.starts
    if column.kind in ("string", "strings"):
        parts |= {"texts.blob": column.texts.blob, "texts.offsets": column.texts.offsets}
    return parts


def stored_fields(arrays: Arrays) -> list[AttributeField]:
    """Names and kinds of a file's columns. Raises ValueError where they cannot be."""
    if FIELDS not in arrays:
        return []
    try:
        fields = msgspec.msgpack.decode(arrays[FIELDS].tobytes(), type=list[AttributeField])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"the fields of attributes cannot be read ({error})") from error
    names = [field.name for field in fields]
    if names != sorted(set(names)) or len(names) > MAX_COLUMNS:
        raise ValueError("the fields of attributes are not sorted and distinct, or too many")
    return fields


def stored_columns(arrays: Arrays) -> dict[str, AttributeColumn]:
    """By name. The arrays have the shapes of `expected_columns`."""
    columns: dict[str, AttributeColumn] = {}
    for number, field in enumerate(stored_fields(arrays)):
        empty = AttributeColumn.without(field.name)

        def part(name: str, absent: NDArray[Any], number: int = number) -> NDArray[Any]:
            return arrays.get(f"column.{number}.{name}", absent)

        texts = StringTable(part("texts.blob", empty.texts.blob), part("texts.offsets", empty.texts.offsets))
        columns[field.name] = AttributeColumn(
            field.name,
            field.kind,
            part("values", empty.values),
            part("valid", empty.valid),
            part("starts", empty.starts),
            texts,
        )
    return columns


def expected_columns(arrays: Arrays, items: int) -> Shapes:
    """Type and shape of every array of columns, from the lengths that are free. Raises ValueError."""
    fields = stored_fields(arrays)
    expected: Shapes = {FIELDS: ("|u1", arrays[FIELDS].shape)} if FIELDS in arrays else {}
    for number, field in enumerate(fields):
        if field.kind == "other":
            continue

        def length(part: str, number: int = number) -> int:
            array = arrays.get(f"column.{number}.{part}")
            return len(array) if array is not None else 0

        name = f"column.{number}"
        values = length("values") if field.kind == "strings" else items
        expected[f"{name}.values"] = (_VALUES[field.kind], (values,))
        expected[f"{name}.valid"] = ("|u1", (-(-items // 8) if length("valid") else 0,))
        if field.kind == "strings":
            expected[f"{name}.starts"] = ("<i8", (items + 1,))
        if field.kind in ("string", "strings"):
            expected[f"{name}.texts.blob"] = ("|u1", (length("texts.blob"),))
            expected[f"{name}.texts.offsets"] = ("<i8", (max(1, length("texts.offsets")),))
    return expected


def check_texts(parts: Sequence[Mapping[str, AttributeColumn]]) -> None:
    """Raises CatalogError where the columns of some parts of a catalog have too many texts together."""
    for name, column in parts[0].items():
        tables = [part[name].texts for part in parts]
        if column.kind not in ("string", "strings") or sum(len(one.offsets) for one in tables) <= MAX_TEXTS:
            continue
        if len(set().union(*(one.texts() for one in tables))) > MAX_TEXTS:
            raise CatalogError(
                f"attribute {name!r:.80} would have more than {MAX_TEXTS} different texts: use fewer, or "
                'build the catalog without it under "attributes" in catalog.json'
            )


def column_problem(column: AttributeColumn, items: int) -> str | None:
    """What is wrong with the values of a column; reads all of it."""
    name, values = f"attribute {column.name!r:.80}", column.values
    if len(column.valid) and items % 8 and column.valid[-1] >> (items % 8):
        return f"{name} has values beyond the last item"
    if column.kind == "bool" and len(values) and int(values.max()) > 1:
        return f"{name} holds a bool that is neither true nor false"
    if column.kind == "float" and not np.isfinite(values).all():
        return f"{name} holds a number that is not finite"
    if column.kind == "strings" and (
        column.starts[0] != 0 or column.starts[-1] != len(values) or (np.diff(column.starts) < 0).any()
    ):
        return f"{name} has lists that do not follow each other"
    return _text_problem(column, name) if column.kind in ("string", "strings") else None


def _text_problem(column: AttributeColumn, name: str) -> str | None:
    offsets, values, count = column.texts.offsets, column.values, len(column.texts.offsets) - 1
    if offsets[0] != 0 or offsets[-1] != len(column.texts.blob) or (np.diff(offsets) < 0).any():
        return f"{name} has texts that do not follow each other"
    texts = column.texts.texts()
    if any(left >= right for left, right in pairwise(texts)):
        return f"{name} has texts that are not sorted and distinct"
    try:
        _ = [text.decode() for text in texts]
    except UnicodeDecodeError as error:
        return f"{name} has a text that is not UTF-8 ({error.reason})"
    if len(values) and (int(values.min()) < 0 or int(values.max()) >= max(1, count)):
        return f"{name} holds numbers of texts that are not there"
    if not count and (len(values) if column.kind == "strings" else not _all_null(column)):
        return f"{name} has values and no texts"
    return None


def _all_null(column: AttributeColumn) -> bool:
    return len(column.valid) > 0 and not column.valid.any()
