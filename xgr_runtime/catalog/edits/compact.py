"""Compaction: what is present, laid out as a built catalog lays it out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xgr_runtime.catalog.attributes import taken
from xgr_runtime.catalog.attributes.stored import packed_bits
from xgr_runtime.catalog.content import Content
from xgr_runtime.catalog.items import StringTable, hash_ids, index_again
from xgr_runtime.catalog.snapshot import Catalog
from xgr_runtime.catalog.views import CatalogView
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int32 = NDArray[np.int32]


def compacted(view: CatalogView) -> CatalogView:
    """The built catalog of all items that are present, hidden ones among them; its version is its content's.

    It equals one that is built from these items, with the columns that the catalog was built with. Conditions
    that are kept go over, and SIDs are shared where none goes. Raises CatalogError where no item is left.
    """
    catalog = view.catalog
    slots = _present_in_order(catalog)
    if not len(slots):
        raise CatalogError("compact: the catalog has no item left: add one first")
    leaves = catalog.leaf_of_row[slots]
    first = np.flatnonzero(np.concatenate([[True], leaves[1:] != leaves[:-1]])).astype(np.int32)
    ids, titles, attributes = (texts.table_of(slots) for texts in catalog.texts)
    hidden = np.zeros(0, np.bool_) if catalog.visible is None else ~catalog.visible.holds(slots)
    popularity, parts = catalog.popularity(slots), catalog.rows_by_column.segments
    content = Content(
        np.asarray(catalog.sids) if len(first) == catalog.leaves else catalog.sids[leaves[first]],
        np.append(first, np.int32(len(slots))),
        ids,
        _optional(titles),
        _optional(attributes),
        catalog.templates,
        catalog.scoring,
        tuple(taken(catalog.fields, [(part.length, part.columns) for part in parts], slots)),
        popularity if np.isfinite(popularity).any() else popularity[:0],
        packed_bits(hidden) if hidden.any() else np.zeros(0, np.uint8),
    )
    index = index_again(catalog.index, hash_ids(catalog.later.ids), slots)
    built = Catalog.from_content(content, catalog.vocab_size_known, index, catalog.basis)
    return CatalogView(built, view.filter_bytes, view.filters.renumbered(built.rows_by_column, slots))


def _present_in_order(catalog: Catalog) -> Int32:
    order = catalog.places.order
    slots = np.arange(catalog.slots, dtype=np.int32) if order is None else np.asarray(order)
    return slots[catalog.present(slots)]


def _optional(table: StringTable) -> StringTable:
    """Two empty arrays where there is no text at all."""
    return table if len(table.blob) else StringTable(table.blob, table.offsets[:0])
