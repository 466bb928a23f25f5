"""Clients of the HTTP interface, one that blocks and one for asyncio, with the same methods."""

import asyncio
import ipaddress
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar, Unpack

import httpx

from xgr_runtime.client import calls
from xgr_runtime.client.answers import read
from xgr_runtime.client.calls import ClientCall
from xgr_runtime.client.fields import ItemEdits, Request, ScoreFields
from xgr_runtime.client.repeats import Repeats
from xgr_runtime.errors import RequestError
from xgr_runtime.files import open_ordinary
from xgr_runtime.wire.answers import (
    Answer,
    CatalogChange,
    CatalogInfo,
    Flushed,
    HistoryEntry,
    NamedFilter,
    ScoreAnswer,
    WorkerStatus,
)
from xgr_runtime.wire.messages import Role

T = TypeVar("T")

PIECE = 1 << 20  # bytes of a file that are sent at once


class XgrClient:
    """Blocking; one connection pool. Use it in a `with` block, or call `close`.

    timeout: seconds without a byte from the server, to be longer than the requests' deadlines. retries: of a
    call that the server refuses for now (502, 503) or cannot be reached for, after the time that it names;
    none goes beyond a request's `timeout_ms`. A server that cannot be reached raises `httpx.TransportError`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout: float = 60.0,
        transport: httpx.BaseTransport | None = None,
        retries: int = 0,
    ) -> None:
        self.retries = retries
        self.http = httpx.Client(
            base_url=base_url,
            headers=headers(api_key, base_url),
            timeout=timeout,
            transport=transport,
            trust_env=may_use_proxy(base_url),
        )

    def generate(self, **request: Unpack[Request]) -> Answer:
        """The ranked items. Raises the `RequestError` that the server names."""
        return self._do(calls.generate(request))

    def score(self, **request: Unpack[ScoreFields]) -> ScoreAnswer:
        """Scores of the items or SIDs that it names, in their order. Raises as `generate`."""
        return self._do(calls.score(request))

    def ready(self) -> bool:
        """Whether the deployment takes requests; False too where nothing answers."""
        try:
            return self.http.get("/readiness").status_code == 200
        except httpx.TransportError:
            return False

    def workers(self, fresh: bool = False) -> list[WorkerStatus]:
        """State and load of every worker, prefill first, as of its last heartbeat; `fresh`: as of now."""
        return self._do(calls.workers(fresh)).workers

    def add_worker(self, address: str, role: Role) -> WorkerStatus:
        """Take one more worker in; `workers` tells when it has answered. Raises `BadRequest`."""
        return self._do(calls.add_worker(address, role))

    def remove_worker(self, name: str) -> WorkerStatus:
        """Drain the worker of that name or address; `workers` lists it until it is forgotten.

        Raises `NotFound`, and `BadRequest` for a name that several have.
        """
        return self._do(calls.remove_worker(name))

    def catalog(self) -> CatalogInfo:
        """Which versions there are, who holds them, what is on its way."""
        return self._do(calls.catalog())

    def catalog_history(self, most: int = 100) -> list[HistoryEntry]:
        """What became current, newest first."""
        return self._do(calls.catalog_history(most)).entries

    def push_catalog(self, file: Path, wait: bool = True) -> CatalogChange:
        """Serve a built catalog, which is sent a piece at a time. Raises OSError for a file."""
        return self._do(calls.push_catalog(file, wait))

    def roll_back(self, version: str | None = None, wait: bool = True) -> CatalogChange:
        """Serve a version from before, by default that before the current one. Raises `NotFound`."""
        return self._do(calls.roll_back(version, wait))

    def edit_items(
        self, key: str = "", version: str = "", wait: bool = True, **edits: Unpack[ItemEdits]
    ) -> CatalogChange:
        """Change items, all at once or none. key: sent again, it changes nothing twice.

        version: that has to be current, else `OtherVersion` is raised.
        """
        return self._do(calls.edit_items(key, version, wait, edits))

    def edit_lines(
        self, edits: Path | Sequence[bytes], key: str = "", version: str = "", wait: bool = True
    ) -> CatalogChange:
        """The same for lines, which end in a newline, or a file of them, with an edit on each.

        Raises OSError for a file.
        """
        return self._do(calls.edit_lines(edits, key, version, wait))

    def filters(self) -> list[NamedFilter]:
        """The named filters."""
        return self._do(calls.filters()).filters

    def set_filter(self, name: str, where: str) -> NamedFilter:
        """Name a condition for the `named` of requests."""
        return self._do(calls.set_filter(name, where))

    def remove_filter(self, name: str) -> NamedFilter:
        """Forget a named filter. Raises `NotFound`."""
        return self._do(calls.remove_filter(name))

    def trace(self, seconds: float = 10.0) -> bytes:
        """What all processes did in the last `seconds`: JSON, a Chrome trace."""
        return self._do(calls.trace(seconds))

    def abort(self, rid: str) -> None:
        """Cancel a live request everywhere. Raises `NotFound` when there is none of that id."""
        self._do(calls.abort(rid))

    def flush_cache(self) -> Flushed:
        """Drop the prompt KV that only caches hold, in all workers."""
        return self._do(calls.flush_cache())

    def close(self) -> None:
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, call: ClientCall[T]) -> T:
        repeats = Repeats(call, self.retries)
        while True:
            try:
                return read(self._send(call, repeats.content()), call.kind)
            except (RequestError, httpx.TransportError) as error:
                pause = repeats.pause(error)
            time.sleep(pause)

    def _send(self, call: ClientCall[T], content: bytes) -> httpx.Response:
        if call.file is None:
            return self.http.request(**arguments(call), content=content)
        with open_ordinary(call.file) as stream:
            return self.http.request(**arguments(call, size_of(stream)), content=pieces(stream))


class AsyncXgrClient:
    """The same for asyncio. A cancelled task closes its connection, and the server cancels the request."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
        retries: int = 0,
    ) -> None:
        self.retries = retries
        self.http = httpx.AsyncClient(
            base_url=base_url,
            headers=headers(api_key, base_url),
            timeout=timeout,
            transport=transport,
            trust_env=may_use_proxy(base_url),
        )

    async def generate(self, **request: Unpack[Request]) -> Answer:
        return await self._do(calls.generate(request))

    async def score(self, **request: Unpack[ScoreFields]) -> ScoreAnswer:
        return await self._do(calls.score(request))

    async def ready(self) -> bool:
        """Whether the deployment takes requests; False too where nothing answers."""
        try:
            return (await self.http.get("/readiness")).status_code == 200
        except httpx.TransportError:
            return False

    async def workers(self, fresh: bool = False) -> list[WorkerStatus]:
        return (await self._do(calls.workers(fresh))).workers

    async def add_worker(self, address: str, role: Role) -> WorkerStatus:
        return await self._do(calls.add_worker(address, role))

    async def remove_worker(self, name: str) -> WorkerStatus:
        return await self._do(calls.remove_worker(name))

    async def catalog(self) -> CatalogInfo:
        return await self._do(calls.catalog())

    async def catalog_history(self, most: int = 100) -> list[HistoryEntry]:
        return (await self._do(calls.catalog_history(most))).entries

    async def push_catalog(self, file: Path, wait: bool = True) -> CatalogChange:
        return await self._do(calls.push_catalog(file, wait))

    async def roll_back(self, version: str | None = None, wait: bool = True) -> CatalogChange:
        return await self._do(calls.roll_back(version, wait))

    async def edit_items(
        self, key: str = "", version: str = "", wait: bool = True, **edits: Unpack[ItemEdits]
    ) -> CatalogChange:
        return await self._do(calls.edit_items(key, version, wait, edits))

    async def edit_lines(
        self, edits: Path | Sequence[bytes], key: str = "", version: str = "", wait: bool = True
    ) -> CatalogChange:
        return await self._do(calls.edit_lines(edits, key, version, wait))

    async def filters(self) -> list[NamedFilter]:
        return (await self._do(calls.filters())).filters

    async def set_filter(self, name: str, where: str) -> NamedFilter:
        return await self._do(calls.set_filter(name, where))

    async def remove_filter(self, name: str) -> NamedFilter:
        return await self._do(calls.remove_filter(name))

    async def trace(self, seconds: float = 10.0) -> bytes:
        return await self._do(calls.trace(seconds))

    async def abort(self, rid: str) -> None:
        await self._do(calls.abort(rid))

    async def flush_cache(self) -> Flushed:
        return await self._do(calls.flush_cache())

    async def close(self) -> None:
        await self.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _do(self, call: ClientCall[T]) -> T:
        repeats = Repeats(call, self.retries)
        while True:
            try:
                return read(await self._send(call, repeats.content()), call.kind)
            except (RequestError, httpx.TransportError) as error:
                pause = repeats.pause(error)
            await asyncio.sleep(pause)

    async def _send(self, call: ClientCall[T], content: bytes) -> httpx.Response:
        if call.file is None:
            return await self.http.request(**arguments(call), content=content)
        with open_ordinary(call.file) as stream:
            return await self.http.request(**arguments(call, size_of(stream)), content=aside(pieces(stream)))


def arguments(call: ClientCall[Any], size: int | None = None) -> dict[str, Any]:
    """Of httpx' `request`, besides the content; `size` is a file's, in bytes."""
    length = {} if size is None else {"content-length": str(size)}
    return {
        "method": call.method,
        "url": call.path,
        "params": call.params,
        "headers": {"content-type": call.media, **length},
    }


def size_of(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size


def pieces(stream: BinaryIO) -> Iterator[bytes]:
    """A file in bounded memory."""
    return iter(partial(stream.read, PIECE), b"")


async def aside(given: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The same, read while the event loop goes on."""
    while piece := await asyncio.to_thread(next, given, b""):
        yield piece


def headers(api_key: str | None, base_url: str) -> dict[str, str]:
    """Of every request. On a machine's own loopback nothing is won by packing."""
    found = {"content-type": "application/json"}
    if not may_use_proxy(base_url):
        found["accept-encoding"] = "identity"
    if api_key is not None:
        found["authorization"] = f"Bearer {api_key}"
    return found


def may_use_proxy(base_url: str) -> bool:
    """Whether proxies in the environment count: none of them reaches this machine's own loopback."""
    host = httpx.URL(base_url).host
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost" and not host.endswith(".localhost")
