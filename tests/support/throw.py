"""Send what nobody asked for, from a socket that the other side may refuse."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import zmq


def throw(socket: zmq.Socket[Any], *parts: bytes) -> None:
    """Send `parts` if they can be queued now.

    A refused handshake takes a socket's queue away, and whoever waited for one would wait for ever.
    """
    with suppress(zmq.Again):
        socket.send_multipart(parts, zmq.NOBLOCK)
