"""The routes of the catalog: what they change, what they answer, and what they refuse without a change."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from made_catalogs import build_from_arrays
from plain_publisher import PlainPublisher

from router.http import HttpSettings, make_app
from router.query.models import Models
from xgr_runtime.catalog import Catalog, CatalogView
from xgr_runtime.catalog.store import Store

if TYPE_CHECKING:
    from conftest import Server
    from tokenizers import Tokenizer

ITEMS = 20


@pytest.fixture(scope="session")
def catalog(tokenizer: Tokenizer) -> Catalog:
    """Items 0 to 19, two on each SID; the codes of level a go to 3, of b to 2, of c to 1."""
    first = sid(tokenizer, "<a_0>", "<b_0>", "<c_0>")
    places = [n // 2 for n in range(ITEMS)]
    sids = [[first[0] + n // 3, first[1] + n % 3, first[2] + n % 2] for n in places]
    attributes = [{"n": n, "brand": f"b{n % 2}"} for n in range(ITEMS)]
    names, titles = [str(n) for n in range(ITEMS)], [f"title {n}" for n in range(ITEMS)]
    return build_from_arrays(
        names,
        sids,
        titles=titles,
        attributes=attributes,
        popularity=[float(n) for n in range(ITEMS)],
        vocab_size=tokenizer.get_vocab_size(),
    )


@pytest.fixture
def settings(settings: HttpSettings) -> HttpSettings:
    return replace(settings, max_body_bytes=4 << 20)


@dataclass
class Changing:
    """A server whose catalog changes."""

    server: Server
    publisher: PlainPublisher
    store: Store

    @property
    def view(self) -> CatalogView:
        return self.publisher.catalogs.newest

    @property
    def version(self) -> str:
        return self.view.version

    def ask(self, method: str, path: str, status: int = 200, **request: Any) -> dict[str, Any]:
        response = self.server.send(method, path, **request)
        assert response.status_code == status, response.text
        return dict(response.json())

    def edit(self, status: int = 200, **body: Any) -> dict[str, Any]:
        return self.ask("POST", "/catalog/items", status, json=body)

    def lines(self, *lines: object, status: int = 200, query: str = "") -> dict[str, Any]:
        content = b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)
        headers = {"content-type": "application/x-ndjson"}
        return self.ask("POST", f"/catalog/items{query}", status, content=content, headers=headers)

    def upload(self, content: Any, status: int = 200, query: str = "") -> dict[str, Any]:
        headers = {"content-type": "application/octet-stream"}
        return self.ask("PUT", f"/catalog{query}", status, content=content, headers=headers)

    def shown(self, **filters: object) -> set[str]:
        asked = {"history": ["0"], "sampling_params": {"beam_width": 20}, "filters": filters}
        results = self.ask("POST", "/generate", json=asked)["meta_info"]["beam_results"]
        return {item for result in results for item in result["items"]}


@pytest.fixture
def changing(server: Server, catalog: Catalog, tmp_path: Path) -> Iterator[Changing]:
    with Store(tmp_path / "store") as store:
        with store.writing():
            store.push(catalog, "first.xgr")
        publisher = PlainPublisher(store, server.catalogs, catalog.vocab_size)
        server.app = make_app(server.dispatch, Models([server.model()]), server.settings, publisher, store)
        yield Changing(server, publisher, store)


def sid(tokenizer: Tokenizer, *tokens: str) -> list[int]:
    return [tokenizer.get_vocab()[token] for token in tokens]


# --- edits ---


def test_one_batch_of_everything(changing: Changing, tokenizer: Tokenizer) -> None:
    before = changing.version
    said = changing.edit(
        add=[
            {
                "item": "new",
                "sid": "<a_0><b_0><c_0>",
                "title": "New",
                "popularity": 100,
                "attributes": {"n": 7},
            },
            {"item": 77, "sid": ["<a_5>", "<b_2>", "<c_1>"]},  # a code that no item had
            {"item": "ids", "sid": sid(tokenizer, "<a_1>", "<b_1>", "<c_1>")},
        ],
        update=[{"item": "4", "title": "four", "attributes": {"brand": None, "n": 44}}],
        remove=["5", "nowhere", 6],
        hide=["7", "7"],
        show=[8],
        rank={"9": 1.5, "nobody": 2},
        version=before,
    )
    assert said["version"] == changing.version != before and said["workers"] == 1
    assert said["unknown"] == ["nobody", "nowhere"] and changing.publisher.asked == [True]
    catalog = changing.view.catalog
    rows = catalog.item_rows(["new", "77", "ids", "4", "9"])
    assert catalog.titles_at(rows) == ["New", "", "", "four", "title 9"]
    assert catalog.attributes_at(rows)[0] == {"n": 7} and catalog.attributes_at(rows)[3] == {"n": 44}
    assert catalog.popularity(rows[[0, 4]]).tolist() == [100.0, 1.5]
    sids = catalog.sids[catalog.leaf_of_row[rows]].tolist()
    assert sids[1] == sid(tokenizer, "<a_5>", "<b_2>", "<c_1>")
    assert sids[2] == sid(tokenizer, "<a_1>", "<b_1>", "<c_1>")
    everything = {item for items in catalog.items_of_leaves(range(catalog.leaves)) for item in items}
    assert everything == {str(n) for n in range(ITEMS)} - {"5", "6", "7"} | {"new", "77", "ids"}


def test_lines_say_the_same(changing: Changing) -> None:
    before = changing.version
    said = changing.lines(
        {"add": {"item": "new", "sid": "<a_0> <b_0> <c_0>"}},
        b"  ",
        {"hide": "7"},
        {"hide": 8},
        {"rank": {"1": 5, "2": 6}},
        {"remove": "nowhere"},
        query=f"?key=k&version={before}&wait=false",
    )
    assert said["unknown"] == ["nowhere"] and changing.publisher.asked == [False]
    assert changing.version == said["version"]
    assert changing.edit(hide=["1"], key="k") == said  # it was made already
    other = changing.edit(
        add=[{"item": "new", "sid": "<a_0><b_0><c_0>"}], hide=["7", "8"], status=400
    )  # atomic: nothing of it
    assert "add[0].item" in other["error"]["message"] and changing.version == said["version"]
    assert changing.edit(409, version=before, hide=["1"])["error"]["code"] == "other_version"


def test_unknown_items_alone_change_nothing(changing: Changing) -> None:
    before = changing.version
    said = changing.edit(remove=["x"], hide=["y"], show=["x"][:0], rank={"z": 1})
    assert said["version"] == before and said["unknown"] == ["z", "x", "y"]


LONE = b'{"hide": ["\\ud800"]}'
ADD: dict[str, Any] = {"item": "new", "sid": "<a_0><b_0><c_0>"}
BAD_EDITS: dict[str, tuple[Any, str | None, str]] = {
    "nothing": ({}, None, "nothing is asked for"),
    "only-options": ({"key": "k", "wait": False}, None, "nothing is asked for"),
    "a-list": ([], None, "expected `object`"),
    "no-json": (b"{", None, "not valid JSON"),
    "unknown-field": ({"insert": []}, "insert", "insert is not a field"),
    "unknown-part": ({"add": [ADD | {"price": 1}]}, "add[0].price", "is not a field"),
    "no-sid": ({"add": [{"item": "new"}]}, "add[0].sid", "is missing"),
    "no-item": ({"add": [{"sid": "<a_0>"}]}, "add[0].item", "is missing"),
    "item-is-a-list": ({"remove": [["1"]]}, "remove", r"remove\[0\]"),
    "item-is-a-fraction": ({"hide": ["1", 1.5]}, "hide", r"hide\[1\]"),
    "item-is-empty": ({"add": [ADD | {"item": ""}]}, "add.item", r"add\[0\].item: an item id has 1 to 4096"),
    "item-too-long": ({"hide": ["x" * 4097]}, "hide", r"hide\[0\]: an item id has 1 to 4096"),
    "item-too-large": ({"show": ["1", 1 << 70]}, "show", r"show\[1\]"),
    "half-a-character": (LONE, None, "lone surrogate"),
    "added-twice": ({"add": [ADD, ADD]}, "add.item", r"add\[1\].item: 'new' is named twice"),
    "added-and-updated": ({"add": [ADD], "update": [{"item": "new"}]}, "update.item", "in add, too"),
    "there-already": ({"add": [ADD | {"item": "3"}]}, "add.item", r"add\[0\].item: the catalog holds '3'"),
    "update-of-nobody": ({"update": [{"item": "new"}]}, "update.item", "holds no item 'new': use add"),
    "removed-and-put": (
        {"update": [{"item": "1"}], "remove": [1]},
        "remove",
        r"remove\[0\]: '1' is in u",
    ),
    "hidden-and-shown": ({"hide": ["2"], "show": ["2"]}, "hide", r"hide\[0\]: '2' is in show, too"),
    "removed-and-ranked": ({"remove": ["2"], "rank": {"2": 1}}, "rank", "rank.'2': '2' is in remove"),
    "too-deep": ({"add": [ADD | {"sid": "<a_0><b_0><c_0><a_0>"}]}, "add.sid", "has 4 tokens, .* have 3"),
    "too-short": ({"add": [ADD, ADD | {"item": "x", "sid": []}]}, "add.sid", r"add\[1\].sid: has 0 tokens"),
    "no-such-token": ({"add": [ADD | {"sid": "<a_0><b_0><c_99>"}]}, "add.sid", "'<c_99>' is unknown"),
    "beyond-vocabulary": ({"add": [ADD | {"sid": [3, 11, 4000]}]}, "add.sid", "out of vocabulary"),
    "negative-token": ({"add": [ADD | {"sid": [-1, 11, 19]}]}, "add.sid", "out of vocabulary"),
    "wrong-level": ({"add": [ADD | {"sid": "<b_0><a_0><c_0>"}]}, "add.sid", "it is one of level 1"),
    "codes-as-ids": ({"add": [ADD | {"sid": [0, 1, 2]}]}, "add.sid", "stands at level 0.*as text"),
    "token-of-no-kind": ({"add": [ADD | {"sid": [None, 1, 2]}]}, "add.sid", "add"),
    "sid-is-a-number": ({"add": [ADD | {"sid": 7}]}, "add.sid", "add"),
    "title-is-a-number": ({"update": [{"item": "1", "title": 5}]}, "update.title", "update"),
    "attributes-are-a-list": ({"update": [{"item": "1", "attributes": []}]}, "update.attributes", "update"),
    "attribute-of-another-type": ({"update": [{"item": "1", "attributes": {"n": "x"}}]}, None, "'1'"),
    "popularity-is-a-text": ({"add": [ADD | {"popularity": "high"}]}, "add.popularity", "add"),
    "popularity-too-large": ({"rank": {"1": 1e301}}, "rank", "1e"),
    "rank-is-a-list": ({"rank": [1]}, "rank", "rank: expected `object`"),
    "key-too-long": ({"hide": ["1"], "key": "k" * 257}, "key", "key"),
    "key-is-a-number": ({"hide": ["1"], "key": 5}, "key", "key"),
    "wait-is-a-text": ({"hide": ["1"], "wait": "no"}, "wait", "wait"),
    "version-is-a-number": ({"hide": ["1"], "version": 5}, "version", "version"),
    "version-too-long": ({"hide": ["1"], "version": "5" * 65}, "version", "version"),
}


@pytest.mark.parametrize("bad", BAD_EDITS)
def test_bad_edits_are_named_and_change_nothing(bad: str, changing: Changing) -> None:
    body, param, words = BAD_EDITS[bad]
    before = changing.version
    content = body if isinstance(body, bytes) else json.dumps(body)
    headers = {"content-type": "application/json"}
    error = changing.ask("POST", "/catalog/items", 400, content=content, headers=headers)["error"]
    assert "\n" not in error["message"]
    assert (error["param"], bool(re.search(words, error["message"]))) == (param, True), error["message"]
    assert changing.version == changing.store.current == before
    assert len(changing.store.history()) == 1


BAD_LINES: dict[str, tuple[list[Any], str]] = {
    "two-on-a-line": ([{"hide": "1"}, {"hide": "1", "show": "2"}], "line 2: a line holds exactly one"),
    "an-empty-object": ([{"hide": "1"}, b"", {}], "line 3: a line holds exactly one"),
    "no-json": ([b"hide 1"], "line 1: the body is not valid JSON"),
    "unknown-field": ([{"drop": "1"}], "line 1: drop is not a field"),
    "wrong-part": ([{"hide": "1"}, {"add": {"item": "x", "sid": 5}}], "line 2: add.sid"),
    "wrong-sid": ([{"hide": "1"}, {"add": ADD | {"sid": "<a_0>"}}], "line 2: add.sid: has 1 tokens"),
    "twice": ([{"add": ADD}, {"hide": "1"}, {"add": ADD}], "line 3: add.item: 'new' is named twice"),
    "ranked-twice": ([{"rank": {"1": 1}}, {"rank": {"1": 2}}], "line 2: rank: '1' is named twice"),
    "hidden-and-shown": ([{"show": "1"}, {"hide": "1"}], "line 2: hide: '1' is in show, too"),
    "long": ([b'{"hide": "' + b"x" * (1 << 20) + b'"}'], "line 1: has more than 1048576 bytes"),
    "blank": ([b" ", b""], "nothing is asked for"),
    "a-list": ([["hide"]], "line 1: the body: expected `object`"),
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_bad_lines_are_named_and_change_nothing(bad: str, changing: Changing) -> None:
    lines, words = BAD_LINES[bad]
    before = changing.version
    message = changing.lines(*lines, status=400)["error"]["message"]
    assert words in message and changing.version == before
    assert not [*(changing.store.path / "incoming").iterdir()]


def test_a_long_object_is_refused_and_a_long_text_of_lines_is_not(changing: Changing) -> None:
    names = [f"unknown-{n:060}" for n in range(16_000)]
    error = changing.edit(413, hide=names)["error"]
    assert error["code"] == "body_too_large" and "application/x-ndjson" in error["message"]
    said = changing.edit(hide=names[:200])
    assert len(said["unknown"]) == 200
    said = changing.lines(*({"hide": name} for name in names), {"hide": "3"})
    assert len(said["unknown"]) == len(names) and said["version"] == changing.version
