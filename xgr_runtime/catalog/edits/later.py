"""What a batch adds by slot, and where its items stand on their leaves."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xgr_runtime.catalog.attributes import gathered
from xgr_runtime.catalog.attributes.stored import check_texts
from xgr_runtime.catalog.items import id_order, pack_optional, pack_strings
from xgr_runtime.catalog.places import LeafPlaces
from xgr_runtime.catalog.where import ColumnSegment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from xgr_runtime.catalog.added import Insertions
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


def stood(added: Insertions, leaves: Int64, ranked: Int32, standing: Standing) -> Insertions:
    """With new slots on `leaves` [P], the first of which has the next number, and slots `ranked` anew."""
    if len(leaves):
        added = _with_slots(added, leaves, standing)
    return _sorted_again(added, ranked, standing) if len(ranked) else added


def _with_slots(added: Insertions, leaves: Int64, standing: Standing) -> Insertions:
    first, there = added.slots, _Lists(added)
    keys = [standing.key(first + number) for number in range(len(leaves))]
    numbers = sorted(range(len(leaves)), key=lambda number: (int(leaves[number]), keys[number]))
    at = [there.place(int(leaves[number]), keys[number], standing) for number in numbers]
    return added.with_slots(leaves, np.array(at, np.int64), np.array(numbers, np.int64))


class _Lists:
    """Leaves' slots in collision order, each read once."""

    def __init__(self, added: Insertions) -> None:
        arrays = added.arrays()
        self._places = LeafPlaces(arrays["item_lo"], arrays["leaf_of_row"], added.whole_order())
        self._read: dict[int, list[int]] = {}

    def begin(self, leaf: int) -> int:
        """The place of its first slot."""
        return int(self._places.item_lo[leaf])

    def of(self, leaf: int) -> list[int]:
        if leaf not in self._read:
            self._read[leaf] = self._places.on(np.array([leaf]))[0].tolist()
        return self._read[leaf]

    def place(self, leaf: int, key: tuple[Any, ...], standing: Standing) -> int:
        """In front of which a slot with that key comes."""
        return self.begin(leaf) + bisect_left(self.of(leaf), key, key=standing.key)


def _sorted_again(added: Insertions, ranked: Int32, standing: Standing) -> Insertions:
    lists = _Lists(added)
    for leaf in np.unique(added.leaf_of(ranked.astype(np.int64))).tolist():
        slots = lists.of(leaf)
        again = sorted(slots, key=standing.key)
        if again != slots:
            places = lists.begin(leaf) + np.arange(len(slots))
            added = added.sorted_anew(places, np.array(again, np.int32))
    return added
