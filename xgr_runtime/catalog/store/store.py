"""The store itself: versions and how they come about, which one is current, what led there.

A version has a built file of its own or a batch that leads to it from another one. The history is a list of
what became current; each entry knows the one that lies below it, to which a rollback returns.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, BinaryIO, Self

from xgr_runtime.catalog.store.database import Database
from xgr_runtime.catalog.store.folder import DATABASE, StoreFolder, uploading
from xgr_runtime.catalog.store.records import Chain, Change, FirstAnswer, StoredFilter
from xgr_runtime.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType

    from xgr_runtime.catalog.snapshot import Catalog

KEEP = 16  # built files
MOST_KEYS = 1 << 16
KEY_SECONDS = 7 * 86_400.0
MOST_HISTORY = 1 << 16  # entries
PATIENCE = 30.0  # seconds that a writer waits for another one

_WALK = """
WITH RECURSIVE walk(version, parent, step) AS (
    SELECT ?1, (SELECT parent FROM batches WHERE version = ?1), 0
    UNION ALL
    SELECT walk.parent, batches.parent, step + 1 FROM walk
    LEFT JOIN batches ON batches.version = walk.parent
    WHERE walk.parent IS NOT NULL AND walk.version NOT IN (SELECT version FROM files))
"""
_REACHED = """
WITH RECURSIVE reached(version) AS (
    SELECT version FROM files
    UNION
    SELECT batches.version FROM batches JOIN reached ON batches.parent = reached.version)
"""


class Store:
    """For any thread. What changes it belongs in a block of `writing`; all raise StoreError.

    Whoever reads sees what was committed last, by whichever process.
    """

    def __init__(self, folder: Path, keep: int = KEEP) -> None:
        """`keep`: pushed files, at least. Opens or makes the store, and looks at its files' headers."""
        self.path, self.keep = folder, keep
        self._folder = StoreFolder(folder)
        self._one = threading.Lock()
        self._held = False
        try:
            self._database = Database(folder / DATABASE)
        except BaseException:
            self._folder.close()
            raise
        self._seen = self._commits()
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._database.close()
        self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What it holds.

    @property
    def current(self) -> str | None:
        """The version that a start serves, None in an empty store."""
        found: str | None = self._database.value("SELECT version FROM history ORDER BY number DESC LIMIT 1")
        return found

    @property
    def files(self) -> dict[str, int]:
        """Bytes of each built file that is kept, by version."""
        return dict(self._database.rows("SELECT version, bytes FROM files ORDER BY used"))

    def chain(self, version: str | None = None, after: str = "") -> Chain:
        """How that version, or the current one, comes about. Raises KeyError for one that is not kept.

        after: a version; where the chain goes through it, only the batches behind it are read.
        """
        version = version or self.current
        if version is None:
            raise KeyError("the store is empty")
        steps = self._database.rows(f"{_WALK} SELECT version FROM walk ORDER BY step DESC", version)
        base = steps[0][0]
        if not self._has_file(base):
            raise KeyError(version)
        behind = [step for (step,) in steps[1:]]
        if after == base or after in behind:
            behind = behind[behind.index(after) + 1 :] if after in behind else behind
        batches = self._database.rows(
            f"{_WALK} SELECT walk.version, batch FROM walk JOIN batches ON batches.version = walk.version"
            " WHERE step < ?2 ORDER BY step DESC",
            *(version, len(behind)),
        )
        if [one for one, _ in batches] != behind:  # another process has let go of it since
            raise KeyError(version)
        return Chain(base, self._folder.file(base), tuple(batches))

    def keeps(self, version: str) -> bool:
        """Whether it can be served again."""
        try:
            return bool(self._base(version))
        except KeyError:
            return False

    def before(self) -> str | None:
        """The version to which a rollback from the current one returns, None if there is none."""
        found: str | None = self._database.value(
            "SELECT version FROM history WHERE number ="
            " (SELECT below FROM history ORDER BY number DESC LIMIT 1)"
        )
        return found

    def history(self, most: int = 100) -> list[Change]:
        """The newest entries, newest first."""
        kept = {version for (version,) in self._database.rows(f"{_REACHED} SELECT version FROM reached")}
        rows = self._database.rows(
            "SELECT number, at, kind, version, note FROM history ORDER BY number DESC LIMIT ?", most
        )
        return [Change(n, at, kind, version, note, version in kept) for n, at, kind, version, note in rows]

    def sealed(self, version: str) -> BinaryIO:
        """The built file of a version in sealed memory, checked by its checksums."""
        return self._folder.sealed(version)

    def below(self, name: str) -> Path:
        """A file in the store's folder, by its path from there. Raises CatalogError for one outside."""
        return self._folder.below(name)

    def uploading(self, name: str = "") -> AbstractContextManager[tuple[Path, BinaryIO]]:
        """See `folder.uploading`."""
        return uploading(self.path, name)

    def filters(self) -> Mapping[str, StoredFilter]:
        """Named conditions."""
        rows = self._database.rows("SELECT name, condition, at FROM filters ORDER BY name")
        return {name: StoredFilter(where, at) for name, where, at in rows}

    def answered(self, key: str) -> FirstAnswer | None:
        """What a change with that idempotency key led to, None if none is known."""
        rows = self._database.rows(
            "SELECT version, digest, answer FROM keys WHERE key = ? AND at > ?",
            key,
            time.time() - KEY_SECONDS,
        )
        return FirstAnswer(*rows[0]) if rows else None

    def look(self) -> bool:
        """Whether another process, or another `Store`, wrote since the last look."""
        commits = self._commits()
        other, self._seen = commits != self._seen, commits
        return other

    # What changes it.

    @contextlib.contextmanager
    def writing(self, patience: float = PATIENCE) -> Iterator[bool]:
        """Be the one writer, in any threads, for one operation; the value is that of `look`.

        Raises StoreError where another one writes for longer than `patience` seconds.
        """
        if not self._one.acquire(timeout=patience):
            raise StoreError(f"{self.path}: another operation of this process takes long: try again")
        try:
            self._folder.lock(patience)
            self._held = True
            try:
                yield self.look()
            finally:
                self._held = False
                self._folder.unlock()
        finally:
            self._one.release()

    def append(
        self,
        parent: str,
        version: str,
        batch: bytes,
        note: str = "",
        key: str = "",
        digest: str = "",
        answer: bytes = b"",
    ) -> None:
        """`batch` led from the current version `parent` to `version`, which is current now.

        key: under which `answered` finds it.
        """
        assert self._held
        assert parent == self.current
        with self._database.writing():
            if not self._has_file(version):  # a compaction may lead to a version that was pushed
                self._database.rows("INSERT OR IGNORE INTO batches VALUES (?, ?, ?)", version, parent, batch)
            self._enter("edit", version, note)
            if key:
                self._remember(key, digest, version, answer)

    def remember(self, key: str, digest: str, version: str, answer: bytes) -> None:
        """What a change of that key led to, which changed nothing, or has another answer by now."""
        assert self._held
        with self._database.writing():
            self._remember(key, digest, version, answer)

    def push(self, catalog: Catalog, note: str = "") -> str:
        """A verified catalog, of which the store keeps a copy of its own, is current now; its version."""
        assert self._held
        size = self._folder.put(catalog)
        with self._database.writing():
            self._enter("push", catalog.version, note)
            dropped = self._keep_file(catalog.version, size)
        self._unlink(dropped)
        return catalog.version

    def rebase(self, catalog: Catalog) -> None:
        """Keep the built form of a version that batches lead to, so that chains begin at it."""
        assert self._held
        if not self.keeps(catalog.version):  # it was let go of meanwhile
            return
        size = self._folder.put(catalog)
        with self._database.writing():
            dropped = self._keep_file(catalog.version, size)
        self._unlink(dropped)

    def switch(self, version: str, note: str = "") -> None:
        """A version that is kept is current again. Raises KeyError for one that is not."""
        assert self._held
        base = self._base(version)
        if problem := self._folder.problem(base):
            raise StoreError(problem)
        with self._database.writing():
            below = self._lies_below(version)
            self._enter("rollback", version, note, below)
            self._database.rows("UPDATE files SET used = ? WHERE version = ?", self._newest(), base)

    def set_filter(self, name: str, where: str | None) -> None:
        """Name a condition; None: forget it. Raises KeyError for a name that there is not."""
        assert self._held
        with self._database.writing():
            if where is None:
                if not self._database.rows("DELETE FROM filters WHERE name = ? RETURNING name", name):
                    raise KeyError(name)
            else:
                self._database.rows(
                    "INSERT OR REPLACE INTO filters VALUES (?, ?, ?)", name, where, time.time()
                )

    def _check(self) -> None:
        """Files that are whole as far as headers show, and nothing that nobody knows."""
        current = self.current
        if current is not None:
            try:
                base = self._base(current)
            except KeyError:
                raise StoreError(
                    f"{self.path}: nothing leads to the current version {current}: put the folder back from "
                    "a backup, or name another and push the catalog there"
                ) from None
            if problem := self._folder.problem(base):
                raise StoreError(problem)
        if self._folder.try_lock():
            try:
                self._folder.sweep(set(self.files))
            finally:
                self._folder.unlock()

    def _base(self, version: str) -> str:
        """Where its chain begins. Raises KeyError where there is none."""
        base: str = self._database.value(
            f"{_WALK} SELECT version FROM walk ORDER BY step DESC LIMIT 1", version
        )
        if not self._has_file(base):
            raise KeyError(version)
        return base

    def _has_file(self, version: str) -> bool:
        return bool(self._database.rows("SELECT 1 FROM files WHERE version = ?", version))

    def _newest(self) -> int:
        """The number of the newest entry of the history."""
        return self._database.value("SELECT max(number) FROM history") or 0

    def _enter(self, kind: str, version: str, note: str, below: int | None = None) -> None:
        """`below`: by default the entry that was the newest."""
        below = below if kind == "rollback" else self._newest() or None
        self._database.rows(
            "INSERT INTO history(at, kind, version, below, note) VALUES (?, ?, ?, ?, ?)",
            *(time.time(), kind, version, below, note),
        )
        self._database.rows("DELETE FROM history WHERE number <= ?", self._newest() - MOST_HISTORY)

    def _lies_below(self, version: str) -> int | None:
        """What an entry for a rollback to `version` lies on: what its own did, else the newest."""
        found = self._database.rows(
            "WITH RECURSIVE stack(version, below) AS ("
            " SELECT version, below FROM history WHERE number = ?1 UNION ALL"
            " SELECT history.version, history.below FROM stack JOIN history ON history.number = stack.below)"
            " SELECT below FROM stack WHERE version = ?2 LIMIT 1",
            *(self._newest(), version),
        )
        return found[0][0] if found else self._newest()

    def _keep_file(self, version: str, size: int) -> list[str]:
        """Let go of files beyond those that are to be kept, and of what only they lead to; their versions."""
        self._database.rows("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", version, size, self._newest())
        current = self.current
        served = self._base(current) if current else version
        rows = self._database.rows("SELECT version FROM files ORDER BY used DESC, rowid DESC")
        dropped = [one for (one,) in rows[self.keep :] if one not in (served, version)]
        for one in dropped:
            self._database.rows("DELETE FROM files WHERE version = ?", one)
        if dropped:
            self._database.rows(f"{_REACHED} DELETE FROM batches WHERE version NOT IN reached")
        return dropped

    def _unlink(self, versions: list[str]) -> None:
        for version in versions:
            self._folder.file(version).unlink(missing_ok=True)

    def _remember(self, key: str, digest: str, version: str, answer: bytes) -> None:
        now = time.time()
        self._database.rows(
            "INSERT OR REPLACE INTO keys(key, at, digest, version, answer) VALUES (?, ?, ?, ?, ?)",
            *(key, now, digest, version, answer),
        )
        newest = self._database.value("SELECT max(number) FROM keys")
        self._database.rows(
            "DELETE FROM keys WHERE number <= ? OR at < ?", newest - MOST_KEYS, now - KEY_SECONDS
        )

    def _commits(self) -> int:
        """A number that changes with what others commit, and not with what this one does."""
        found: int = self._database.value("PRAGMA data_version")
        return found
