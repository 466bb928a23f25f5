"""A client of the HTTP interface: typed answers, and the error tree of the server instead of status codes."""

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Required, Self, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx
import msgspec

from xgr_kernels.trie import ScoreMode
from xgr_runtime.errors import InternalError, RequestError, request_error
from xgr_runtime.files import open_ordinary
from xgr_runtime.wire.answers import (
    Answer,
    CatalogChange,
    CatalogHistory,
    CatalogInfo,
    ErrorBody,
    Flushed,
    HistoryEntry,
    NamedFilter,
    NamedFilterList,
    WorkerList,
    WorkerStatus,
)
from xgr_runtime.wire.messages import Role

T = TypeVar("T")

PIECE = 1 << 20  # bytes of a file that are sent at once

Items = Sequence[str | int]


class TextPart(TypedDict):
    """A piece of a message's content; no other kind is read."""

    type: Literal["text"]
    text: str


class ChatMessage(TypedDict, total=False):
    """One of the messages that a chat template is given."""

    role: Required[str]
    content: Required[str | Sequence[TextPart]]
    name: str
    reasoning_content: str


class Sampled(TypedDict):
    """Items of a SID in an order that a seed draws."""

    sample: int


class Diverse(TypedDict):
    """At most so many items of an answer share a value."""

    attribute: str
    at_most: int


class Request(TypedDict, total=False):
    """What a request may say: exactly one of the first four, everything else optional."""

    history: Items | Mapping[str, Items]  # oldest first; by name where the template has several
    input_ids: Sequence[int]
    text: str
    messages: Sequence[ChatMessage]
    template: str  # of history and messages: its name in the catalog
    variables: Mapping[str, str]  # of a history's template
    chat_template_kwargs: Mapping[str, Any]  # of messages
    beam_width: int
    n: int
    score_mode: ScoreMode
    repetition_penalty: float
    length_penalty: float
    allow: Items | None
    deny: Items
    exclude_history: bool
    where: str
    unknown_history: Literal["refuse", "drop"]
    named: Sequence[str]  # of filters
    title: bool  # of each item
    attributes: Sequence[str]  # of each item, those of these names
    items_per_sid: Literal["all", "best"] | Sampled
    max_items_per_sid: int
    max_items: int
    diversity: Diverse
    timeout_ms: int
    priority: int
    priority_class: Literal["online", "batch"]
    model: str
    rid: str


class EditedItem(TypedDict, total=False):
    """An item to add, which needs a SID, or to update, where what is left out stays."""

    item: Required[str | int]
    sid: Sequence[int | str] | str
    title: str
    popularity: float
    attributes: Mapping[str, Any]  # of an update those to change; None takes one away


class ItemEdits(TypedDict, total=False):
    """One batch: all of it happens, or nothing."""

    add: Sequence[EditedItem]
    update: Sequence[EditedItem]
    remove: Items
    hide: Items
    show: Items
    rank: Mapping[str, float]  # popularity by item


class XgrClient:
    """Blocking; one connection pool. Use it in a `with` block, or call `close`.

    timeout: seconds without a byte from the server, to be longer than the requests' deadlines. A server that
    cannot be reached raises `httpx.TransportError`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.http = httpx.Client(
            base_url=base_url,
            headers=headers(api_key),
            timeout=timeout,
            transport=transport,
            trust_env=may_use_proxy(base_url),
        )

    def generate(self, **request: Unpack[Request]) -> Answer:
        """The ranked items. Raises the `RequestError` that the server names."""
        return read(self.http.post("/generate", content=encode(request)), Answer)

    def ready(self) -> bool:
        """Whether the deployment takes requests; False too where nothing answers."""
        try:
            return self.http.get("/readiness").status_code == 200
        except httpx.TransportError:
            return False

    def workers(self, fresh: bool = False) -> list[WorkerStatus]:
        """State and load of every worker, prefill first, as of its last heartbeat; `fresh`: as of now."""
        return read(self.http.get("/workers", params={"fresh": fresh}), WorkerList).workers

    def add_worker(self, address: str, role: Role) -> WorkerStatus:
        """Take one more worker in; `workers` tells when it has answered. Raises `BadRequest`."""
        body = msgspec.json.encode({"address": address, "role": role})
        return read(self.http.post("/workers", content=body), WorkerStatus)

    def remove_worker(self, name: str) -> WorkerStatus:
        """Drain the worker of that name or address; `workers` lists it until it is forgotten.

        Raises `NotFound`, and `BadRequest` for a name that several have.
        """
        return read(self.http.delete(f"/workers/{quote(name, safe='')}"), WorkerStatus)

    def catalog(self) -> CatalogInfo:
        """Which versions there are, who holds them, what is on its way."""
        return read(self.http.get("/catalog"), CatalogInfo)

    def catalog_history(self, most: int = 100) -> list[HistoryEntry]:
        """What became current, newest first."""
        return read(self.http.get("/catalog/history", params={"most": most}), CatalogHistory).entries

    def push_catalog(self, file: Path, wait: bool = True) -> CatalogChange:
        """Serve a built catalog, which is sent a piece at a time. Raises OSError for a file."""
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", file.name)[-128:]
        asked: dict[str, str | bool] = {"wait": wait, "name": name}
        return self._send("PUT", "/catalog", file, "application/octet-stream", asked)

    def roll_back(self, version: str | None = None, wait: bool = True) -> CatalogChange:
        """Serve a version from before, by default that before the current one. Raises `NotFound`."""
        body = msgspec.json.encode({"version": version, "wait": wait})
        return read(self.http.post("/catalog/rollback", content=body), CatalogChange)

    def edit_items(
        self, key: str = "", version: str = "", wait: bool = True, **edits: Unpack[ItemEdits]
    ) -> CatalogChange:
        """Change items, all at once or none. key: sent again, it changes nothing twice.

        version: that has to be current, else `OtherVersion` is raised.
        """
        body = msgspec.json.encode({**edits, "key": key, "version": version, "wait": wait})
        return read(self.http.post("/catalog/items", content=body), CatalogChange)

    def edit_lines(
        self, edits: Path | Sequence[bytes], key: str = "", version: str = "", wait: bool = True
    ) -> CatalogChange:
        """The same for lines, which end in a newline, or a file of them, with an edit on each.

        Raises OSError for a file.
        """
        asked: dict[str, str | bool] = {"key": key, "version": version, "wait": wait}
        route, media = "/catalog/items", "application/x-ndjson"
        if isinstance(edits, Path):
            return self._send("POST", route, edits, media, asked)
        content, headers = b"".join(edits), {"content-type": media}
        return read(self.http.post(route, params=asked, content=content, headers=headers), CatalogChange)

    def filters(self) -> list[NamedFilter]:
        """The named filters."""
        return read(self.http.get("/filters"), NamedFilterList).filters

    def set_filter(self, name: str, where: str) -> NamedFilter:
        """Name a condition for the `named` of requests."""
        body = msgspec.json.encode({"where": where})
        return read(self.http.put(f"/filters/{quote(name, safe='')}", content=body), NamedFilter)

    def remove_filter(self, name: str) -> NamedFilter:
        """Forget a named filter. Raises `NotFound`."""
        return read(self.http.delete(f"/filters/{quote(name, safe='')}"), NamedFilter)

    def _send(
        self, method: str, path: str, file: Path, media: str, asked: Mapping[str, str | bool]
    ) -> CatalogChange:
        """A file as the body, in bounded memory."""
        with open_ordinary(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            headers = {"content-type": media, "content-length": str(size)}
            content = iter(partial(stream.read, PIECE), b"")
            response = self.http.request(method, path, params=asked, headers=headers, content=content)
        return read(response, CatalogChange)

    def trace(self, seconds: float = 10.0) -> bytes:
        """What all processes did in the last `seconds`: JSON, a Chrome trace."""
        response = self.http.get("/trace", params={"seconds": seconds})
        if response.status_code != 200:
            raise failure(response)
        return response.content

    def abort(self, rid: str) -> None:
        """Cancel a live request everywhere. Raises `NotFound` when there is none of that id."""
        response = self.http.post("/abort_request", json={"rid": rid})
        if response.status_code != 200:
            raise failure(response)

    def flush_cache(self) -> Flushed:
        """Drop the prompt KV that only caches hold, in all workers."""
        return read(self.http.post("/flush_cache"), Flushed)

    def close(self) -> None:
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncXgrClient:
    """The same for asyncio, as far as load generators need it."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.http = httpx.AsyncClient(
            base_url=base_url,
            headers=headers(api_key),
            timeout=timeout,
            transport=transport,
            trust_env=may_use_proxy(base_url),
        )

    async def generate(self, **request: Unpack[Request]) -> Answer:
        """The ranked items. Raises the `RequestError` that the server names."""
        return read(await self.http.post("/generate", content=encode(request)), Answer)

    async def close(self) -> None:
        await self.http.aclose()


_SAMPLING = ("beam_width", "n", "score_mode", "repetition_penalty", "length_penalty")
_FILTERS = ("allow", "deny", "exclude_history", "where", "named")
_RETURN = ("title", "attributes")


def headers(api_key: str | None) -> dict[str, str]:
    plain = {"content-type": "application/json"}
    return plain if api_key is None else {**plain, "authorization": f"Bearer {api_key}"}


def encode(request: Request) -> bytes:
    """The body of a request; what the caller left out, or gave as None, is left to the server's defaults."""
    given: dict[str, Any] = {name: value for name, value in request.items() if value is not None}
    nested = {
        group: {name: given.pop(name) for name in names if name in given}
        for group, names in (("sampling_params", _SAMPLING), ("filters", _FILTERS), ("return", _RETURN))
    }
    return msgspec.json.encode({**given, **{group: fields for group, fields in nested.items() if fields}})


def may_use_proxy(base_url: str) -> bool:
    """Whether proxies in the environment count: none of them reaches this machine's own loopback."""
    host = httpx.URL(base_url).host
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost" and not host.endswith(".localhost")


def read(response: httpx.Response, kind: type[T]) -> T:
    """The body as `kind`. Raises the `RequestError` that the server names."""
    if not response.is_success:
        raise failure(response)
    return msgspec.json.decode(response.content, type=kind)


def failure(response: httpx.Response) -> RequestError:
    """The error that a response carries; `InternalError` where something else than our router answered."""
    try:
        detail = msgspec.json.decode(response.content, type=ErrorBody).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return InternalError(f"HTTP {response.status_code} without our error body: {response.text[:200]!r}")
    return request_error(detail.code, detail.message, detail.param)
