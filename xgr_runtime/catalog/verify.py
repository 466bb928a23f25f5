"""Checks that reread a whole catalog: content in order, derived arrays as derived anew, version as hashed."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np

import xgr_kernels.trie
from xgr_runtime.catalog.attributes import column_problem
from xgr_runtime.catalog.file import REBUILD, check_sums, head_bytes, map_memory, sealed_file
from xgr_runtime.catalog.snapshot import Catalog
from xgr_runtime.catalog.trie import first_difference
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xgr_runtime.catalog.content import Content
    from xgr_runtime.catalog.items import StringTable

_DECODED = 1 << 20  # bytes of text that are decoded together


class KeptFindings(Protocol):
    """What was found sound on this machine, by name. All of it may be lost at any time."""

    def read(self, key: str) -> bytes | None: ...
    def write(self, key: str, content: bytes) -> None: ...


class VerifiedBefore:
    """Of a store's own files: whoever put them there has verified them."""

    def read(self, key: str) -> bytes:
        return key.encode()

    def write(self, key: str, content: bytes) -> None: ...


def verify(catalog: Catalog, name: str = "the catalog") -> None:
    """Raises CatalogError naming the first thing that is wrong; returns when everything holds."""
    problem = _content_problem(catalog.content) or _derived_problem(catalog)
    if problem is None and catalog.vocab_size < catalog.vocab_size_needed:
        problem = f"tokens reach {catalog.vocab_size_needed - 1}, the vocabulary has {catalog.vocab_size}"
    if problem is not None:
        raise CatalogError(f"{name}: {problem}: {REBUILD}")


def verify_file(path: Path) -> Catalog:
    """Takes a copy of a built file, rereads all of it, and returns the catalog. Raises CatalogError."""
    with sealed_file(path) as memory:
        return verify_memory(memory, path)


def verify_memory(memory: BinaryIO, path: Path, kept: KeptFindings | None = None) -> Catalog:
    """`verify_file` for what `sealed_file` gave for `path`. Raises CatalogError.

    kept: of a file that was verified before, with this code, the checksums alone are read.
    """
    catalog = summed(memory, path)
    key = _key(memory) if kept is not None else ""
    if kept is None or kept.read(key) is None:
        verify(catalog, str(path))
        if kept is not None:
            kept.write(key, catalog.version.encode())
    return catalog


def _key(memory: BinaryIO) -> str:
    """By what a file's header says, the checksums of all arrays among it, and by the code that checks."""
    return hashlib.sha256(head_bytes(memory) + _sources()).hexdigest()[:32]


@cache
def _sources() -> bytes:
    """An edit anywhere in here makes every check a new one."""
    paths = sorted(Path(__file__).parent.rglob("*.py"))
    digest = hashlib.sha256()
    for path in (*paths, Path(xgr_kernels.trie.__file__)):
        digest.update(path.read_bytes())
    return digest.digest()


def summed(memory: BinaryIO, path: Path) -> Catalog:
    """The catalog in sealed memory that whoever sealed it has verified; its checksums hold.

    Raises CatalogError.
    """
    header, arrays = map_memory(memory, path)
    check_sums(path, header, arrays)
    return Catalog.mapped(path, header, arrays)


def _content_problem(content: Content) -> str | None:
    sids = content.sids
    if int(sids.min()) < 0:
        return "a SID holds a negative token"
    split = first_difference(sids)
    above = np.arange(len(sids)) - 1
    level = np.minimum(split, sids.shape[1] - 1)
    rising = sids[np.arange(len(sids)), level] > sids[above, level]
    if not rising[1:].all():
        return f"SIDs are not sorted and distinct at leaf {int(np.argmin(rising[1:])) + 1}"
    if (np.diff(content.item_lo) < 1).any():
        return "a leaf has no item"
    tables = {"ids": content.ids, "titles": content.titles, "attributes": content.attributes}
    for name, table in tables.items():
        problem = _table_problem(table)
        if problem is not None:
            return f"{name} {problem}"
    if (np.diff(content.ids.offsets) < 1).any():
        return "an item id is empty"
    if problem := _optional_problem(content):
        return problem
    problems = (column_problem(column, int(content.item_lo[-1])) for column in content.columns)
    return next((problem for problem in problems if problem), None)


def _optional_problem(content: Content) -> str | None:
    """Of arrays that are there only where they say something."""
    popularity, hidden, items = content.popularity, content.hidden, int(content.item_lo[-1])
    if len(popularity):
        if (np.isnan(popularity) | np.isposinf(popularity)).any() or np.isneginf(popularity).all():
            return "a popularity is no number, or none is given"
        falling = popularity[1:] <= popularity[:-1]
        falling[content.item_lo[1:-1] - 1] = True
        if not falling.all():
            return (
                f"items of a leaf are not in the order of their popularity at item {np.argmin(falling) + 1}"
            )
    if len(hidden):
        if not hidden.any():
            return "no item is hidden, and there is a bitmap of them"
        if items % 8 and hidden[-1] >> (items % 8):
            return "an item beyond the last is hidden"
    return None


def _table_problem(table: StringTable) -> str | None:
    if (np.diff(table.offsets) < 0).any():
        return "have offsets that go backwards"
    return _utf8_problem(table.blob) or ("split a character" if _cuts_character(table) else None)


def _utf8_problem(blob: NDArray[np.uint8]) -> str | None:
    """Decodes a piece at a time: gigabytes of text take no second room, and other threads have their turn."""
    first = 0
    while first < len(blob):
        last = min(first + _DECODED, len(blob))
        while last < len(blob) and last > first + _DECODED - 4 and blob[last] & 0xC0 == 0x80:
            last -= 1  # a character that begins in this piece ends in the next
        try:
            str(blob[first:last].data, "utf-8")
        except UnicodeDecodeError as error:
            return f"are not UTF-8 ({error.reason} at byte {first + error.start})"
        first = last
    return None


def _cuts_character(table: StringTable) -> bool:
    """Whether a text starts inside a character of the blob."""
    starts: NDArray[np.int64] = table.offsets[:-1]
    first = table.blob[starts[starts < len(table.blob)]]
    return bool(((first & 0xC0) == 0x80).any())


def _derived_problem(catalog: Catalog) -> str | None:
    for name, expected in catalog.content.derived().items():
        if not np.array_equal(catalog.arrays[name], expected):
            return f"array {name!r} does not follow from the content"
    if (np.diff(catalog.arrays["hashes"]) == 0).any() and _repeated_id(catalog):
        return "an item id occurs twice"
    if catalog.content.version() != catalog.version:
        return "the content does not have the hash that the file names"
    return None


def _repeated_id(catalog: Catalog) -> bool:
    return len({catalog.item_id(row) for row in range(catalog.items)}) != catalog.items
