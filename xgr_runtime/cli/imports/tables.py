"""Rows of items and SIDs as several projects keep them, and what two files must agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xgr_runtime.catalog.declared import Names
from xgr_runtime.catalog.sources import read_columns
from xgr_runtime.cli.imports.artefacts import json_object
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from xgr_runtime.catalog.columns import Columns


def sids(columns: Columns) -> Iterator[tuple[Any, ...]]:
    """The SID of each row, as its tokens stand in the source."""
    at = 0
    for length in columns.lengths:
        yield tuple(columns.tokens[at : at + length])
        at += length


def by_item(columns: Columns) -> dict[str, tuple[Any, ...]]:
    """The SID of each item."""
    return {str(item): sid for item, sid in zip(columns.items, sids(columns), strict=True)}


def add_titles(columns: Columns, path: Path) -> int:
    """Titles of NAME.item.json, an object of items with a `title` each; how many items have one."""
    described = json_object(path)
    known = {item: value.get("title") for item, value in described.items() if isinstance(value, dict)}
    texts = [known.get(str(item)) for item in columns.items]
    columns.titles = [text if isinstance(text, str) and text else None for text in texts]
    return sum(text is not None for text in columns.titles)


def check_agreement(
    one: Columns, one_path: Path, other: Mapping[str, tuple[Any, ...]], other_path: Path
) -> None:
    """Raises CatalogError where the rows of `one` are not among `other`, item -> SID."""
    for row, (item, sid) in enumerate(zip(one.items, sids(one), strict=True)):
        there = other.get(str(item))
        if there != sid:
            found = "no such item" if there is None else f"the SID {''.join(map(str, there))}"
            raise CatalogError(
                f"{one_path}: {one.place(row)}, item {item!r:.80} has the SID {''.join(map(str, sid))}, and "
                f"{other_path} has {found}: take both from one run of the project"
            )


def index_columns(path: Path) -> Columns:
    """The rows of an index, whose SIDs have one depth. Raises CatalogError."""
    columns = read_columns(path, Names())
    check_depth(path, columns)
    return columns


def check_depth(path: Path, columns: Columns) -> None:
    """Raises CatalogError where some item has more levels than another."""
    depths = sorted(set(columns.lengths))
    if len(depths) > 1:
        row = next(row for row, length in enumerate(columns.lengths) if length != columns.lengths[0])
        raise CatalogError(
            f"{path}: {columns.place(row)}, item {columns.items[row]!r:.80} has {columns.lengths[row]} "
            f"levels and the first item {columns.lengths[0]}: give every item as many"
        )
