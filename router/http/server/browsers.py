"""Keeps web pages away from a server that trusts whoever reaches it: one on loopback without a key.

A browser on the same machine reaches it for every page that it shows, and says so: Host is the name by
which a page called the server (its owner may have pointed that name here), Origin and Sec-Fetch-Site tell
whose page it is, and what a page may send unasked is never JSON.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from starlette.types import Scope

from router.http.server.inbound import media_type
from router.http.server.problems import cut
from router.http.settings import HttpSettings
from xgr_runtime.errors import ForeignPage, WrongMediaType
from xgr_runtime.transport.addresses import is_loopback

_HOST = re.compile(r"(?:(?P<name>[a-z0-9_.-]{1,253})|\[(?P<address>[0-9a-f:.]{2,45})\])(?::[0-9]*)?")
_HARMLESS = ("GET", "HEAD", "OPTIONS")
_SITES = frozenset({"none", "same-origin", "same-site"})  # of who asks; whatever else it says is foreign
_REMEDY = "ask http://127.0.0.1:PORT, or restart with --allowed-hosts and that name, or with --api-key"


class Browsers:
    """What of a request a browser answers for; others may say what they like, they gain nothing by it."""

    def __init__(self, settings: HttpSettings) -> None:
        self.guarded = settings.guarded
        self._allowed = frozenset(name.lower() for name in settings.allowed_hosts)

    def check(self, scope: Scope) -> None:
        """Raises `ForeignPage`, or `WrongMediaType` for a body that a page could send."""
        if not self.guarded:
            return
        self._check_host(_values(scope, b"host"))
        self._check_page(scope, _values(scope, b"origin"))
        if scope["method"] not in _HARMLESS:
            _check_media_types(scope)

    def _check_host(self, hosts: Iterable[str]) -> None:
        """One that names no host is no browser."""
        for host in hosts:
            if not self._is_ours(host):
                raise ForeignPage(
                    f"the request is for the host {cut(host)!r}, which is not loopback's: {_REMEDY}"
                )

    def _check_page(self, scope: Scope, origins: list[str]) -> None:
        for origin in origins:
            scheme, mark, host = origin.partition("://")
            if not mark or scheme.lower() not in ("http", "https") or not self._is_ours(host):
                raise ForeignPage(f"the request comes from a page of {cut(origin)!r}: {_REMEDY}")
        followed = scope["method"] == "GET" and "navigate" in _values(scope, b"sec-fetch-mode")  # a link
        others = not _SITES.issuperset(_values(scope, b"sec-fetch-site"))
        if not origins and not followed and others:
            raise ForeignPage(f"the request comes from a page of another site: {_REMEDY}")

    def _is_ours(self, host: str) -> bool:
        name = host_name(host)
        return name in self._allowed or _is_local(name)


@lru_cache(256)
def _is_local(name: str) -> bool:
    return is_loopback(name) or name.endswith(".localhost")


@lru_cache(256)
def host_name(text: str) -> str:
    """The name or address in `HOST` or `HOST:PORT`, in small letters; empty for what is neither."""
    found = _HOST.fullmatch(text.lower())
    return (found["name"] or found["address"]).removesuffix(".") if found else ""


def _check_media_types(scope: Scope) -> None:
    """Of a request that may have effects. One without a body and a type is no form."""
    types = _values(scope, b"content-type")
    for header in types:
        media_type(header)  # a page may send none of those that any route takes
    empty = all(length.strip("0") == "" for length in _values(scope, b"content-length"))
    if not types and not (empty and not _values(scope, b"transfer-encoding")):
        raise WrongMediaType(
            "the body has no content type: send JSON with the header 'Content-Type: application/json'"
        )


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for header, value in scope["headers"] if header == name]
