"""The application: routes, their description, and the edge around them."""

import msgspec
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from router.catalogs.publishing import Publishing
from router.http.catalog import CatalogRoutes
from router.http.control import Control
from router.http.generate import Generate
from router.http.intake import Intake
from router.http.items import ItemRoutes
from router.http.metrics import RequestMetrics
from router.http.openapi import openapi
from router.http.pages import DOCS, OVERVIEW, page
from router.http.routes import Handler, RouteSpec, described, route_table
from router.http.server.edge import Edge, http_exception
from router.http.server.inbound import Bodies
from router.http.server.recent import Recent
from router.http.settings import HttpSettings
from router.http.workers import WorkerRoutes
from router.job import Dispatch
from router.query.models import Models
from xgr_runtime.catalog.store import Store


def make_app(
    dispatch: Dispatch,
    models: Models,
    settings: HttpSettings,
    publishing: Publishing | None = None,
    store: Store | None = None,
    figures: Collector | None = None,
) -> Starlette:
    """An ASGI application that answers over HTTP what `dispatch` works out.

    `publishing` changes the catalog, which is kept in `store`; without them it stays as it is. `figures`:
    more for /metrics.
    """
    metrics = RequestMetrics(lambda: dispatch.live, dispatch.workers)
    if figures is not None:
        metrics.registry.register(figures)
    intake, bodies = Intake(settings, publishing.filters if publishing else None), Bodies(settings)
    recent = Recent()
    generate = Generate(dispatch, models, intake, bodies)
    control = Control(dispatch, models, intake, metrics, bodies, recent)
    workers, items = WorkerRoutes(dispatch, bodies), ItemRoutes(models)
    catalog = CatalogRoutes(dispatch, models, bodies, publishing, store)
    table = route_table(generate, control, workers, catalog, items)
    app = Starlette(
        routes=served(with_description(table, models, settings)),
        middleware=[
            Middleware(
                Edge,
                settings=settings,
                metrics=metrics,
                recent=recent,
                timeline=dispatch.timeline,
                straight={("POST", "/generate"): generate},
            )
        ],
        exception_handlers={HTTPException: http_exception},
    )
    app.router.redirect_slashes = False
    return app


def served(table: list[RouteSpec]) -> list[Route]:
    """A route per path, so that one that is asked in the wrong way names all right ones."""
    paths: dict[str, dict[str, Handler]] = {}
    for spec in table:
        paths.setdefault(spec.path, {})[spec.method] = spec.handler
    # What a parameter stands for may hold slashes, as addresses do.
    return [
        Route(path.replace("}", ":path}"), by_method(handlers), methods=[*handlers])
        for path, handlers in paths.items()
    ]


def by_method(handlers: dict[str, Handler]) -> Handler:
    """The handler of one path."""

    async def serve(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return serve


def with_description(table: list[RouteSpec], models: Models, settings: HttpSettings) -> list[RouteSpec]:
    """The table and the two routes that describe it; the description is rendered here, once."""
    document = b""

    async def description(request: Request) -> Response:
        return Response(document, media_type="application/json")

    whole = described(table, description, page(DOCS), page(OVERVIEW))
    document = msgspec.json.encode(openapi(whole, models, settings))
    return whole
