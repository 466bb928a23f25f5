"""Notices that a catalog on disk is no longer the one that is served, and says so in the log."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

from xgr_runtime.catalog.beside import files_beside
from xgr_runtime.catalog.file import is_built_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = logging.getLogger(__name__)

LOOK_EVERY = 2.0  # seconds

_Stamp = tuple[int, ...]


class SourceWatch:
    """The files of one catalog, as they are before they are read: make it first, then read them."""

    def __init__(self, source: Path) -> None:
        """Raises CatalogError where there is no such file."""
        self._source = source
        self._files = [source] if is_built_file(source) else [source, *files_beside(source)]
        self._read = self._last = self._stamps()
        self._changing = False

    def look(self, version: str) -> None:
        """Say once that they have changed, and again only when they do after they had come to rest."""
        now = self._stamps()
        changing = now != self._last
        if changing and not self._changing and now != self._read:
            gone = "" if now[0] else ", it is gone"
            _log.warning(
                "catalog %s changed on disk%s: still serving version %s, restart to take the new one",
                self._source,
                gone,
                version,
            )
        self._last, self._changing = now, changing

    @contextlib.contextmanager
    def looking(self, version: str) -> Iterator[None]:
        """Look now and then while the block runs; in a thread, for a dead file server answers nobody."""
        over = threading.Event()

        def look_on() -> None:
            while not over.wait(LOOK_EVERY):
                self.look(version)

        threading.Thread(target=look_on, name="catalog watch", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _stamps(self) -> list[_Stamp]:
        return [_stamp(path) for path in self._files]


def _stamp(path: Path) -> _Stamp:
    """What differs once a file was written to or replaced; empty for one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
