"""Trie and filters against oracles in plain Python dicts and sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_catalogs import build_from_arrays, items_of_leaf, leaf_of_sid

from xgr_kernels.trie import MAX_DENIED, LeafFilter, filter_of_bits, leaf_filter
from xgr_runtime.catalog import Catalog, resolve_items

if TYPE_CHECKING:
    from numpy.typing import NDArray

Sids = list[tuple[int, ...]]


@st.composite
def sid_lists(draw: st.DrawFn) -> Sids:
    """1 to 40 SIDs of one depth over a small code book, so that prefixes and whole SIDs are shared."""
    depth = draw(st.integers(1, 8))
    codes = draw(st.integers(1, 5))
    sid = st.tuples(*[st.integers(0, codes - 1)] * depth)
    return draw(st.lists(sid, min_size=1, max_size=40))


def names(count: int) -> list[str]:
    return [f"i{row}" for row in range(count)]


@given(sid_lists())
@settings(deadline=None, max_examples=150)
def test_trie_matches_a_dict_of_prefixes(sids: Sids) -> None:
    catalog = build_from_arrays(names(len(sids)), sids)
    distinct = sorted(set(sids))
    assert [tuple(sid) for sid in catalog.sids.tolist()] == distinct
    for level in range(catalog.depth):
        prefixes = sorted({sid[: level + 1] for sid in distinct})
        assert catalog.trie.tokens[level].tolist() == [prefix[-1] for prefix in prefixes]
        first = [next(i for i, sid in enumerate(distinct) if sid[: level + 1] == p) for p in prefixes]
        last_level = level == catalog.depth - 1
        assert catalog.trie.lo[level].tolist() == ([] if last_level else [*first, len(distinct)])


@given(sid_lists(), st.data())
@settings(deadline=None, max_examples=100)
def test_leaf_of_sid_matches_a_dict(sids: Sids, data: st.DataObject) -> None:
    catalog = build_from_arrays(names(len(sids)), sids)
    leaf_of = {sid: leaf for leaf, sid in enumerate(sorted(set(sids)))}
    other = data.draw(st.tuples(*[st.integers(-1, 6)] * catalog.depth))
    for sid in [*sids, other]:
        assert leaf_of_sid(catalog, sid) == leaf_of.get(sid)
    assert leaf_of_sid(catalog, sids[0][:-1]) is None
    assert leaf_of_sid(catalog, (*sids[0], 0)) is None


@given(sid_lists())
@settings(deadline=None, max_examples=100)
def test_items_and_leaves_match_a_dict(sids: Sids) -> None:
    catalog = build_from_arrays(names(len(sids)), sids)
    for leaf, sid in enumerate(sorted(set(sids))):
        expected = sorted(f"i{row}" for row, other in enumerate(sids) if other == sid)
        assert items_of_leaf(catalog, leaf) == expected
        assert catalog.leaves_of_items(expected).tolist() == [leaf] * len(expected)
        assert catalog.leaf_of_row[catalog.item_rows(expected)].tolist() == [leaf] * len(expected)


@given(sid_lists(), st.data())
@settings(deadline=None, max_examples=200)
def test_filter_is_a_catalog_without_the_items(sids: Sids, data: st.DataObject) -> None:
    items = names(len(sids))
    some = st.lists(st.sampled_from([*items, "nobody", "no one"]), max_size=2 * len(items))
    allow, deny = data.draw(st.none() | some), data.draw(some)
    catalog = build_from_arrays(items, sids)
    spec = resolve_items(catalog, allow, deny)
    filter = leaf_filter(catalog.leaves, spec.allow_leaves, spec.deny_leaves)

    left = {item for item in items if (allow is None or item in allow) and item not in deny}
    alive = [any(item in left for item in items_of_leaf(catalog, leaf)) for leaf in range(catalog.leaves)]
    assert living(filter, catalog.leaves).tolist() == alive
    assert filter.live(catalog.leaves) == sum(alive)
    for number in range(catalog.leaves):
        kept = items_of_leaf(catalog, number, allowed_rows=spec.allowed_rows, denied_rows=spec.denied_rows)
        assert kept == [item for item in items_of_leaf(catalog, number) if item in left]
    assert spec.unknown_allow == sum(item not in items for item in allow or [])
    assert spec.unknown_deny == sum(item not in items for item in deny)


def living(filter: LeafFilter, leaves: int) -> NDArray[np.bool_]:
    """Of each leaf whether it lives; reads the bits and the list, not the ranks."""
    alive = np.full(leaves, not len(filter.bits))
    if len(filter.bits):
        alive = np.unpackbits(filter.bits.view(np.uint8), bitorder="little")[:leaves].astype(bool)
    alive[filter.deny] = False
    return alive


def oracle(leaves: int, allow: NDArray[np.int64] | None, deny: NDArray[np.int64]) -> NDArray[np.bool_]:
    alive = np.full(leaves, allow is None)
    if allow is not None:
        alive[allow] = True
    alive[deny] = False
    return alive


@pytest.mark.parametrize("leaves", [1, 63, 64, 65, 511, 512, 513, 5000], ids=lambda n: f"leaves={n}")
@pytest.mark.parametrize("denied", [0, 1, 256, 257, 4000], ids=lambda n: f"deny={n}")
@pytest.mark.parametrize("allowed", [None, 0, 1, 300, 5000], ids=lambda n: f"allow={n}")
def test_leaf_filter_matches_sets(leaves: int, denied: int, allowed: int | None) -> None:
    rng = np.random.default_rng(leaves + denied)
    deny = rng.integers(0, leaves, denied)
    allow = None if allowed is None else rng.integers(0, leaves, allowed)
    filter = leaf_filter(leaves, allow, deny)
    alive = oracle(leaves, allow, deny)

    assert np.array_equal(living(filter, leaves), alive)
    assert filter.live(leaves) == alive.sum()
    assert len(filter.deny) <= MAX_DENIED
    assert (np.diff(filter.deny) > 0).all()
    if len(filter.bits):
        bits = np.unpackbits(filter.bits.view(np.uint8), bitorder="little")
        assert not bits[leaves:].any()
        assert bits[filter.deny].all()
        assert filter.rank.tolist() == [bits[: 512 * block].sum() for block in range(-(-leaves // 512) + 1)]
    else:
        assert allow is None
        assert filter.deny.tolist() == sorted(set(deny.tolist()))


def test_field_types_are_those_that_kernels_read() -> None:
    for filter in (leaf_filter(70, None), leaf_filter(70, [3], [3]), leaf_filter(70, [])):
        assert [str(array.dtype) for array in filter] == ["uint64", "uint32", "int32"]


@pytest.mark.parametrize("leaf", [-1, 10, 2**31, 2**40])
def test_leaves_of_another_catalog_are_refused(leaf: int) -> None:
    for allow, deny in (([leaf], []), (None, [leaf])):
        with pytest.raises(ValueError, match="below 10: resolve it with the same catalog version"):
            leaf_filter(10, allow, deny)


def test_allow_nothing_leaves_nothing() -> None:
    catalog = build_from_arrays(names(3), [[1], [2], [3]])
    spec = resolve_items(catalog, [], [])
    filter = leaf_filter(catalog.leaves, spec.allow_leaves, spec.deny_leaves)
    assert filter.live(catalog.leaves) == 0
    assert len(filter.bits) == 1


def test_a_shared_leaf_lives_while_one_item_does() -> None:
    catalog = build_from_arrays(["a", "b", "c"], [[1, 1], [1, 1], [1, 2]])
    one, both = resolve_items(catalog, None, ["a"]), resolve_items(catalog, None, ["b", "a", "a"])
    assert one.deny_leaves.tolist() == []
    assert items_of_leaf(catalog, 0, denied_rows=one.denied_rows) == ["b"]
    assert both.deny_leaves.tolist() == [0]
    crossed = resolve_items(catalog, ["a"], ["a"])
    assert crossed.allow_leaves is not None
    assert crossed.allow_leaves.tolist() == []


def test_hash_collisions_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every hash the same, the bytes alone must decide."""
    from xgr_runtime.catalog import items

    def constant(encoded: list[bytes]) -> NDArray[np.uint64]:
        return np.full(len(encoded), 7, np.uint64)

    monkeypatch.setattr(items, "hash_ids", constant)
    catalog: Catalog = build_from_arrays(names(9), [[row] for row in range(9)])
    assert catalog.item_rows(["i8", "x", "i0", "i10", "i3", ""]).tolist() == [8, -1, 0, -1, 3, -1]


@pytest.mark.parametrize("query", [[], ["\ud800"], [""], ["nobody"] * 3], ids=repr)
def test_unknown_ids_are_minus_one(query: list[str]) -> None:
    catalog = build_from_arrays(["a"], [[1]])
    assert catalog.item_rows(query).tolist() == [-1] * len(query)
    assert catalog.leaves_of_items(query).tolist() == [-1] * len(query)


@pytest.mark.parametrize("leaves", [1, 511, 512, 513, 5000])
@pytest.mark.parametrize("listed", ["none", "few", "many", "all"])
def test_ranks_of_lists_are_those_of_their_bits(leaves: int, listed: str) -> None:
    rng = np.random.default_rng(leaves)
    sizes = {"none": 0, "few": min(3, leaves), "many": leaves * 3 // 4, "all": leaves}
    some = rng.choice(leaves, sizes[listed], replace=False)
    within = leaf_filter(leaves, rng.choice(leaves, -(-leaves // 2), replace=False))
    for made in (
        leaf_filter(leaves, some),
        leaf_filter(leaves, None, some),
        leaf_filter(leaves, rng.permutation(leaves)[: leaves // 2 + 1], some),
        leaf_filter(leaves, None, some, within),
        leaf_filter(leaves, some, some[::2], within),
    ):
        if len(made.bits):
            again = filter_of_bits(made.bits)
            assert (made.rank.dtype, made.rank.tolist()) == (again.rank.dtype, again.rank.tolist())
