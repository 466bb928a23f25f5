"""From source rows to a catalog: sorting, numbering and the derived arrays.

Item order on one SID: popularity descending if the source has it (rows without come last), then the id:
decimal ids first and by value, all others by code point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xgr_runtime.catalog.attributes import AttributeField, declared_fields, gathered
from xgr_runtime.catalog.beside import check_whole, prompt_ends, read_beside, read_templates, template_file
from xgr_runtime.catalog.codebooks import check_codebooks
from xgr_runtime.catalog.content import Content
from xgr_runtime.catalog.declared import Declared, check_ids, declared
from xgr_runtime.catalog.order import row_order
from xgr_runtime.catalog.rows import Rows, gather
from xgr_runtime.catalog.scoring import NEUTRAL, Scoring, check_prompt_end, read_scoring
from xgr_runtime.catalog.snapshot import Catalog
from xgr_runtime.catalog.sources import read_pieces
from xgr_runtime.catalog.template import Templates
from xgr_runtime.catalog.trie import first_difference
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
    beside: Path | None = None,
) -> Catalog:
    """A catalog from index.json, .jsonl, .parquet, .tsv, .txt or a folder of parts, and catalog.json beside.

    tokenizer_dir: the checkpoint folder; token strings, the vocabulary size and the default prefix come from
    there. Without it the source must hold token ids and the default prefix is empty. flags: what is declared
    of the source, before catalog.json. beside: another file instead of that one. Raises CatalogError.
    """
    vocabulary = read_vocabulary(tokenizer_dir, vocab_size)
    path = beside or template_file(source)
    said = read_beside(source, path)
    templates, form = read_templates(said, path, vocabulary), declared(said, path, flags)
    fields = declared_fields(said, path)
    try:
        rows = gather(read_pieces(source, form.columns), form, vocabulary)
        if rows.numbers:
            check_ids(rows.sids, form, vocabulary)
        check_codebooks(form, rows.sids, vocabulary)
        check_whole(said, path, rows.sids[:3], vocabulary)
        scoring = read_scoring(said, path, rows.sids, vocabulary)
        for end in prompt_ends(templates, vocabulary):
            check_prompt_end(scoring, end, path)
        return assemble(rows, vocabulary.size, templates, scoring, fields)
    except CatalogError as error:
        named = str(error).startswith((str(source), str(path)))
        raise error if named else CatalogError(f"{source}: {error}") from error


def assemble(
    rows: Rows,
    vocab_size: int | None,
    templates: Templates,
    scoring: Scoring | None = None,
    fields: Sequence[AttributeField] | None = None,
) -> Catalog:
    """Sorts checked rows into content. They are used up: each table goes once it is in order.

    fields: attributes that have columns; None: all of those that can. Raises CatalogError.
    """
    order = row_order(rows.ids, rows.sids, rows.popularity)
    sids, item_lo = _distinct(rows.take("sids")[order])
    ids, titles, attributes = (rows.take(name).ordered(order) for name in ("ids", "titles", "attributes"))
    content = Content(
        sids,
        item_lo,
        ids=ids,
        titles=titles,
        attributes=attributes,
        templates=templates,
        scoring=scoring or NEUTRAL,
        columns=tuple(gathered(attributes, ids, fields)),
        popularity=np.empty(0) if rows.popularity is None else rows.popularity[order],
    )
    return Catalog.from_content(content, vocab_size)


def _distinct(sids: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Distinct SIDs [leaves, depth] of sorted rows, and the first row of each leaf [leaves + 1]."""
    starts = np.flatnonzero(first_difference(sids) < sids.shape[1]).astype(np.int32)
    return np.ascontiguousarray(sids[starts]), np.append(starts, np.int32(len(sids)))
