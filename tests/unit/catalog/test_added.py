"""Arrays with entries in between: whatever is asked of them, it is what whole arrays give."""

from __future__ import annotations

import numpy as np
import pytest

from xgr_runtime.catalog import added as module
from xgr_runtime.catalog.added import Insertions

DEPTH = 2


class Whole:
    """The same in lists: of each leaf its SID and its slots in order."""

    def __init__(self, leaves: int, slots: int, rng: np.random.Generator) -> None:
        on = np.sort(np.concatenate([np.arange(leaves), rng.integers(0, leaves, slots - leaves)]))
        self.sids = [(10 * leaf, leaf) for leaf in range(leaves)]
        self.lists = [np.flatnonzero(on == leaf).tolist() for leaf in range(leaves)]

    def arrays(self) -> dict[str, np.ndarray]:
        lengths = [len(slots) for slots in self.lists]
        leaf_of = {slot: leaf for leaf, slots in enumerate(self.lists) for slot in slots}
        return {
            "sids": np.array(self.sids, np.int32).reshape(-1, DEPTH),
            "item_lo": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            "leaf_of_row": np.array([leaf_of[slot] for slot in range(len(leaf_of))], np.int32),
            "order": np.array([slot for slots in self.lists for slot in slots], np.int32),
        }

    @property
    def slots(self) -> int:
        return sum(map(len, self.lists))

    def change(self, added: Insertions, rng: np.random.Generator, number: int) -> Insertions:
        """Some leaves with a slot each, some slots on leaves that are there, a leaf in another order."""
        before = np.sort(rng.integers(0, len(self.lists) + 1, rng.integers(0, 4)))
        sids = [(-number, at) for at in range(len(before))]
        added = added.with_leaves(before, np.array(sids, np.int32).reshape(-1, DEPTH))
        new = before + np.arange(len(before))
        for leaf, sid in zip(new.tolist(), sids, strict=True):
            self.sids.insert(leaf, sid)
            self.lists.insert(leaf, [])
        leaves = rng.permutation(np.concatenate([new, rng.integers(0, len(self.lists), 2)]))
        by_leaf = np.argsort(leaves, kind="stable")
        begins = np.cumsum([0, *map(len, self.lists)])
        within = [int(rng.integers(0, len(self.lists[leaf]) + 1)) for leaf in leaves[by_leaf].tolist()]
        at = begins[leaves[by_leaf]] + within
        order = np.lexsort((at, leaves[by_leaf]))
        by_leaf, at = by_leaf[order], at[order]
        first = self.slots
        added = added.with_slots(leaves, at, by_leaf)
        for place, which in [*zip(at.tolist(), by_leaf.tolist(), strict=True)][::-1]:
            leaf = int(leaves[which])
            self.lists[leaf].insert(place - int(begins[leaf]), first + which)
        leaf = int(rng.integers(0, len(self.lists)))
        self.lists[leaf] = rng.permutation(self.lists[leaf]).tolist()
        places = np.cumsum([0, *map(len, self.lists)])[leaf] + np.arange(len(self.lists[leaf]))
        return added.sorted_anew(places, np.array(self.lists[leaf], np.int32)).settled()


@pytest.mark.parametrize("most", [0, 7, 1 << 16])
@pytest.mark.parametrize("seed", range(4))
def test_it_reads_as_whole_arrays_do(seed: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_APART", most)
    rng = np.random.default_rng(seed)
    whole = Whole(leaves=int(rng.integers(1, 9)), slots=12, rng=rng)
    added = Insertions.nothing(whole.arrays())
    assert added.whole_order() is None
    for number in range(1, 12):
        added = whole.change(added, rng, number)
        expected, found = whole.arrays(), dict(added.arrays())
        order = added.whole_order()
        found["order"] = np.arange(added.slots, dtype=np.int32) if order is None else order
        for name, array in expected.items():
            some = rng.integers(-len(array), len(array), 5)
            assert np.array_equal(np.asarray(found[name]), array), name
            assert np.array_equal(found[name][some], array[some]) and len(found[name]) == len(array)
            assert np.array_equal(found[name][int(some[0])], array[int(some[0])])
            assert found[name].tolist() == array.tolist() and found[name].dtype == array.dtype
        assert (added.leaves, added.slots) == (len(whole.lists), whole.slots)
        assert added.sids[:0].shape == found["sids"][[]].shape == (0, DEPTH)
        with pytest.raises(IndexError):
            found["item_lo"][len(expected["item_lo"])]
    assert len(added.at) + len(added.came) <= most
