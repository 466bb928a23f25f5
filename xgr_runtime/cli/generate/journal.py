"""What was answered so far, beside the output until that is complete: no line is asked again.

A file of JSON lines: the first says of which run it is, each other holds a row. Rows are appended, and are on
the disk before the run ends; what a killed run left of a row at the end is cut off.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING, Any

import msgspec
import xxhash

from xgr_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FORMAT = "xgr generate 1"
SYNC_EVERY = 2.0  # seconds


class LineAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The answer to one line, or its error. `items` are ranked; scores and sids are those of each."""

    line: int
    kept: dict[str, msgspec.Raw]
    items: list[str]
    scores: list[float]
    sids: list[list[int]]
    catalog_version: str
    error: str = ""


class _Head(msgspec.Struct, frozen=True):
    format: str
    run: str


_rows = msgspec.json.Decoder(LineAnswer)
_heads = msgspec.json.Decoder(_Head)


class Journal(contextlib.AbstractContextManager["Journal"]):
    """The rows of one run. `done` says which lines have one."""

    def __init__(self, out: Path, settings: Sequence[Any]) -> None:
        """Raises ConfigError where another run writes it, or it is of another."""
        self.path = out.with_name(f"{out.name}.partial")
        self.done: dict[int, int] = {}  # by number of the line: where its row begins
        self._run = xxhash.xxh3_128(msgspec.json.encode(settings)).hexdigest()
        self._synced = time.monotonic()
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written ({error.strerror}): make room for it") from None
        try:
            self._begin(out)
        except BaseException:
            self._file.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def add(self, row: LineAnswer) -> None:
        """The first row of a line counts, and there is no other."""
        assert row.line not in self.done, "each line is asked once at a time"
        self.done[row.line] = self._end
        content = msgspec.json.encode(row) + b"\n"
        self._file.write(content)
        self._end += len(content)
        if time.monotonic() - self._synced > SYNC_EVERY:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def row(self, line: int) -> LineAnswer:
        """That of a line which is done."""
        self._file.seek(self.done[line])
        return _rows.decode(self._file.readline())

    def remove(self) -> None:
        """The output is there: nothing is left to go on with."""
        self.path.unlink(missing_ok=True)

    def _begin(self, out: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another xgr generate writes {out}: wait for it, or name another --out"
            ) from None
        self._file.seek(0)
        head = self._file.readline()
        if head.endswith(b"\n"):
            self._go_on(head)
            return
        self._file.truncate(0)
        content = msgspec.json.encode(_Head(FORMAT, self._run)) + b"\n"
        self._file.write(content)
        self._end = len(content)

    def _go_on(self, head: bytes) -> None:
        try:
            found = _heads.decode(head)
        except msgspec.MsgspecError:
            found = _Head("", "")
        if found != _Head(FORMAT, self._run):
            raise ConfigError(
                f"{self.path} is of a run with other lines or settings: go on with those, or remove it"
            )
        self._end = len(head)
        while (text := self._file.readline()).endswith(b"\n"):
            try:
                self.done[_rows.decode(text).line] = self._end
            except msgspec.MsgspecError:  # what a machine that lost its power left
                break
            self._end += len(text)
        self._file.truncate(self._end)
        self._file.seek(self._end)
