"""A client of the HTTP interface: typed answers, and the error tree of the server instead of status codes."""

import ipaddress
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Required, Self, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx
import msgspec

from xgr_kernels.trie import ScoreMode
from xgr_runtime.errors import InternalError, RequestError, request_error
from xgr_runtime.wire.answers import Answer, ErrorBody, Flushed, WorkerList, WorkerStatus
from xgr_runtime.wire.messages import Role

T = TypeVar("T")

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
    title: bool  # of each item
    attributes: Sequence[str]  # of each item, those of these names
    items_per_sid: Literal["all", "best"] | Sampled
    max_items_per_sid: int
    max_items: int
    diversity: Diverse
    timeout_ms: int
    priority: int
    model: str
    rid: str


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
_FILTERS = ("allow", "deny", "exclude_history", "where")
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
