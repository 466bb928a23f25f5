"""What is wrong with a request, said over HTTP: statuses, bodies, and the name of the field at fault."""

import math
import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from starlette.responses import Response

from xgr_runtime.answer import ErrorBody, ErrorDetail
from xgr_runtime.errors import BadRequest, InternalError, RequestError

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)
Body = bytes | bytearray

_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_INDEX = re.compile(r"\[[^\]]*\]")  # the message says which entry, `param` only which field
_FIELD = re.compile(r"^Object (?:contains unknown|missing required) field `(?P<name>.*)`$", re.DOTALL)


def decode(decoder: msgspec.json.Decoder[T], body: Body) -> T:
    """The body as `decoder`'s type. Raises `BadRequest` naming the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise field_error(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None


def from_query(kind: type[S], given: Mapping[str, str]) -> S:
    """What stands behind the question mark of a URL, as `kind`. Raises `BadRequest` naming the field."""
    try:
        return msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as error:
        raise field_error(str(error)) from None


def field_error(text: str) -> BadRequest:
    """`BadRequest` from the text of a msgspec validation error, which ends in the path of the value."""
    match = _WHERE.match(text)
    what, path = (match["what"], match["path"] or "") if match else (text, "")
    path = path.lstrip(".")
    field = _FIELD.match(what)
    if field is None:
        subject = path or "the body"
        return BadRequest(f"{subject}: {what[:1].lower()}{what[1:]}", _INDEX.sub("", path) or None)
    param = f"{path}.{field['name']}" if path else field["name"]
    if "unknown" in what:
        return BadRequest(f"{param} is not a field of this request: remove it", param)
    return BadRequest(f"{param} is missing: it is required", param)


def error_response(
    error: RequestError, request_id: str, retry_after: int, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a request that failed; 503 says when to come back, 401 how to sign in.

    `retry_after` is in seconds, and said where the error knows of no longer time.
    """
    message = "internal error: see the router's log" if isinstance(error, InternalError) else error.message
    detail = ErrorDetail(message, error.kind, error.param, error.code)
    fields = dict(headers or {})
    if error.status == 503:
        fields["retry-after"] = str(max(retry_after, math.ceil(error.retry_after)))
    if error.status == 401:
        fields["www-authenticate"] = "Bearer"
    body = msgspec.json.encode(ErrorBody(detail, request_id, error.retryable))
    return Response(body, error.status, fields, "application/json")
