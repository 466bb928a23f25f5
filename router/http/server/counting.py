"""What a connection sends, counted while it is parsed: bytes of heads, chunks of bodies.

Offers of another protocol are passed over.
"""

import re
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from router.http.server.offers import head_without_offer, new_parser
from xgr_runtime.errors import BadRequest, HeadTooLarge

_ABSOLUTE = re.compile(rb"[a-zA-Z][a-zA-Z0-9+.-]*://([^/?#]*)")


@dataclass(frozen=True)
class ConnectionLimits:
    """Of every connection, but for the first."""

    connections: int = 1024
    head_bytes: int = 32 << 10  # request line and headers; trailers too
    headers: int = 128
    head_seconds: float = 10.0  # from connecting, or a head's first byte, to its last
    door_seconds: float = 2.0  # the same for connections beyond the limit
    chunks: int = 256  # of a body, however small; those beyond have
    chunk_bytes: int = 256  # on average
    pipelined: int = 8  # requests that wait for the answer to one before them: each takes kilobytes
    rest_bytes: int = 32 << 20  # that are taken in once a request is answered or refused
    rest_seconds: float = 2.0  # that what is left of a request gets once it is answered
    gone_seconds: float = 0.5  # that an answer gets once the client sends no more: it reads on, or is gone
    idle_seconds: int = 75  # between requests
    unread_seconds: float = 30.0  # without a byte of the answer being read


class CountedHttp(HttpToolsProtocol):
    """uvicorn's parsing of one connection; what its callbacks raise goes through the parser to `parse`."""

    def __init__(self, limits: ConnectionLimits, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = limits
        self._part = "none"  # of a request that is being read: none, head or body
        self._head_size = 0  # bytes
        self._heard = False  # the parser made something of what came last
        self._left = 0  # bytes of it that the head does not account for
        self._unheard = 0  # bytes of which the parser has made nothing yet
        self._chunked, self._chunks, self._body_size = False, 0, 0  # of the body that is being read
        self._announced = 0  # bytes of it

    def parse(self, data: bytes) -> None:
        """Raises `RequestError` or `httptools.HttpParserError` for what cannot be, or is too much."""
        self._heard, self._left = False, len(data)
        self._feed(data)
        if not self._heard:
            self._unheard += len(data)
        else:
            self._unheard = self._left if self._part == "head" else 0
        self._check_size(self._unheard)

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
        self._heard = True
        if self.parser.should_upgrade():  # it is read once more, without the offer
            return
        if host := named_host(self.url):
            self.headers.append((b"host", host))  # it counts before the header; so both are checked
        self._chunked = any(name == b"transfer-encoding" for name, _ in self.headers)
        self._chunks = self._body_size = 0
        # The parser has refused what is no number, and a second one.
        self._announced = int(next((value for name, value in self.headers if name == b"content-length"), 0))
        super().on_headers_complete()
        self._part = "body"

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > self.limits.chunks + self._body_size // self.limits.chunk_bytes:
            average = self._body_size // self._chunks
            raise BadRequest(f"the body comes in {self._chunks} chunks of {average} bytes: send larger ones")

    def on_body(self, body: bytes) -> None:
        self._heard = True
        self._body_size += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._heard, self._part, self._left = True, "none", 0  # what follows counts from the next read on
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _feed(self, data: bytes) -> None:
        """To the parser, which stops where another protocol is offered: that is passed over."""
        rest = memoryview(data)
        while rest:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as offer:
                rest = rest[offer.args[0] :]
                head = head_without_offer(self.parser, self.url, self.headers)
                self.parser = new_parser(self)
                self.parser.feed_data(head)

    def _grow(self, size: int) -> None:
        self._heard = True
        self._head_size += size
        self._left -= size
        self._check_size(self._head_size)

    def _check_size(self, size: int) -> None:
        most = self.limits.head_bytes
        if size > most:
            raise HeadTooLarge(f"request line and headers take more than {most} bytes: send less of them")


def named_host(target: bytes) -> bytes:
    """The host in a request's target, as proxies are asked: `http://HOST:PORT/PATH`. Empty for a path."""
    found = _ABSOLUTE.match(target)
    return found[1] if found else b""
