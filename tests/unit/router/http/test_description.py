"""/openapi.json describes what is served, and what is served keeps to the description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.routing import Route

from router.http.schema import GenerateRequest, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Server

ROUTES = {
    *(("post", path) for path in ("/generate", "/score", "/v1/completions", "/v1/chat/completions")),
    ("post", "/abort_request"),
    ("post", "/flush_cache"),
    ("post", "/workers"),
    ("delete", "/workers/{name}"),
    *(("get", path) for path in ("/liveness", "/readiness", "/health", "/health_generate", "/workers")),
    *(("get", path) for path in ("/model_info", "/server_info", "/v1/models", "/metrics", "/trace")),
    *(("get", path) for path in ("/", "/docs", "/openapi.json", "/items", "/requests")),
    *(("get", path) for path in ("/catalog", "/catalog/history", "/filters", "/filters/{name}")),
    *(("put", path) for path in ("/catalog", "/filters/{name}")),
    *(("post", path) for path in ("/catalog/items", "/catalog/rollback")),
    ("delete", "/filters/{name}"),
}


@pytest.fixture
def document(server: Server) -> dict[str, Any]:
    described: dict[str, Any] = server.get("/openapi.json").json()
    return described


def walk(value: object) -> Iterator[dict[str, Any]]:
    """Every object inside `value`."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(part)


def test_every_route_is_described(server: Server, document: dict[str, Any]) -> None:
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    served = {
        (method.lower(), route.path.replace(":path}", "}"))
        for route in server.app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert described == served == ROUTES


def test_document_is_well_formed(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    for operation in operations:
        assert operation["responses"].keys() & {"200", "202"}
        for response in operation["responses"].values():
            assert response["description"]
            assert all("schema" in content for content in response["content"].values())
    schemas = document["components"]["schemas"]
    for part in walk(document):
        if "$ref" in part:
            assert part["$ref"].removeprefix("#/components/schemas/") in schemas


def test_statuses_of_generate(document: dict[str, Any]) -> None:
    responses = document["paths"]["/generate"]["post"]["responses"]
    expected = {200, 400, 401, 403, 404, 408, 409, 413, 415, 431, 499, 500, 502, 503, 504}
    assert set(responses) == {str(status) for status in expected}
    assert "Retry-After" in responses["503"]["headers"]
    assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}


def test_only_probes_and_pages_are_public(document: dict[str, Any]) -> None:
    public = {
        path for path, methods in document["paths"].items() if not next(iter(methods.values()))["security"]
    }
    assert public == {"/health", "/health_generate", "/liveness", "/readiness", "/metrics", "/docs", "/"}
    assert {scheme["scheme"] for scheme in document["components"]["securitySchemes"].values()} == {"bearer"}


def test_routes_of_the_operator_say_so(document: dict[str, Any]) -> None:
    admin = {
        path
        for path, methods in document["paths"].items()
        for operation in methods.values()
        if any("admin_key" in choice for choice in operation["security"])
    }
    catalog = {"/catalog", "/catalog/history", "/catalog/items", "/catalog/rollback"}
    filters = {"/filters", "/filters/{name}"}
    assert admin == catalog | filters | {"/flush_cache", "/requests", "/trace", "/workers", "/workers/{name}"}


def test_bounds_are_the_deployments(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    width = schemas["SamplingParams"]["properties"]["beam_width"]
    assert {"type": "integer", "minimum": 1, "maximum": 20}.items() <= width["anyOf"][0].items()
    ids = schemas["GenerateRequest"]["properties"]["input_ids"]["anyOf"][0]
    assert (ids["minItems"], ids["maxItems"], ids["items"]["maximum"]) == (1, 30, 26)
    assert schemas["SamplingParams"]["properties"]["max_new_tokens"]["enum"] == [None, 3]
    assert schemas["SamplingParams"]["properties"]["top_p"]["enum"] == [None, 1.0]


def test_every_request_field_is_described(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for kind in (GenerateRequest, SamplingParams):
        assert set(schemas[kind.__name__]["properties"]) == set(kind.__struct_encode_fields__)
        assert schemas[kind.__name__]["additionalProperties"] is False


NOT_NULL = {"input_ids", "stream"}
TOP_FIELDS = [field for field in GenerateRequest.__struct_encode_fields__ if field not in NOT_NULL]
SAMPLING_FIELDS = [field for field in SamplingParams.__struct_fields__ if field not in NOT_NULL]


@pytest.mark.parametrize("field", TOP_FIELDS)
def test_described_values_are_accepted(server: Server, document: dict[str, Any], field: str) -> None:
    schema = document["components"]["schemas"]["GenerateRequest"]["properties"][field]
    for value in schema.get("enum", [None]):
        response = server.generate(input_ids=[1], **{field: value})
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("field", SAMPLING_FIELDS)
def test_described_sampling_values_are_accepted(server: Server, document: dict[str, Any], field: str) -> None:
    schema = document["components"]["schemas"]["SamplingParams"]["properties"][field]
    for value in schema.get("enum", [None]):
        response = server.generate(input_ids=[1], sampling_params={field: value})
        assert response.status_code == 200, response.text


def test_answers_have_the_described_fields(server: Server, document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    answer = server.generate(input_ids=[1]).json()
    assert set(answer) == set(schemas["Answer"]["required"])
    assert set(answer["meta_info"]) == set(schemas["MetaInfo"]["required"])
    failed = server.generate().json()
    assert set(failed) == set(schemas["ErrorBody"]["required"])


def test_the_example_works(server: Server, document: dict[str, Any]) -> None:
    body = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert len(server.generate(**body).json()["meta_info"]["beam_results"]) == body["sampling_params"]["n"]
