"""Batches of edits: a version lists, finds and filters what a dict of its items says, and a rebuild does."""

from __future__ import annotations

from typing import Any

import numpy as np
from attribute_rows import Condition
from edited_catalogs import Oracle, assert_is, best_sids
from hypothesis import given, settings
from hypothesis import strategies as st

from xgr_runtime.catalog import Catalog, CatalogView, Scoring
from xgr_runtime.catalog.attributes import AttributeField
from xgr_runtime.catalog.columns import canonical
from xgr_runtime.catalog.edits import EditBatch, ItemRecord, edited
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
    sid = tuple(10 * level + draw(st.integers(0, 3)) for level in range(3))
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


@settings(max_examples=30, deadline=None)
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
    kept = [text for text in (condition.sql for condition in CONDITIONS) if text in compact.filters]
    misses = compact.filters.misses
    oracle.apply(EditBatch(compact=True))
    assert_is(compact, oracle, [condition for condition in CONDITIONS if condition.sql in kept])
    assert compact.filters.misses == misses
    for width in (2, 50):
        found = best_sids(view.catalog, view.visible, width, 100)
        assert found == best_sids(rebuilt, CatalogView(rebuilt).visible, width, 100)
