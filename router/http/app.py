"""The application: routes, and the edge around them."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route
from tokenizers import Tokenizer

from router.http.answers import Composer
from router.http.edge import Edge, http_exception
from router.http.generate import Generate
from router.http.intake import Intake
from router.http.settings import HttpSettings
from router.job import Dispatch
from xgr_runtime.catalog import Catalog
from xgr_runtime.metrics import RequestMetrics


def make_app(dispatch: Dispatch, catalog: Catalog, tokenizer: Tokenizer, settings: HttpSettings) -> Starlette:
    """An ASGI application that answers over HTTP what `dispatch` works out."""
    metrics = RequestMetrics(lambda: dispatch.live, dispatch.workers)
    intake = Intake(catalog, tokenizer, settings)
    generate = Generate(dispatch, intake, Composer(catalog, tokenizer))
    app = Starlette(
        routes=[Route("/generate", generate.__call__, methods=["POST"])],
        middleware=[Middleware(Edge, settings=settings, metrics=metrics)],
        exception_handlers={HTTPException: http_exception},
    )
    app.router.redirect_slashes = False
    return app
