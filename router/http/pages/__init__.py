"""Pages for the browser, each one file that its policy lets load nothing else.

/docs draws /openapi.json; / shows the deployment and lets one try it.
"""

import hashlib
import re
from base64 import b64encode
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

DOCS, OVERVIEW = (Path(__file__).with_name(name) for name in ("docs.html", "overview.html"))


def page(file: Path) -> Callable[[Request], Awaitable[Response]]:
    """What serves the page, which is read here, once."""
    page = file.read_bytes()
    tag = f'"{hashlib.sha256(page).hexdigest()}"'
    headers = {
        "content-security-policy": policy(page),
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",  # kept, and asked for again: an upgrade changes it
        "etag": tag,
    }

    async def serve(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(page, headers=headers, media_type="text/html")

    return serve


def policy(page: bytes) -> str:
    """Its script and its style by their digests, and requests to this server: nothing else."""
    script, style = (_digest(page, name) for name in (b"script", b"style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )


def _digest(page: bytes, element: bytes) -> str:
    """Of what stands between the tags of the only such element."""
    (text,) = re.findall(b"<%b>(.*?)</%b>" % (element, element), page, re.DOTALL)
    return f"'sha256-{b64encode(hashlib.sha256(text).digest()).decode()}'"
