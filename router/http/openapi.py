"""/openapi.json: the table of routes, msgspec's schemas of what crosses, the bounds of this deployment."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from router.http.catalog_schema import EditLine
from router.http.routes import RouteSpec
from router.http.schema import NEUTRAL_REQUEST, NEUTRAL_SAMPLING
from router.http.settings import HttpSettings
from router.query.models import Model, Models
from router.query.prompts import UNLIMITED
from xgr_runtime.errors import BadRequest, CatalogError, RequestError
from xgr_runtime.wire.answers import ErrorBody

Json = dict[str, Any]
_REF = "#/components/schemas/{name}"
# A prompt's, and what each is in JSON; null counts as absent.
_FORMS = {"input_ids": "array", "history": ["array", "object"], "text": "string", "messages": "array"}
_CANDIDATES = {"items": "array", "sids": "array"}
_NO_NAME = re.compile(r"[^a-z0-9]+")


def openapi(table: Sequence[RouteSpec], models: Models, settings: HttpSettings) -> Json:
    """The OpenAPI 3.1 description of `table`, which serves `models`."""
    paths: Json = {}
    for spec in table:
        paths.setdefault(spec.path, {})[spec.method.lower()] = operation(spec)
    one_prompt(json_body(paths["/generate"]["post"]), example(models, settings))
    one_prompt(json_body(paths["/score"]["post"]), score_example(models))
    json_body(paths["/score"]["post"])["schema"]["allOf"].append({"oneOf": one_of(_CANDIDATES)})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "xgr-runtime",
            "version": settings.version,
            "description": "Ranks the items of a catalog for a user by exact wide-beam search.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas(table, models, settings),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "Where --api-key is set."},
                "admin_key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Where --admin-api-key is set, else as `key`; opens all routes.",
                },
            },
        },
    }


def operation(spec: RouteSpec) -> Json:
    """One route."""
    described: Json = {
        "operationId": f"{spec.method.lower()}{_NO_NAME.sub('_', spec.path)}",
        "summary": spec.summary,
        "responses": {str(spec.status): answer(spec), **errors(spec.all_errors)},
        "security": [] if spec.public else [{"admin_key" if spec.admin else "key": []}, {}],
    }
    if spec.body is not None:
        content: Json = {"application/json": {"schema": ref(spec.body)}}
        for media, text in spec.media:
            content[media] = {"schema": {"type": "string", "description": text}}
        described["requestBody"] = {"required": spec.body_needed, "content": content}
    asked = in_path(spec.path) + (parameters(spec.query) if spec.query is not None else [])
    if asked:
        described["parameters"] = asked
    return described


def json_body(operation: Json) -> Json:
    """Of the body that an operation takes."""
    found: Json = operation["requestBody"]["content"]["application/json"]
    return found


def one_prompt(body: Json, example: Json) -> None:
    """That a body has one form of prompt, and an example. One that is null counts as absent."""
    body["schema"] = {"allOf": [body["schema"]], "oneOf": one_of(_FORMS)}
    body["example"] = example


def one_of(fields: Mapping[str, object]) -> list[Json]:
    """That an object has one of the fields, of the type that is named with it."""
    return [{"required": [name], "properties": {name: {"type": kinds}}} for name, kinds in fields.items()]


def example(models: Models, settings: HttpSettings) -> Json:
    """A request that works here."""
    width = min(settings.default_beam_width, settings.max_beam_width)
    return {**short_prompt(models.default), "sampling_params": {"beam_width": width, "n": min(10, width)}}


def score_example(models: Models) -> Json:
    """The same for /score."""
    catalog = models.default.catalogs.newest.catalog
    return {
        **short_prompt(models.default),
        "items": [catalog.item_id(row) for row in range(catalog.items)[:3]],
    }


def short_prompt(model: Model) -> Json:
    """Two items of history; where the template takes more than that, an item's tokens."""
    catalog = model.catalogs.newest.catalog
    items = [catalog.item_id(row) for row in range(min(2, catalog.items))]
    try:
        model.prompts.of_history(catalog, None, {"": catalog.leaves_of_items(items)}, {}, UNLIMITED)
    except (BadRequest, CatalogError):
        return {"input_ids": catalog.sids[0].tolist()}
    return {"history": items}


def in_path(path: str) -> list[Json]:
    """What stands in braces in the path of a route."""
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", path)
    ]


def parameters(query: type[msgspec.Struct]) -> list[Json]:
    """What may stand behind the question mark of the URL."""
    shape = shapes((query,))[query.__name__]
    required = shape.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        for name, schema in shape["properties"].items()
    ]


def answer(spec: RouteSpec) -> Json:
    """What the route gives when all is well."""
    if isinstance(spec.answer, str):
        schema = {"type": "object"} if spec.answer == "application/json" else {"type": "string"}
        return {"description": spec.summary, "content": {spec.answer: {"schema": schema}}}
    content: Json = {"application/json": {"schema": ref(spec.answer)}}
    if spec.streams:
        note = "Of each event: the answer as JSON in the first, `[DONE]` in the second."
        event = {"type": "object", "properties": {"data": {"type": "string", "description": note}}}
        content["text/event-stream"] = {"schema": event | {"required": ["data"]}}
    return {"description": summary(spec.answer), "content": content}


@cache
def errors(kinds: tuple[type[RequestError], ...]) -> Json:
    """Responses by status; several errors may share one. For reading."""
    grouped: dict[str, list[type[RequestError]]] = {}
    for kind in kinds:
        grouped.setdefault(str(kind.status), []).append(kind)
    return {status: error_answer(kinds) for status, kinds in sorted(grouped.items())}


def error_answer(kinds: Sequence[type[RequestError]]) -> Json:
    """The response of errors with one status."""
    text = " ".join(f"`{kind.code}`: {meaning(kind)}" for kind in kinds)
    response: Json = {"description": text, "content": {"application/json": {"schema": ref(ErrorBody)}}}
    header = {503: "Retry-After", 401: "WWW-Authenticate"}.get(kinds[0].status)
    if header is not None:
        response["headers"] = {header: {"schema": {"type": "string"}}}
    return response


def meaning(kind: type[RequestError]) -> str:
    """The docstring of an error, without the status it begins with."""
    return summary(kind).partition(". ")[2]


def summary(kind: type) -> str:
    """The first line of a docstring."""
    return (kind.__doc__ or "").strip().partition("\n")[0]


def ref(kind: type) -> Json:
    return {"$ref": _REF.format(name=kind.__name__)}


def schemas(table: Sequence[RouteSpec], models: Models, settings: HttpSettings) -> Json:
    """Every struct that crosses, by name; the request's are narrowed to what this deployment accepts."""
    kinds: list[type] = [ErrorBody, EditLine]
    kinds += [spec.body for spec in table if spec.body is not None]
    kinds += [spec.answer for spec in table if not isinstance(spec.answer, str)]
    components = shapes(tuple(kinds))
    narrow_request(components["GenerateRequest"], models, settings)
    narrow_prompt(components["ScoreRequest"]["properties"], models, settings)
    narrow_sampling(components["SamplingParams"]["properties"], models, settings)
    return components


def shapes(kinds: tuple[type, ...]) -> Json:
    """The schemas of structs and of all that they hold, by name; the caller may change them."""
    found: Json = msgspec.json.decode(_shapes(kinds))
    return found


@cache
def _shapes(kinds: tuple[type, ...]) -> bytes:
    """As JSON. It is most of an application's making, and the same for all."""
    return msgspec.json.encode(msgspec.json.schema_components(kinds, ref_template=_REF)[1])


def narrow_request(schema: Json, models: Models, settings: HttpSettings) -> None:
    """Models and prompts as this deployment takes them."""
    properties = schema["properties"]
    narrow(properties, NEUTRAL_REQUEST)
    narrow_prompt(properties, models, settings)


def narrow_prompt(properties: Json, models: Models, settings: HttpSettings) -> None:
    """The fields of a prompt, and of the model that gets it."""
    branch(properties["model"], "string")["enum"] = models.names
    templates = {name for model in models for name in model.catalogs.newest.catalog.templates.named}
    branch(properties["template"], "string")["enum"] = sorted(templates)
    narrow_message(branch(properties["messages"], "array")["items"])
    branch(properties["text"], "string")["minLength"] = 1
    ids = branch(properties["input_ids"], "array")
    ids["minItems"] = 1
    ids["items"] = {"type": "integer", "minimum": 0, "maximum": models.default.vocab_size - 1}
    if settings.max_prompt_tokens is not None:
        ids["maxItems"] = settings.max_prompt_tokens


def narrow_message(schema: Json) -> None:
    """What a message needs, and what of its content is read."""
    text = {"type": "string"}
    part = {"type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"}}}
    content = {"anyOf": [text, {"type": "array", "items": {**part, "additionalProperties": text}}]}
    schema.update(required=["role", "content"], properties={"role": text, "content": content})


def narrow_sampling(properties: Json, models: Models, settings: HttpSettings) -> None:
    """Widths up to the limit, lengths of the catalog's depth."""
    catalog = models.default.catalogs.newest.catalog
    lengths = sorted({catalog.depth, catalog.emitted_tokens})
    narrow(properties, {**NEUTRAL_SAMPLING, "max_new_tokens": (*lengths,)})
    branch(properties["min_new_tokens"], "integer").update(minimum=0, maximum=lengths[-1])
    for name in ("beam_width", "n"):
        branch(properties[name], "integer")["maximum"] = settings.max_beam_width


def narrow(properties: Json, neutral: dict[str, tuple[object, ...]]) -> None:
    """Fields that are only accepted at neutral values say so."""
    for name, accepted in neutral.items():
        properties[name] = {"enum": [None, *accepted], "default": None}


def branch(schema: Json, kind: str) -> Json:
    """The part of an optional field's schema that is of `kind`."""
    found: Json = next(part for part in schema["anyOf"] if part.get("type") == kind)
    return found
