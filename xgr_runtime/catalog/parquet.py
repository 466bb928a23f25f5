"""Reader of Parquet sources: a table with the columns of `Row`. Alone uses pyarrow, imported on demand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from xgr_runtime.catalog.columns import EXPECTED, PIECE, Columns, Row, canonical_table
from xgr_runtime.catalog.declared import Names
from xgr_runtime.catalog.items import StringTable, TextSequence
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

_INDEX = re.compile(r"__index_level_\d+__")
MAX_ROWS = 2**31 - 1  # rows are numbered in 32 bits


def read_parquet(source: Path, names: Names) -> Iterator[Columns]:
    """A table with the columns of `Row`; `attributes` is a struct or a map."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0
    try:
        with pq.ParquetFile(source) as file:
            rows = file.metadata.num_rows
            if not 0 <= rows <= MAX_ROWS:  # before anything is allocated for them
                raise CatalogError(f"{source} claims {rows} rows: a catalog has at most {MAX_ROWS}")
            taken = _taken(source, file.schema_arrow, names)
            for batch in file.iter_batches(PIECE, columns=list(taken)):
                cells = {ours: batch.column(theirs) for theirs, ours in taken.items()}
                if batch.num_rows:
                    yield _piece(source, cells, first)
                first += batch.num_rows
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise CatalogError(f"{source} is not a Parquet file ({error!s:.300}): write it again") from error


def _piece(source: Path, columns: Mapping[str, pa.Array], first: int) -> Columns:
    """Some rows: as arrays what has the usual types, as Python values what is left."""
    arrays = {name: _as_array(name, column) for name, column in columns.items()}
    cells = {name: _cells(column) for name, column in columns.items() if arrays[name] is None}
    _check_cells(source, cells)

    def place(row: int) -> str:
        return f"row {first + row + 1}"

    items = cells.get("item") or arrays["item"]
    if arrays["sid"] is None:
        made = Columns.of_sids(source, items, cells["sid"], place)
    else:
        tokens, lengths = arrays["sid"]
        made = Columns(items, tokens, lengths, place)
    objects = cells.get("attributes")
    made.titles = cells.get("title", arrays.get("title"))
    made.popularity = cells.get("popularity", arrays.get("popularity"))
    if objects is not None:
        made.attributes = canonical_table([dict(value or {}) for value in objects])
    return made


def _as_array(name: str, column: pa.Array) -> Any:
    """A column as `Columns` takes arrays of it; None for values that have to be looked at one by one."""
    return _AS_ARRAY[name](column)


def _taken(source: Path, schema: pa.Schema, names: Names) -> dict[str, str]:
    """The columns that are read, and what they are of a row. Raises CatalogError.

    An index that pandas stored beside its columns is none of them. Where names are declared, the table is
    somebody else's, and its other columns are left out.
    """
    ours = dict(zip(msgspec.structs.astuple(names), Row.__struct_fields__, strict=True))
    missing = [name for name in (names.item, names.sid) if name not in schema.names]
    unknown = [name for name in schema.names if name not in ours and not _INDEX.fullmatch(name)]
    repeated = [name for name, count in Counter(schema.names).items() if count > 1 and name in ours]
    if missing or repeated or (unknown and names == Names()):
        raise CatalogError(
            f"{source}: columns missing {missing}, unknown {unknown}, repeated {repeated}: {EXPECTED}"
        )
    return {name: ours[name] for name in schema.names if name in ours}


def _texts(column: pa.Array) -> TextSequence | None:
    """Ids, of which none is NULL."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if column.null_count or not (pa.types.is_integer(kind) or _is_text(kind)):
        return None
    return TextSequence(_table(pc.cast(column, pa.string())))


def _titles(column: pa.Array) -> TextSequence | None:
    import pyarrow.compute as pc

    return TextSequence(_table(pc.fill_null(column, ""))) if _is_text(column.type) else None


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _table(column: pa.Array) -> StringTable:
    """Of texts without NULL, whose UTF-8 is checked: a file may hold anything. Raises ValueError."""
    import pyarrow as pa

    column = pa.compute.cast(column, pa.large_string())
    column.validate(full=True)
    _, ends, letters = column.buffers()
    offsets = np.frombuffer(ends, np.int64)[column.offset : column.offset + len(column) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    blob = np.frombuffer(letters, np.uint8)[first:last] if letters is not None else np.empty(0, np.uint8)
    return StringTable(blob, offsets - first)


def _sids(column: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Tokens and how many of them each SID has, of numbers and of lists of numbers."""
    import pyarrow as pa

    if column.null_count:
        return None
    if pa.types.is_integer(column.type):
        values, lengths = column, np.ones(len(column), np.int64)
    elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        values, lengths = column.flatten(), column.value_lengths().to_numpy().astype(np.int64)
    else:
        return None
    if values.null_count or not pa.types.is_integer(values.type):
        return None
    if pa.types.is_uint64(values.type):  # a token beyond 63 bits is a mistake that names its row
        return None
    return values.to_numpy().astype(np.int64), lengths


def _numbers(column: pa.Array) -> NDArray[np.float64] | None:
    """Popularity, minus infinity for NULL; None where one is not finite, which names its row."""
    import pyarrow as pa

    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None
    known = column.is_valid().to_numpy(zero_copy_only=False)
    values = np.full(len(column), -np.inf)
    values[known] = column.drop_null().to_numpy(zero_copy_only=False)
    return values if np.isfinite(values[known]).all() else None


_AS_ARRAY: dict[str, Callable[[Any], Any]] = {
    "item": _texts,
    "sid": _sids,
    "title": _titles,
    "popularity": _numbers,
    "attributes": lambda column: None,
}


def _cells(column: pa.Array) -> list[Any]:
    """As Python values; texts that a table holds as bytes become texts. Raises ValueError."""
    values: list[Any] = column.to_pylist()
    return [_text(value) for value in values] if "binary" in str(column.type) else values


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(inner) for inner in value]
    return value.decode() if isinstance(value, bytes) else value


def _check_cells(source: Path, columns: dict[str, list[Any]]) -> None:
    """The types that Parquet's own column types leave open, by column: all cells of one share a type."""
    accepted: dict[str, tuple[type, ...]] = {
        "title": (str, type(None)),
        "popularity": (int, float, type(None)),
        "attributes": (dict, list, type(None)),
    }
    for name, types in accepted.items():
        cells = columns.get(name, [])
        wrong = set(map(type, cells)) - set(types)
        # A map comes as a list of pairs; any other list is no attributes.
        wrong |= {type(pair) for cell in cells if isinstance(cell, list) for pair in cell} - {tuple}
        if wrong:
            found = ", ".join(kind.__name__ for kind in wrong)
            raise CatalogError(f"{source}: column {name!r} holds {found}: {EXPECTED}")
