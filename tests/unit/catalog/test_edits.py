"""Batches of edits: a version lists, finds and filters what a dict of its items says, and a rebuild does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attribute_rows import Condition
from edited_catalogs import Oracle, assert_is, best_sids
from hypothesis import given, settings
from hypothesis import strategies as st

from xgr_runtime.catalog import Catalog, CatalogView, Scoring, resolve_items, verify_file
from xgr_runtime.catalog.attributes import AttributeField
from xgr_runtime.catalog.columns import canonical
from xgr_runtime.catalog.edits import EditBatch, ItemRecord, edited
from xgr_runtime.catalog.items import index_again, index_hashes
from xgr_runtime.catalog.scoring import Forced

FIELDS = (
    AttributeField("brand", "string"),
    AttributeField("n", "int"),
    AttributeField("tags", "strings"),
)
CONDITIONS = [
    Condition("n < 3", lambda row: None if "n" not in row else row["n"] < 3),
    Condition("n IS NULL OR brand = 'b'", lambda row: "n" not in row or row.get("brand") == "b"),
    Condition("'t' = ANY(tags)", lambda row: None if "tags" not in row else "t" in row["tags"]),
    Condition("NOT (brand > 'a')", lambda row: None if "brand" not in row else not row["brand"] > "a"),
]
NAMES = [*map(str, range(8)), *"abcdefgh", "é" * 9]
SCORINGS = {
    "plain": Scoring(),
    "tail": Scoring(head=(Forced(90),), tail=(Forced(91), Forced(92))),
    "codebooks": Scoring(level_tokens=((0, 9), (10, 19), (20, 29)), score_mode="level"),
}


@st.composite
def records(draw: st.DrawFn, name: str) -> ItemRecord:
    sid = tuple(10 * level + draw(st.integers(0, 1 + level)) for level in range(3))
    attributes: dict[str, Any] = {
        "n": draw(st.none() | st.integers(0, 5)),
        "brand": draw(st.sampled_from([None, "a", "b", "c", "new"])),
        "tags": draw(st.sampled_from([None, [], ["t"], ["u", "t"], ["v"]])),
        "other": draw(st.sampled_from([None, "no column"])),
    }
    title = draw(st.sampled_from(["", "T", "Ü"]))
    popularity = draw(st.sampled_from([None, 0.0, 1.0, 2.5]))
    return ItemRecord(name, sid, title, popularity, canonical(attributes))


@st.composite
def batches(draw: st.DrawFn, oracle: Oracle) -> EditBatch:
    """One that can be applied to what the oracle holds."""
    if oracle.items and draw(st.integers(0, 7)) == 0:
        return EditBatch(compact=True)
    put = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    left = sorted({*oracle.items, *put})
    if not left:
        return EditBatch()
    some = st.lists(st.sampled_from(left), unique=True, max_size=3)
    remove = [name for name in draw(some) if name in oracle.items and name not in put]
    left = [name for name in left if name not in remove] or [""]
    some = st.lists(st.sampled_from(left), unique=True, max_size=3).map(lambda names: [n for n in names if n])
    hide = draw(some)
    return EditBatch(
        put=tuple(draw(records(name)) for name in put),
        remove=tuple(remove),
        hide=tuple(hide),
        show=tuple(name for name in draw(some) if name not in hide),
        rank=tuple((name, draw(st.sampled_from([0.0, 1.0, -3.0]))) for name in draw(some)),
    )


def started(oracle: Oracle, some: list[ItemRecord]) -> CatalogView:
    oracle.apply(EditBatch(put=tuple(some)))
    return CatalogView(oracle.built())


@settings(max_examples=20, deadline=None)
@given(st.data(), st.sampled_from([*SCORINGS]))
def test_a_version_is_what_a_dict_of_its_items_says(data: st.DataObject, scoring: str) -> None:
    oracle = Oracle(FIELDS, scoring=SCORINGS[scoring])
    first = data.draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=9))
    view = started(oracle, [data.draw(records(name)) for name in first])
    built, replayed = view, view
    for _ in range(data.draw(st.integers(1, 5))):
        batch = data.draw(batches(oracle))
        asked = data.draw(st.lists(st.sampled_from(CONDITIONS), max_size=2))
        for condition in asked:
            view.live(condition.sql)
        before = state(view.catalog)
        after = edited(view, batch)
        assert state(view.catalog) == before, "the version before is as it was"
        oracle.apply(batch)
        assert_is(after, oracle, data.draw(st.sampled_from([CONDITIONS, CONDITIONS[:1], []])))
        replayed = edited(replayed, batch)
        assert replayed.version == after.version
        view = after
    assert view.filters.misses <= len(CONDITIONS), "what is kept is not evaluated again"
    if oracle.items:
        assert_compacts(view, oracle)
    assert built.catalog.later.ids == []


def state(catalog: Catalog) -> list[Any]:
    later = catalog.later
    lists = catalog.items_of_leaves(np.arange(catalog.leaves))
    return [lists, catalog.items, catalog.slots, later.ids[:], dict(later.newest), dict(later.ranked)]


def assert_compacts(view: CatalogView, oracle: Oracle) -> None:
    """To what is built of the items, array by array; a search of one finds what one of the other does."""
    rebuilt, compact = oracle.built(), edited(view, EditBatch(compact=True))
    assert compact.version == rebuilt.version and not compact.catalog.edited
    assert compact.catalog.arrays.keys() == rebuilt.arrays.keys()
    for name, array in rebuilt.arrays.items():
        assert np.array_equal(compact.catalog.arrays[name], array), name
        assert compact.catalog.arrays[name].dtype == array.dtype
        assert isinstance(compact.catalog.arrays[name], np.ndarray), name  # a file is written of it
    kept = [text for text in (condition.sql for condition in CONDITIONS) if text in compact.filters]
    misses = compact.filters.misses
    oracle.apply(EditBatch(compact=True))
    assert_is(compact, oracle, [condition for condition in CONDITIONS if condition.sql in kept])
    assert compact.filters.misses == misses
    for width in (2, 50):
        found = best_sids(view.catalog, view.visible, width, 100)
        assert found == best_sids(rebuilt, CatalogView(rebuilt).visible, width, 100)


def drawn(rng: np.random.Generator, name: str, popularity: float | None = None) -> ItemRecord:
    attributes = {
        "n": int(rng.integers(0, 9)) if rng.random() < 0.7 else None,
        "brand": f"b{rng.integers(0, 30)}" if rng.random() < 0.9 else None,
        "tags": [f"t{n}" for n in rng.integers(0, 9, rng.integers(0, 3))] if rng.random() < 0.5 else None,
    }
    sid = tuple(10 * level + int(rng.integers(0, 9 + 60 * (level == 2))) for level in range(3))
    return ItemRecord(name, sid, f"T{name}" if rng.random() < 0.5 else "", popularity, canonical(attributes))


@pytest.mark.parametrize("popularity", ["none", "some"])
def test_many_edits_of_many_items(popularity: str) -> None:
    """Batches that are merged as a whole and piece by piece; conditions that are asked for seldom."""
    rng = np.random.default_rng(3)

    def records_of(names: list[str]) -> tuple[ItemRecord, ...]:
        return tuple(drawn(rng, name, rng.random() if popularity == "some" else None) for name in names)

    oracle = Oracle(FIELDS)
    view = started(oracle, [*records_of([f"i{n}" for n in range(400)])])
    view.live(CONDITIONS[0].sql)
    view.live(CONDITIONS[2].sql)
    for number, size in enumerate([2000, 1, 40, 1, 1, 2]):
        held = list(oracle.items)
        some = rng.choice(held, min(4 * size, len(held)), replace=False).tolist()
        cut = len(some) // 4
        batch = EditBatch(
            put=records_of([f"j{number}-{n}" for n in range(size)] + some[:cut]),
            remove=tuple(some[cut : 2 * cut]),
            hide=tuple(some[2 * cut : 3 * cut]),
            show=tuple(some[3 * cut :]),
            rank=tuple((name, float(rng.random())) for name in some[2 * cut :])
            if popularity == "some"
            else (),
        )
        before, view = view, edited(view, batch)
        oracle.apply(batch)
        assert view.leaves >= before.leaves
        assert_is(view, oracle, CONDITIONS[:1] if number % 5 == 0 else [])
    assert view.leaves > 1700 and len(view.catalog.later.segments) < 8
    assert_is(view, oracle, CONDITIONS)
    assert view.filters.misses == len(CONDITIONS)
    assert_compacts(view, oracle)


def test_what_a_batch_does_not_change_is_shared() -> None:
    rng = np.random.default_rng(0)
    view = started(Oracle(FIELDS), [drawn(rng, f"i{n}", 1.0) for n in range(50)])
    catalog = view.catalog
    _ = catalog.scored_levels, catalog.codebooks
    sid = tuple(catalog.sids[7].tolist())
    for batch in (EditBatch(hide=("i1",)), EditBatch(remove=("i2",)), EditBatch(show=("i3",))):
        after = edited(view, batch).catalog
        assert all(after.arrays[name] is array for name, array in catalog.arrays.items())
        assert after.scored_levels is catalog.scored_levels and after.codebooks is catalog.codebooks
    old_leaf = edited(view, EditBatch(put=(ItemRecord("new", sid),))).catalog
    changed = {name for name, array in catalog.arrays.items() if old_leaf.arrays[name] is not array}
    assert changed == {"item_lo", "leaf_of_row"} and old_leaf.trie is catalog.trie
    new_leaf = edited(view, EditBatch(put=(ItemRecord("new", (1, 12, 29)),))).catalog
    changed = {name for name, array in catalog.arrays.items() if new_leaf.arrays[name] is not array}
    assert changed <= {
        name for name in catalog.arrays if name.startswith(("tokens", "lo.", "sids", "item_lo", "leaf"))
    }
    assert new_leaf.arrays["ids.blob"] is catalog.arrays["ids.blob"]


def test_the_version_follows_from_the_version_before_and_the_batch() -> None:
    rng = np.random.default_rng(0)
    view = started(Oracle(FIELDS), [drawn(rng, f"i{n}") for n in range(20)])
    hide, show = EditBatch(hide=("i1",)), EditBatch(show=("i1",))
    there = edited(view, hide)
    assert there.version == edited(view, hide).version != view.version
    back = edited(there, show)
    assert back.visible is None and back.version not in (view.version, there.version)
    assert len({len(one.version) for one in (view, there, back)}) == 1
    assert edited(back, EditBatch(compact=True)).version == view.version
    assert edited(view, EditBatch(hide=("i2",))).version != there.version


def test_a_hidden_item_stays_hidden_when_it_is_replaced_and_in_a_built_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    oracle = Oracle(FIELDS)
    view = started(oracle, [drawn(rng, f"i{n}") for n in range(20)])
    view = edited(view, EditBatch(hide=("i1", "i2")))
    view = edited(view, EditBatch(put=(drawn(rng, "i1"), drawn(rng, "i2")), show=("i2",)))
    names = {name for some in view.catalog.items_of_leaves(np.arange(view.leaves)) for name in some}
    assert names == {f"i{n}" for n in range(20)} - {"i1"} and view.catalog.items == 20
    edited(view, EditBatch(compact=True)).catalog.save(tmp_path / "c.xgr")
    opened = CatalogView(verify_file(tmp_path / "c.xgr"))
    found = {name for some in opened.catalog.items_of_leaves(np.arange(opened.leaves)) for name in some}
    assert found == names and opened.catalog.items == 20
    shown = edited(opened, EditBatch(show=("i1",)))
    assert shown.visible is None and shown.catalog.visible is None


def test_lists_of_items_take_removed_ones_for_unknown_and_hidden_ones_for_none() -> None:
    one, other = (1, 12, 23), (2, 12, 23)
    view = started(Oracle(FIELDS), [ItemRecord(name, one) for name in "abc"] + [ItemRecord("d", other)])
    view = edited(view, EditBatch(remove=("a",), hide=("b",)))
    catalog = view.catalog
    spec = resolve_items(catalog, ["a", "b", "c", "x"], ["d"], view.live(None))
    assert spec.allow_leaves is not None and spec.allow_leaves.tolist() == [0]
    assert (spec.unknown_allow, spec.unknown_deny) == (2, 0)
    assert catalog.items_of_leaves([0], allowed_rows=spec.allowed_rows) == [["c"]]
    spec = resolve_items(catalog, None, ["a", "c"])
    assert spec.unknown_deny == 1 and spec.deny_leaves.tolist() == [0], "nothing else on it is visible"
    spec = resolve_items(edited(view, EditBatch(show=("b",))).catalog, None, ["c"])
    assert spec.deny_leaves.tolist() == []


def test_ids_that_share_a_hash_are_indexed_as_anew() -> None:
    hashes = np.array([9, 5, 7, 5, 5, 2**63], np.uint64)
    for rows in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 1, 0], [4, 1, 3], [2], [3, 5, 4]):
        expected = index_hashes(hashes[rows])
        found = index_again(index_hashes(hashes[:3]), hashes[3:], np.array(rows))
        for name in expected._fields:
            one, other = getattr(expected, name), getattr(found, name)
            assert np.array_equal(one, other) and one.dtype == other.dtype
