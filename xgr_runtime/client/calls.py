"""Every route as a plain value: what is sent, and what comes back. Clients differ only in how they wait."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from xgr_runtime.client.fields import ItemEdits, Request, ScoreFields
from xgr_runtime.wire.answers import (
    Answer,
    CatalogChange,
    CatalogHistory,
    CatalogInfo,
    Flushed,
    NamedFilter,
    NamedFilterList,
    ScoreAnswer,
    WorkerList,
    WorkerStatus,
)
from xgr_runtime.wire.messages import Role

T = TypeVar("T")
Params = Mapping[str, str | int | float | bool]

_SAMPLING = ("beam_width", "n", "score_mode", "repetition_penalty", "length_penalty")
_FILTERS = ("allow", "deny", "exclude_history", "where", "named")
_RETURN = ("title", "attributes")
_LINES = "application/x-ndjson"
_BUILT = "application/octet-stream"


class ClientCall(NamedTuple, Generic[T]):
    """One request to the server. Of the three kinds of body it has one, or none."""

    method: str
    path: str
    kind: type[T]  # of the answer; bytes: as it comes
    body: Mapping[str, Any] | None = None  # becomes JSON
    content: bytes = b""
    file: Path | None = None  # sent a piece at a time
    media: str = "application/json"
    params: Params = MappingProxyType({})
    repeatable: bool = True  # whether it does no harm to ask again where it is not known what became of it


def generate(request: Request) -> ClientCall[Answer]:
    return ClientCall("POST", "/generate", Answer, body_of(request))


def score(request: ScoreFields) -> ClientCall[ScoreAnswer]:
    return ClientCall("POST", "/score", ScoreAnswer, body_of(request))


def workers(fresh: bool) -> ClientCall[WorkerList]:
    return ClientCall("GET", "/workers", WorkerList, params={"fresh": fresh})


def add_worker(address: str, role: Role) -> ClientCall[WorkerStatus]:
    return ClientCall("POST", "/workers", WorkerStatus, {"address": address, "role": role})


def remove_worker(name: str) -> ClientCall[WorkerStatus]:
    return ClientCall("DELETE", f"/workers/{quote(name, safe='')}", WorkerStatus, repeatable=False)


def catalog() -> ClientCall[CatalogInfo]:
    return ClientCall("GET", "/catalog", CatalogInfo)


def catalog_history(most: int) -> ClientCall[CatalogHistory]:
    return ClientCall("GET", "/catalog/history", CatalogHistory, params={"most": most})


def push_catalog(file: Path, wait: bool) -> ClientCall[CatalogChange]:
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", file.name)[-128:]
    asked: Params = {"wait": wait, "name": name}
    return ClientCall("PUT", "/catalog", CatalogChange, file=file, media=_BUILT, params=asked)


def roll_back(version: str | None, wait: bool) -> ClientCall[CatalogChange]:
    body = {"version": version, "wait": wait}
    return ClientCall("POST", "/catalog/rollback", CatalogChange, body, repeatable=version is not None)


def edit_items(key: str, version: str, wait: bool, edits: ItemEdits) -> ClientCall[CatalogChange]:
    body = {**edits, "key": key, "version": version, "wait": wait}
    return ClientCall("POST", "/catalog/items", CatalogChange, body, repeatable=bool(key))


def edit_lines(
    edits: Path | Sequence[bytes], key: str, version: str, wait: bool
) -> ClientCall[CatalogChange]:
    file, content = (edits, b"") if isinstance(edits, Path) else (None, b"".join(edits))
    asked: Params = {"key": key, "version": version, "wait": wait}
    return ClientCall(
        "POST",
        "/catalog/items",
        CatalogChange,
        content=content,
        file=file,
        media=_LINES,
        params=asked,
        repeatable=bool(key),
    )


def filters() -> ClientCall[NamedFilterList]:
    return ClientCall("GET", "/filters", NamedFilterList)


def set_filter(name: str, where: str) -> ClientCall[NamedFilter]:
    return ClientCall("PUT", f"/filters/{quote(name, safe='')}", NamedFilter, {"where": where})


def remove_filter(name: str) -> ClientCall[NamedFilter]:
    return ClientCall("DELETE", f"/filters/{quote(name, safe='')}", NamedFilter, repeatable=False)


def trace(seconds: float) -> ClientCall[bytes]:
    return ClientCall("GET", "/trace", bytes, params={"seconds": seconds})


def abort(rid: str) -> ClientCall[bytes]:
    return ClientCall("POST", "/abort_request", bytes, {"rid": rid}, repeatable=False)


def flush_cache() -> ClientCall[Flushed]:
    return ClientCall("POST", "/flush_cache", Flushed)


def body_of(request: Request | ScoreFields) -> dict[str, Any]:
    """As /generate takes it; what the caller left out, or gave as None, is left to the server's defaults."""
    given: dict[str, Any] = {name: value for name, value in request.items() if value is not None}
    nested = {
        group: {name: given.pop(name) for name in names if name in given}
        for group, names in (("sampling_params", _SAMPLING), ("filters", _FILTERS), ("return", _RETURN))
    }
    return {**given, **{group: fields for group, fields in nested.items() if fields}}


def encode(request: Request) -> bytes:
    """The body of a request to /generate."""
    return msgspec.json.encode(body_of(request))
