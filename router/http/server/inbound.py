"""What comes from the client: its body, checked before it is read, and the news that it went away."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Receive

from router.http.server.codings import Unpacker, unpacker
from router.http.settings import HttpSettings
from xgr_runtime.errors import (
    BadRequest,
    BodyTooLarge,
    Cancelled,
    DeadlineExceeded,
    Overloaded,
    RequestTimeout,
    WrongMediaType,
)

T = TypeVar("T")

JSON, LINES, BYTES = "application/json", "application/x-ndjson", "application/octet-stream"  # of bodies
LARGE = 1 << 18  # bytes
LARGE_AT_ONCE = 32  # bodies of the largest size that memory is given to
GRACE = 1.0  # seconds that the dispatcher gets to answer with a deadline's error itself


class ClientGone(Cancelled):
    """HTTP 499. Nobody is left to read the answer."""


class Bodies:
    """Reads bodies, within the deployment's size for one, for all at once, and its time for one."""

    def __init__(self, settings: HttpSettings) -> None:
        self.limit = settings.max_body_bytes
        self.seconds = settings.body_seconds
        self.room = LARGE_AT_ONCE * self.limit  # bytes that are free
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """The body, for as long as it is of use.

        One without a content type is taken as JSON: nothing says otherwise. Raises `WrongMediaType`,
        `BodyTooLarge`, `BadRequest`, `RequestTimeout`, `Overloaded`.
        """
        check_media_type(request.headers.get("content-type"))
        unpacked = unpacker(request.headers)
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self.limit:
            raise self._too_large()
        body = bytearray()
        try:
            await self._gather(request, unpacked, body)
            if not body:
                raise BadRequest("the body is empty: send a JSON object")
            yield body
        finally:
            self.room += len(body)

    async def _gather(self, request: Request, unpacked: Unpacker, body: bytearray) -> None:
        """In one piece from the start: a list of the smallest chunks would take twenty times their bytes."""
        try:
            async with asyncio.timeout(self.seconds):
                async for sent in request.stream():
                    for part in unpacked.unpack(sent):
                        self._take(part, body)
                        if len(body) > LARGE:
                            # A part per round of the loop, whoever sends, so that others are served.
                            async with self._turn:
                                await asyncio.sleep(0)
        except TimeoutError:
            seconds = f"{self.seconds:g} s"
            raise RequestTimeout(f"the body did not arrive within {seconds}: send it at once") from None
        if body:
            unpacked.finish()

    def _take(self, part: bytes, body: bytearray) -> None:
        if len(body) + len(part) > self.limit:
            raise self._too_large()
        if len(part) > self.room:
            raise Overloaded("the bodies of other requests fill the memory for them: try again")
        self.room -= len(part)
        body += part

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"the body is larger than {self.limit} bytes: send fewer items or tokens, or restart with a "
            "larger --max-body-bytes"
        )


def media_type(header: str | None) -> str:
    """What a body is: `JSON`, also where nothing is said, `LINES` or `BYTES`.

    Raises `WrongMediaType` for anything else, and for text in another encoding than UTF-8.
    """
    if header is None:
        return JSON
    media, *parameters = (part.strip().lower() for part in header.split(";"))
    charsets = [
        value.strip("\"' ") for name, _, value in (p.partition("=") for p in parameters) if name == "charset"
    ]
    if media.startswith("application/") and media.endswith("+json"):
        media = JSON
    if media not in (JSON, LINES, BYTES) or any(charset not in ("utf-8", "utf8") for charset in charsets):
        raise WrongMediaType(
            f"the content type is {header[:80]!r}: send JSON with the header 'Content-Type: application/json'"
        )
    return media


def check_media_type(header: str | None) -> None:
    """Raises `WrongMediaType` unless the header is absent or names JSON in UTF-8."""
    if media_type(header) != JSON:
        raise WrongMediaType(
            f"the content type is {(header or '')[:80]!r}, which this route does not take: send JSON with "
            "the header 'Content-Type: application/json'"
        )


def has_body(request: Request) -> bool:
    """Whether the request announces one."""
    length = request.headers.get("content-length", "0")
    return length.strip("0") != "" or "transfer-encoding" in request.headers


async def while_connected(request: Request, work: Awaitable[T], deadline: float, grace: float = GRACE) -> T:
    """The result of `work`, which is cancelled as soon as the client goes away (`ClientGone`).

    The body must have been read: what `receive` has left to say is then only that. Work that has not ended
    `grace` seconds after the deadline (monotonic) is cancelled too (`DeadlineExceeded`).
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        left = max(deadline - time.monotonic(), 0) + grace
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
            if not task.cancelled():
                task.exception()  # it failed at that very moment: nobody is left to hear of it


def late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed: raise timeout_ms, or ask for less", "timeout_ms")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
