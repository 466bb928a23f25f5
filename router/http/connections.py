"""What one client may cost before its request counts as one: places, bytes of a head, seconds of silence.

uvicorn parses and answers; this bounds it. A body's own bounds are in `inbound`: they belong to a request.
"""

import asyncio
import logging
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from router.http.problems import error_response
from xgr_runtime.errors import BadRequest, HeadTooLarge, Overloaded, RequestError, RequestTimeout

log = logging.getLogger("router.http")

_BODY_HEADERS = {b"content-length", b"transfer-encoding"}
CLOSING_SECONDS = 2  # that connections get to close once all requests have ended


@dataclass(frozen=True)
class ConnectionLimits:
    """Of every connection, but for the first."""

    connections: int = 1024
    head_bytes: int = 32 << 10  # request line and headers; trailers too
    headers: int = 128
    head_seconds: float = 10.0  # from connecting, or a head's first byte, to its last
    rest_seconds: float = 2.0  # that what is left of a request gets once it is answered
    idle_seconds: int = 30  # between requests; longer than common clients keep a connection
    unread_seconds: float = 30.0  # without a byte of the answer being read


def server_config(app: ASGIApp, limits: ConnectionLimits) -> uvicorn.Config:
    """How to serve `app`: nothing that it does not need, and no client beyond `limits`."""
    return uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(BoundedHttp, limits)),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nobody is believed to speak for another
        server_header=False,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )


class BoundedHttp(HttpToolsProtocol):
    """One connection. What it refuses by itself gets our error body, then the connection ends."""

    def __init__(self, limits: ConnectionLimits, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = limits
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._part = "none"  # of a request that is being read: none, head or body
        self._head_size = 0  # bytes
        self._heard = False  # the parser made something of what came last
        self._left = 0  # bytes of it that the head does not account for
        self._unheard = 0  # bytes of which the parser has made nothing yet
        self._refused = False

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        most = self.limits.connections
        if len(self.connections) > most:
            self._answer(Overloaded(f"{most} connections are open, the limit: use fewer, or come back later"))
            transport.close()
        else:
            self._arm("head", self.limits.head_seconds, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._heard, self._left = False, len(data)
        try:
            self.parser.feed_data(data)
            if not self._heard:
                self._unheard += len(data)
            else:
                self._unheard = self._left if self._part == "head" else 0
            self._check_size(self._unheard)
        except httptools.HttpParserUpgrade:
            return  # another protocol was offered, not demanded
        except httptools.HttpParserError as error:
            self._refuse(_reason(error))
        except RequestError as error:
            self._refuse(error)
        else:
            if self._part == "head" or (self._part == "none" and not self._heard):
                self._arm("head", self.limits.head_seconds, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for name in list(self._timers):
            self._disarm(name)

    # --- the parser's side; what these raise ends in `data_received` ---

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._heard, self._part, self._head_size = True, "head", 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._grow(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._grow(len(name) + len(value) + len(": \r\n"))
        if len(self.headers) > self.limits.headers:
            raise HeadTooLarge(f"the request has more than {self.limits.headers} headers: send fewer")

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and not _BODY_HEADERS.isdisjoint(name for name, _ in self.headers):
            raise BadRequest("this server reads no body in HTTP/1.1 beside an Upgrade: leave that header out")
        self._heard, self._part = True, "body"
        self._disarm("head")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._heard = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._heard, self._part, self._left = True, "none", 0  # what follows counts from the next read on
        self._disarm("rest")
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._part == "body" and not self._answering:
            self._arm("rest", self.limits.rest_seconds, self.transport.abort)
        self._watch_reader()

    # --- bounds ---

    @property
    def _answering(self) -> bool:
        """Whether the application is at work on a request of this connection."""
        return self.cycle is not None and not self.cycle.response_complete

    def _grow(self, size: int) -> None:
        self._heard = True
        self._head_size += size
        self._left -= size
        self._check_size(self._head_size)

    def _check_size(self, size: int) -> None:
        most = self.limits.head_bytes
        if size > most:
            raise HeadTooLarge(f"request line and headers take more than {most} bytes: send less of them")

    def _head_is_late(self) -> None:
        if self._answering:  # it is in no hurry
            self._arm("head", self.limits.head_seconds, self._head_is_late)
        else:
            seconds = self.limits.head_seconds
            self._refuse(RequestTimeout(f"no request arrived whole within {seconds:g} s: send it at once"))

    def _watch_reader(self, before: float = math.inf) -> None:
        """Ends the connection once nothing of the answer, of which `before` bytes waited, is read."""
        left = self.transport.get_write_buffer_size()
        if left >= before:
            log.info("a client has not read its answer for %g s: cut off", self.limits.unread_seconds)
            self.transport.abort()
        elif left:
            self._arm("reader", self.limits.unread_seconds, partial(self._watch_reader, left))

    def _refuse(self, problem: RequestError) -> None:
        """Answers, then hears a little longer: a connection closed on unread bytes may lose the answer."""
        self._unset_keepalive_if_required()
        self._disarm("head")
        if self._answering or self.transport.is_closing():  # an earlier answer has no end yet, or is the last
            self.transport.abort()
            return
        self._answer(problem)
        self.transport.write_eof()
        self._arm("rest", self.limits.rest_seconds, self.transport.abort)

    def _answer(self, problem: RequestError) -> None:
        self._refused = True
        log.info("a connection was refused with %d: %s", problem.status, problem)
        self.transport.write(raw_answer(problem))

    def _arm(self, name: str, seconds: float, act: Callable[[], None]) -> None:
        """`act` in so many seconds, unless it is due already."""

        def due() -> None:
            del self._timers[name]
            act()

        if name not in self._timers:
            self._timers[name] = self.loop.call_later(seconds, due)

    def _disarm(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()


def raw_answer(problem: RequestError) -> bytes:
    """The last bytes of a connection: what the application would have answered."""
    response = error_response(problem, uuid.uuid4().hex, 1, {"connection": "close"})
    head = [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
    return b"".join([STATUS_LINE[problem.status], *head, b"\r\n", bytes(response.body)])


def _reason(error: httptools.HttpParserError) -> RequestError:
    """What a callback of ours raised, or that the parser could not read the bytes."""
    raised = error.__context__
    return raised if isinstance(raised, RequestError) else BadRequest("what was sent is not HTTP/1.1")
