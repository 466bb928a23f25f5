"""Reader of Parquet sources: a table with the columns of `Row`. Alone uses pyarrow, imported on demand."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from xgr_runtime.catalog.columns import EXPECTED, Columns, Row, canonical
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from pathlib import Path

MAX_ROWS = 2**31 - 1  # rows are numbered in 32 bits


def read_parquet(source: Path) -> Columns:
    """A table with the columns of `Row`; `attributes` is a struct or a map."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source) as file:
            rows = file.metadata.num_rows
            if not 0 <= rows <= MAX_ROWS:  # before anything is allocated for them
                raise CatalogError(f"{source} claims {rows} rows: a catalog has at most {MAX_ROWS}")
            _check_columns(source, file.schema_arrow.names)
            table = file.read()
        cells: dict[str, list[Any]] = {name: table[name].to_pylist() for name in table.column_names}
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise CatalogError(f"{source} is not a Parquet file ({error!s:.300}): write it again") from error
    _check_cells(source, cells)
    items, attributes = cells["item"], cells.get("attributes")

    def place(row: int) -> str:
        return f"row {row + 1}"

    columns = Columns.of_lists(source, items, cells["sid"], place)
    columns.titles, columns.popularity = cells.get("title"), cells.get("popularity")
    if attributes is not None:
        columns.attributes = [canonical(dict(value or {})) for value in attributes]
    return columns


def _check_columns(source: Path, names: list[str]) -> None:
    missing = [name for name in ("item", "sid") if name not in names]
    unknown = [name for name in names if name not in Row.__struct_fields__]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if missing or unknown or repeated:
        raise CatalogError(
            f"{source}: columns missing {missing}, unknown {unknown}, repeated {repeated}: {EXPECTED}"
        )


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
