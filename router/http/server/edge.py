"""Around every request: who may ask, what is logged and counted, and that each error has its answer."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.http.metrics import RequestMetrics
from router.http.server.browsers import Browsers
from router.http.server.codings import packing
from router.http.server.inbound import ClientGone
from router.http.server.keys import Keys
from router.http.server.problems import cut, error_response
from router.http.server.recent import AccessRecord, Recent
from router.http.settings import HttpSettings
from xgr_runtime.errors import (
    BadRequest,
    Cancelled,
    InternalError,
    MethodNotAllowed,
    NotFound,
    RequestError,
)
from xgr_runtime.trace.timeline import REQUEST, Timeline

log = logging.getLogger("router.http")

Handler = Callable[[Request], Awaitable[Response]]

LOGGED_PATH = SHOWN_PATH = 200  # characters
RANKING = frozenset(  # routes that are measured
    {"/generate", "/score", "/v1/completions", "/v1/chat/completions"}
)
_RECORD = "xgr.record"


class Edge:
    """Outermost ASGI layer of the application."""

    def __init__(
        self,
        app: ASGIApp,
        settings: HttpSettings,
        metrics: RequestMetrics,
        recent: Recent,
        timeline: Timeline,
        straight: Mapping[tuple[str, str], Handler],
    ) -> None:
        """`straight`: by method and path, what is asked so often that it is not looked for among all."""
        self.app = app
        self.straight = straight
        self.recent = recent
        self.timeline = timeline
        self.settings = settings
        self.browsers = Browsers(settings)
        self.keys = Keys(settings)
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = AccessRecord()
        scope[_RECORD] = record
        try:
            await self._serve(record, scope, receive, send)
        except asyncio.CancelledError:
            record.status = Cancelled.status
            raise
        finally:
            self._record(record, scope)

    async def _serve(self, record: AccessRecord, scope: Scope, receive: Receive, send: Send) -> None:
        answer = packing(Headers(scope=scope).get("accept-encoding", ""), send)

        async def noting_status(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await answer(message)

        try:
            self.browsers.check(scope)
            self.keys.authorise(scope)
            straight = self.straight.get((scope["method"], scope["path"]))
            if straight is None:
                await self.app(scope, receive, noting_status)
            else:
                response = await straight(Request(scope, receive, noting_status))
                await response(scope, receive, noting_status)
            return
        except (ClientGone, ClientDisconnect):
            record.status = Cancelled.status
            return
        except RequestError as error:
            problem = error
            if isinstance(error, InternalError):
                log.exception("request %s failed", record.request_id)
        except Exception:
            log.exception("request %s failed", record.request_id)
            problem = InternalError("")
        if record.status:  # the answer has begun; the server closes the connection on an unfinished one
            raise problem
        problem.__traceback__ = None  # its frames hold the body, and themselves through what they waited for
        response = error_response(problem, record.request_id, self.settings.retry_after)
        await response(scope, receive, noting_status)

    def _record(self, record: AccessRecord, scope: Scope) -> None:
        seconds = time.monotonic() - record.arrival
        if scope["path"] in RANKING:
            self.metrics.observe(
                record.status, seconds, record.prompt_tokens, underfilled=record.results < record.wanted
            )
            self.timeline.add(
                REQUEST,
                "request",
                record.arrival,
                record.arrival + seconds,
                rid=record.request_id,
                status=record.status,
                prompt_tokens=record.prompt_tokens,
                beam_width=record.width,
            )
            self.recent.add(record, seconds)
        # Probes and scrapes come every few seconds: only failures are worth a line, and waiting is none.
        quiet = scope["method"] == "GET" and (record.status < 400 or scope["path"] == "/readiness")
        log.log(
            logging.DEBUG if quiet else logging.INFO,
            "%s %s %d %.1f ms rid=%s prompt=%d width=%d",
            scope["method"],
            printable(scope["path"]),
            record.status,
            seconds * 1000,
            record.request_id,
            record.prompt_tokens,
            record.width,
        )


def record_of(request: Request) -> AccessRecord:
    """The record of `request`."""
    record: AccessRecord = request.scope[_RECORD]
    return record


def printable(path: str) -> str:
    """A path as it may stand in a log: no more than its start, and nothing that starts a new line."""
    path = path[:LOGGED_PATH]
    return path if path.isascii() and path.isprintable() else repr(path)


async def http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals, in our error body."""
    assert isinstance(error, HTTPException)
    path = cut(request.scope["path"], SHOWN_PATH)
    problem: RequestError
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        problem = MethodNotAllowed(f"{path} takes {allowed}, not {request.method}")
    elif error.status_code == 404:
        problem = NotFound(f"there is no {path}: see /docs for the routes")
    else:
        problem = BadRequest(error.detail)
    return error_response(problem, record_of(request).request_id, 1, error.headers)
