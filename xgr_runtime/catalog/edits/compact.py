"""Compaction: what is present, laid out as a built catalog lays it out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xgr_runtime.catalog.attributes import gathered
from xgr_runtime.catalog.attributes.stored import packed_bits
from xgr_runtime.catalog.content import Content
from xgr_runtime.catalog.items import StringTable
from xgr_runtime.catalog.snapshot import Catalog
from xgr_runtime.catalog.views import CatalogView
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xgr_runtime.catalog.slots import TextsBySlot

    Int32 = NDArray[np.int32]

_PIECE = 1 << 16  # texts that are copied together


def compacted(view: CatalogView) -> CatalogView:
    """The built catalog of all items that are present, hidden ones among them; its version is its content's.

    It equals one that is built from these items, with the columns that the catalog was built with. Conditions
    that are kept go over. Raises CatalogError where no item is left.
    """
    catalog = view.catalog
    slots = _present_in_order(catalog)
    if not len(slots):
        raise CatalogError("compact: the catalog has no item left: add one first")
    leaves = catalog.leaf_of_row[slots]
    first = np.flatnonzero(np.concatenate([[True], leaves[1:] != leaves[:-1]])).astype(np.int32)
    ids, titles, attributes = (_table(texts, slots) for texts in catalog.texts)
    hidden = np.zeros(0, np.bool_) if catalog.visible is None else ~catalog.visible.holds(slots)
    popularity = catalog.popularity(slots)
    content = Content(
        np.ascontiguousarray(catalog.sids[leaves[first]]),
        np.append(first, np.int32(len(slots))),
        ids,
        _optional(titles),
        _optional(attributes),
        catalog.templates,
        catalog.scoring,
        tuple(gathered(_optional(attributes), ids, catalog.fields)),
        popularity if np.isfinite(popularity).any() else popularity[:0],
        packed_bits(hidden) if hidden.any() else np.zeros(0, np.uint8),
    )
    built = Catalog.from_content(content, catalog.vocab_size_known, catalog.basis)
    return CatalogView(built, view.filter_bytes, view.filters.renumbered(built.rows_by_column, slots))


def _present_in_order(catalog: Catalog) -> Int32:
    order = catalog.places.order
    slots = np.arange(catalog.slots, dtype=np.int32) if order is None else order
    return slots[catalog.present(slots)]


def _table(texts: TextsBySlot, slots: Int32) -> StringTable:
    """Texts of slots as one table."""
    blobs, lengths = [], [np.zeros(1, np.int64)]
    for first in range(0, len(slots), _PIECE):
        some = texts.take(slots[first : first + _PIECE])
        blobs.append(b"".join(some))
        lengths.append(np.fromiter(map(len, some), np.int64, len(some)))
    return StringTable(np.frombuffer(b"".join(blobs), np.uint8), np.cumsum(np.concatenate(lengths)))


def _optional(table: StringTable) -> StringTable:
    """Two empty arrays where there is no text at all."""
    return table if len(table.blob) else StringTable(table.blob, table.offsets[:0])
