"""Which items lie on which leaf, and which leaves live: one does as long as one of its items does."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xgr_kernels.trie import LeafFilter, filter_of_bits
from xgr_runtime.catalog import bits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from xgr_runtime.catalog.added import Insertions

    Int32 = NDArray[np.int32]
    Int64 = NDArray[np.int64]
    Bools = NDArray[np.bool_]

_FEW = 8  # of the items of a leaf, which are looked at one after the other


class EditStep(NamedTuple):
    """What one batch changed."""

    touched: Int32  # slots that are new, or live no more, or again
    came: Int32  # leaves, of those before the batch, in front of which new ones were put; ascending


class LeafPlaces(NamedTuple):
    """Slots (see `slots.py`) by leaf. In a built catalog they lie in the order of their numbers."""

    item_lo: Int32  # [leaves + 1] where each leaf begins in `order`, closing with the number of slots
    leaf_of_row: Int32  # [slots]
    order: Int32 | None = None  # [slots] leaf by leaf, then in collision order; None: 0, 1, 2, ...
    added: Insertions | None = None  # what the arrays before are looked up in

    @property
    def leaves(self) -> int:
        return len(self.item_lo) - 1

    @property
    def slots(self) -> int:
        return len(self.leaf_of_row)

    def first(self, leaves: NDArray[np.integer]) -> Int32:
        """The first slot of each of these leaves [N]."""
        begins: Int32 = self.item_lo[leaves]
        return begins if self.order is None else self.order[begins]

    def on(self, leaves: NDArray[np.integer]) -> tuple[Int64, Int64]:
        """All slots of these leaves [N], leaf by leaf, and where each leaf ends among them [N]."""
        lo = self.item_lo[leaves].astype(np.int64)
        counts = self.item_lo[leaves.astype(np.int64) + 1] - lo
        ends = np.cumsum(counts)
        at = np.repeat(lo - (ends - counts), counts) + np.arange(int(ends[-1]) if len(ends) else 0)
        return at if self.order is None else self.order[at].astype(np.int64), ends

    def living(self, leaves: NDArray[np.integer], live: NDArray[np.uint64]) -> Int64:
        """How many slots of each of these leaves [N] are set in the bits `live`."""
        slots, ends = self.on(leaves)
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(bits.holds(live, slots))])
        found: Int64 = before[ends] - before[np.concatenate([np.zeros(1, np.int64), ends[:-1]])]
        return found if len(ends) else np.zeros(0, np.int64)

    def filter(self, live: NDArray[np.uint64]) -> LeafFilter:
        """The leaves with a slot that is set in `live`."""
        if self.leaves == self.slots and self.order is None:
            return filter_of_bits(live)
        flags = bits.unpacked(live, self.slots)
        alive = self._alive(flags) if self.added is None else _alive_with(self.added, flags)
        return filter_of_bits(bits.packed(alive))

    def followed(self, before: LeafFilter, live: NDArray[np.uint64], steps: Sequence[EditStep]) -> LeafFilter:
        """`filter(live)`, from what it was before some batches, of which at least one step is known."""
        if self.leaves == self.slots and self.order is None:
            return filter_of_bits(live)
        came = [step.came for step in steps if len(step.came)]
        words = before.bits.copy()
        if came:
            flags = bits.unpacked(words, self.leaves - sum(map(len, came)))
            for leaves in came:
                flags = np.insert(flags, leaves, False)
            words = bits.packed(flags)
        touched = np.unique(self.leaf_of_row[np.concatenate([step.touched for step in steps])])
        bits.put(words, touched, self.living(touched, live) > 0)
        return filter_of_bits(words)

    def _alive(self, flags: Bools) -> Bools:
        """Which leaves [leaves] have a slot in `flags` [slots]: of these if they are few, else by leaf.

        Most leaves have few items, so first, second and third ones leave ever fewer leaves to look at.
        """
        if np.count_nonzero(flags) * 8 < len(flags):
            few = np.zeros(self.leaves, np.bool_)
            few[self.leaf_of_row[flags]] = True
            return few
        if self.order is not None:
            flags = flags[self.order]
        first, last = self.item_lo[:-1], self.item_lo[1:]
        alive: Bools = flags[first]
        dead = np.flatnonzero(~alive)
        for further in range(1, _FEW):
            dead = dead[last[dead] - first[dead] > further]
            if not len(dead):
                return alive
            found = flags[first[dead] + further]
            alive[dead[found]] = True
            dead = dead[~found]
        before = np.zeros(len(flags) + 1, np.int32)
        np.cumsum(flags, out=before[1:])
        alive[dead] = before[last[dead]] > before[first[dead]]
        return alive


def _alive_with(added: Insertions, flags: Bools) -> Bools:
    """Which leaves have a slot in `flags` [slots]: those of the base, then what came."""
    base = LeafPlaces(added.item_lo, added.leaf_of_row, added.order)
    alive: Bools = np.insert(base._alive(flags[: base.slots]), added.came - np.arange(len(added.came)), False)
    alive[added.later[flags[base.slots :]]] = True
    return alive
