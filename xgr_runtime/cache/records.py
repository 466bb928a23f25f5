"""Small files of the cache folder, each named by what its content depends on: those used last stay."""

import contextlib
import fcntl
import logging
import os
from pathlib import Path

from xgr_runtime.errors import ConfigError
from xgr_runtime.files import write_whole

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 16  # of a file
_LOCK = "lock"  # held by whoever writes or removes


class Records:
    """Files `KEY.json` in a folder, `most` of them with `MOST_BYTES` each. All may be lost at any time."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._most = most

    def read(self, key: str) -> bytes | None:
        """What was written under that name, or None."""
        path = self._path(key)
        try:
            with path.open("rb") as stream:
                content = stream.read(MOST_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s is ignored: %s", path, error)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def write(self, key: str, content: bytes) -> None:
        """Keep it, where that can be; what cannot is said and no error."""
        if len(content) > MOST_BYTES:
            log.info("%s is not kept: it has over %d bytes", self._path(key).name, MOST_BYTES)
            return
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with (self._folder / _LOCK).open("w") as lock:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(lock, fcntl.LOCK_EX)
                write_whole(self._path(key), content)
                self._remove_old()
        except (OSError, ConfigError) as error:
            log.info("%s is not kept: %s", self._path(key).name, error)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"

    def _remove_old(self) -> None:
        """Raises OSError."""
        files = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[self._most :]:
            path.unlink(missing_ok=True)
