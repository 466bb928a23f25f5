"""Connecting anew where libzmq would not.

It tries a lost connection again, but not one whose handshake broke the rules: another who had the address
for a moment, or a peer that was started without keys, would end a link for good.
"""

import contextlib
import time
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

REFUSALS = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
PAUSE = 1.0  # seconds between two tries


def redial(socket: zmq.Socket[Any], endpoint: str) -> None:
    """Begin the connection anew."""
    with contextlib.suppress(zmq.ZMQError):  # libzmq may have forgotten it already
        socket.disconnect(endpoint)
    socket.connect(endpoint)


class Redial:
    """Watches one connected socket; make it before the socket connects."""

    def __init__(self, socket: zmq.Socket[Any], endpoint: str) -> None:
        self._socket = socket
        self._endpoint = endpoint
        self._monitor = socket.get_monitor_socket(REFUSALS)
        self._next = 0.0

    def look(self) -> None:
        """After a message could not be sent: was the handshake refused?"""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PAUSE
        refused = False
        while self._monitor.poll(0):
            recv_monitor_message(self._monitor)
            refused = True
        if refused:
            redial(self._socket, self._endpoint)

    def close(self) -> None:
        """Before the socket is closed."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
