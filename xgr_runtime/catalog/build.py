"""From source rows to a catalog: sorting, numbering and the derived arrays.

Item order on one SID: popularity descending if the source has it (rows without come last), then the id:
decimal ids first and by value, all others by code point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xgr_runtime.catalog.attributes import AttributeField, declared_fields, gathered
from xgr_runtime.catalog.beside import check_whole, prompt_ends, read_beside, read_templates, template_file
from xgr_runtime.catalog.checks import (
    check_lengths,
    checked_ids,
    checked_popularity,
    resolved_sids,
)
from xgr_runtime.catalog.codebooks import check_codebooks
from xgr_runtime.catalog.columns import Columns
from xgr_runtime.catalog.content import Content
from xgr_runtime.catalog.declared import Declared, check_ids, declared, spell
from xgr_runtime.catalog.items import id_order, pack_optional, pack_strings
from xgr_runtime.catalog.scoring import NEUTRAL, Scoring, check_prompt_end, read_scoring
from xgr_runtime.catalog.snapshot import Catalog
from xgr_runtime.catalog.sources import read_columns
from xgr_runtime.catalog.template import Templates
from xgr_runtime.catalog.trie import first_difference, sid_order
from xgr_runtime.catalog.vocabulary import read_vocabulary
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def build_catalog(
    source: Path,
    tokenizer_dir: Path | None = None,
    vocab_size: int | None = None,
    flags: Declared | None = None,
) -> Catalog:
    """A catalog from index.json, .jsonl, .parquet, .tsv, .txt or a folder of parts, and catalog.json beside.

    tokenizer_dir: the checkpoint folder; token strings, the vocabulary size and the default prefix come from
    there. Without it the source must hold token ids and the default prefix is empty. flags: what is declared
    of the source, before catalog.json. Raises CatalogError.
    """
    vocabulary = read_vocabulary(tokenizer_dir, vocab_size)
    beside, path = read_beside(source), template_file(source)
    templates, form = read_templates(beside, path, vocabulary), declared(beside, path, flags)
    fields = declared_fields(beside, path)
    try:
        columns = spell(read_columns(source, form.columns), form)
        check_lengths(columns)
        items = checked_ids(columns)
        sids = resolved_sids(columns, items, vocabulary)
        check_ids(columns, sids, form, vocabulary)
        check_codebooks(form, sids, vocabulary)
        check_whole(beside, path, sids[:3], vocabulary)
        scoring = read_scoring(beside, path, sids, vocabulary)
        for end in prompt_ends(templates, vocabulary):
            check_prompt_end(scoring, end, path)
        return assemble(columns, items, sids, vocabulary.size, templates, scoring, fields)
    except CatalogError as error:
        named = str(error).startswith((str(source), str(path)))
        raise error if named else CatalogError(f"{source}: {error}") from error


def assemble(
    columns: Columns,
    items: list[str],
    sids: NDArray[np.int32],
    vocab_size: int | None,
    templates: Templates,
    scoring: Scoring | None = None,
    fields: Sequence[AttributeField] | None = None,
) -> Catalog:
    """Sorts checked rows into content; sids [N, depth] in source order.

    fields: attributes that have columns; None: all of those that can. Raises CatalogError.
    """
    popularity = checked_popularity(columns, items)
    order = _row_order(items, sids, popularity)
    rows = order.tolist()
    titles = columns.titles or []
    attributes = columns.attributes or []
    ids = pack_strings(_encode([items[row] for row in rows], columns, rows, "item id"))
    objects = pack_optional([attributes[row] for row in rows if attributes])
    content = Content(
        *_distinct(sids[order]),
        ids=ids,
        titles=pack_optional(_encode([titles[row] or "" for row in rows if titles], columns, rows, "title")),
        attributes=objects,
        templates=templates,
        scoring=scoring or NEUTRAL,
        columns=tuple(gathered(objects, ids, fields)),
        popularity=np.empty(0, np.float64) if popularity is None else popularity[order],
    )
    return Catalog.from_content(content, vocab_size)


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


def _encode(texts: list[str], columns: Columns, rows: Sequence[int], what: str) -> list[bytes]:
    try:
        return [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        row = next(i for i, text in enumerate(texts) if text == error.object)
        raise CatalogError(
            f"{columns.place(rows[row])}: {what} {error.object!r} is not valid Unicode: correct it"
        ) from error
