"""The folder of a store: who may use it, the lock of its writer, the files of versions, uploads.

store.sqlite          journal, history, current version, named filters (and SQLite's -wal and -shm)
lock                  held by whoever writes, for one operation
versions/VERSION.xgr  the store's own copies of built catalogs
incoming/             uploads, each locked by who takes it in, so that what a crash left is known
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from xgr_runtime.catalog.file import map_memory, read_header, sealed_file
from xgr_runtime.catalog.verify import summed
from xgr_runtime.errors import CatalogError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xgr_runtime.catalog.snapshot import Catalog

DATABASE = "store.sqlite"
SUFFIX = ".xgr"
_LOOK_EVERY = 0.002  # seconds, at a lock that another process holds
_ANEW = "put it back: a backup's, or what `xgr catalog build` makes of the same source"


class StoreFolder:
    """Raises StoreError where the folder cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.versions, self.incoming = path / "versions", path / "incoming"
        try:
            for folder in (path, self.versions, self.incoming):
                folder.mkdir(mode=0o700, parents=folder is path, exist_ok=True)
                self._check(folder)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.close(os.open(path / DATABASE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._ours = {name: _identity(path / name) for name in ("lock", DATABASE)}
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise StoreError(
                f"{path} cannot be used ({reason}): name a folder that you may write to"
            ) from error

    def _check(self, folder: Path) -> None:
        """Who else may write there could put another catalog in the place of ours."""
        mode = folder.stat().st_mode
        if mode & 0o022:
            raise StoreError(f"{folder} may be written to by other users: chmod 700 {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StoreError(f"{folder} cannot be written: name a folder that you may write to")

    def close(self) -> None:
        os.close(self._lock)

    def file(self, version: str) -> Path:
        """Where the built form of a version lies, if the store has it."""
        return self.versions / f"{version}{SUFFIX}"

    def lock(self, seconds: float) -> None:
        """Be the one writer.

        Raises StoreError where another process still is after so long, or what would be written is not kept.
        """
        deadline = time.monotonic() + seconds
        while not self.try_lock():
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{self.path} has been written to by another process for {seconds:g} s: try again, or "
                    "look for a router that is stopped"
                )
            time.sleep(_LOOK_EVERY)
        try:
            self._check_ours()
        except BaseException:
            self.unlock()
            raise

    def _check_ours(self) -> None:
        """A file that was taken away stays open, and can be written to until it is closed: for nothing."""
        for name, ours in self._ours.items():
            if _identity(self.path / name) != ours:
                raise StoreError(
                    f"{self.path / name} was taken away or replaced, and no change would be kept: put the "
                    "folder back from a backup, and restart what uses it"
                )

    def try_lock(self) -> bool:
        """Whether nobody else wrote, and we are the one writer now."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def put(self, catalog: Catalog) -> int:
        """The store's own copy of a verified catalog, on the disk; its bytes. Raises StoreError."""
        path = self.file(catalog.version)
        try:
            if not self._holds(path, catalog.version):
                catalog.save(path)
                _to_disk(self.versions)
            return path.stat().st_size
        except (OSError, CatalogError) as error:
            raise StoreError(f"{error}") from error

    def _holds(self, path: Path, version: str) -> bool:
        """Whether a copy is there and whole."""
        try:
            with self._sealed(path, version) as memory:
                summed(memory, path)
        except CatalogError:
            return False
        return True

    def sealed(self, version: str) -> BinaryIO:
        """The file of a version in sealed memory; all its checksums hold. Raises StoreError."""
        path = self.file(version)
        try:
            memory = self._sealed(path, version)
        except CatalogError as error:
            raise StoreError(f"{error}; {_ANEW}") from error
        try:
            summed(memory, path)
        except CatalogError as error:
            memory.close()
            raise StoreError(f"{error}; {_ANEW}") from error
        return memory

    def _sealed(self, path: Path, version: str) -> BinaryIO:
        memory = sealed_file(path)
        try:
            _check_version(path, map_memory(memory, path)[0].version, version)
        except CatalogError:
            memory.close()
            raise
        return memory

    def problem(self, version: str) -> str:
        """What the preamble and header of a version's file show to be wrong, empty if nothing."""
        path = self.file(version)
        try:
            _check_version(path, read_header(path).version, version)
        except CatalogError as error:
            return f"{error}; {_ANEW}"
        return ""

    def sweep(self, known: set[str]) -> None:
        """Take away what a crash left: files of versions that nobody knows, uploads that nobody takes in.

        For the writer: others put files there that they have not told of yet.
        """
        for path in self.versions.iterdir():
            if path.name.removesuffix(SUFFIX) not in known:
                with contextlib.suppress(OSError):  # of a folder that somebody made there
                    path.unlink()
        for path in self.incoming.iterdir():
            with contextlib.suppress(OSError), _locked(path):
                shutil.rmtree(path)

    def below(self, name: str) -> Path:
        """A file in the folder, by its path from there. Raises CatalogError for one outside."""
        try:
            path = (self.path / name).resolve(strict=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no path"
            raise CatalogError(
                f"{name!r:.80} is not in the store's folder ({reason}): copy it there"
            ) from None
        if not path.is_relative_to(self.path.resolve()):
            raise CatalogError(f"{name!r:.80} is outside of the store's folder: copy it into that")
        return path


@contextlib.contextmanager
def uploading(folder: Path, name: str = "") -> Iterator[tuple[Path, BinaryIO]]:
    """A new file of that name among the uploads of a store, and a stream to it. It is gone with the block.

    Raises StoreError where it cannot be written; any OSError of the block counts as one of this file.
    """
    own = folder / "incoming" / secrets.token_hex(8)
    try:
        own.mkdir(mode=0o700)
        with _locked(own):
            try:
                with (own / (name or "upload")).open("xb") as stream:
                    yield own / (name or "upload"), stream
            finally:
                shutil.rmtree(own, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"the upload cannot be kept in {folder} ({reason}): make room there") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises OSError where another process has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int] | None:
    """What no other file has as long as this one is open; None for one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _check_version(path: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise CatalogError(f"{path} holds version {found}")


def _to_disk(folder: Path) -> None:
    """The names in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
