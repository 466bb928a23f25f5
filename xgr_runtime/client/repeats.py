"""When a call is tried again: after what may pass, no sooner than the server says, never past a deadline."""

import random
import time
from typing import Any

import httpx
import msgspec

from xgr_runtime.client.calls import ClientCall
from xgr_runtime.errors import RequestError

FIRST_PAUSE = 0.05  # seconds, doubled each time, where the server names none
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_UNKNOWN = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)  # what became of it


class Repeats:
    """Of one call, which has until `timeout_ms` of its body; each attempt is told what is left of that."""

    def __init__(self, call: ClientCall[Any], retries: int) -> None:
        self.call = call
        self.left = retries
        self.pauses = 0
        given = None if call.body is None else call.body.get("timeout_ms")
        # What is no number is the server's to refuse.
        self.due = time.monotonic() + given / 1000 if isinstance(given, int) else None

    def content(self) -> bytes:
        """The body of the next attempt, where it is not a file."""
        if self.call.body is None:
            return self.call.content
        if self.due is None or not self.pauses:
            return msgspec.json.encode(self.call.body)
        left = max(1, round(1000 * (self.due - time.monotonic())))
        return msgspec.json.encode({**self.call.body, "timeout_ms": left})

    def pause(self, error: RequestError | httpx.TransportError) -> float:
        """Seconds until the next attempt. Raises `error` where there is none."""
        if not self.left or not may_pass(error, self.call):
            raise error
        named = error.retry_after if isinstance(error, RequestError) else 0.0
        pause = (named or FIRST_PAUSE * 2**self.pauses) * random.uniform(1.0, 1.5)  # not all at once
        if self.due is not None and time.monotonic() + pause >= self.due:
            raise error
        self.left -= 1
        self.pauses += 1
        return pause


def may_pass(error: RequestError | httpx.TransportError, call: ClientCall[Any]) -> bool:
    """Whether the same call may succeed later, and does nothing twice."""
    if isinstance(error, RequestError):
        return error.retryable
    return isinstance(error, _NOT_SENT) or (call.repeatable and isinstance(error, _UNKNOWN))
