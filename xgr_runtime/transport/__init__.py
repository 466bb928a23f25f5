"""Typed messages between processes; nothing else here imports zmq."""

from xgr_runtime.transport.curve import check_listener, new_key_pair, public_key, told_address
from xgr_runtime.transport.sockets import (
    A_TURN,
    CONTROL_MAX_BYTES,
    DATA_HIGH_WATER,
    DATA_MAX_BYTES,
    AsyncLink,
    Frame,
    Link,
    Listener,
    OutOfSockets,
    Poller,
    Received,
)

__all__ = [
    "A_TURN",
    "CONTROL_MAX_BYTES",
    "DATA_HIGH_WATER",
    "DATA_MAX_BYTES",
    "AsyncLink",
    "Frame",
    "Link",
    "Listener",
    "OutOfSockets",
    "Poller",
    "Received",
    "check_listener",
    "new_key_pair",
    "public_key",
    "told_address",
]
