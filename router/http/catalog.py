"""The routes of the catalog: which versions there are, another one, edits, named filters."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from router.catalogs.publishing import Published, Publishing
from router.http.catalog_schema import (
    EditItems,
    EditsQuery,
    FilterName,
    HistoryQuery,
    NamedCondition,
    PushFile,
    PushQuery,
    RollbackTo,
)
from router.http.control import as_json
from router.http.edit_lines import from_body, from_lines
from router.http.server.inbound import BYTES, LINES, Bodies, has_body, media_type
from router.http.server.problems import Body, cut, decode_distinct, from_query
from router.http.server.uploads import take_in
from router.job import Dispatch
from router.query.edits import AskedEdits, prepare
from router.query.models import Model, Models
from router.query.prompts import shorten
from xgr_runtime.catalog.file import is_built_file
from xgr_runtime.catalog.store import Change, Store
from xgr_runtime.catalog.where import check_where
from xgr_runtime.errors import (
    BadRequest,
    BodyTooLarge,
    CatalogError,
    FixedCatalog,
    NotFound,
    Overloaded,
    StoreError,
    StoreUnavailable,
)
from xgr_runtime.wire.answers import (
    CatalogChange,
    CatalogHistory,
    CatalogInfo,
    CatalogVersion,
    HistoryEntry,
    NamedFilter,
    NamedFilterList,
)

T = TypeVar("T")

LARGEST_FILE = 1 << 40  # bytes of an upload
LARGEST_LINES = 1 << 30  # bytes of edits as lines
LARGEST_EDITS = 1 << 20  # bytes of edits in one JSON object, which is decoded at once
SHORT_EDITS = 1 << 14  # bytes; beyond, a thread decodes them and the event loop goes on
MOST_FILTERS = 256

_EDITS = msgspec.json.Decoder(EditItems)
_PUSH = msgspec.json.Decoder(PushFile)
_ROLLBACK = msgspec.json.Decoder(RollbackTo)
_CONDITION = msgspec.json.Decoder(NamedCondition)


class CatalogRoutes:
    """One method per route. Without a publisher the catalog stays as it is, and changes are 409."""

    def __init__(
        self,
        dispatch: Dispatch,
        models: Models,
        bodies: Bodies,
        publishing: Publishing | None,
        store: Store | None,
    ) -> None:
        self.dispatch = dispatch
        self.models = models
        self.bodies = bodies
        self._publishing = publishing
        self._store = store
        self._taking_in = False

    async def show(self, request: Request) -> Response:
        if self._publishing is None:
            return as_json(fixed(self.models.default, self.dispatch))
        return as_json(self._publishing.status())

    async def history(self, request: Request) -> Response:
        query = from_query(HistoryQuery, request.query_params)
        _, store = self._changing()
        changes = await _kept(asyncio.to_thread(store.history, query.most))
        return as_json(CatalogHistory([entry(change) for change in changes]))

    async def edit(self, request: Request) -> Response:
        publishing, _ = self._changing()
        if media_type(request.headers.get("content-type")) == LINES:
            asked, options = await self._lines(request)
        else:
            asked, options = await self._object(request)
        make = partial(prepare, asked, self.models.default)
        digest = await asyncio.to_thread(lambda: asked.digest) if options.key else ""
        work = publishing.edit(make, options.key, options.version, options.wait, digest)
        return await _changed(work)

    async def put(self, request: Request) -> Response:
        """A file that is below the store, or one that is sent."""
        publishing, store = self._changing()
        if media_type(request.headers.get("content-type")) != BYTES:
            async with self.bodies.read(request) as body:
                asked = decode_distinct(_PUSH, body)
            try:
                path = store.below(asked.path)
            except CatalogError as error:
                raise BadRequest(f"path: {error}", "path") from None
            return await _changed(publishing.push(path, asked.wait), path, asked.path)
        query = from_query(PushQuery, request.query_params)
        with self._upload(query.name) as (path, stream):
            await take_in(request, stream, LARGEST_FILE, self.bodies.seconds)
            if not is_built_file(path):
                raise BadRequest("the body is not a built catalog: `xgr catalog build` makes one of a source")
            return await _changed(publishing.push(path, query.wait), path)

    async def rollback(self, request: Request) -> Response:
        publishing, _ = self._changing()
        asked = RollbackTo()
        if has_body(request):
            async with self.bodies.read(request) as body:
                asked = decode_distinct(_ROLLBACK, body)
        return await _changed(publishing.rollback(asked.version, asked.wait))

    async def list_filters(self, request: Request) -> Response:
        _, store = self._changing()
        known = await _kept(asyncio.to_thread(store.filters))
        return as_json(NamedFilterList([NamedFilter(name, one.where, one.at) for name, one in known.items()]))

    async def put_filter(self, request: Request) -> Response:
        publishing, _ = self._changing()
        name = filter_name(request)
        async with self.bodies.read(request) as body:
            where = decode_distinct(_CONDITION, body).where
        if name not in publishing.filters() and len(publishing.filters()) >= MOST_FILTERS:
            raise BadRequest(f"there are {MOST_FILTERS} filters already: delete one")
        columns = self.models.default.catalogs.newest.catalog.columns
        try:
            check_where(where, columns)
        except BadRequest as error:
            raise BadRequest(error.message.removeprefix("filters."), "where") from None
        await _kept(publishing.set_filter(name, where))
        return as_json(NamedFilter(name, where, time.time()))

    async def get_filter(self, request: Request) -> Response:
        _, store = self._changing()
        name = request.path_params["name"]
        known = await _kept(asyncio.to_thread(store.filters))
        if name not in known:
            raise NotFound(f"there is no filter {shorten(name)}: see GET /filters", "name")
        return as_json(NamedFilter(name, *known[name]))

    async def delete_filter(self, request: Request) -> Response:
        publishing, _ = self._changing()
        name = request.path_params["name"]
        where = publishing.filters().get(name)
        await _kept(publishing.set_filter(name, None))
        return as_json(NamedFilter(name, where or "", time.time()))

    def _changing(self) -> tuple[Publishing, Store]:
        if self._publishing is None or self._store is None:
            raise FixedCatalog("this deployment serves one catalog: restart it with --catalog-store DIR")
        return self._publishing, self._store

    async def _object(self, request: Request) -> tuple[AskedEdits, EditsQuery]:
        if request.query_params:
            raise BadRequest("key, version and wait belong into the body: the query is for lines of edits")
        async with self.bodies.read(request) as body:
            if len(body) > LARGEST_EDITS:
                raise BodyTooLarge(
                    f"edits in one object have at most {LARGEST_EDITS} bytes: send them as lines, with the "
                    f"header 'Content-Type: {LINES}'"
                )
            if len(body) <= SHORT_EDITS:
                return _asked(body)
            return await asyncio.to_thread(_asked, body)

    async def _lines(self, request: Request) -> tuple[AskedEdits, EditsQuery]:
        options = from_query(EditsQuery, request.query_params)
        with self._upload("") as (path, stream):
            await take_in(request, stream, LARGEST_LINES, self.bodies.seconds)
            return await asyncio.to_thread(_asked_lines, path), options

    @contextlib.contextmanager
    def _upload(self, name: str) -> Iterator[tuple[Path, BinaryIO]]:
        """A place in the store for what is sent. Raises `Overloaded` for a second one at a time."""
        _, store = self._changing()
        if self._taking_in:
            raise Overloaded("another upload is under way: send this one once it is done")
        self._taking_in = True
        try:
            with store.uploading(name) as found:
                yield found
        except StoreError as error:
            raise StoreUnavailable(str(error)) from None
        finally:
            self._taking_in = False


def _asked(body: Body) -> tuple[AskedEdits, EditsQuery]:
    read = decode_distinct(_EDITS, body)
    return from_body(read), EditsQuery(read.key, read.version, read.wait)


def _asked_lines(path: Path) -> AskedEdits:
    with path.open("rb") as lines:
        return from_lines(lines)


async def _changed(work: Awaitable[Published], path: Path | None = None, name: str = "the file") -> Response:
    """The answer to a change. `path`: of a file that the client knows by another name."""
    found = await _kept(work, path, name)
    took = round(found.visible_ms, 2)
    return as_json(CatalogChange(found.version, took, found.workers, list(found.unknown), found.changed))


async def _kept(work: Awaitable[T], path: Path | None = None, name: str = "") -> T:
    """Raises `StoreUnavailable` where the store fails, `BadRequest` for what a catalog cannot be or hold."""
    try:
        return await work
    except StoreError as error:
        raise StoreUnavailable(str(error)) from None
    except (CatalogError, BadRequest) as error:
        text, param = str(error), error.param if isinstance(error, BadRequest) else None
        if path is not None:
            text = text.replace(str(path), name).replace(path.name, name)
        raise BadRequest(text, param) from None


def filter_name(request: Request) -> str:
    """Raises `BadRequest` for one that is none."""
    try:
        return msgspec.convert(request.path_params["name"], FilterName)
    except msgspec.ValidationError:
        name = cut(request.path_params["name"])
        raise BadRequest(f"a filter's name is {name!r}: use 1 to 128 of A-Z a-z 0-9 _ . -", "name") from None


def fixed(model: Model, dispatch: Dispatch) -> CatalogInfo:
    """Of a deployment that serves one catalog."""
    catalogs = model.catalogs
    version, items = catalogs.newest.version, catalogs.newest.catalog.items
    hellos = [state.hello for state in dispatch.workers() if state.hello]
    holders = [hello.worker for hello in hellos if hello.role == "decode" and version in hello.catalogs]
    held = CatalogVersion(version, True, catalogs.leases(version), holders, items)
    return CatalogInfo(False, version, version, [held], None, {})


def entry(change: Change) -> HistoryEntry:
    return HistoryEntry(change.number, change.at, change.kind, change.version, change.note, change.kept)
