"""Listening anew where somebody has removed the socket's file, as tools do that clean temporary folders.

Who is connected stays so, but nobody else would find the way any more: no router or worker that replaces one.
"""

import logging
import stat
import time
from pathlib import Path
from typing import Any

import zmq

from xgr_runtime.errors import ConfigError
from xgr_runtime.transport.addresses import check_address, is_guarded

log = logging.getLogger(__name__)

LOOK_EVERY = 0.5  # seconds


class Upkeep:
    """Keeps a bound `ipc://` socket where others can connect to it; nothing happens to other sockets."""

    def __init__(self, socket: zmq.Socket[Any], address: str) -> None:
        self._socket = socket
        self._address = address
        self._path = Path(address.partition("://")[2]) if is_guarded(address) else None
        self._next = 0.0
        self._problem = ""  # that was logged

    def look(self) -> None:
        """Listen again if the file is gone; a folder that is gone or not ours alone is waited for."""
        if self._path is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOOK_EVERY
        if not _is_gone(self._path):
            return
        try:
            check_address(self._address)
            # The old file's listener stays, for `unbind` would end its connections: one descriptor.
            self._socket.bind(self._address)
        except (ConfigError, zmq.ZMQError) as error:
            self._say(f"{self._address} was removed and cannot be made again: {error}")
        else:
            self._problem = ""
            log.warning("%s was removed: listening there again", self._address)

    def _say(self, problem: str) -> None:
        """Once."""
        if problem != self._problem:
            log.error("%s", problem)
            self._problem = problem


def _is_gone(path: Path) -> bool:
    """Whether no socket has that name. Another's is left alone: two would take it from each other."""
    try:
        return not stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return True
    except OSError:
        return False
