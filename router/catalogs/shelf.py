"""What this router can give to workers: the built file at the root of a chain, and the batches behind it."""

import contextlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import xxhash

from xgr_runtime.catalog.file import map_memory
from xgr_runtime.catalog.snapshot import Catalog
from xgr_runtime.kv.shared_memory import this_process
from xgr_runtime.wire.messages import MOST_INLINE, PART_BYTES, CatalogStep, HostRegion


class ChainStep(NamedTuple):
    """One step of a chain, as the store keeps it."""

    version: str  # that it leads to
    data: bytes


class Lacking(NamedTuple):
    """What a worker needs to hold a version."""

    parent: str  # that it holds; empty: the first step is a whole file
    steps: list[CatalogStep]


@dataclass(frozen=True, eq=False)
class BaseFile:
    """A built file in sealed memory, which is open as long as this object lives."""

    version: str
    memory: BinaryIO

    @classmethod
    def of(cls, version: str, memory: BinaryIO) -> "BaseFile":
        """Hashed at once, in the thread that calls: the loop, which offers it, would be held up."""
        file = cls(version, memory)
        _ = file.digest
        return file

    @cached_property
    def size(self) -> int:
        return os.fstat(self.memory.fileno()).st_size

    @cached_property
    def digest(self) -> int:
        """xxh3_64 of all bytes."""
        return xxhash.xxh3_64_intdigest(np.memmap(self.memory, np.uint8, "r").data)

    @cached_property
    def region(self) -> HostRegion | None:
        """For processes of this machine."""
        with contextlib.suppress(OSError):
            return HostRegion(this_process(), self.memory.fileno(), self.size)
        return None

    @property
    def catalog(self) -> Catalog:
        """A new mapping of it; checksums are not read again. Raises CatalogError."""
        path = Path(f"catalog {self.version}")
        return Catalog.mapped(path, *map_memory(self.memory, path))

    @property
    def step(self) -> CatalogStep:
        return CatalogStep(self.version, True, self.size, self.digest, memory=self.region)


@dataclass(frozen=True, eq=False)
class Shelf:
    """One chain up to a version."""

    base: BaseFile
    batches: Sequence[ChainStep] = ()

    @property
    def version(self) -> str:
        return self.batches[-1].version if self.batches else self.base.version

    def and_then(self, batch: ChainStep) -> "Shelf":
        return Shelf(self.base, (*self.batches, batch))

    def lacking(self, held: Collection[str]) -> Lacking:
        """What is to be offered to a worker that holds these versions."""
        for index in range(len(self.batches), -1, -1):
            known = self.batches[index - 1].version if index else self.base.version
            if known in held:
                return Lacking(known, _steps(self.batches[index:]))
        return Lacking("", [self.base.step, *_steps(self.batches)])

    def read(self, version: str, offset: int) -> bytes | None:
        """A part of what makes a version; None for one that is not here."""
        if version == self.base.version:
            return os.pread(self.base.memory.fileno(), PART_BYTES, offset)
        for batch in reversed(self.batches):
            if batch.version == version:
                return batch.data[offset : offset + PART_BYTES]
        return None

    def size(self, version: str) -> int:
        """Bytes of what makes a version; zero for one that is not here."""
        if version == self.base.version:
            return self.base.size
        return next((len(batch.data) for batch in self.batches if batch.version == version), 0)


def _steps(batches: Sequence[ChainStep]) -> list[CatalogStep]:
    """Short batches travel with the offer, as long as all together are not too many bytes."""
    steps, room = [], MOST_INLINE
    for version, data in batches:
        inline = len(data) <= min(room, PART_BYTES)
        room -= len(data) if inline else 0
        digest = xxhash.xxh3_64_intdigest(data)
        steps.append(CatalogStep(version, False, len(data), digest, data if inline else b""))
    return steps
