"""What a store tells of itself."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Chain(NamedTuple):
    """How a version comes about: a built file and the batches behind it, oldest first."""

    base: str  # version of the file
    file: Path
    batches: tuple[tuple[str, bytes], ...]  # the version that each leads to, and the batch as it was given

    @property
    def version(self) -> str:
        """That it leads to."""
        return self.batches[-1][0] if self.batches else self.base


class Change(NamedTuple):
    """One entry of the history: a version became current."""

    number: int  # ascending; never used again
    at: float  # Unix time in seconds
    kind: str  # edit, push or rollback
    version: str
    note: str  # the pushed file, or what an edit did
    kept: bool  # whether the store can still serve that version


class FirstAnswer(NamedTuple):
    """What a change with an idempotency key led to."""

    version: str
    digest: str  # of what was asked for, as it was given
    answer: bytes  # as it was given; empty where the process ended before it answered


class StoredFilter(NamedTuple):
    """A named condition."""

    where: str
    at: float  # Unix time in seconds of its last change
