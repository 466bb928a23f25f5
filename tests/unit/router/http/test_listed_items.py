"""What an answer lists and tells of items, over HTTP: caps, samples, diversity, and bad ones of each."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from made_catalogs import build_from_arrays

from xgr_runtime.catalog.edits import EditBatch, ItemRecord, edited
from xgr_runtime.client import XgrClient
from xgr_runtime.wire.answers import Answer

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server
    from tokenizers import Tokenizer

    from xgr_runtime.catalog import Catalog

ITEMS, SHARED = 36, 3  # so many items on each SID
WIDTH = {"beam_width": 12}
BRANDS = "abcd"


def brand(item: int) -> str | None:
    return BRANDS[item * 7 % 11 % 4] if item % 9 else None


@pytest.fixture(scope="session")
def catalog(tokenizer: Tokenizer) -> Catalog:
    """Item n is on SID n // 3, the lower ones being more popular; leaf n is the SID of items 3n and on."""
    first = [tokenizer.get_vocab()[token] for token in ("<a_0>", "<b_0>", "<c_0>")]
    sids = [[first[0], first[1] + n // SHARED // 4, first[2] + n // SHARED % 4] for n in range(ITEMS)]
    attributes: list[dict[str, Any]] = []
    for n in range(ITEMS):
        own: dict[str, Any] = {"n": n, "price": n / 4, "mixed": n if n % 2 else [n]}
        own |= {"brand": brand(n)} if brand(n) else {}
        own |= {"tags": [*"xyz"[: n % 4]], "day": f"2026-01-0{n % 5 + 1}"}
        attributes.append(own)
    return build_from_arrays(
        list(map(str, range(ITEMS))),
        sids,
        popularity=[float(-n) for n in range(ITEMS)],
        titles=[f"item {n} ©" if n % 2 else None for n in range(ITEMS)],
        attributes=attributes,
        vocab_size=tokenizer.get_vocab_size(),
    )


def asked(server: Server, **body: Any) -> dict[str, Any]:
    response = server.generate(**{"history": ["0"], "sampling_params": WIDTH} | body)
    assert response.status_code == 200, response.text
    return response.json()["meta_info"]  # type: ignore[no-any-return]


def items(meta: dict[str, Any]) -> list[list[int]]:
    return [list(map(int, result["items"])) for result in meta["beam_results"]]


def test_nothing_is_told_that_was_not_asked_for(server: Server) -> None:
    meta = asked(server)
    assert set(meta["beam_results"][0]) == {"output_ids", "items", "meta_info"} and "diversity" not in meta
    empty: tuple[Any, ...] = ({}, {"title": False}, {"attributes": []}, None)
    for nothing in empty:
        assert asked(server, **{"return": nothing})["beam_results"] == meta["beam_results"]


def test_titles_and_attributes_lie_beside_the_items(server: Server, catalog: Catalog) -> None:
    names = ["brand", "price", "mixed", "tags"]
    meta = asked(server, **{"return": {"title": True, "attributes": names}})
    for result in meta["beam_results"]:
        assert len(result["item_info"]) == len(result["items"]) == SHARED
        for item, info in zip(result["items"], result["item_info"], strict=True):
            stored = catalog.attributes(item)
            assert info == {
                "title": catalog.title(item),
                "attributes": {name: stored.get(name) for name in names},
            }
    assert meta["beam_results"][0]["item_info"][0]["attributes"]["brand"] is None


@pytest.mark.parametrize("body", [{"title": True}, {"attributes": ["n"]}], ids=["title", "attributes"])
def test_one_alone(server: Server, body: dict[str, Any]) -> None:
    (only,) = body
    infos = asked(server, **{"return": body})["beam_results"][3]["item_info"]
    assert [set(info) for info in infos] == [{only}] * SHARED


def test_what_is_told_is_of_the_items_that_are_listed(server: Server) -> None:
    told = {"attributes": ["n"]}
    meta = asked(server, **{"return": told}, filters={"deny": ["0", "4"]}, max_items_per_sid=1, max_items=4)
    shown = [(result["items"], result["item_info"]) for result in meta["beam_results"]]
    assert shown == [([str(n)], [{"attributes": {"n": n}}]) for n in (1, 3, 6, 9)]


def test_the_best_items_of_a_sid(server: Server) -> None:
    assert items(asked(server, items_per_sid="best")) == [[3 * leaf] for leaf in range(12)]
    two = asked(server, items_per_sid="best", max_items_per_sid=2)
    assert items(two) == [[3 * leaf, 3 * leaf + 1] for leaf in range(12)]
    assert items(asked(server, items_per_sid="all", max_items_per_sid=2)) == items(two)


def test_filters_come_first(server: Server) -> None:
    left = asked(server, items_per_sid="best", filters={"where": "n >= 2", "deny": ["3", "4"]})
    assert items(left)[:3] == [[2], [5], [6]]
    draws = [{"sample": seed} for seed in range(12)]
    only = [items(asked(server, items_per_sid=draw, filters={"allow": ["1", "2"]})) for draw in draws]
    assert {own for ((own,),) in only} == {1, 2}


def test_an_answer_ends_with_the_item_that_is_the_last(server: Server) -> None:
    assert items(asked(server, max_items=4)) == [[0, 1, 2], [3]]
    assert items(asked(server, max_items=3)) == [[0, 1, 2]]
    assert items(asked(server, max_items=1 << 40)) == items(asked(server))
    cut = server.generate(history=["0"], max_items=1).json()
    assert cut["items"] == ["0"] and len(cut["meta_info"]["beam_results"]) == 1


def test_a_sample_is_the_same_for_one_seed_and_prompt(server: Server) -> None:
    one = items(asked(server, items_per_sid={"sample": 5}))
    assert one == items(asked(server, items_per_sid={"sample": 5}))
    assert [len(own) for own in one] == [1] * 12
    assert one != items(asked(server, items_per_sid={"sample": 6}))
    assert one != items(asked(server, items_per_sid={"sample": 5}, history=["7", "9"]))
    every = items(asked(server, items_per_sid={"sample": 5}, max_items_per_sid=9))
    assert [sorted(own) for own in every] == items(asked(server))
    assert [own[0] for own in every] == [own[0] for own in one]


def walked(beams: list[list[int]], results: int, at_most: int, values: Any) -> list[list[int]]:
    """The rule of `diversity`, as the documentation has it."""
    counts: Counter[str] = Counter()
    found: list[list[int]] = []
    for own in beams:
        taken = []
        for item in own:
            if all(counts[value] < at_most for value in values(item)):
                counts.update(values(item))
                taken.append(item)
        found += [taken] if taken else []
        if len(found) == results:
            break
    return found


@pytest.mark.parametrize("at_most", [1, 2, 5])
def test_diversity_chooses_from_all_beams(server: Server, dispatch: FakeDispatch, at_most: int) -> None:
    every = items(asked(server))
    for attribute, values in (
        ("brand", lambda n: {brand(n)} - {None}),
        ("tags", lambda n: set("xyz"[: n % 4])),
        ("day", lambda n: {n % 5}),
    ):
        meta = asked(
            server,
            diversity={"attribute": attribute, "at_most": at_most},
            sampling_params={"beam_width": 12, "n": 4},
        )
        assert items(meta) == walked(every, 4, at_most, values)
        assert dispatch.jobs[-1].beams == 12 and dispatch.jobs[-1].results == 4
        assert meta["diversity"] == {"beams": 12, "wider_changes": "no"}  # every live SID was one


def test_diversity_goes_together_with_the_rest(server: Server) -> None:
    meta = asked(
        server,
        diversity={"attribute": "day", "at_most": 1},
        items_per_sid="best",
        max_items=3,
        filters={"deny": ["1", "4"]},
        **{"return": {"attributes": ["day"]}},
    )
    assert items(meta) == [[0], [3], [6]]
    days = [result["item_info"][0]["attributes"]["day"] for result in meta["beam_results"]]
    assert days == ["2026-01-01", "2026-01-04", "2026-01-02"]


@pytest.mark.parametrize(
    ("ceiling", "n", "wider"),
    [
        (None, 2, "unknown"),
        (-0.5, 3, "no"),  # leaf i has -(i + 1) / 8
        (-0.5, 4, "unknown"),
        (-0.1, 1, "unknown"),
        (-0.5, 5, "unknown"),
        (-1e30, 5, "no"),
    ],
)
def test_an_answer_says_whether_a_wider_search_could_change_it(
    server: Server, dispatch: FakeDispatch, ceiling: float | None, n: int, wider: str
) -> None:
    dispatch.ceiling = ceiling
    meta = asked(
        server, diversity={"attribute": "n", "at_most": 1}, sampling_params={"beam_width": 5, "n": n}
    )
    assert meta["diversity"] == {"beams": 5, "wider_changes": wider} and len(meta["beam_results"]) == n


def test_from_python(server: Server) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        answer = server.send("POST", request.url.path, content=request.content, headers=request.headers)
        return httpx.Response(answer.status_code, content=answer.content)

    with XgrClient("http://xgr", transport=httpx.MockTransport(handle)) as client:
        answer: Answer = client.generate(
            history=["0"],
            beam_width=12,
            n=2,
            title=True,
            attributes=["n"],
            items_per_sid={"sample": 1},
            max_items=5,
            diversity={"attribute": "brand", "at_most": 3},
        )
    infos = [result.item_info for result in answer.meta_info.beam_results]
    assert [info[0].attributes for info in infos if info] == [
        {"n": int(result.items[0])} for result in answer.meta_info.beam_results
    ]
    assert answer.meta_info.diversity is not None and answer.meta_info.diversity.beams == 12


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"return": True}, "return", "expected `object"),
    ({"return": ["title"]}, "return", "expected `object"),
    ({"return": {"title": 1}}, "return.title", "expected `bool"),
    ({"return": {"titles": True}}, "return.titles", "is not a field"),
    ({"return": {"attributes": "price"}}, "return.attributes", "expected `array"),
    ({"return": {"attributes": [1]}}, "return.attributes", "expected `str"),
    ({"return": {"attributes": ["prise"]}}, "return.attributes", "names 'prise', which is no attribute"),
    ({"return": {"attributes": ["n", ""]}}, "return.attributes", "names ''"),
    ({"return": {"attributes": ["n"] * 65}}, "return.attributes", "length <= 64"),
    ({"return": {"attributes": ["n" * 257]}}, "return.attributes", "length <= 256"),
    ({"returned": {"title": True}}, "returned", "is not a field"),
    ({"items_per_sid": "worst"}, "items_per_sid", "worst"),
    ({"items_per_sid": 1}, "items_per_sid", "expected"),
    ({"items_per_sid": {}}, "items_per_sid.sample", "is missing"),
    ({"items_per_sid": {"sample": -1}}, "items_per_sid.sample", ">= 0"),
    ({"items_per_sid": {"sample": 1 << 63}}, "items_per_sid.sample", "<= 9223372036854775807"),
    ({"items_per_sid": {"sample": "x"}}, "items_per_sid.sample", "expected `int"),
    ({"items_per_sid": {"sample": 1, "n": 2}}, "items_per_sid.n", "is not a field"),
    ({"max_items_per_sid": 0}, "max_items_per_sid", ">= 1"),
    ({"max_items_per_sid": 1.5}, "max_items_per_sid", "expected `int"),
    ({"max_items": 0}, "max_items", ">= 1"),
    ({"max_items": "all"}, "max_items", "expected `int"),
    ({"diversity": "brand"}, "diversity", "expected `object"),
    ({"diversity": {"attribute": "brand"}}, "diversity.at_most", "is missing"),
    ({"diversity": {"at_most": 1}}, "diversity.attribute", "is missing"),
    ({"diversity": {"attribute": "brand", "at_most": 0}}, "diversity.at_most", ">= 1"),
    ({"diversity": {"attribute": "color", "at_most": 1}}, "diversity.attribute", "'color'"),
    ({"diversity": {"attribute": "mixed", "at_most": 1}}, "diversity.attribute", "of several kinds"),
    ({"diversity": {"attribute": ["brand"], "at_most": 1}}, "diversity.attribute", "expected `str"),
    ({"unknown_history": "ignore"}, "unknown_history", "ignore"),
]


@pytest.mark.parametrize(("body", "param", "said"), BAD, ids=[repr(body)[:60] for body, _, _ in BAD])
@pytest.mark.parametrize("padding", [0, 20_000], ids=["short", "long"])
def test_a_bad_field_is_400(
    server: Server, dispatch: FakeDispatch, body: dict[str, Any], param: str, said: str, padding: int
) -> None:
    server.set(max_body_bytes=1 << 20)
    response = server.generate(**{"history": ["0"], "filters": {"deny": ["none"] * padding}} | body)
    assert response.status_code == 400 and not dispatch.jobs
    error = response.json()["error"]
    assert error["param"] == param and said in error["message"] and "\n" not in error["message"]


def test_a_removed_item_is_no_result_and_still_history(server: Server, dispatch: FakeDispatch) -> None:
    before = asked(server, history=["5", "9"])
    batch = EditBatch(remove=("5", "0"), hide=("4",))
    server.catalogs.add(edited(server.catalogs.newest, batch))
    after = asked(server, history=["5", "9"])
    assert after["catalog_version"] != before["catalog_version"]
    assert dispatch.jobs[1].tokens.tolist() == dispatch.jobs[0].tokens.tolist()
    assert after["unknown_items"]["history"] == 0
    assert items(after)[:2] == [[1, 2], [3]]
    assert items(asked(server, history=["5"], items_per_sid="best"))[:2] == [[1], [3]]
    meta = asked(server, history=["5", "gone"], diversity={"attribute": "n", "at_most": 1})
    assert items(meta)[:2] == [[1, 2], [3]] and meta["unknown_items"]["history"] == 1


def test_what_an_edit_brings_is_told(server: Server, tokenizer: Tokenizer) -> None:
    sid = tuple(tokenizer.get_vocab()[token] for token in ("<a_0>", "<b_0>", "<c_0>"))
    record = ItemRecord("new", sid, "a new one", 1.0, b'{"brand":"a"}')
    server.catalogs.add(edited(server.catalogs.newest, EditBatch(put=(record,))))
    meta = asked(server, **{"return": {"title": True, "attributes": ["brand", "n"]}}, items_per_sid="best")
    first = meta["beam_results"][0]
    assert first["items"] == ["new"]
    assert first["item_info"] == [{"title": "a new one", "attributes": {"brand": "a", "n": None}}]
    diverse = asked(server, diversity={"attribute": "brand", "at_most": 1})["beam_results"]
    listed = [item for result in diverse for item in result["items"]]
    assert listed[0] == "new" and not any(brand(int(item)) == "a" for item in listed[1:])
    free = asked(server, diversity={"attribute": "n", "at_most": 1})  # its n is NULL
    assert free["beam_results"][0]["items"] == ["new", "0", "1", "2"]
