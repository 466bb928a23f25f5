"""From source rows to a catalog: checks that name item and line, then sorting and derived arrays.

Item order on one SID: popularity descending if the source has it (rows without come last), then the id:
decimal ids first and by value, all others by code point.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from xgr_runtime.catalog.items import StringTable, id_order, pack_strings
from xgr_runtime.catalog.snapshot import Catalog, Content
from xgr_runtime.catalog.sources import Columns, read_columns
from xgr_runtime.catalog.template import PromptTemplate
from xgr_runtime.catalog.trie import first_difference, sid_order
from xgr_runtime.catalog.vocabulary import Vocabulary, read_object, read_vocabulary
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

MAX_DEPTH = 8


def build_catalog(source: Path, tokenizer_dir: Path | None = None, vocab_size: int | None = None) -> Catalog:
    """A catalog from index.json, .jsonl or .parquet and the optional catalog.json beside it.

    tokenizer_dir: the checkpoint folder; token strings, the vocabulary size and the default prefix come from
    there. Without it the source must hold token ids and the default prefix is empty. Raises CatalogError.
    """
    vocabulary = read_vocabulary(tokenizer_dir, vocab_size)
    template = read_template(source, vocabulary)
    try:
        return build_from_columns(read_columns(source), vocabulary, template)
    except CatalogError as error:
        raise error if str(error).startswith(str(source)) else CatalogError(f"{source}: {error}") from error


def build_from_arrays(
    items: Sequence[str | int],
    sids: ArrayLike,
    *,
    popularity: Sequence[float | None] | None = None,
    titles: Sequence[str | None] | None = None,
    attributes: Sequence[dict[str, Any] | None] | None = None,
    template: PromptTemplate | None = None,
    vocab_size: int | None = None,
) -> Catalog:
    """A catalog from item ids [N] and token ids [N, depth], for callers that hold them already."""
    rows = np.asarray(sids)
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer):
        raise CatalogError(f"sids must be integers [items, depth], they are {rows.dtype} {list(rows.shape)}")
    columns = Columns(items, rows, lambda row: f"row {row + 1}", titles, popularity, attributes)
    return build_from_columns(columns, Vocabulary(vocab_size), template or PromptTemplate())


def build_from_columns(columns: Columns, vocabulary: Vocabulary, template: PromptTemplate) -> Catalog:
    """Checks the columns and builds the catalog. Raises CatalogError naming item and place."""
    _check_lengths(columns)
    items = _item_ids(columns)
    sids = _sid_matrix(columns, items, vocabulary)
    popularity = _popularities(columns, items)
    order = _row_order(items, sids, popularity)
    content = Content(
        *_distinct(sids[order]),
        ids=pack_strings(_encode([items[row] for row in order], columns, order, "item id")),
        titles=_titles(columns, order),
        attributes=_attributes(columns, items, order),
        template=template,
    )
    return Catalog.from_content(content, vocabulary.size)


def read_template(source: Path, vocabulary: Vocabulary) -> PromptTemplate:
    """The template of catalog.json beside `source`; absent fields take their defaults."""
    path = source.with_name("catalog.json")
    fields = read_object(path) if path.name != source.name else {}
    unknown = sorted(set(fields) - set(PromptTemplate.__struct_fields__))
    if unknown:
        raise CatalogError(f"{path}: unknown fields {unknown}: use {PromptTemplate.__struct_fields__}")
    limit = fields.get("max_history_items", 64)
    if type(limit) is not int or limit < 1:
        raise CatalogError(f"{path}: max_history_items is {limit!r}: it must be a whole number of at least 1")
    begin = [] if vocabulary.begin is None else [vocabulary.begin]
    return PromptTemplate(
        prefix=_template_tokens(path, "prefix", fields.get("prefix", begin), vocabulary),
        separator=_template_tokens(path, "separator", fields.get("separator", []), vocabulary),
        suffix=_template_tokens(path, "suffix", fields.get("suffix", []), vocabulary),
        max_history_items=limit,
    )


def _template_tokens(path: Path, name: str, value: Any, vocabulary: Vocabulary) -> tuple[int, ...]:
    tokens = value if isinstance(value, list) else [value]
    if not set(map(type, tokens)) <= {str, int}:
        raise CatalogError(f"{path}: {name} is {value!r}: it must be a list of token strings or ids")
    try:
        return tuple(vocabulary.resolve(token) for token in tokens)
    except CatalogError as error:
        raise CatalogError(f"{path}: {name}: {error}") from error


def _check_lengths(columns: Columns) -> None:
    if not len(columns.items):
        raise CatalogError("the catalog is empty: give it at least one item")
    optional = (columns.titles, columns.popularity, columns.attributes)
    for column in (columns.sids, *(column for column in optional if column is not None)):
        if len(column) != len(columns.items):
            raise CatalogError(f"a column has {len(column)} rows, there are {len(columns.items)} items")


def _item_ids(columns: Columns) -> list[str]:
    """Item ids as text, each one once."""
    for row, item in enumerate(columns.items):
        if type(item) not in (str, int) or item == "":
            raise CatalogError(
                f"{columns.place(row)}: item {item!r} must be a non-empty string or an integer"
            )
    items = [item if type(item) is str else str(item) for item in columns.items]
    if len(set(items)) != len(items):
        seen: dict[str, int] = {}
        for row, item in enumerate(items):
            if seen.setdefault(item, row) != row:
                first = columns.place(seen[item])
                raise CatalogError(
                    f"{columns.place(row)}: item {item!r} is a duplicate of {first}: remove one of the two"
                )
    return items


def _sid_matrix(columns: Columns, items: list[str], vocabulary: Vocabulary) -> NDArray[np.int32]:
    """SIDs [N, depth] int32 in source order."""
    if isinstance(columns.sids, np.ndarray):
        return _checked_matrix(columns.sids, columns, items, vocabulary)
    depth = _depth(columns, items)
    flat = list(chain.from_iterable(columns.sids))
    if not set(map(type, flat)) <= {str, int}:
        wrong = next(i for i, token in enumerate(flat) if type(token) not in (str, int))
        raise CatalogError(
            f"{_at(columns, items, wrong // depth)}: {flat[wrong]!r} in the SID is neither a token string "
            "nor a token id: write one of the two"
        )
    table: dict[str | int, int] = {}
    for token in set(flat):
        try:
            table[token] = vocabulary.resolve(token)
        except CatalogError:
            _raise_first(flat, depth, columns, items, vocabulary)
    return np.fromiter(map(table.__getitem__, flat), np.int32, len(flat)).reshape(-1, depth)


def _raise_first(
    flat: list[str | int], depth: int, columns: Columns, items: list[str], vocabulary: Vocabulary
) -> None:
    """Names the first row in source order whose token fails: a set has no order of its own."""
    good: set[str | int] = set()
    for index, token in enumerate(flat):
        if token in good:
            continue
        try:
            vocabulary.resolve(token)
        except CatalogError as error:
            raise CatalogError(f"{_at(columns, items, index // depth)}: {error}") from error
        good.add(token)


def _checked_matrix(
    sids: NDArray[Any], columns: Columns, items: list[str], vocabulary: Vocabulary
) -> NDArray[np.int32]:
    if not 1 <= sids.shape[1] <= MAX_DEPTH:
        raise CatalogError(f"SIDs have {sids.shape[1]} tokens: depth must be 1 to {MAX_DEPTH}")
    for bound in (int(sids.min()), int(sids.max())):
        try:
            vocabulary.resolve(bound)
        except CatalogError as error:
            row = int(np.argwhere(sids == bound)[0][0])
            raise CatalogError(f"{_at(columns, items, row)}: {error}") from error
    return sids.astype(np.int32)


def _depth(columns: Columns, items: list[str]) -> int:
    for row, sid in enumerate(columns.sids):
        if type(sid) is not list:
            raise CatalogError(
                f"{_at(columns, items, row)}: the SID is {sid!r:.80}: "
                "it must be a list of token strings or ids"
            )
        if not 1 <= len(sid) <= MAX_DEPTH:
            raise CatalogError(
                f"{_at(columns, items, row)}: the SID has {len(sid)} tokens: depth must be 1 to {MAX_DEPTH}"
            )
    depth = len(columns.sids[0])
    if set(map(len, columns.sids)) != {depth}:
        row = next(row for row, sid in enumerate(columns.sids) if len(sid) != depth)
        raise CatalogError(
            f"{_at(columns, items, row)}: uneven depth, the SID has {len(columns.sids[row])} tokens "
            f"and those before it have {depth}: give every item the same number of tokens"
        )
    return depth


def _popularities(columns: Columns, items: list[str]) -> NDArray[np.float64] | None:
    """Popularity [N], minus infinity where a row has none; None without the column."""
    values = columns.popularity
    if values is None or all(value is None for value in values):
        return None
    popularity = np.array([-np.inf if value is None else float(value) for value in values])
    wrong = [row for row in np.flatnonzero(~np.isfinite(popularity)).tolist() if values[row] is not None]
    if wrong:
        raise CatalogError(
            f"{_at(columns, items, wrong[0])}: popularity is {values[wrong[0]]!r}: "
            "write a finite number or leave it out"
        )
    return popularity


def _row_order(
    items: list[str], sids: NDArray[np.int32], popularity: NDArray[np.float64] | None
) -> NDArray[np.int64]:
    """Rows by SID, popularity, id. Ids are compared only inside ties, which are few."""
    order = sid_order(sids, popularity)
    tied = (sids[order[1:]] == sids[order[:-1]]).all(axis=1)
    if popularity is not None:
        tied &= popularity[order[1:]] == popularity[order[:-1]]
    edges = np.diff(np.concatenate([[False], tied, [False]]).astype(np.int8))
    for first, last in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) + 1, strict=True):
        order[first:last] = sorted(order[first:last], key=lambda row: id_order(items[row]))
    return order


def _distinct(sids: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Distinct SIDs [leaves, depth] of sorted rows, and the first row of each leaf [leaves + 1]."""
    starts = np.flatnonzero(first_difference(sids) < sids.shape[1]).astype(np.int32)
    return np.ascontiguousarray(sids[starts]), np.append(starts, np.int32(len(sids)))


def _titles(columns: Columns, order: NDArray[np.int64]) -> StringTable:
    if columns.titles is None:
        return pack_strings([])
    titles = columns.titles
    return pack_strings(_encode([titles[row] or "" for row in order], columns, order, "title"))


def _attributes(columns: Columns, items: list[str], order: NDArray[np.int64]) -> StringTable:
    """Attributes as canonical JSON: sorted keys, absent values left out, so that every format agrees."""
    if columns.attributes is None:
        return pack_strings([])
    encoder = msgspec.json.Encoder(order="sorted")
    texts = []
    for row in order:
        present = {key: value for key, value in (columns.attributes[row] or {}).items() if value is not None}
        try:
            texts.append(encoder.encode(present) if present else b"")
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise CatalogError(
                f"{_at(columns, items, int(row))}: attributes cannot be stored ({error}): use JSON values"
            ) from error
    return pack_strings(texts)


def _encode(texts: list[str], columns: Columns, order: NDArray[np.int64], what: str) -> list[bytes]:
    try:
        return [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        row = next(i for i, text in enumerate(texts) if text == error.object)
        raise CatalogError(
            f"{columns.place(int(order[row]))}: {what} {error.object!r} is not valid Unicode: correct it"
        ) from error


def _at(columns: Columns, items: list[str], row: int) -> str:
    return f"{columns.place(row)}, item {items[row]!r}"
