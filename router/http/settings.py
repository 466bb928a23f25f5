"""What the HTTP edge is told at start-up, parsed and checked by whoever builds it."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class HttpSettings:
    """Limits that are None fall back to what the workers announce, then to no limit."""

    version: str
    api_key: str | None = field(default=None, repr=False)
    admin_api_key: str | None = field(default=None, repr=False)  # None: the same
    guarded: bool = False  # on loopback without a key: no web page is to reach it
    allowed_hosts: Sequence[str] = ()  # names of such a server, besides those of loopback
    timeout_ms: int = 30_000
    max_body_bytes: int = 8 << 20
    body_seconds: float = 30.0  # that a body gets to arrive
    max_prompt_tokens: int | None = None
    max_beam_width: int = 1024
    default_beam_width: int = 50
    health_timeout: float = 10.0  # seconds that /health_generate waits
    retry_after: int = 1  # seconds, in answers with status 503
