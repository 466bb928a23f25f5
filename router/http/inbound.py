"""What comes from the client: its body, checked before it is read, and the news that it went away."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Receive

from router.http.settings import HttpSettings
from xgr_runtime.errors import BadRequest, BodyTooLarge, Cancelled, DeadlineExceeded, WrongMediaType

T = TypeVar("T")

GRACE = 1.0  # seconds that the dispatcher gets to answer a deadline itself


class ClientGone(Cancelled):
    """HTTP 499. Nobody is left to read the answer."""


async def read_json(request: Request, settings: HttpSettings) -> bytes:
    """The body, within the deployment's size and the deadline of a request that names none.

    A body without a content type is taken as JSON: nothing says otherwise. Raises `WrongMediaType`,
    `BodyTooLarge`, `BadRequest`, `DeadlineExceeded`.
    """
    limit, seconds = settings.max_body_bytes, settings.timeout_ms / 1000
    check_media_type(request.headers.get("content-type"))
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise too_large(limit)
    try:
        async with asyncio.timeout(seconds):
            body = await _read(request, limit)
    except TimeoutError:
        raise DeadlineExceeded(f"the body did not arrive within {seconds:g} s") from None
    if not body:
        raise BadRequest("the body is empty: send a JSON object")
    return body


async def _read(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large(limit)
        parts.append(part)
    return b"".join(parts)


def check_media_type(header: str | None) -> None:
    """Raises `WrongMediaType` unless the header is absent or names JSON in UTF-8."""
    if header is None:
        return
    media, *parameters = (part.strip().lower() for part in header.split(";"))
    charsets = [
        value.strip("\"' ") for name, _, value in (p.partition("=") for p in parameters) if name == "charset"
    ]
    is_json = media == "application/json" or (media.startswith("application/") and media.endswith("+json"))
    if not is_json or any(charset not in ("utf-8", "utf8") for charset in charsets):
        raise WrongMediaType(
            f"the content type is {header[:80]!r}: send JSON with the header 'Content-Type: application/json'"
        )


def too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes: send fewer items or tokens")


async def while_connected(request: Request, work: Awaitable[T], deadline: float) -> T:
    """The result of `work`, which is cancelled as soon as the client goes away (`ClientGone`).

    The body must have been read: what `receive` has left to say is then only that. Whoever works keeps the
    deadline (monotonic); if it does not, even after a grace, the work is cancelled (`DeadlineExceeded`).
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        left = max(deadline - time.monotonic(), 0) + GRACE
        await asyncio.wait({task, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("the client went away") if gone.done() else late()
        if task.cancelled():
            raise Cancelled("the request was aborted")
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed: raise timeout_ms, or ask for less", "timeout_ms")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
