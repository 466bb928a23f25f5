"""The types of settings, each with its bounds.

Every number ends far above what makes sense and far below what ends a process in a stack trace; what only
this machine or this model can tell is checked where it is known.
"""

from typing import Annotated

from msgspec import Meta

from xgr_runtime.wire.messages import MOST_CREDITS

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1, le=1 << 20)]
Credits = Annotated[int, Meta(ge=1, le=MOST_CREDITS)]
Width = Annotated[int, Meta(ge=1, le=1 << 16)]
Rows = Annotated[int, Meta(ge=0, le=1 << 18)]
Threads = Annotated[int, Meta(ge=0, le=4096)]
Workers = Annotated[int, Meta(ge=0, le=256)]
Tokens = Annotated[int, Meta(ge=0, le=1 << 24)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 50)]  # a pebibyte
Milliseconds = Annotated[int, Meta(ge=1, le=3_600_000)]  # an hour, as for `timeout_ms` of a request
Window = Annotated[float, Meta(ge=0, le=60_000)]  # milliseconds
Seconds = Annotated[float, Meta(ge=0.001, le=86_400)]  # a day
SecondsOrNone = Annotated[float, Meta(ge=0, le=86_400)]
Beat = Annotated[float, Meta(ge=0.01, le=60)]  # seconds; more often, and a process does nothing else
PageSize = Annotated[int, Meta(ge=1, le=1 << 16)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Text = Annotated[str, Meta(min_length=1)]
