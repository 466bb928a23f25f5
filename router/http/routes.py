"""The table of routes: what the application serves and what /openapi.json and /docs say it serves."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from router.http.catalog import CatalogRoutes
from router.http.catalog_schema import (
    EditItems,
    EditsQuery,
    HistoryQuery,
    NamedCondition,
    PushFile,
    PushQuery,
    RollbackTo,
)
from router.http.control import Control
from router.http.generate import Generate
from router.http.items import ItemRoutes
from router.http.openai.routes import OpenAi
from router.http.openai.schema import ChatCompletion, ChatRequest, Completion, CompletionRequest
from router.http.schema import (
    AbortRequest,
    AddWorker,
    GenerateRequest,
    ItemsQuery,
    RequestsQuery,
    TraceQuery,
    WorkersQuery,
)
from router.http.scoring.route import Score
from router.http.scoring.schema import ScoreRequest
from router.http.server.inbound import BYTES, LINES
from router.http.server.keys import PUBLIC_PATHS, for_operators
from router.http.workers import WorkerRoutes
from xgr_runtime.errors import (
    BadRequest,
    BodyTooLarge,
    Cancelled,
    CrashedWorkers,
    DeadlineExceeded,
    Draining,
    DuplicateRequest,
    DuplicateWorker,
    FixedCatalog,
    ForeignPage,
    HeadTooLarge,
    InternalError,
    InvalidLogits,
    MissingKey,
    NotFound,
    NoWorkers,
    OtherVersion,
    Overloaded,
    RequestError,
    RequestTimeout,
    StoreUnavailable,
    Unhealthy,
    UnknownModel,
    WorkerLost,
    WrongKey,
    WrongMediaType,
)
from xgr_runtime.wire import answers

Handler = Callable[[Request], Awaitable[Response]]
Errors = tuple[type[RequestError], ...]


@dataclass(frozen=True)
class RouteSpec:
    """One route; `answer` is a struct, or a media type where the body is text."""

    method: str
    path: str
    summary: str
    handler: Handler
    answer: type[msgspec.Struct] | str
    body: type[msgspec.Struct] | None = None
    errors: Errors = ()
    streams: bool = False
    query: type[msgspec.Struct] | None = None
    status: int = 200  # when all is well
    body_needed: bool = True
    media: tuple[tuple[str, str], ...] = ()  # other types of the body, and what it is then

    @property
    def public(self) -> bool:
        """Whether it answers without a key."""
        return self.path in PUBLIC_PATHS

    @property
    def admin(self) -> bool:
        """Whether it is for the operator alone."""
        return for_operators(self.path)

    @property
    def all_errors(self) -> Errors:
        """Errors of this route and those that any route may give."""
        keys: Errors = () if self.public else (MissingKey, WrongKey)
        return tuple(dict.fromkeys((*self.errors, *keys, *_CONNECTION, InternalError)))


_CONNECTION: Errors = (BadRequest, ForeignPage, HeadTooLarge, RequestTimeout, Overloaded)  # on any route
post, get, put, delete = (partial(RouteSpec, method) for method in ("POST", "GET", "PUT", "DELETE"))

_BODY: Errors = (BadRequest, BodyTooLarge, WrongMediaType)
_WORK: Errors = (
    Cancelled,
    InvalidLogits,
    CrashedWorkers,
    WorkerLost,
    Overloaded,
    NoWorkers,
    Draining,
    DeadlineExceeded,
)


_CHANGE: Errors = (FixedCatalog, StoreUnavailable, RequestTimeout)


def route_table(
    generate: Generate, control: Control, workers: WorkerRoutes, catalog: CatalogRoutes, items: ItemRoutes
) -> list[RouteSpec]:
    """All routes but the two that describe them."""
    return [
        post(
            "/generate",
            "Rank items for one user",
            generate.__call__,
            answers.Answer,
            GenerateRequest,
            (*_BODY, UnknownModel, DuplicateRequest, *_WORK),
            streams=True,
        ),
        post(
            "/score",
            "Score items that the request names, for one user",
            Score(generate).__call__,
            answers.ScoreAnswer,
            ScoreRequest,
            (*_BODY, UnknownModel, DuplicateRequest, *_WORK),
        ),
        *_openai_routes(OpenAi(generate)),
        post(
            "/abort_request",
            "Cancel a live request",
            control.abort_request,
            answers.Aborted,
            AbortRequest,
            (*_BODY, NotFound),
        ),
        post(
            "/flush_cache",
            "Drop cached prompts",
            control.flush_cache,
            answers.Flushed,
            errors=(WrongMediaType,),
        ),
        get(
            "/items",
            "Find items by words of their titles",
            items.find,
            answers.ItemList,
            query=ItemsQuery,
            errors=(BadRequest,),
        ),
        *_state_routes(control),
        *_worker_routes(workers),
        *_catalog_routes(catalog),
        *_filter_routes(catalog),
    ]


def _openai_routes(openai: OpenAi) -> list[RouteSpec]:
    """The same work in OpenAI's dialect."""
    errors = (*_BODY, UnknownModel, DuplicateRequest, *_WORK)
    return [
        post(
            "/v1/completions",
            "Rank items, as OpenAI's clients ask",
            openai.completions,
            Completion,
            CompletionRequest,
            errors,
            streams=True,
        ),
        post(
            "/v1/chat/completions",
            "Rank items after messages, as OpenAI's clients ask",
            openai.chat,
            ChatCompletion,
            ChatRequest,
            errors,
            streams=True,
        ),
    ]


def _state_routes(control: Control) -> list[RouteSpec]:
    """What monitors and load balancers ask."""
    return [
        get("/liveness", "Is the router up?", control.liveness, answers.Status),
        get(
            "/readiness",
            "Are new requests taken?",
            control.readiness,
            answers.Status,
            errors=(NoWorkers, Draining),
        ),
        get(
            "/health",
            "Is there a pair of workers?",
            control.health,
            answers.Status,
            errors=(NoWorkers,),
        ),
        get(
            "/health_generate",
            "Does a small request get an answer?",
            control.health_generate,
            answers.Status,
            errors=(Cancelled, NoWorkers, Unhealthy, DeadlineExceeded),
        ),
        get("/model_info", "The checkpoint and the catalog", control.model_info, answers.ModelInfo),
        get("/server_info", "Limits and state of the router", control.server_info, answers.ServerInfo),
        get("/v1/models", "The served models", control.list_models, answers.ModelList),
        get(
            "/trace",
            "What all processes did lately, as a Chrome trace",
            control.trace,
            "application/json",
            query=TraceQuery,
            errors=(BadRequest,),
        ),
        get(
            "/requests",
            "The requests that ended last, and where their time went",
            control.requests,
            answers.EndedRequests,
            query=RequestsQuery,
            errors=(BadRequest,),
        ),
        get("/metrics", "Metrics for Prometheus", control.scrape, "text/plain"),
    ]


def _worker_routes(workers: WorkerRoutes) -> list[RouteSpec]:
    """Who serves, and who is to."""
    return [
        get(
            "/workers",
            "State and load of every worker",
            workers.show,
            answers.WorkerList,
            query=WorkersQuery,
            errors=(BadRequest,),
        ),
        post(
            "/workers",
            "Take one more worker in",
            workers.add,
            answers.WorkerStatus,
            AddWorker,
            (*_BODY, DuplicateWorker),
        ),
        delete(
            "/workers/{name}",
            "Give a worker no more requests, and forget it once it has none",
            workers.remove,
            answers.WorkerStatus,
            errors=(BadRequest, NotFound),
            status=202,
        ),
    ]


def _catalog_routes(catalog: CatalogRoutes) -> list[RouteSpec]:
    """What may be recommended."""
    return [
        get("/catalog", "Versions, who holds them, what is under way", catalog.show, answers.CatalogInfo),
        put(
            "/catalog",
            "Serve another catalog",
            catalog.put,
            answers.CatalogChange,
            PushFile,
            (*_BODY, *_CHANGE),
            query=PushQuery,
            media=((BYTES, "The file of a built catalog."),),
        ),
        post(
            "/catalog/items",
            "Add, update, remove, hide, show and rank items, all at once or none",
            catalog.edit,
            answers.CatalogChange,
            EditItems,
            (*_BODY, *_CHANGE, OtherVersion),
            query=EditsQuery,
            media=((LINES, "A line each: `EditLine`."),),
        ),
        post(
            "/catalog/rollback",
            "Serve the catalog as it was before",
            catalog.rollback,
            answers.CatalogChange,
            RollbackTo,
            (*_BODY, *_CHANGE, NotFound),
            body_needed=False,
        ),
        get(
            "/catalog/history",
            "What became current, newest first",
            catalog.history,
            answers.CatalogHistory,
            query=HistoryQuery,
            errors=_CHANGE,
        ),
    ]


def _filter_routes(catalog: CatalogRoutes) -> list[RouteSpec]:
    """Conditions that requests name."""
    return [
        get("/filters", "The named filters", catalog.list_filters, answers.NamedFilterList, errors=_CHANGE),
        get(
            "/filters/{name}",
            "One named filter",
            catalog.get_filter,
            answers.NamedFilter,
            errors=(*_CHANGE, NotFound),
        ),
        put(
            "/filters/{name}",
            "Name a condition",
            catalog.put_filter,
            answers.NamedFilter,
            NamedCondition,
            (*_BODY, *_CHANGE),
        ),
        delete(
            "/filters/{name}",
            "Forget a named filter",
            catalog.delete_filter,
            answers.NamedFilter,
            errors=(*_CHANGE, NotFound),
        ),
    ]


def described(table: list[RouteSpec], openapi: Handler, docs: Handler, overview: Handler) -> list[RouteSpec]:
    """The whole table, with the routes that serve its description, and the page."""
    return [
        *table,
        RouteSpec("GET", "/openapi.json", "This description", openapi, "application/json"),
        RouteSpec("GET", "/docs", "This description, to read", docs, "text/html"),
        RouteSpec("GET", "/", "The deployment, to see and to try", overview, "text/html"),
    ]
