"""Items by words of their titles: all of those that hold them, whatever their case, and no others."""

from __future__ import annotations

import random
import time

import pytest
from made_catalogs import build_from_arrays

from xgr_runtime.catalog import Catalog, CatalogView, finding
from xgr_runtime.catalog.edits import EditBatch, ItemRecord, edited
from xgr_runtime.catalog.finding import find_by_title

WORDS = ("Ärger", "Straße", "amp", "Strings", "string", "ΣΟΦΟΣ", "x", "ab", "AB a")


def catalog_of(titles: list[str | None], popularity: list[float] | None = None) -> Catalog:
    sids = [[5 + row // 64, 13 + row // 8 % 8, 21 + row % 8] for row in range(len(titles))]
    names = [str(row) for row in range(len(titles))]
    return build_from_arrays(names, sids, titles=titles, vocab_size=64, popularity=popularity)


def found(catalog: Catalog, text: str, most: int = 1000) -> list[str]:
    rows, _ = find_by_title(catalog, text, most, time.monotonic() + 60)
    return [catalog.item_id(row) for row in rows]


@pytest.mark.parametrize("piece", [1, 7, 1 << 16])
def test_all_that_hold_the_words_are_found(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However titles lie in the pieces that are searched at once, and though they lie side by side."""
    monkeypatch.setattr(finding, "_PIECE", piece)
    draw = random.Random(3)
    titles = [draw.choice([None, " ".join(draw.choices(WORDS, k=draw.randrange(1, 4)))]) for _ in range(300)]
    catalog = catalog_of(titles)
    for text in ("ärger", "STRASSE", "straße", "string AMP", "σοφοσ", "x ab", "ba", "a"):
        words = text.lower().split()
        expected = {
            str(row)
            for row, title in enumerate(titles)
            if all(word in (title or "").lower() for word in words)
        }
        assert set(found(catalog, text)) == expected, text


def test_the_most_popular_come_first_and_the_rest_is_told() -> None:
    catalog = catalog_of(["one pick", "two picks", "a drum", "pick"], [1, 3, 9, 2])
    assert found(catalog, "pick") == ["1", "3", "0"]
    assert find_by_title(catalog, "pick", 2, time.monotonic() + 60).whole is False
    assert find_by_title(catalog, "pick", 3, time.monotonic() + 60).whole is True
    assert find_by_title(catalog, "pick", 3, time.monotonic() - 1) == ([], False)


def test_a_catalog_without_titles_has_none() -> None:
    assert found(catalog_of([None, None]), "pick") == []


def test_edits_are_found_and_hidden_items_are_not() -> None:
    view = CatalogView(catalog_of(["old pick", "hidden pick", "gone pick", "pick", None]))
    put = ItemRecord("new", tuple(view.catalog.sids[0].tolist()), title="a new Pick")
    batch = EditBatch(put=(put,), hide=("1",), remove=("2",))
    assert set(found(edited(view, batch).catalog, "pick")) == {"0", "3", "new"}
