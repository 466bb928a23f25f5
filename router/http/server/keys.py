"""Who may ask for what: probes and /docs are open, most routes want a client's key, some the operator's."""

import hashlib
import hmac

from starlette.types import Scope

from router.http.settings import HttpSettings
from xgr_runtime.errors import MissingKey, WrongKey

PROBE_PATHS = frozenset({"/health", "/health_generate", "/liveness", "/readiness", "/metrics"})
# Pages tell nothing of the deployment, and ask for a key themselves.
PUBLIC_PATHS = PROBE_PATHS | {"/", "/docs"}
DOOR_PATHS = PROBE_PATHS - {"/health_generate"}  # answered at once, also where all connections are taken
ADMIN_PATHS = frozenset({"/catalog", "/filters", "/flush_cache", "/requests", "/trace", "/workers"})
"""Routes that change the deployment, or show what it consists of and what others ask of it; all below too."""


def for_operators(path: str) -> bool:
    """Whether this path is for the operator alone."""
    return f"/{path[1:].partition('/')[0]}" in ADMIN_PATHS


class Keys:
    """Holds digests of the deployment's keys: to compare them takes the same time whatever is sent."""

    def __init__(self, settings: HttpSettings) -> None:
        admin = settings.admin_api_key or settings.api_key
        self._operators = _digests(admin)
        self._clients = _digests(settings.api_key, admin) if settings.api_key else []

    def authorise(self, scope: Scope) -> None:
        """Raises `MissingKey` or `WrongKey` unless the request may ask for this path."""
        path = scope["path"]
        admin = for_operators(path)
        accepted = self._operators if admin else self._clients
        if not accepted or path in PUBLIC_PATHS:
            return
        wanted = f"{path} needs the admin key" if admin else "this deployment needs a key"
        given = _bearer(scope)
        if not given:
            raise MissingKey(f"{wanted}: send the header 'Authorization: Bearer KEY'")
        digest = hashlib.sha256(given).digest()
        if not any([hmac.compare_digest(digest, key) for key in accepted]):  # all of them, always
            raise WrongKey(f"{wanted}, and the one that was sent is another: send the right one")


def _bearer(scope: Scope) -> bytes:
    """The key that the request carries, empty where it has none."""
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, key = header.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _digests(*keys: str | None) -> list[bytes]:
    return [hashlib.sha256(key.encode()).digest() for key in keys if key]
