"""The routes of the catalog: what they change, what they answer, and what they refuse without a change."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from made_catalogs import build_from_arrays
from plain_publisher import PlainPublisher

from router.http import HttpSettings, make_app
from router.http import app as app_module
from router.http import catalog as module
from router.query.models import Models
from xgr_runtime.catalog import Catalog, CatalogView
from xgr_runtime.catalog.store import Store
from xgr_runtime.errors import StoreError

if TYPE_CHECKING:
    from conftest import Server
    from tokenizers import Tokenizer

ITEMS = 20


@pytest.fixture(autouse=True)
def undescribed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The description of the routes takes longer than these tests, and is tested elsewhere."""
    monkeypatch.setattr(app_module, "openapi", lambda *args: {})


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
    same: dict[str, Any] = {
        "add": [{"item": "new", "sid": "<a_0> <b_0> <c_0>"}],
        "hide": ["7", 8],
        "rank": {"1": 5, "2": 6},
    }
    assert changing.edit(**same, remove=["nowhere"], key="k") == said  # it was made already
    assert changing.edit(400, **same, key="k")["error"]["param"] == "key"
    other = changing.edit(
        add=[{"item": "new", "sid": "<a_0><b_0><c_0>"}], hide=["7", "8"], status=400
    )  # atomic: nothing of it
    assert "add[0].item" in other["error"]["message"] and changing.version == said["version"]
    assert changing.edit(409, version=before, hide=["1"])["error"]["code"] == "other_version"


def test_unknown_items_alone_change_nothing(changing: Changing) -> None:
    before = changing.version
    asked: dict[str, Any] = {"remove": ["x"], "hide": ["y"], "rank": {"z": 1}, "key": "k"}
    said = changing.edit(**asked)
    assert said["version"] == before and said["unknown"] == ["z", "x", "y"]
    changing.edit(add=[{"item": "x", "sid": "<a_0><b_0><c_0>"}])
    assert changing.edit(**asked) == said and changing.view.catalog.item_rows(["x"])[0] >= 0


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
    "a-list-twice": (
        b'{"hide": ["1"], "hide": ["2"]}',
        None,
        "the body: an object has 'hide' twice: keep one",
    ),
    "a-field-twice": (
        b'{"update": [{"item": "1", "title": "a:b", "title": ""}]}',
        None,
        "an object has 'title' twice",
    ),
    "ranked-by-two": (b'{"rank": {"1": 1, "\\u0031": 2}}', None, "an object has '1' twice"),
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
    "attribute-of-another-type": (
        {"update": [{"item": "0"}, {"item": "1", "attributes": {"brand": "", "more": 1, "n": "x"}}]},
        "update.attributes",
        r"update\[1\].attributes: attribute 'n' is 'x', which is no int of 64 bits: correct it",
    ),
    "attribute-too-large": (
        {"add": [ADD | {"attributes": {"n": 1 << 63}}]},
        "add.attributes",
        r"no int of 64",
    ),
    "attribute-in-parts": (
        {"add": [ADD | {"attributes": {"brand": ["b"]}}]},
        "add.attributes",
        "is no string",
    ),
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
    "wrong-type": (
        [{"hide": "1"}, {"add": ADD | {"attributes": {"n": True}}}],
        "line 2: add.attributes: attr",
    ),
    "twice": ([{"add": ADD}, {"hide": "1"}, {"add": ADD}], "line 3: add.item: 'new' is named twice"),
    "ranked-twice": ([{"rank": {"1": 1}}, {"rank": {"1": 2}}], "line 2: rank: '1' is named twice"),
    "hidden-and-shown": ([{"show": "1"}, {"hide": "1"}], "line 2: hide: '1' is in show, too"),
    "long": ([b'{"hide": "' + b"x" * (1 << 20) + b'"}'], "line 1: has more than 1048576 bytes"),
    "a-field-twice": ([{"hide": "1"}, b'{"hide": "1", "hide": "2"}'], "line 2: an object has 'hide' twice"),
    "an-id-twice": ([b'{"update": {"item": "1", "item": "2"}}'], "line 1: an object has 'item' twice"),
    "an-attribute-twice": (
        [b'{"update": {"item": "1", "attributes": {"n": 1, "n" : 2}}}'],
        "line 1: an object has 'n' twice: keep one",
    ),
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


# --- versions ---


@pytest.fixture
def other(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A built file of another catalog."""
    first = sid(tokenizer, "<a_0>", "<b_0>", "<c_0>")
    made = build_from_arrays(["p", "q"], [first, sid(tokenizer, "<a_1>", "<b_1>", "<c_1>")])
    made.save(tmp_path / "other.xgr")
    return tmp_path / "other.xgr"


def test_a_file_is_sent_in_pieces_and_the_store_has_its_own_copy(changing: Changing, other: Path) -> None:
    content = other.read_bytes()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 1000):
            yield content[at : at + 1000]

    said = changing.upload(pieces(), query="?name=other.xgr&wait=false")
    other.write_bytes(b"something else")
    assert said["version"] == changing.version == changing.store.current
    assert changing.publisher.asked == [False] and changing.view.catalog.items == 2
    assert changing.store.history()[0].note == "other.xgr"
    assert not [*(changing.store.path / "incoming").iterdir()]


def test_a_file_below_the_store_is_taken_from_there(changing: Changing, other: Path) -> None:
    shutil.copy(other, changing.store.path / "new.xgr")
    said = changing.ask("PUT", "/catalog", json={"path": "new.xgr"})
    assert said["version"] == changing.version and changing.view.catalog.items == 2


def test_back_and_forth(changing: Changing, other: Path) -> None:
    first = changing.version
    second = changing.edit(hide=["1"])["version"]
    third = changing.upload(other.read_bytes())["version"]
    assert changing.ask("POST", "/catalog/rollback")["version"] == second == changing.version
    assert changing.ask("POST", "/catalog/rollback", json={})["version"] == first == changing.version
    assert changing.ask("POST", "/catalog/rollback", 404)["error"]["param"] == "version"
    asked = {"version": third, "wait": False}
    assert changing.ask("POST", "/catalog/rollback", json=asked)["version"] == third
    for wrong, status in (({"version": "f" * 32}, 404), ({"version": 5}, 400), ({"to": third}, 400)):
        changing.ask("POST", "/catalog/rollback", status, json=wrong)
    entries = changing.ask("GET", "/catalog/history?most=3")["entries"]
    assert [one["kind"] for one in entries] == ["rollback", "rollback", "rollback"]
    assert [one["version"] for one in entries] == [third, first, second]
    everything = changing.ask("GET", "/catalog/history")["entries"]
    assert [one["kind"] for one in everything[3:]] == ["push", "edit", "push"] and everything[0]["kept"]
    changing.ask("GET", "/catalog/history?most=0", 400)


BAD_FILES: dict[str, tuple[dict[str, Any], int, str]] = {
    "empty": ({"content": b""}, 400, "the body is empty"),
    "no-catalog": ({"content": b"item,sid\n1,2"}, 400, "not a built catalog"),
    "cut": ({"content": "cut"}, 400, "the file has .* bytes, its header says"),
    "damaged": ({"content": "damaged"}, 400, "the file: array .* is damaged"),
    "another-type": ({"content": b"x", "headers": {"content-type": "text/csv"}}, 415, "content type"),
    "bad-name": ({"content": "whole", "params": {"name": "../x"}}, 400, "name: expected `str` matching"),
    "bad-wait": ({"content": "whole", "params": {"wait": "perhaps"}}, 400, "wait: expected `bool`"),
    "unknown-option": ({"content": "whole", "params": {"force": "1"}}, 400, "force is not a field"),
    "packed": ({"content": "whole", "headers": {"content-encoding": "gzip"}}, 415, "the body is packed"),
    "no-path": ({"json": {}}, 400, "path is missing"),
    "not-there": ({"json": {"path": "nothing.xgr"}}, 400, r"path: 'nothing.xgr' is not in the store"),
    "outside": ({"json": {"path": "../other.xgr"}}, 400, "path: .* is outside of the store's folder"),
    "outside-by-a-link": ({"json": {"path": "link.xgr"}}, 400, "path: .* is outside of the store's folder"),
    "a-folder": ({"json": {"path": "versions"}}, 400, "cannot be read|no ordinary file|parts"),
    "the-database": ({"json": {"path": "store.sqlite"}}, 400, "a catalog source ends in"),
    "zero-byte": ({"json": {"path": "a\0b"}}, 400, "path: .* is not in the store's folder"),
    "two-paths": (
        {"content": b'{"path": "a", "path": "b"}', "headers": {"content-type": "application/json"}},
        400,
        "an object has 'path' twice",
    ),
    "path-is-a-number": ({"json": {"path": 5}}, 400, "path: expected `str`"),
}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_bad_files_are_refused_and_change_nothing(bad: str, changing: Changing, other: Path) -> None:
    request, status, words = BAD_FILES[bad]
    whole = other.read_bytes()
    (changing.store.path / "link.xgr").symlink_to(other)
    contents = {"whole": whole, "cut": whole[:-1], "damaged": whole.replace(b"pq", b"pr")}
    request = dict(request)
    if "content" in request:
        given = request["content"]
        request["content"] = contents[given] if isinstance(given, str) else given
        request["headers"] = {"content-type": "application/octet-stream"} | request.get("headers", {})
    before = changing.version
    error = changing.ask("PUT", "/catalog", status, **request)["error"]
    assert re.search(words, error["message"]) and str(changing.store.path) not in error["message"]
    assert changing.version == changing.store.current == before
    assert not [*(changing.store.path / "incoming").iterdir()]


def test_bodies_that_are_too_long_or_too_slow_or_two_at_once(
    changing: Changing, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield other.read_bytes()[:100]
        await asyncio.sleep(1.0)

    with monkeypatch.context() as patched:
        patched.setattr(module, "LARGEST_FILE", 100)
        assert changing.upload(other.read_bytes(), 413)["error"]["code"] == "body_too_large"
        patched.setattr(module, "LARGEST_LINES", 10)
        assert changing.lines({"hide": "12345"}, status=413)["error"]["code"] == "body_too_large"

    async def together() -> list[httpx.Response]:
        headers = {"content-type": "application/octet-stream"}
        transport = httpx.ASGITransport(changing.server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://xgr") as client:
            put = partial(client.put, "/catalog", headers=headers)
            return [*await asyncio.gather(put(content=slow()), put(content=slow()))]

    settings = replace(changing.server.settings, body_seconds=0.2)
    changing.server.app = make_app(
        changing.server.dispatch,
        Models([changing.server.model()]),
        settings,
        changing.publisher,
        changing.store,
    )
    codes = sorted(answer.json()["error"]["code"] for answer in asyncio.run(together()))
    assert codes == ["overloaded", "request_timeout"]
    changing.server.app = make_app(
        changing.server.dispatch,
        Models([changing.server.model()]),
        changing.server.settings,
        changing.publisher,
        changing.store,
    )
    changing.upload(other.read_bytes())  # the place is free again


def test_a_store_that_fails_is_said_as_what_it_is(
    changing: Changing, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **given: object) -> None:
        raise StoreError("store.sqlite: there is no room left: make room on its disk")

    for name in ("append", "push", "set_filter", "switch"):
        monkeypatch.setattr(changing.store, name, full)
    changed = changing.ask("PUT", "/catalog/nowhere", 404), changing.version
    for method, path, body in (
        ("POST", "/catalog/items", {"hide": ["1"]}),
        ("PUT", "/filters/x", {"where": "n < 3"}),
        ("POST", "/catalog/rollback", {"version": changing.version}),
    ):
        error = changing.ask(method, path, 503, json=body)["error"]
        assert error["code"] == "store_unavailable" and "make room" in error["message"]
    assert changing.upload(other.read_bytes(), 503)["error"]["code"] == "store_unavailable"
    assert changing.version == changed[1]


def test_who_holds_what_is_shown(changing: Changing) -> None:
    first = changing.version
    with changing.publisher.catalogs.lease():
        second = changing.edit(hide=["1"])["version"]
        info = changing.ask("GET", "/catalog")
    assert info["changes"] and info["current"] == info["newest"] == second
    assert [(one["version"], one["newest"], one["leases"]) for one in info["versions"]] == [
        (first, False, 1),
        (second, True, 0),
    ]
    assert info["under_way"] is None and info["behind"] == {"ipc:///b": "it lags"}


# --- named filters ---


def test_named_filters_hold_besides_the_condition(changing: Changing) -> None:
    changing.ask("PUT", "/filters/small", json={"where": "n < 10"})
    said = changing.ask("PUT", "/filters/odd.ones", json={"where": "brand = 'b1' OR n = 2"})
    assert (said["name"], said["where"]) == ("odd.ones", "brand = 'b1' OR n = 2")
    assert changing.shown(named=["small"]) == {str(n) for n in range(10)}
    both = {"1", "2", "3", "5", "7", "9"}
    assert changing.shown(named=["small", "odd.ones"]) == changing.shown(named=["odd.ones", "small"]) == both
    assert changing.shown(named=["small", "odd.ones"], where="n > 4 OR n = 1") == {"1", "5", "7", "9"}
    assert changing.shown(named=["small"], where="n < 10 OR n = 12", deny=["3"]) == set("012456789")
    assert changing.shown(named=[], where="n < 2") == {"0", "1"}
    kept = changing.view.filters
    assert "n < 10" in kept and "(brand = 'b1' OR n = 2) AND (n < 10)" in kept
    changing.edit(hide=["1"])
    assert changing.shown(named=["small", "odd.ones"]) == both - {"1"}
    names = [one["name"] for one in changing.ask("GET", "/filters")["filters"]]
    assert names == ["odd.ones", "small"] == [*changing.publisher.filters()]
    assert changing.ask("GET", "/filters/small")["where"] == "n < 10"
    assert changing.ask("DELETE", "/filters/small")["where"] == "n < 10"
    changing.ask("DELETE", "/filters/small", 404)
    changing.ask("GET", "/filters/small", 404)


def test_a_long_body_names_filters_too(changing: Changing) -> None:
    changing.ask("PUT", "/filters/small", json={"where": "n < 10"})
    deny = ["0", *(f"unknown-{n}" for n in range(2000))]
    assert changing.shown(named=["small"], deny=deny) == set("123456789")


BAD_FILTERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown": ({"named": ["small", "nope"]}, "filters.named", r"filters.named\[1\] is 'nope'"),
    "no-list": ({"named": "small"}, "filters.named", "expected `array`"),
    "no-text": ({"named": [5]}, "filters.named", r"named\[0\]"),
    "too-many": ({"named": ["small"] * 65}, "filters.named", "length <= 64"),
    "a-way-out": ({"named": ["small"], "where": "n < 1) OR (n > 5"}, "filters.where", "filters.where"),
    "bad-where": ({"named": ["small"], "where": "nope = 1"}, "filters.where", "at character 1.*nope"),
    "too-long": (
        {"named": ["small"], "where": f"brand = '{'x' * 8170}'"},
        "filters.named",
        "much together",
    ),
    "another-catalogs": ({"named": ["gone"]}, "filters.named", "filters.named, 'gone': .*was"),
}


@pytest.mark.parametrize("bad", BAD_FILTERS)
def test_bad_names_of_filters_are_refused(bad: str, changing: Changing) -> None:
    filters, param, words = BAD_FILTERS[bad]
    changing.ask("PUT", "/filters/small", json={"where": "n < 10"})
    with changing.store.writing():
        changing.store.set_filter("gone", "was = 1")  # of a catalog from before
    body = {"history": ["0"], "filters": filters}
    error = changing.ask("POST", "/generate", 400, json=body)["error"]
    assert error["param"] == param and re.search(words, error["message"]), error


BAD_CONDITIONS: dict[str, tuple[str, Any, str | None, str]] = {
    "unknown-column": ("/filters/x", {"where": "price < 5"}, "where", "where at character 1.*price"),
    "a-function": ("/filters/x", {"where": "read_csv('/etc/passwd')"}, "where", "where at character"),
    "a-query": ("/filters/x", {"where": "n IN (SELECT 1)"}, "where", "where at character"),
    "empty": ("/filters/x", {"where": ""}, "where", "length >= 1"),
    "too-long": ("/filters/x", {"where": "n < 1 OR " * 1000}, "where", "length <= 8192"),
    "missing": ("/filters/x", {}, "where", "where is missing"),
    "two": ("/filters/x", b'{"where": "n < 1", "where": "n < 2"}', None, "an object has 'where' twice"),
    "bad-name": ("/filters/a%20b", {"where": "n < 1"}, "name", "'a b'"),
    "long-name": (f"/filters/{'x' * 129}", {"where": "n < 1"}, "name", "1 to 128"),
    "a-path": ("/filters/a/b", {"where": "n < 1"}, "name", "'a/b'"),
}


@pytest.mark.parametrize("bad", BAD_CONDITIONS)
def test_bad_conditions_get_no_name(bad: str, changing: Changing) -> None:
    path, body, param, words = BAD_CONDITIONS[bad]
    content = body if isinstance(body, bytes) else json.dumps(body)
    headers = {"content-type": "application/json"}
    error = changing.ask("PUT", path, 400, content=content, headers=headers)["error"]
    assert error["param"] == param and re.search(words, error["message"]), error
    assert not changing.publisher.filters()


def test_filters_are_bounded_in_number(changing: Changing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FILTERS", 1)
    changing.ask("PUT", "/filters/a", json={"where": "n < 1"})
    changing.ask("PUT", "/filters/a", json={"where": "n < 2"})
    assert "delete one" in changing.ask("PUT", "/filters/b", 400, json={"where": "n < 1"})["error"]["message"]


# --- a deployment whose catalog stays as it is ---


def test_without_a_store_changes_are_refused_and_the_version_is_shown(
    server: Server, catalog: Catalog, other: Path
) -> None:
    for method, path, body in (
        ("PUT", "/catalog", {"path": "x"}),
        ("POST", "/catalog/items", {"hide": ["1"]}),
        ("POST", "/catalog/rollback", {}),
        ("GET", "/catalog/history", None),
        ("GET", "/filters", None),
        ("GET", "/filters/x", None),
        ("PUT", "/filters/x", {"where": "n < 1"}),
        ("DELETE", "/filters/x", None),
    ):
        answer = server.send(method, path, json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (409, "fixed_catalog"), error
        assert "--catalog-store" in error["message"]
    refused = server.generate(history=["0"], filters={"named": ["x"]})
    assert refused.status_code == 400 and "--catalog-store" in refused.json()["error"]["message"]
    info = server.get("/catalog").json()
    assert not info["changes"] and info["current"] == info["newest"] == catalog.version
    assert [(one["version"], one["items"]) for one in info["versions"]] == [(catalog.version, ITEMS)]
