"""A body that is too long for memory: it goes to the disk as it arrives, and the event loop goes on."""

import asyncio
from typing import BinaryIO

from starlette.requests import Request

from router.http.server.codings import is_packed
from xgr_runtime.errors import BadRequest, BodyTooLarge, RequestTimeout, WrongMediaType

AT_ONCE = 1 << 20  # bytes that are gathered before a thread writes them


async def take_in(request: Request, stream: BinaryIO, most: int, silence: float) -> int:
    """Writes the body to `stream`; its bytes.

    Raises `BodyTooLarge` beyond `most` bytes, `RequestTimeout` where nothing comes for `silence` seconds,
    `BadRequest` for an empty one, OSError where it cannot be written.
    """
    if is_packed(request.headers):
        raise WrongMediaType("the body is packed, and this route takes files: send it as it is")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > most:
        raise _too_large(most)
    size, gathered = 0, bytearray()
    parts = request.stream().__aiter__()
    while True:
        try:
            async with asyncio.timeout(silence):
                part = await anext(parts, None)
        except TimeoutError:
            raise RequestTimeout(f"nothing of the body came for {silence:g} s: send it at once") from None
        if part is None:
            break
        size += len(part)
        if size > most:
            raise _too_large(most)
        gathered += part
        if len(gathered) >= AT_ONCE:
            await asyncio.to_thread(stream.write, gathered)
            gathered = bytearray()
    await asyncio.to_thread(_finish, stream, gathered)
    if not size:
        raise BadRequest("the body is empty: send the file")
    return size


def _finish(stream: BinaryIO, rest: bytearray) -> None:
    stream.write(rest)
    stream.flush()


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {most} bytes: send it in several, or copy the file there")
