"""What a response holds: a typed answer, or an error of the server's tree instead of a status code."""

from typing import TypeVar

import httpx
import msgspec

from xgr_runtime.errors import InternalError, RequestError, request_error
from xgr_runtime.wire.answers import ErrorBody

T = TypeVar("T")


def read(response: httpx.Response, kind: type[T]) -> T:
    """The body as `kind`, as it is where that is bytes. Raises the `RequestError` that the server names."""
    if not response.is_success:
        raise failure(response)
    if issubclass(kind, bytes):
        return kind(response.content)
    return msgspec.json.decode(response.content, type=kind)


def failure(response: httpx.Response) -> RequestError:
    """The error that a response carries; `InternalError` where something else than our router answered."""
    try:
        detail = msgspec.json.decode(response.content, type=ErrorBody).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return InternalError(f"HTTP {response.status_code} without our error body: {response.text[:200]!r}")
    error = request_error(detail.code, detail.message, detail.param)
    after = response.headers.get("retry-after", "")
    error.retry_after = float(after) if after.isascii() and after.isdigit() else 0.0
    return error
