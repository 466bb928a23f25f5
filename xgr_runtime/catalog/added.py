"""What edits put between the sorted arrays of a catalog, kept apart from them: a few numbers, not gigabytes.

A new leaf moves the numbers of all behind it, and a new slot the place of all slots behind it. So sids,
item_lo, leaf_of_row and the order on leaves of a later version are those of an earlier one, its base, with
some entries in between: who asks for an entry counts how many came before it. The trie alone is merged, as
kernels read it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Int32 = NDArray[np.int32]
    Int64 = NDArray[np.int64]

MOST_APART = 1 << 16
"""Entries that are kept apart; with more of them the arrays are made whole again."""


class SparseArray:
    """Reads like an array. An entry, or some by a list of numbers, is looked up; all else makes it whole."""

    ndim = property(lambda self: len(self.shape))
    dtype = np.dtype(np.int32)

    def __init__(self, shape: tuple[int, ...], look: Callable[[Int64], Int32]) -> None:
        """`look`: the entries [N, ...] of places [N] from 0 on."""
        self.shape = shape
        self._look = look

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple) and isinstance(key[0], (int, np.integer)):
            return self[key[0]][key[1:]]
        if isinstance(key, (int, np.integer)):
            if not -len(self) <= key < len(self):
                raise IndexError(key)
            return self._look(np.array([key % len(self)]))[0]
        if isinstance(key, (list, np.ndarray)):
            places = np.asarray(key)
            if places.ndim == 1 and (places.dtype.kind in "iu" or not len(places)):
                places = places.astype(np.int64)
                return self._look(np.where(places < 0, places + len(self), places))
        return self.whole()[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.whole() if dtype is None else self.whole().astype(dtype)

    def whole(self) -> Int32:
        """All of it, made for the caller."""
        return self._look(np.arange(len(self)))

    def tolist(self) -> list[Any]:
        found: list[Any] = self.whole().tolist()
        return found


class Insertions(NamedTuple):
    """Base arrays, and what came between their entries. Numbers are those of the version that it is of."""

    sids: Int32  # base [leaves, depth]
    item_lo: Int32  # base [leaves + 1]
    leaf_of_row: Int32  # base [slots]
    order: Int32 | None  # base [slots]; None: 0, 1, 2, ...
    came: Int64  # leaves that the base lacks, ascending
    came_sids: Int32  # of each of these
    later: Int64  # the leaf of each slot that the base lacks
    put: Int64  # places in the order that these slots have taken, ascending
    at: Int64  # places in the order whose slot is in `slot`, ascending: those in `put`, and sorted anew
    slot: Int32

    @classmethod
    def nothing(cls, arrays: Mapping[str, NDArray[Any]], order: Int32 | None = None) -> Insertions:
        """Between these arrays."""
        none, sids = np.empty(0, np.int64), arrays["sids"]
        base = (sids, arrays["item_lo"], arrays["leaf_of_row"], order)
        return cls(*base, none, sids[:0], none, none, none, np.empty(0, np.int32))

    @property
    def leaves(self) -> int:
        return len(self.sids) + len(self.came)

    @property
    def slots(self) -> int:
        return len(self.leaf_of_row) + len(self.later)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """sids, item_lo and leaf_of_row with what came."""
        on_leaf = np.sort(self.later)
        found: dict[str, Any] = {"sids": self.sids, "item_lo": self.item_lo, "leaf_of_row": self.leaf_of_row}
        if len(self.came):
            found["sids"] = SparseArray((self.leaves, self.sids.shape[1]), self._sid)
        if len(self.came) or len(self.later):
            found["item_lo"] = SparseArray((self.leaves + 1,), lambda leaves: self._begin(leaves, on_leaf))
            found["leaf_of_row"] = SparseArray((self.slots,), self.leaf_of)
        return cast("dict[str, NDArray[Any]]", found)  # what reads like an array

    def whole_order(self) -> Int32 | None:
        """The slots leaf by leaf; None: 0, 1, 2, ..."""
        if not len(self.at):
            return self.order
        return cast("Int32", SparseArray((self.slots,), self._slot))

    def _sid(self, leaves: Int64) -> Int32:
        before = np.searchsorted(self.came, leaves)
        found: Int32 = self.sids[np.minimum(leaves - before, len(self.sids) - 1)]
        new = np.append(self.came, -1)[before] == leaves
        found[new] = self.came_sids[before[new]]
        return found

    def _begin(self, leaves: Int64, on_leaf: Int64) -> Int32:
        """Slots before each of these leaves [N]: of the base, and those that came."""
        lo = self.item_lo[leaves - np.searchsorted(self.came, leaves)]
        found: Int32 = (lo + np.searchsorted(on_leaf, leaves)).astype(np.int32)
        return found

    def leaf_of(self, slots: Int64) -> Int32:
        """The leaf of each slot [N]."""
        built = len(self.leaf_of_row)
        old = self.leaf_of_row[np.minimum(slots, built - 1)]
        # In front of which of the base's leaves others were put; of one type, or all would be copied.
        before = (self.came - np.arange(len(self.came))).astype(np.int32)
        found: Int32 = old + np.searchsorted(before, old, side="right").astype(np.int32)
        new = slots >= built
        found[new] = self.later[slots[new] - built]
        return found

    def _slot(self, places: Int64) -> Int32:
        """What stands at these places of the order [N]."""
        base = np.minimum(places - np.searchsorted(self.put, places), len(self.leaf_of_row) - 1)
        found: Int32 = base.astype(np.int32) if self.order is None else self.order[base]
        index = np.searchsorted(self.at, places)
        known = np.append(self.at, -1)[index] == places
        found[known] = self.slot[index[known]]
        return found

    # What a batch adds.

    def with_leaves(self, before: Int64, sids: Int32) -> Insertions:
        """New leaves `sids` [N, depth] in front of these, ascending."""
        new, moved = before + np.arange(len(before)), _behind(self.came, before)
        came, order = _merged(moved, new)
        all_sids = np.concatenate([self.came_sids, sids])[order]
        return self._replace(came=came, came_sids=all_sids, later=_behind(self.later, before))

    def with_slots(self, leaves: Int64, at: Int64, number: Int64) -> Insertions:
        """New slots on `leaves` [N]; that of `number` [N] comes in front of the place `at`, ascending."""
        places = at + np.arange(len(at))
        put, _ = _merged(_behind(self.put, at), places)
        fixed, order = _merged(_behind(self.at, at), places)
        slot = np.concatenate([self.slot, (self.slots + number).astype(np.int32)])[order]
        return self._replace(later=np.concatenate([self.later, leaves]), put=put, at=fixed, slot=slot)

    def sorted_anew(self, places: Int64, slots: Int32) -> Insertions:
        """These slots stand at these places [N], ascending."""
        kept = ~np.isin(self.at, places)
        at, order = _merged(self.at[kept], places)
        return self._replace(at=at, slot=np.concatenate([self.slot[kept], slots])[order])

    def settled(self) -> Insertions:
        """As it is, or between arrays made whole where much came."""
        if len(self.at) + len(self.came) <= MOST_APART:
            return self
        arrays = {name: np.asarray(array) for name, array in self.arrays().items()}
        order = self.whole_order()
        return Insertions.nothing(arrays, None if order is None else np.asarray(order))


def _behind(numbers: Int64, before: Int64) -> Int64:
    """Numbers as they are once others came in front of `before`, ascending."""
    return numbers + np.searchsorted(before, numbers, side="right")


def _merged(one: Int64, other: Int64) -> tuple[Int64, Int64]:
    """Both in ascending order, and where each was in both together."""
    both = np.concatenate([one, other])
    order = np.argsort(both, kind="stable")
    return both[order], order
