"""What a batch adds by slot, and where its items stand on their leaves."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xgr_runtime.catalog.attributes import gathered
from xgr_runtime.catalog.attributes.stored import check_texts
from xgr_runtime.catalog.edits.leaves import added, inserted
from xgr_runtime.catalog.items import id_order, pack_optional, pack_strings
from xgr_runtime.catalog.places import LeafPlaces
from xgr_runtime.catalog.where import ColumnSegment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from xgr_runtime.catalog.attributes import AttributeField
    from xgr_runtime.catalog.edits.batch import EditBatch
    from xgr_runtime.catalog.edits.changes import Changes
    from xgr_runtime.catalog.slots import Later
    from xgr_runtime.catalog.snapshot import Catalog

    Int32 = NDArray[np.int32]
    Int64 = NDArray[np.int64]

_MERGED = 1 << 12  # items up to which columns of two batches become one


def with_batch(catalog: Catalog, batch: EditBatch, changes: Changes) -> Later:
    """What is kept by slot, with the new slots behind. Raises CatalogError for attributes that do not fit."""
    later = catalog.later
    popularity = dict(zip(changes.rank.tolist(), changes.popularity, strict=True))
    if popularity:
        later = replace(later, ranked=later.ranked | popularity)
    if not batch.put:
        return later
    new = enumerate(changes.ids, start=catalog.slots)
    later = replace(
        later,
        ids=[*later.ids, *changes.ids],
        titles=[*later.titles, *(record.title.encode() for record in batch.put)],
        attributes=[*later.attributes, *(record.attributes for record in batch.put)],
        popularity=[
            *later.popularity,
            *(-np.inf if record.popularity is None else record.popularity for record in batch.put),
        ],
        newest=later.newest | {one: slot for slot, one in new},
    )
    return replace(later, segments=_segments(catalog, later, len(batch.put)))


def _segments(catalog: Catalog, later: Later, count: int) -> tuple[ColumnSegment, ...]:
    """Columns of later slots: few of them, and a batch seldom gathers more than its own items."""
    fields = catalog.fields
    segments = [*later.segments, _gathered(later, catalog.built_slots, catalog.slots, count, fields)]
    while len(segments) > 1 and segments[-2].length <= 2 * segments[-1].length:
        length = segments[-2].length + segments[-1].length
        if length > _MERGED:
            break
        segments[-2:] = [_gathered(later, catalog.built_slots, segments[-2].first, length, fields)]
    check_texts([catalog.columns, *(segment.columns for segment in segments)])
    return tuple(segments)


def _gathered(
    later: Later, built: int, first: int, length: int, fields: Sequence[AttributeField]
) -> ColumnSegment:
    some = slice(first - built, first - built + length)
    objects = pack_optional(later.attributes[some])
    columns = gathered(objects, pack_strings(later.ids[some]), fields)
    return ColumnSegment(first, length, {column.name: column for column in columns})


class Standing:
    """In which order items stand on a leaf: popularity descending, then ids, as in builds."""

    def __init__(self, catalog: Catalog, later: Later) -> None:
        self._catalog, self._later = catalog, later
        self._built = catalog.built_slots

    def key(self, slot: int) -> tuple[Any, ...]:
        """That sorts slots of one leaf; of those with one id, of which one is alive, the older is first."""
        return -self._popularity(slot), id_order(self._id(slot)), slot

    def _popularity(self, slot: int) -> float:
        later = self._later
        if slot in later.ranked:
            return later.ranked[slot]
        if slot >= self._built:
            return later.popularity[slot - self._built]
        built = self._catalog.arrays["popularity"]
        return float(built[slot]) if len(built) else -np.inf

    def _id(self, slot: int) -> str:
        if slot >= self._built:
            return self._later.ids[slot - self._built].decode()
        return self._catalog.item_id(slot)


def stood(places: LeafPlaces, leaves: Int64, first: int, ranked: Int32, standing: Standing) -> LeafPlaces:
    """The places with new slots `first`, `first` + 1, ... on `leaves` [P], and slots `ranked` anew."""
    if len(leaves):
        places = _with_slots(places, leaves, first, standing)
    if len(ranked):
        places = _sorted_again(places, np.unique(places.leaf_of_row[ranked]), standing)
    return places


def _order(places: LeafPlaces) -> Int32:
    return np.arange(len(places.leaf_of_row), dtype=np.int32) if places.order is None else places.order


def _with_slots(places: LeafPlaces, leaves: Int64, first: int, standing: Standing) -> LeafPlaces:
    """`leaf_of_row` and `item_lo` are without the new slots, but `item_lo` has all leaves."""
    order = _order(places)
    slots = sorted(range(len(leaves)), key=lambda at: (int(leaves[at]), standing.key(first + at)))
    at = np.array(
        [
            _place(order, places.item_lo, int(leaves[new]), standing.key(first + new), standing)
            for new in slots
        ],
        np.int64,
    )
    numbers = np.array(slots, np.int32)
    return LeafPlaces(
        added(places.item_lo, leaves[numbers] + 1),
        np.concatenate([places.leaf_of_row, leaves.astype(np.int32)]),
        inserted(order, at, np.int32(first) + numbers),
    )


def _place(order: Int32, item_lo: Int32, leaf: int, key: tuple[Any, ...], standing: Standing) -> int:
    """Where in `order` a slot with that key comes."""
    first, last = int(item_lo[leaf]), int(item_lo[leaf + 1])
    return bisect_left(range(last), key, lo=first, key=lambda at: standing.key(int(order[at])))


def _sorted_again(places: LeafPlaces, leaves: Int32, standing: Standing) -> LeafPlaces:
    first, last = places.item_lo[leaves], places.item_lo[leaves + 1]
    shared = last - first > 1
    if not shared.any():
        return places
    order = _order(places).copy()
    for low, high in zip(first[shared].tolist(), last[shared].tolist(), strict=True):
        order[low:high] = sorted(order[low:high].tolist(), key=standing.key)
    return places._replace(order=order)
