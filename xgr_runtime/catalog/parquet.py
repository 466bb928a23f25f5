"""Reader of Parquet sources: a table with the columns of `Row`. Alone uses pyarrow, imported on demand."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from xgr_runtime.catalog.columns import EXPECTED, Columns, Row, canonical
from xgr_runtime.catalog.declared import Names
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

_INDEX = re.compile(r"__index_level_\d+__")
MAX_ROWS = 2**31 - 1  # rows are numbered in 32 bits


def read_parquet(source: Path, names: Names) -> Columns:
    """A table with the columns of `Row`; `attributes` is a struct or a map."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source) as file:
            rows = file.metadata.num_rows
            if not 0 <= rows <= MAX_ROWS:  # before anything is allocated for them
                raise CatalogError(f"{source} claims {rows} rows: a catalog has at most {MAX_ROWS}")
            taken = _taken(source, file.schema_arrow, names)
            table = file.read(columns=list(taken))
        cells: dict[str, list[Any]] = {ours: _cells(table[theirs]) for theirs, ours in taken.items()}
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise CatalogError(f"{source} is not a Parquet file ({error!s:.300}): write it again") from error
    _check_cells(source, cells)
    items, attributes = cells["item"], cells.get("attributes")

    def place(row: int) -> str:
        return f"row {row + 1}"

    columns = Columns.of_sids(source, items, cells["sid"], place)
    columns.titles, columns.popularity = cells.get("title"), cells.get("popularity")
    if attributes is not None:
        columns.attributes = [canonical(dict(value or {})) for value in attributes]
    return columns


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


def _cells(column: pa.ChunkedArray) -> list[Any]:
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
