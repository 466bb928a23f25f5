"""Batches that cannot be applied: a message names the item and what to change, and nothing happened."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from edited_catalogs import Oracle, assert_is

from xgr_runtime.catalog import CatalogView, Scoring
from xgr_runtime.catalog.attributes import AttributeField, stored
from xgr_runtime.catalog.edits import EditBatch, ItemRecord, edited
from xgr_runtime.catalog.scoring import Forced
from xgr_runtime.errors import CatalogError

SCORING = Scoring(tail=(Forced(7),), level_tokens=((0, 9), (10, 19)))
FIELDS = (AttributeField("n", "int"), AttributeField("sold", "time"))


@pytest.fixture
def oracle() -> Oracle:
    """Items a and b on one SID, c on another; b is hidden, and d was removed."""
    found = Oracle(FIELDS, scoring=SCORING, vocab_size=50)
    found.apply(EditBatch(put=tuple(item(name, sid=(1, 11 + (name == "c"))) for name in "abc")))
    return found


@pytest.fixture
def view(oracle: Oracle) -> CatalogView:
    started = CatalogView(oracle.built())
    batches = EditBatch(put=(item("d"),), hide=("b",)), EditBatch(remove=("d",))
    for batch in batches:
        oracle.apply(batch)
        started = edited(started, batch)
    return started


def item(name: str = "new", sid: tuple[int, ...] = (2, 12), **more: Any) -> ItemRecord:
    return ItemRecord(name, sid, **more)


def put(**more: Any) -> EditBatch:
    return EditBatch(put=(item(**more),))


BAD = {
    "put twice": (EditBatch(put=(item(), item())), "put names the item 'new' twice: name it once"),
    "removed twice": (EditBatch(remove=("a", "a")), "remove names the item 'a' twice"),
    "hidden twice": (EditBatch(hide=("a", "b", "a")), "hide names the item 'a' twice"),
    "shown twice": (EditBatch(show=("a", "a")), "show names the item 'a' twice"),
    "ranked twice": (EditBatch(rank=(("a", 1.0), ("a", 1.0))), "rank names the item 'a' twice"),
    "put and removed": (
        EditBatch(put=(item("a"),), remove=("a",)),
        "put and remove name the item 'a': leave",
    ),
    "hidden, removed": (EditBatch(hide=("a",), remove=("a",)), "remove and hide name the item 'a'"),
    "shown, removed": (EditBatch(show=("a",), remove=("a",)), "remove and show name the item 'a'"),
    "ranked, removed": (EditBatch(rank=(("a", 1.0),), remove=("a",)), "remove and rank name the item 'a'"),
    "hidden and shown": (EditBatch(hide=("a",), show=("a",)), "show and hide name the item 'a'"),
    "remove unknown": (
        EditBatch(remove=("x",)),
        "remove names the item 'x', which the catalog does not hold",
    ),
    "remove again": (EditBatch(remove=("d",)), "remove names the item 'd', which the catalog does not hold"),
    "hide unknown": (EditBatch(hide=("a", "x")), "hide names the item 'x'"),
    "show removed": (EditBatch(show=("d",)), "show names the item 'd'"),
    "rank unknown": (EditBatch(rank=(("x", 1.0),)), "rank names the item 'x'"),
    "too deep": (put(sid=(1, 11, 21)), "item 'new': its SID has 3 tokens, those of the catalog have 2"),
    "too short": (put(sid=(1,)), "its SID has 1 tokens"),
    "negative": (put(sid=(-1, 11)), "token -1 of its SID is outside of the vocabulary of 50"),
    "no token": (put(sid=(1, 50)), "token 50 of its SID is outside of the vocabulary of 50"),
    "other level": (put(sid=(1, 9)), "token 9 of its SID is none of level 1, 10 to 19: correct the SID"),
    "forced": (put(sid=(7, 11)), "its SID makes 7 one of the tokens by which SIDs differ"),
    "no id": (put(name=""), "item '': the id is empty"),
    "long id": (put(name="x" * 4097), "its id is 4097 long, the limit is 4096: shorten it"),
    "half an id": (put(name="\ud800"), "its id is not valid Unicode: correct it"),
    "long title": (put(title="x" * (1 + (1 << 20))), "its title is 1048577 long"),
    "half a title": (put(title="\udfff"), "its title is not valid Unicode"),
    "infinite": (put(popularity=float("inf")), "its popularity is inf: write a number within 1e+300 of 0"),
    "rank NaN": (EditBatch(rank=(("a", float("nan")),)), "item 'a': its popularity is nan"),
    "no JSON": (put(attributes=b"{"), "its attributes cannot be read"),
    "a list": (put(attributes=b"[1]"), "its attributes cannot be read"),
    "deep": (put(attributes=b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"), "its attributes cannot be read"),
    "not UTF-8": (put(attributes=b'{"a":"\xff"}'), "its attributes cannot be read"),
    "not in order": (put(attributes=b'{"b":1,"a":1}'), "its attributes are not in canonical form"),
    "null": (put(attributes=b'{"a":null}'), "its attributes are not in canonical form"),
    "a text for an int": (put(attributes=b'{"n":"x"}'), "item 'new': attribute 'n' is 'x', which is no int"),
    "a float for an int": (put(attributes=b'{"n":1.5}'), "attribute 'n' is 1.5, which is no int"),
    "no time": (put(attributes=b'{"sold":"soon"}'), "attribute 'sold' is 'soon', which is no time"),
    "compacts and more": (EditBatch(compact=True, hide=("a",)), "a batch that compacts changes nothing else"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_batch_names_its_item_and_changes_nothing(view: CatalogView, oracle: Oracle, case: str) -> None:
    batch, said = BAD[case]
    good = {"put": (item("good"),), "remove": ("c",)} if "twice" not in case else {}
    fields = {name: getattr(batch, name) for name in batch.__struct_fields__}
    for name, more in good.items():
        fields[name] = (*more, *fields[name])
    for tried in (batch, EditBatch(**fields)):
        with pytest.raises(CatalogError) as caught:
            edited(view, tried)
        message = str(caught.value)
        assert said in message and "\n" not in message and len(message) < 400
        assert_is(view, oracle)


def test_a_catalog_from_which_all_is_removed_serves_nothing_and_is_not_compacted(view: CatalogView) -> None:
    empty = edited(view, EditBatch(remove=("a", "b", "c")))
    assert empty.catalog.items == 0 and empty.visible is not None and empty.visible.live(empty.leaves) == 0
    assert empty.catalog.items_of_leaves(np.arange(empty.leaves)) == [[]] * empty.leaves
    with pytest.raises(CatalogError, match="has no item left: add one first"):
        edited(empty, EditBatch(compact=True))
    again = edited(empty, EditBatch(put=(item("a", (1, 11)),)))
    assert edited(again, EditBatch(compact=True)).catalog.items_of_leaves([0]) == [["a"]]


def test_edits_are_not_saved_before_they_are_compacted(view: CatalogView, tmp_path: Any) -> None:
    for run in (
        lambda: view.catalog.save(tmp_path / "c.xgr"),
        view.catalog.seal,
        lambda: view.catalog.content,
    ):
        with pytest.raises(CatalogError, match="has edits in it: compact it first"):
            run()
    assert not [*tmp_path.iterdir()]


def test_a_column_has_a_bound_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MAX_TEXTS", 3)
    oracle = Oracle((AttributeField("brand", "string"),))
    brands = [item(name, attributes=b'{"brand":"%s"}' % name.encode()) for name in "abcd"]
    oracle.apply(EditBatch(put=tuple(brands[:2])))
    view = CatalogView(oracle.built())
    view = edited(view, EditBatch(put=(brands[2],)))
    same = msgspec.structs.replace(brands[2], id="other")
    view = edited(view, EditBatch(put=(same,)))
    with pytest.raises(CatalogError, match="attribute 'brand' would have more than 3 different texts"):
        edited(view, EditBatch(put=(brands[3],)))
