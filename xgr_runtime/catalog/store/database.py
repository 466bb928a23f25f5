"""The database of a store: its tables, how it is opened, and what its errors mean to whoever runs it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

from xgr_runtime.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA = 1
_APPLICATION = 0x58475243  # "XGRC", so that another program's database is known as one
_PATIENCE = 10.0  # seconds, for a reader that holds up a checkpoint
_LOG_BYTES = 64 << 20  # that the log keeps once it is written back

_TABLES = """
CREATE TABLE files(version TEXT PRIMARY KEY, bytes INTEGER NOT NULL, used INTEGER NOT NULL);
CREATE TABLE batches(version TEXT PRIMARY KEY, parent TEXT NOT NULL, batch BLOB NOT NULL);
CREATE INDEX children ON batches(parent);
CREATE TABLE history(
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL, version TEXT NOT NULL,
    below INTEGER, note TEXT NOT NULL);
CREATE TABLE keys(
    number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, at REAL NOT NULL,
    digest TEXT NOT NULL, version TEXT NOT NULL, answer BLOB NOT NULL);
CREATE TABLE filters(name TEXT PRIMARY KEY, condition TEXT NOT NULL, at REAL NOT NULL);
"""


class Database:
    """One connection, for all threads of a process, one at a time. All raise StoreError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = threading.RLock()
        with self._speaking():
            self._connection = sqlite3.connect(
                path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
        try:
            self._begin()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        with self._turn:
            self._connection.close()

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What one statement gives."""
        with self._turn, self._speaking():
            return self._connection.execute(query, values).fetchall()

    def value(self, query: str, *values: Any) -> Any:
        """The first value of the first row, None without one."""
        rows = self.rows(query, *values)
        return rows[0][0] if rows else None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """All statements of the block, on the disk once it has ended well, or none of them."""
        with self._turn, self._speaking():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # some errors have rolled it back already
                    self._connection.execute("ROLLBACK")
                raise

    def _begin(self) -> None:
        with self._speaking():
            self._check_owner()
            mode = self.value("PRAGMA journal_mode=WAL")
            if mode != "wal":
                raise StoreError(
                    f"{self._path}: no log can be kept on this file system: name a folder on a local disk"
                )
            self.rows("PRAGMA synchronous=FULL")
            self.rows(f"PRAGMA journal_size_limit={_LOG_BYTES}")
            if not self.value("PRAGMA user_version"):
                self._make()
            problem = self.value("PRAGMA quick_check(1)")
            if problem != "ok":
                raise sqlite3.DatabaseError(problem)

    def _check_owner(self) -> None:
        schema, owner = self.value("PRAGMA user_version"), self.value("PRAGMA application_id")
        if owner != _APPLICATION and (schema or self.value("SELECT count(*) FROM sqlite_master")):
            raise StoreError(f"{self._path} is another program's database: name another folder")
        if schema not in (0, SCHEMA):
            raise StoreError(
                f"{self._path} has schema {schema}, this release reads {SCHEMA}: use the release that wrote "
                "it, or name another folder and push the catalog there"
            )

    def _make(self) -> None:
        with self.writing():
            if self.value("PRAGMA user_version"):  # another process was faster
                return
            for statement in _TABLES.split(";")[:-1]:
                self.rows(statement)
            self.rows(f"PRAGMA application_id={_APPLICATION}")
            self.rows(f"PRAGMA user_version={SCHEMA}")

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {_meaning(error)}") from error
        except OverflowError as error:  # of a blob beyond SQLite's limits
            raise StoreError(f"{self._path}: a batch is too large to be kept ({error}): split it") from error


def _meaning(error: sqlite3.Error) -> str:
    """One clause with what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return f"there is no room left ({error}): make room on its disk"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"it cannot be written ({error}): name a folder that you may write to"
    if code == sqlite3.SQLITE_BUSY:
        return f"another program holds it ({error}): end that program"
    if code == sqlite3.SQLITE_TOOBIG:
        return f"a batch is too large to be kept ({error}): split it"
    if code == sqlite3.SQLITE_IOERR:
        return f"the disk refuses ({error}): make room on it, and look at it and at limits (ulimit -f)"
    return f"it is damaged ({error}): put the folder back from a backup, or name another and push the catalog"
