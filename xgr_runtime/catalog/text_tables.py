"""Reader of tab-separated text: with a line of column names, or SID, title and item on each line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xgr_runtime.catalog.columns import Columns, canonical, decoded
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from pathlib import Path

    from xgr_runtime.catalog.declared import Names

EXPECTED_LINES = "a line is SID, tab, title, tab, item, or the first one names the columns"


def read_tabs(source: Path, names: Names) -> Columns:
    """Tab-separated lines; a title may hold tabs. Raises CatalogError that names the line."""
    lines = decoded(source, source.read_bytes()).split("\n")  # titles may hold what else ends lines
    lines = [line.removesuffix("\r") for line in lines]
    rows = [(number, line.split("\t")) for number, line in enumerate(lines, start=1) if line.strip()]
    if rows and {names.item, names.sid} <= set(rows[0][1]):
        return _with_header(source, rows, names)
    for number, cells in rows:
        if len(cells) < 2:
            raise CatalogError(f"{source}: line {number} holds {cells[0]!r:.80}: {EXPECTED_LINES}")
    return Columns.of_sids(
        source,
        [cells[-1].strip() for _, cells in rows],
        [cells[0] for _, cells in rows],
        lambda row: f"line {rows[row][0]}",
        titles=["\t".join(cells[1:-1]) or None for _, cells in rows],
    )


def _with_header(source: Path, rows: list[tuple[int, list[str]]], names: Names) -> Columns:
    (_, header), *rows = rows
    for number, cells in rows:
        if len(cells) != len(header):
            raise CatalogError(
                f"{source}: line {number} has {len(cells)} cells and the first line {len(header)}: correct it"
            )
    columns = {name: [cells[at] for _, cells in rows] for at, name in enumerate(header)}
    items = columns.pop(names.item)
    sids = columns.pop(names.sid)
    titles = columns.pop(names.title, None)
    numbers = columns.pop(names.popularity, None)
    others = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]

    def place(row: int) -> str:
        return f"line {rows[row][0]}"

    return Columns.of_sids(
        source,
        items,
        sids,
        place,
        titles=None if titles is None else [title or None for title in titles],
        popularity=None if numbers is None else [_number(source, place(n), x) for n, x in enumerate(numbers)],
        attributes=[canonical(other) for other in others] if others else None,
    )


def _number(source: Path, place: str, text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise CatalogError(
            f"{source}: {place}: popularity is {text!r:.40}: write a number or nothing"
        ) from None
