"""Checks of source rows. Every message names the place, the item and what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from xgr_runtime.catalog.items import StringTable, TextSequence, pack_strings
from xgr_runtime.catalog.trie import MAX_DEPTH
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from xgr_runtime.catalog.columns import Columns
    from xgr_runtime.catalog.vocabulary import Vocabulary


EMPTY = "the catalog is empty: give it at least one item"


def check_lengths(columns: Columns) -> None:
    """At least one item, and as many cells in every column."""
    rows = len(columns.items)
    if not rows:
        raise CatalogError(EMPTY)
    for name in ("lengths", "titles", "popularity", "attributes"):
        column = getattr(columns, name)
        if column is None:
            continue
        cells = len(column.offsets) - 1 if isinstance(column, StringTable) else len(column)
        if cells != rows:
            raise CatalogError(f"{name} has {cells} rows, there are {rows} items: give one per item")


def checked_ids(columns: Columns) -> list[str]:
    """Item ids as text, each one once."""
    items = _ids(columns)
    if len(set(items)) != len(items):
        raise_duplicate(items, range(len(items)), columns.place)
    return items


def encoded_ids(columns: Columns) -> StringTable:
    """Item ids as text; whether they repeat is not looked at."""
    if not isinstance(columns.items, TextSequence):
        return pack_strings(encoded(_ids(columns), columns, "item id"))
    table = columns.items.table
    empty = np.flatnonzero(np.diff(table.offsets) < 1)
    if len(empty):
        raise CatalogError(_no_id(columns, int(empty[0]), ""))
    return table


def _ids(columns: Columns) -> list[str]:
    for row, item in enumerate(columns.items):
        if type(item) not in (str, int) or item == "":
            raise CatalogError(_no_id(columns, row, item))
    return [item if type(item) is str else str(item) for item in columns.items]


def _no_id(columns: Columns, row: int, item: object) -> str:
    return f"{columns.place(row)}: item {item!r:.80} must be a non-empty string or an integer"


def encoded(texts: Sequence[str], columns: Columns, what: str) -> list[bytes]:
    """UTF-8 of the texts of all rows."""
    try:
        return [*map(str.encode, texts)]
    except UnicodeEncodeError as error:
        row = next(i for i, text in enumerate(texts) if text == error.object)
        raise CatalogError(
            f"{columns.place(row)}: {what} {error.object!r} is not valid Unicode: correct it"
        ) from error


def resolved_sids(
    columns: Columns,
    items: Sequence[str],
    vocabulary: Vocabulary,
    depth: int | None = None,
    known: dict[str | int, int] | None = None,
) -> NDArray[np.int32]:
    """SIDs [N, depth] int32 in source order, token strings resolved.

    depth: of rows before, None without any. known: ids of tokens that were resolved before, to which it adds.
    """
    depth = _depth(columns, items, depth)
    table = {} if known is None else known
    if isinstance(columns.tokens, np.ndarray):
        sids = columns.tokens.reshape(-1, depth)
        if columns.words is None:
            return checked_matrix(sids, columns, items, vocabulary)
        ids = _resolve(columns.words, columns, items, depth, vocabulary, table)
        return np.fromiter(map(ids.__getitem__, columns.words), np.int32, len(columns.words))[sids]
    tokens = columns.tokens
    if not set(map(type, tokens)) <= {str, int}:
        wrong = next(i for i, token in enumerate(tokens) if type(token) not in (str, int))
        raise CatalogError(
            f"{_at(columns, items, wrong // depth)}: {tokens[wrong]!r:.80} in the SID is neither a token "
            "string nor a token id: write one of the two"
        )
    # In source order, so that the same source always gives the same message.
    ids = _resolve(dict.fromkeys(tokens), columns, items, depth, vocabulary, table)
    return np.fromiter(map(ids.__getitem__, tokens), np.int32, len(tokens)).reshape(-1, depth)


def _resolve(
    tokens: Iterable[str | int],
    columns: Columns,
    items: Sequence[str],
    depth: int,
    vocabulary: Vocabulary,
    known: dict[str | int, int],
) -> dict[str | int, int]:
    """`known`, with the ids of these distinct tokens. Raises CatalogError naming the row."""
    for token in tokens:
        if token in known:
            continue
        try:
            known[token] = vocabulary.resolve(token)
        except CatalogError as error:
            place = [*columns.lists().tokens].index(token) // depth
            raise CatalogError(f"{_at(columns, items, place)}: {error}") from error
    return known


def checked_matrix(
    sids: NDArray[Any], columns: Columns, items: Sequence[str], vocabulary: Vocabulary
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


def checked_popularity(columns: Columns, items: Sequence[str]) -> NDArray[np.float64] | None:
    """Popularity [N], minus infinity where a row has none; None without the column."""
    values = columns.popularity
    if values is None or isinstance(values, np.ndarray):
        return values
    if all(value is None for value in values):
        return None
    popularity = np.array([-np.inf if value is None else float(value) for value in values])
    wrong = [row for row in np.flatnonzero(~np.isfinite(popularity)).tolist() if values[row] is not None]
    if wrong:
        raise CatalogError(
            f"{_at(columns, items, wrong[0])}: popularity is {values[wrong[0]]!r:.80}: "
            "write a finite number or leave it out"
        )
    return popularity


def _depth(columns: Columns, items: Sequence[str], before: int | None = None) -> int:
    """The one depth of all SIDs, which those of rows before have, too."""
    lengths = np.asarray(columns.lengths)
    depth = int(lengths[0]) if before is None else before
    if not 1 <= depth <= MAX_DEPTH:
        raise CatalogError(
            f"{_at(columns, items, 0)}: the SID has {depth} tokens: depth must be 1 to {MAX_DEPTH}"
        )
    if (lengths != depth).any():
        row = int(np.argmax(lengths != depth))
        raise CatalogError(
            f"{_at(columns, items, row)}: uneven depth, the SID has {lengths[row]} tokens "
            f"and those before it have {depth}: give every item the same number of tokens"
        )
    return depth


def raise_duplicate(items: Sequence[str], rows: Sequence[int], place: Callable[[int], str]) -> NoReturn:
    """items: those of `rows`, in their order, of which some come again."""
    seen: dict[str, int] = {}
    row, item = next(
        (row, item) for row, item in zip(rows, items, strict=True) if seen.setdefault(item, row) != row
    )
    raise CatalogError(
        f"{place(row)}: item {item!r:.80} is a duplicate of {place(seen[item])}: remove one of the two"
    )


def _at(columns: Columns, items: Sequence[str], row: int) -> str:
    return f"{columns.place(row)}, item {items[row]!r:.80}"
