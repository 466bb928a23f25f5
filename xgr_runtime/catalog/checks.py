"""Checks of source rows. Every message names the place, the item and what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from xgr_runtime.catalog.trie import MAX_DEPTH
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xgr_runtime.catalog.columns import Columns
    from xgr_runtime.catalog.vocabulary import Vocabulary


def check_lengths(columns: Columns) -> None:
    """At least one item, and as many cells in every column."""
    rows = len(columns.items)
    if not rows:
        raise CatalogError("the catalog is empty: give it at least one item")
    for name in ("lengths", "titles", "popularity", "attributes"):
        column = getattr(columns, name)
        if column is not None and len(column) != rows:
            raise CatalogError(f"{name} has {len(column)} rows, there are {rows} items: give one per item")


def checked_ids(columns: Columns) -> list[str]:
    """Item ids as text, each one once."""
    for row, item in enumerate(columns.items):
        if type(item) not in (str, int) or item == "":
            raise CatalogError(
                f"{columns.place(row)}: item {item!r:.80} must be a non-empty string or an integer"
            )
    items = [item if type(item) is str else str(item) for item in columns.items]
    if len(set(items)) != len(items):
        _raise_duplicate(columns, items)
    return items


def resolved_sids(columns: Columns, items: list[str], vocabulary: Vocabulary) -> NDArray[np.int32]:
    """SIDs [N, depth] int32 in source order, token strings resolved."""
    depth = _depth(columns, items)
    tokens = columns.tokens
    if not set(map(type, tokens)) <= {str, int}:
        wrong = next(i for i, token in enumerate(tokens) if type(token) not in (str, int))
        raise CatalogError(
            f"{_at(columns, items, wrong // depth)}: {tokens[wrong]!r:.80} in the SID is neither a token "
            "string nor a token id: write one of the two"
        )
    table: dict[str | int, int] = {}
    # In source order, so that the same source always gives the same message.
    for token in dict.fromkeys(tokens):
        try:
            table[token] = vocabulary.resolve(token)
        except CatalogError as error:
            row = tokens.index(token) // depth
            raise CatalogError(f"{_at(columns, items, row)}: {error}") from error
    return np.fromiter(map(table.__getitem__, tokens), np.int32, len(tokens)).reshape(-1, depth)


def checked_matrix(
    sids: NDArray[Any], columns: Columns, items: list[str], vocabulary: Vocabulary
) -> NDArray[np.int32]:
    """Token ids [N, depth] as int32, all within the vocabulary."""
    _depth(columns, items)
    for bound in (int(sids.min()), int(sids.max())):
        try:
            vocabulary.resolve(bound)
        except CatalogError as error:
            row = int(np.argwhere(sids == bound)[0][0])
            raise CatalogError(f"{_at(columns, items, row)}: {error}") from error
    return sids.astype(np.int32)


def checked_popularity(columns: Columns, items: list[str]) -> NDArray[np.float64] | None:
    """Popularity [N], minus infinity where a row has none; None without the column."""
    values = columns.popularity
    if values is None or all(value is None for value in values):
        return None
    popularity = np.array([-np.inf if value is None else float(value) for value in values])
    wrong = [row for row in np.flatnonzero(~np.isfinite(popularity)).tolist() if values[row] is not None]
    if wrong:
        raise CatalogError(
            f"{_at(columns, items, wrong[0])}: popularity is {values[wrong[0]]!r:.80}: "
            "write a finite number or leave it out"
        )
    return popularity


def _depth(columns: Columns, items: list[str]) -> int:
    """The one depth of all SIDs."""
    depth = columns.lengths[0]
    if not 1 <= depth <= MAX_DEPTH:
        raise CatalogError(
            f"{_at(columns, items, 0)}: the SID has {depth} tokens: depth must be 1 to {MAX_DEPTH}"
        )
    if set(columns.lengths) != {depth}:
        row = next(row for row, length in enumerate(columns.lengths) if length != depth)
        raise CatalogError(
            f"{_at(columns, items, row)}: uneven depth, the SID has {columns.lengths[row]} tokens "
            f"and those before it have {depth}: give every item the same number of tokens"
        )
    return depth


def _raise_duplicate(columns: Columns, items: list[str]) -> NoReturn:
    seen: dict[str, int] = {}
    row = next(row for row, item in enumerate(items) if seen.setdefault(item, row) != row)
    first = columns.place(seen[items[row]])
    raise CatalogError(
        f"{columns.place(row)}: item {items[row]!r:.80} is a duplicate of {first}: remove one of the two"
    )


def _at(columns: Columns, items: list[str], row: int) -> str:
    return f"{columns.place(row)}, item {items[row]!r:.80}"
