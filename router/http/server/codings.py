"""Bodies that are packed, gzip or brotli, both ways: what comes is unpacked in pieces, within limits."""

import asyncio
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import brotli
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Send

from xgr_runtime.errors import BadRequest, WrongMediaType

PIECE = 1 << 18  # bytes that are unpacked at once, about: in less than a millisecond
LEAST = 1 << 14  # bytes of an answer: smaller ones fit into a few packets as they are
ASIDE = 1 << 18  # bytes of an answer that a thread packs
QUALITY = 1  # of brotli, which is then faster than gzip's fastest
_GZIP = 16 + zlib.MAX_WBITS
_PLAIN = ("", "identity")


class Unpacker(Protocol):
    """What a body's coding asks for."""

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """What comes out of the next bytes, about `PIECE` at a time. Raises `BadRequest`."""
        ...

    def finish(self) -> None:
        """Raises `BadRequest` where more should have come."""
        ...


class _Plain:
    def unpack(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        pass


class _Gzip:
    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP)

    def unpack(self, data: bytes) -> Iterator[bytes]:
        try:
            while data:
                if self._member.eof:  # another one may follow
                    self._member = zlib.decompressobj(_GZIP)
                yield self._member.decompress(data, PIECE)
                data = self._member.unconsumed_tail or self._member.unused_data
        except zlib.error:
            raise _damaged("gzip") from None

    def finish(self) -> None:
        if not self._member.eof:
            raise _damaged("gzip")


class _Brotli:
    def __init__(self) -> None:
        self._decoder = brotli.Decompressor()

    def unpack(self, data: bytes) -> Iterator[bytes]:
        try:
            piece = self._decoder.process(data, output_buffer_limit=PIECE)
            while piece:
                yield piece
                piece = self._decoder.process(b"", output_buffer_limit=PIECE)
        except brotli.error:
            raise _damaged("brotli") from None

    def finish(self) -> None:
        if not self._decoder.is_finished():
            raise _damaged("brotli")


_UNPACKERS: dict[str, Callable[[], Unpacker]] = {
    "": _Plain,
    "identity": _Plain,
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "br": _Brotli,
}


def unpacker(headers: Headers) -> Unpacker:
    """For the body of a request. Raises `WrongMediaType` for a coding that is not known here, or several."""
    if other := _codings(headers, "transfer-encoding") - {"chunked", *_PLAIN}:
        raise WrongMediaType(f"the body is transferred as {min(other)[:80]!r}: send it as it is")
    packed = _codings(headers, "content-encoding") - {*_PLAIN}
    if len(packed) > 1 or not packed <= _UNPACKERS.keys():
        what = ", ".join(sorted(packed))[:80]
        raise WrongMediaType(f"the body is encoded as {what!r}: send it as it is, or as gzip or br")
    return _UNPACKERS[min(packed, default="")]()


def is_packed(headers: Headers) -> bool:
    """Whether a body is not sent as it is."""
    return bool(_codings(headers, "content-encoding") - {*_PLAIN})


def _codings(headers: Headers, name: str) -> set[str]:
    return {part.strip().lower() for value in headers.getlist(name) for part in value.split(",")}


def _damaged(what: str) -> BadRequest:
    return BadRequest(f"the body is no whole {what}, as its header Content-Encoding says: pack it again")


def packing(accepted: str, send: Send) -> Send:
    """`send` that packs long answers in a coding of `accepted`, a header Accept-Encoding."""
    coding = best_coding(accepted)
    if coding is None:
        return send
    held: list[Message] = []

    async def packed(message: Message) -> None:
        if message["type"] == "http.response.start":
            held.append(message)
            return
        start = held.pop() if held else None
        if start is not None:
            message = await _pack(coding, start, message)
            await send(start)
        await send(message)

    return packed


def best_coding(accepted: str) -> str | None:
    """br, gzip or nothing, as the client prefers."""
    weights: dict[str, float] = {}
    for part in accepted.lower().split(","):
        name, _, parameter = part.partition(";")
        key, _, value = parameter.partition("=")
        try:
            weights[name.strip()] = float(value) if key.strip() == "q" else 1.0
        except ValueError:
            weights[name.strip()] = 0.0
    known = {name: weights.get(name, weights.get("*", 0.0)) for name in ("br", "gzip")}
    best = max(known, key=known.__getitem__)
    return best if known[best] > 0 else None


async def _pack(coding: str, start: Message, message: Message) -> Message:
    """The body in `message`, where it is a whole long one; `start` says so then."""
    body = message.get("body", b"")
    headers = MutableHeaders(raw=start["headers"])
    if message.get("more_body") or len(body) < LEAST or "content-encoding" in headers:
        return message
    pack = _PACKERS[coding]
    small = pack(body) if len(body) < ASIDE else await asyncio.to_thread(pack, body)
    headers["content-encoding"] = coding
    headers["content-length"] = str(len(small))
    headers.add_vary_header("accept-encoding")
    start["headers"] = headers.raw
    return {**message, "body": small}


_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "br": lambda body: brotli.compress(body, quality=QUALITY),
    "gzip": lambda body: zlib.compress(body, 1, _GZIP),
}
