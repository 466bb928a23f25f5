"""A client of the HTTP interface: typed answers, and the error tree of the server instead of status codes."""

from xgr_runtime.client.answers import failure, read
from xgr_runtime.client.calls import encode
from xgr_runtime.client.clients import AsyncXgrClient, XgrClient, headers, may_use_proxy
from xgr_runtime.client.fields import ChatMessage, ItemEdits, Request, ScoreFields, TextPart

__all__ = [
    "AsyncXgrClient",
    "ChatMessage",
    "ItemEdits",
    "Request",
    "ScoreFields",
    "TextPart",
    "XgrClient",
    "encode",
    "failure",
    "headers",
    "may_use_proxy",
    "read",
]
