"""The built catalog file: preamble, msgpack header with an array table, then 64-byte aligned arrays.

    magic 8 B | format u32 | header bytes u32 | xxh3_64 of the header u64 | file bytes u64 | header | arrays

Opening takes the file's bytes into sealed memory and reads the header alone; nothing from disk is believed
before it is checked, and what was checked cannot change any more, whatever becomes of the file.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
import numpy as np
import xxhash

from xgr_runtime.catalog.scoring import Scoring
from xgr_runtime.catalog.sealed import is_sealed, sealed_copy, sealing
from xgr_runtime.catalog.template import Templates
from xgr_runtime.errors import CatalogError, ConfigError
from xgr_runtime.files import open_ordinary, writing_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

MAGIC = b"XGRCATLG"
FORMAT = 3
ALIGNMENT = 64
PREAMBLE = struct.Struct("<8sIIQQ")
MAX_HEADER = 1 << 20  # bytes; a real header is about 2 KiB
DTYPES = frozenset({"<i4", "<i8", "<u8", "<f8", "|u1"})
REBUILD = "build it again with `xgr catalog build`"
MEMORY_NAME = "catalog.xgr"  # in lists of what a process has open


class ArrayEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where one array lies: `offset` bytes from the start of the file; `checksum` is xxh3_64 of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    checksum: int


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file says about itself. `vocab_size` 0: not known when it was built."""

    version: str
    vocab_size: int
    templates: Templates
    arrays: tuple[ArrayEntry, ...]
    scoring: Scoring = Scoring()


def is_built_file(path: Path) -> bool:
    """Whether the file starts with the magic of a built catalog. Raises CatalogError."""
    try:
        with open_ordinary(path) as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError) as error:  # a name with a zero byte
        raise CatalogError(f"{path} cannot be read ({error}): check the path") from error


def write_file(path: Path, header: Header, arrays: Arrays) -> None:
    """Writes the catalog, whole or not at all. `header` without entries of arrays: they are made here.

    Raises CatalogError where the file system refuses.
    """
    try:
        with writing_whole(path) as stream:
            _write(stream, header, arrays)
    except ConfigError as error:
        raise CatalogError(str(error)) from error


def write_memory(header: Header, arrays: Arrays) -> BinaryIO:
    """The catalog as a file of sealed memory. Raises CatalogError where there is none left."""
    try:
        with sealing(MEMORY_NAME) as memory:
            _write(memory, header, arrays)
        return memory
    except OSError as error:
        raise CatalogError(
            f"the catalog finds no room in memory ({error.strerror}): free some, or raise the limits (ulimit)"
        ) from error


def _write(stream: BinaryIO, header: Header, arrays: Arrays) -> None:
    table, offset = [], 0
    for name, array in arrays.items():
        table.append(ArrayEntry(name, array.dtype.str, array.shape, offset, checksum(array)))
        offset = _align(offset + array.nbytes)
    first = _align(PREAMBLE.size + _header_room(header, table))
    placed = tuple(msgspec.structs.replace(entry, offset=first + entry.offset) for entry in table)
    encoded = msgspec.msgpack.encode(msgspec.structs.replace(header, arrays=placed))
    digest, size = xxhash.xxh3_64_intdigest(encoded), first + offset
    stream.write(PREAMBLE.pack(MAGIC, FORMAT, len(encoded), digest, size) + encoded)
    for entry, array in zip(placed, arrays.values(), strict=True):
        stream.seek(entry.offset)
        stream.write(array_bytes(array))
    stream.truncate(size)


def sealed_file(path: Path) -> BinaryIO:
    """The file's bytes in sealed memory: a copy, unless it is such memory already.

    Raises CatalogError that says what to do. Most files that are no catalogs are not copied.
    """
    try:
        with open_ordinary(path) as file:
            if is_sealed(file):
                return os.fdopen(os.dup(file.fileno()), "rb")
            _check_preamble(path, file.read(PREAMBLE.size), os.fstat(file.fileno()).st_size)
            file.seek(0)
            return sealed_copy(file, MEMORY_NAME)
    except (OSError, ValueError) as error:
        raise CatalogError(f"{path} cannot be mapped ({error}): check the path") from error


def map_memory(memory: BinaryIO, path: Path) -> tuple[Header, dict[str, NDArray[Any]]]:
    """The header and read-only views into what `sealed_file` gave for `path`, which may be closed then.

    Raises CatalogError.
    """
    size = os.fstat(memory.fileno()).st_size
    length, digest = _check_preamble(path, os.pread(memory.fileno(), PREAMBLE.size, 0), size)
    # Private, as older kernels share nothing sealed with one whose descriptor is not for reading alone.
    mapped = mmap.mmap(memory.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    header = _read_header(path, memoryview(mapped), length, digest)
    return header, {entry.name: _view(path, mapped, entry, size) for entry in header.arrays}


def head_bytes(memory: BinaryIO) -> bytes:
    """Preamble and header of what `map_memory` has checked."""
    length = PREAMBLE.unpack(os.pread(memory.fileno(), PREAMBLE.size, 0))[2]
    return os.pread(memory.fileno(), PREAMBLE.size + length, 0)


def map_file(path: Path) -> tuple[Header, dict[str, NDArray[Any]]]:
    """The header and read-only views into a private copy of the file. Raises CatalogError."""
    with sealed_file(path) as memory:
        return map_memory(memory, path)


def read_header(path: Path) -> Header:
    """What a built file says of itself, of which nothing else is read. Raises CatalogError."""
    try:
        with open_ordinary(path) as file:
            length, digest = _check_preamble(path, file.read(PREAMBLE.size), os.fstat(file.fileno()).st_size)
            file.seek(0)
            return _read_header(
                path, memoryview(file.read(PREAMBLE.size + min(length, MAX_HEADER))), length, digest
            )
    except (OSError, ValueError) as error:
        raise CatalogError(f"{path} cannot be read ({error}): check the path") from error


def check_sums(path: Path, header: Header, arrays: Arrays) -> None:
    """Reads every array and compares it with its checksum. Raises CatalogError naming the array."""
    for entry in header.arrays:
        if checksum(arrays[entry.name]) != entry.checksum:
            raise CatalogError(f"{path}: array {entry.name!r} is damaged (checksum differs): {REBUILD}")


def array_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of an array without a copy where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def checksum(array: NDArray[Any]) -> int:
    """xxh3_64 of the array's bytes."""
    return int(xxhash.xxh3_64_intdigest(array_bytes(array)))


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _header_room(header: Header, table: list[ArrayEntry]) -> int:
    """An upper bound of the header's size: msgpack integers take 9 bytes at most, whatever their value."""
    whole = msgspec.structs.replace(header, arrays=tuple(table))
    return len(msgspec.msgpack.encode(whole)) + 9 * len(table)


def _check_preamble(path: Path, preamble: bytes, size: int) -> tuple[int, int]:
    """Bytes and digest of the header, of a file that has `size` bytes."""
    if len(preamble) < PREAMBLE.size:
        raise CatalogError(f"{path} is not a built catalog ({size} bytes): {REBUILD}")
    magic, version, length, digest, expected = PREAMBLE.unpack(preamble)
    if magic != MAGIC:
        raise CatalogError(f"{path} is not a built catalog: {REBUILD}")
    if version != FORMAT:
        raise CatalogError(f"{path} has format {version}, this release reads {FORMAT}: {REBUILD}")
    if expected != size:
        raise CatalogError(f"{path} has {size} bytes, its header says {expected}: copy it again or {REBUILD}")
    return length, digest


def _read_header(path: Path, mapped: memoryview, length: int, digest: int) -> Header:
    end = PREAMBLE.size + length
    if (
        length > MAX_HEADER
        or end > len(mapped)
        or xxhash.xxh3_64_intdigest(mapped[PREAMBLE.size : end]) != digest
    ):
        raise CatalogError(f"{path}: the header is damaged: {REBUILD}")
    try:
        return msgspec.msgpack.decode(mapped[PREAMBLE.size : end], type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: the header cannot be read ({error}): {REBUILD}") from error


def _view(path: Path, mapped: mmap.mmap, entry: ArrayEntry, size: int) -> NDArray[Any]:
    """One array of the table, after its type and its bounds are checked."""
    if entry.dtype not in DTYPES or not 1 <= len(entry.shape) <= 2 or min(entry.shape) < 0:
        raise CatalogError(f"{path}: array {entry.name!r} has an impossible type or shape: {REBUILD}")
    dtype = np.dtype(entry.dtype)
    count = entry.shape[0] * (entry.shape[1] if len(entry.shape) == 2 else 1)
    aligned = entry.offset >= PREAMBLE.size and entry.offset % ALIGNMENT == 0
    if not aligned or entry.offset + count * dtype.itemsize > size:
        raise CatalogError(f"{path}: array {entry.name!r} lies outside the file: {REBUILD}")
    return np.frombuffer(mapped, dtype, count, entry.offset).reshape(entry.shape)
