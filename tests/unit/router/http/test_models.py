"""Which model a request means, and which version of its catalog it keeps from its check to its answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from made_catalogs import build_from_arrays, items_of_leaf

from xgr_runtime.catalog import Catalogs, CatalogView, PromptTemplate

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server

OTHER = build_from_arrays(
    ["x", "y"], [[3, 11, 19], [4, 12, 20]], template=PromptTemplate(prefix=(1, 1)), vocab_size=27
)
LONG = {"history": ["x"] * 5000}


def refusal(response: httpx.Response) -> Any:
    assert response.status_code == 404, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"], error["type"]) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )
    return error["message"]


@pytest.mark.parametrize("name", [{}, {"model": None}, {"model": "tiny"}], ids=str)
def test_the_only_model_needs_no_name(server: Server, name: dict[str, object]) -> None:
    assert server.generate(history=["0"], **name).status_code == 200


@pytest.mark.parametrize(
    "asked", [{"history": ["0"]}, LONG, {"text": "<a_0>" * 1000}], ids=["short", "long", "text"]
)
def test_an_unknown_model_is_not_found(server: Server, dispatch: FakeDispatch, asked: dict[str, Any]) -> None:
    server.set(max_body_bytes=1 << 20)
    message = refusal(server.generate(**asked, model="large"))
    assert "'large'" in message and "tiny" in message
    assert not dispatch.jobs
    assert server.catalogs.versions == [server.catalog.version]


def test_its_answer_carries_the_rid(server: Server) -> None:
    assert server.generate(history=["0"], model="large", rid="mine").json()["request_id"] == "mine"


@pytest.mark.parametrize("size", [1, 5000], ids=["short", "long"])
@pytest.mark.parametrize("name", [7, ["tiny"], "x" * 1025], ids=["number", "list", "endless"])
def test_a_name_is_a_short_string(server: Server, name: object, size: int) -> None:
    server.set(max_body_bytes=1 << 20)
    response = server.generate(history=["0"] * size, model=name)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")


@pytest.fixture
def two(server: Server) -> Server:
    server.set(max_body_bytes=1 << 20)
    server.dispatch.catalog = OTHER
    server.serve(server.model(), server.model("other", Catalogs(CatalogView(OTHER))))
    return server


@pytest.mark.parametrize("size", [1, 5000], ids=["short", "long"])
def test_each_model_has_its_catalog(two: Server, size: int) -> None:
    answer = two.generate(history=["x"] * size, model="other", sampling_params={"n": 2}).json()
    assert answer["items"] == ["x"] and answer["meta_info"]["catalog_version"] == OTHER.version
    assert "does not hold" in two.generate(history=["x"], model="tiny").json()["error"]["message"]


@pytest.mark.parametrize("asked", [{"history": ["x"]}, LONG], ids=["short", "long"])
def test_one_of_several_has_to_be_named(two: Server, asked: dict[str, Any]) -> None:
    response = two.generate(**asked)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
    assert "tiny, other" in response.json()["error"]["message"]


def test_all_are_listed_and_described(two: Server) -> None:
    assert [card["id"] for card in two.get("/v1/models").json()["data"]] == ["tiny", "other"]
    schemas = two.get("/openapi.json").json()["components"]["schemas"]
    assert {"tiny", "other"} in [
        set(part.get("enum", ())) for part in schemas["GenerateRequest"]["properties"]["model"]["anyOf"]
    ]


def test_a_request_keeps_its_version(server: Server, dispatch: FakeDispatch) -> None:
    """A newer catalog comes while it is under way: it is answered by the old one, which then goes."""
    dispatch.hang = True
    old, new = server.catalog.version, CatalogView(OTHER)

    async def exchange() -> httpx.Response:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://xgr") as client:
            asking = asyncio.ensure_future(client.post("/generate", json={"rid": "r", "history": ["0"]}))
            while "r" not in dispatch.tasks:
                await asyncio.sleep(0.001)
            server.catalogs.add(new)
            assert server.catalogs.versions == [old, new.version]
            dispatch.tasks["r"].set_result(None)
            return await asking

    answer = asyncio.run(exchange()).json()
    assert answer["meta_info"]["catalog_version"] == old
    assert answer["items"] == items_of_leaf(server.catalog, 0)
    assert server.catalogs.versions == [new.version]
    dispatch.hang = False
    dispatch.catalog = OTHER
    assert server.generate(history=["x"]).json()["meta_info"]["catalog_version"] == new.version


@pytest.mark.parametrize(
    "body", [{"history": ["?"]}, {"history": ["0"], "sampling_params": {"n": 99}}], ids=str
)
def test_a_refused_request_holds_nothing(server: Server, body: dict[str, Any]) -> None:
    assert server.generate(**body).status_code == 400
    server.catalogs.add(CatalogView(OTHER))
    assert server.catalogs.versions == [OTHER.version]


def test_the_routers_own_request_holds_its_version_too(server: Server, dispatch: FakeDispatch) -> None:
    assert server.get("/health_generate").status_code == 200
    (job,) = dispatch.jobs
    assert job.probe and job.view is server.catalogs.newest and len(job.tokens) == 3
    server.catalogs.add(CatalogView(OTHER))
    assert server.catalogs.versions == [OTHER.version]
