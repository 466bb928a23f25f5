"""What one client may cost before its request counts as one: places, bytes of a head, seconds of silence.

uvicorn parses and answers; this bounds it. A body's own bounds are in `inbound`: they belong to a request.
"""

import asyncio
import contextlib
import logging
import math
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import httptools
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from router.http.server.counting import ConnectionLimits, CountedHttp
from router.http.server.keys import DOOR_PATHS
from router.http.server.places import Places
from router.http.server.problems import error_response
from xgr_runtime.errors import BadRequest, Overloaded, RequestError, RequestTimeout

log = logging.getLogger("router.http")

_PROBES = {path.encode() for path in DOOR_PATHS}
_CUT_SHORT = "the client stopped sending before its request was whole: send all of it"
ACCEPTED_AT_ONCE = 32  # connections, in one round of the loop
CLOSING_SECONDS = 2  # that connections get to close once all requests have ended


def server_config(app: ASGIApp, limits: ConnectionLimits) -> uvicorn.Config:
    """How to serve `app`: nothing that it does not need, and no client beyond `limits`."""
    return uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(BoundedHttp, limits, Places(limits.connections))),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nobody is believed to speak for another
        server_header=False,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=CLOSING_SECONDS,
        backlog=ACCEPTED_AT_ONCE,
    )


class BoundedHttp(CountedHttp):
    """One connection. What it refuses by itself gets our error body, then the connection ends."""

    def __init__(self, limits: ConnectionLimits, places: Places, *args: Any, **kwargs: Any) -> None:
        super().__init__(limits, *args, **kwargs)
        self.places = places
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._refused = False  # nothing that comes is looked at any more
        self._overheard = 0  # bytes that came all the same
        self._fault: RequestError | None = None  # of the body that is being read
        self._half_closed = False  # by the client
        self._last = False  # the answer to the body that is being read ends the connection, and says so

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        seated = self.places.enter(self)
        seconds = self.limits.head_seconds if seated else self.limits.door_seconds
        self._arm("head", seconds, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._overhear(len(data))
            return
        self._unset_keepalive_if_required()
        try:
            self.parse(data)
        except httptools.HttpParserError as error:
            self._refuse(_reason(error))
        except RequestError as error:
            self._refuse(error)
        else:
            self._await_more()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more: an answer under way gets a moment, for it may be gone altogether."""
        cut_short = not self._refused and (self._part != "none" or self._unheard > 0)
        self._half_closed = True
        if cut_short:
            self._refuse(BadRequest(_CUT_SHORT))
        if self._answering:
            self._arm("gone", self.limits.gone_seconds, self.transport.close)
        return self._answering

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.places.leave(self)
        for name in list(self._timers):
            self._disarm(name)

    # --- the parser's side; what these raise ends in `data_received` ---

    def on_headers_complete(self) -> None:
        offered = self.parser.should_upgrade()
        seated = offered or self._is_seated()
        super().on_headers_complete()
        if not offered:
            self.cycle.keep_alive = self.cycle.keep_alive and seated

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if not self._answering:
            self._overhear(len(body))

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._disarm("rest")
        if not self._answering:
            self.places.rest(self)

    # --- the application's side ---

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, self._reading(cycle, app))

    def _reading(self, cycle: RequestResponseCycle, app: Any) -> Any:
        """`app`, whose answer may come before the end of a body.

        It is told in place of the rest what is wrong with it, and its client that the connection ends, where
        more is left than will be heard. uvicorn closes once it has said so, on bytes that nobody read, and
        the answer may be lost: so it is made to go on, and `_after_answers` hangs up.
        """

        async def told(scope: Scope, receive: Receive, send: Send) -> None:
            async def heard() -> Message:
                message = await receive()
                if self._fault is not None and cycle is self.cycle:
                    raise self._fault
                return message

            async def said(message: Message) -> None:
                begins = message["type"] == "http.response.start" and cycle is self.cycle
                if not begins or not self._ends_early(cycle):
                    await send(message)
                    return
                close = (b"connection", b"close")
                await send({**message, "headers": [*message.get("headers", ()), close]})
                self._last = cycle.keep_alive = True

            await app(scope, heard, said)

        return told

    def _ends_early(self, cycle: RequestResponseCycle) -> bool:
        """Whether an answer that begins now comes before more of its body than will be heard."""
        left = self._announced - self._body_size
        return self._part == "body" and (
            self._chunked or left > self.limits.rest_bytes or not cycle.keep_alive
        )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answering:
            self._after_answers()
        self._watch_reader()

    def _after_answers(self) -> None:
        """A body that goes on is heard to its end, but no chunk by chunk: each costs more than its bytes."""
        if self._last or (self._part == "body" and self._chunked):
            self._refused = True
        if self._refused or self._half_closed:
            self._hang_up()
        elif self._part == "body":
            self._arm("rest", self.limits.rest_seconds, self.transport.abort)
        else:
            self.places.rest(self)

    def _await_more(self) -> None:
        """What comes next has a time to arrive, whatever came last."""
        if self._part == "head" or (self._part == "none" and not self._heard):
            self._arm("head", self.limits.head_seconds, self._head_is_late)
        elif self._part == "none" and not self._answering:  # a body ended, whose answer went out before
            self.timeout_keep_alive_task = self.loop.call_later(
                self.limits.idle_seconds, self.timeout_keep_alive_handler
            )

    # --- bounds ---

    @property
    def _answering(self) -> bool:
        """Whether the application is at work on a request of this connection."""
        return self.cycle is not None and not self.cycle.response_complete

    def _is_seated(self) -> bool:
        """Whether the request whose head came has a place. Raises `RequestError` where it may not go on."""
        self._disarm("head")
        self._overheard = 0
        if len(self.pipeline) >= self.limits.pipelined:
            raise BadRequest(f"{len(self.pipeline)} requests wait on this connection: read answers first")
        seated = self.places.begin(self)
        if not seated and not self._is_probe():
            raise self._crowded()
        return seated

    def _overhear(self, size: int) -> None:
        self._overheard += size
        if self._overheard > self.limits.rest_bytes:
            self.transport.pause_reading()

    def _is_probe(self) -> bool:
        return self.parser.get_method() in (b"GET", b"HEAD") and self.url.partition(b"?")[0] in _PROBES

    def _crowded(self) -> Overloaded:
        most = self.limits.connections
        return Overloaded(f"{most} connections are open, the limit: use fewer, or come back later")

    def _head_is_late(self) -> None:
        if self._answering:  # it is in no hurry
            self._arm("head", self.limits.head_seconds, self._head_is_late)
        elif self.places.at_the_door(self):
            self._refuse(self._crowded())
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

    # --- ends ---

    @property
    def idle(self) -> bool:
        return not self.transport.get_write_buffer_size()

    def dismiss(self) -> None:
        """Answers where a request has begun or could be expected; else it is a connection kept for later."""
        if self._refused:
            self.transport.abort()
            return
        if self._part == "head" or self._unheard or self.cycle is None:
            self._answer(self._crowded())
        self.transport.close()

    def _refuse(self, problem: RequestError) -> None:
        """Looks at nothing more. Requests that came whole keep their answers, a broken one gets `problem`."""
        self._refused = True
        self._unset_keepalive_if_required()
        self._disarm("head")
        if self.transport.is_closing():  # an earlier answer was the last
            self.transport.abort()
        elif not self._answering:
            if self._part != "body":  # else that request has its answer
                self._answer(problem)
            self._hang_up()
        elif self._part == "body":
            self._fault = problem
            self.cycle.message_event.set()

    def _answer(self, problem: RequestError) -> None:
        self._refused = True
        log.info("a connection was refused with %d: %s", problem.status, problem)
        self.transport.write(raw_answer(problem))

    def _hang_up(self) -> None:
        """Then hears a little longer: a connection closed on unread bytes may lose the answer."""
        if self._half_closed:
            self.transport.close()
        elif not self.transport.is_closing():
            self._arm("rest", self.limits.rest_seconds, self.transport.abort)
            with contextlib.suppress(OSError):  # the client has gone, which the loop is yet to notice
                self.transport.write_eof()

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
