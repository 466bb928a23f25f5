"""A port for a process that has to be told one before it starts."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

# Below those that Linux gives to whoever asks for any: no connection takes one before the process does.
_FIRST, _LAST = 21_000, 29_000


def free_port() -> int:
    """One on which nobody listens; another at each call, and in each process."""
    draw = random.SystemRandom()
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", draw.randrange(_FIRST, _LAST))) as found:
            return int(found.getsockname()[1])
