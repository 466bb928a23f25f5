"""Typed messages between processes; nothing else here imports zmq."""

from xgr_runtime.transport.curve import check_listener, new_key_pair, public_key, told_address
from xgr_runtime.transport.sockets import (
    CONTROL_MAX_BYTES,
    DATA_MAX_BYTES,
    AsyncLink,
    Frame,
    Link,
    Listener,
    Poller,
    Received,
)

__all__ = [
    "CONTROL_MAX_BYTES",
    "DATA_MAX_BYTES",
    "AsyncLink",
    "Frame",
    "Link",
    "Listener",
    "Poller",
    "Received",
    "check_listener",
    "new_key_pair",
    "public_key",
    "told_address",
]
