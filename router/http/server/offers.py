"""Offers of another protocol, such as `Upgrade: h2c`, which stock clients make beside a body.

The parser takes whatever follows such a head for the other protocol. Whoever does not take the offer up has
to read on as if it had not been made, so the head is given to another parser without it.
"""

from collections.abc import Sequence
from typing import Any

import httptools

from xgr_runtime.errors import BadRequest


def new_parser(protocol: Any) -> httptools.HttpRequestParser:
    """As uvicorn makes it: what follows a request that ends the connection is no error."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def head_without_offer(
    parser: httptools.HttpRequestParser, url: bytes, headers: Sequence[tuple[bytes, bytes]]
) -> bytes:
    """The head that `parser` has read, but for what it offers. Raises `BadRequest` for a tunnel."""
    method, version = parser.get_method(), parser.get_http_version().encode()
    if method == b"CONNECT":
        raise BadRequest("this server opens no tunnels: send another method than CONNECT")
    lines = [b"%b: %b\r\n" % header for header in headers if header[0] != b"upgrade"]
    return b"".join([b"%b %b HTTP/%b\r\n" % (method, url, version), *lines, b"\r\n"])
