"""What is wrong with a request, said over HTTP: statuses, bodies, and the name of the field at fault."""

import math
import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from starlette.responses import Response

from xgr_runtime.catalog.doubled import doubled_name
from xgr_runtime.errors import BadRequest, InternalError, RequestError
from xgr_runtime.wire.answers import ErrorBody, ErrorDetail

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)
Body = bytes | bytearray

MOST_MESSAGE = 4000  # characters of an error's message, whoever wrote it
SHOWN = 80  # characters of a name that a client sent
_HEAD, _TAIL = 300, 100  # characters of a decoder's complaint; what lies between is the client's

_PATH = re.compile(r"(?:\.\w+|\[(?:\d+|\.\.\.)\])*")
_INDEX = re.compile(r"\[[^\]]*\]")  # the message says which entry, `param` only which field
_FIELD_PROBLEMS = {
    "Object contains unknown field `": "is not a field of this request: remove it",
    "Object missing required field `": "is missing: it is required",
}
_HALF_AT_END = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}[^\\]{0,5}\Z"
)  # after which a decoder wants 6 bytes
_HALF_IN_UTF8 = re.compile(rb"\xed[\xa0-\xbf]")  # no character's bytes begin so
_HALF = "a string holds a lone surrogate, which is half a character: send both halves or none"


def decode(decoder: msgspec.json.Decoder[T], body: Body) -> T:
    """The body as `decoder`'s type. Raises `BadRequest` naming the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise field_error(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {_complaint(error, body)}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None


def decode_distinct(decoder: msgspec.json.Decoder[T], body: Body) -> T:
    """`decode`, which raises for a name that an object of the body has twice, too."""
    found = decode(decoder, body)
    if problem := doubled_name(body):
        raise BadRequest(f"the body: {problem}")
    return found


def decode_part(decoder: msgspec.json.Decoder[T], raw: msgspec.Raw, name: str) -> T:
    """A part of a body, the field `name`, decoded at once. Raises `BadRequest` naming what is wrong."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise part_error(error, name) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {_complaint(error, bytes(raw))}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None


def from_query(kind: type[S], given: Mapping[str, str]) -> S:
    """What stands behind the question mark of a URL, as `kind`. Raises `BadRequest` naming the field."""
    try:
        return msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as error:
        raise field_error(str(error)) from None


def field_error(text: str) -> BadRequest:
    """`BadRequest` from the text of a msgspec validation error, which ends in the path of the value.

    Names and values in it are the client's, as long as it likes: they are cut before anything reads them.
    """
    what, path = _split(cut(text, _HEAD, _TAIL))
    for start, problem in _FIELD_PROBLEMS.items():
        if what.startswith(start):
            name = cut(what.removeprefix(start).removesuffix("`"))
            param = f"{path}.{name}" if path else name
            return BadRequest(f"{param} {problem}", param)
    subject = path or "the body"
    return BadRequest(f"{subject}: {what[:1].lower()}{what[1:]}", _INDEX.sub("", path) or None)


def part_error(error: msgspec.ValidationError, name: str, inside: bool = True) -> BadRequest:
    """The error of a part that was decoded alone, at its place in the body, or `inside` of that."""
    what, _, path = str(error).partition(" - at `$")
    return field_error(f"{what} - at `$.{name}{path if inside and path else '`'}")


def cut(text: str, head: int = SHOWN, tail: int = 0) -> str:
    """`text`, or where it is longer than both together its first `head` and last `tail` characters."""
    return text if len(text) <= head + tail else f"{text[:head]}...{text[len(text) - tail :]}"


def _split(text: str) -> tuple[str, str]:
    """What is wrong, and the path of the value at fault, empty for the whole."""
    what, mark, path = text.removesuffix("`").rpartition(" - at `$")
    return (what, path.lstrip(".")) if mark and _PATH.fullmatch(path) else (text, "")


def _complaint(error: Exception, body: Body) -> str:
    """What the decoder says of the body; it calls half a character many names, depending on what follows."""
    text = cut(str(error), _HEAD)
    truncated = "truncated" in text and _HALF_AT_END.search(body, max(len(body) - 12, 0))
    encoded = "utf-8" in text.lower() and _HALF_IN_UTF8.search(body)
    if not ("surrogate" in text or truncated or encoded):
        return text
    where = text.rpartition(" (byte ")[2].removesuffix(")")
    return f"{_HALF} (byte {where})" if where.isdecimal() else _HALF


def error_response(
    error: RequestError, request_id: str, retry_after: int, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a request that failed; 503 says when to come back, 401 how to sign in.

    `retry_after` is in seconds, and said where the error knows of no longer time.
    """
    message = "internal error: see the router's log" if isinstance(error, InternalError) else error.message
    detail = ErrorDetail(cut(message, MOST_MESSAGE), error.kind, error.param, error.code)
    fields = dict(headers or {})
    if error.status == 503:
        fields["retry-after"] = str(max(retry_after, math.ceil(error.retry_after)))
    if error.status == 401:
        fields["www-authenticate"] = "Bearer"
    body = msgspec.json.encode(ErrorBody(detail, request_id, error.retryable))
    return Response(body, error.status, fields, "application/json")
