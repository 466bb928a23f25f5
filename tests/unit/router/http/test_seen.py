"""What the page asks for besides: items by their titles, and the requests that ended last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from made_catalogs import build_from_arrays
from made_templates import make_templates, with_templates

from router.http.server.recent import KEPT
from xgr_runtime.catalog import Catalog
from xgr_runtime.errors import Overloaded

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server

CODES, VOCAB = 8, 27  # of the tokenizer
TITLES = ["A red drum", "Red Strings", None, "Strings, blue"]


@pytest.fixture
def catalog() -> Catalog:
    sids = [[3 + row, 3 + CODES, 3 + 2 * CODES] for row in range(4)]
    made = build_from_arrays(["a", "b", "c", "d"], sids, titles=TITLES, vocab_size=VOCAB)
    return with_templates(made, make_templates())


def test_items_are_found_by_their_titles(server: Server, catalog: Catalog) -> None:
    found = server.get("/items", params={"title": "RED"}).json()
    assert {item["item"]: item["title"] for item in found["items"]} == {"a": TITLES[0], "b": TITLES[1]}
    assert found["whole"] and found["catalog_version"] == catalog.version
    by_item = {item["item"]: item["sid"] for item in found["items"]}
    assert by_item["b"] == [4, 3 + CODES, 3 + 2 * CODES]
    assert server.get("/items", params={"title": "strings red"}).json()["items"][0]["item"] == "b"
    one = server.get("/items", params={"title": "r", "limit": 1}).json()
    assert len(one["items"]) == 1 and not one["whole"]
    assert server.get("/items", params={"title": "violin"}).json()["items"] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({}, "title"),
        ({"title": " "}, "title"),
        ({"title": "x" * 201}, "title"),
        ({"title": "x", "limit": 101}, "limit"),
        ({"title": "x", "sort": "price"}, "sort"),
    ],
)
def test_a_search_that_makes_no_sense_names_the_field(
    server: Server, query: dict[str, str], param: str
) -> None:
    answer = server.get("/items", params=query)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_requests_that_ended_are_told_the_last_first(server: Server, dispatch: FakeDispatch) -> None:
    assert server.generate(history=["a"], rid="one").status_code == 200
    dispatch.error = Overloaded("full")
    assert server.generate(history=["a"], rid="two").status_code == 503
    last, first = server.get("/requests").json()["requests"]
    assert (first["rid"], first["status"], first["attempts"], first["results"]) == ("one", 200, 1, 4)
    assert first["timing"]["decode"] == 0.004 and first["cached_tokens"] == first["prompt_tokens"] - 1
    assert (last["rid"], last["status"], last["timing"]) == ("two", 503, None)
    assert 0 < first["ended"] <= last["ended"] and last["seconds"] > 0
    assert [r["rid"] for r in server.get("/requests?last=1").json()["requests"]] == ["two"]
    assert server.get("/requests?last=0").json()["error"]["param"] == "last"


def test_of_requests_that_ended_a_bounded_number_is_kept(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.error = Overloaded("full")
    for number in range(KEPT + 3):
        server.generate(history=["a"], rid=f"r{number}")
    kept = server.get(f"/requests?last={KEPT}").json()["requests"]
    assert [request["rid"] for request in kept] == [f"r{number}" for number in range(KEPT + 2, 2, -1)]
