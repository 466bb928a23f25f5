"""The catalog itself: one immutable snapshot of SIDs, trie, items and template, built or memory-mapped.

Only `Content` is information; everything else is derived from it and stored so that opening costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import xxhash

from xgr_runtime.catalog.file import REBUILD, array_bytes, map_file, write_file
from xgr_runtime.catalog.items import (
    HashIndex,
    StringTable,
    bucket_count,
    encode_ids,
    find_rows,
    hash_ids,
    index_hashes,
)
from xgr_runtime.catalog.template import PromptTemplate, prompt_tokens
from xgr_runtime.catalog.trie import branching, csr_levels, find_leaf
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Int32 = NDArray[np.int32]

MAX_DEPTH = 8


@dataclass(frozen=True)
class Content:
    """All that defines a catalog. Rows are items in the order of their leaves, then of collisions."""

    sids: Int32  # [leaves, depth] sorted, distinct
    item_lo: Int32  # [leaves + 1] first row of each leaf, closing with the number of items
    ids: StringTable  # per row
    titles: StringTable  # per row, or empty
    attributes: StringTable  # per row, canonical JSON, or empty
    template: PromptTemplate

    def arrays(self) -> dict[str, NDArray[Any]]:
        tables = {"ids": self.ids, "titles": self.titles, "attributes": self.attributes}
        named = {f"{name}.{part}": getattr(table, part) for name, table in tables.items() for part in _PARTS}
        return {"sids": self.sids, "item_lo": self.item_lo, **named}

    def version(self) -> str:
        """xxh3_128 over the content, hexadecimal: neither source format nor row order enters."""
        digest = xxhash.xxh3_128(msgspec.msgpack.encode(self.template))
        for name, array in self.arrays().items():
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array_bytes(array))
        return str(digest.hexdigest())

    def derived(self) -> dict[str, NDArray[Any]]:
        """The arrays that follow from the content: trie, leaf of each row, hash index of the ids."""
        tokens, lo = csr_levels(self.sids)
        index = index_hashes(hash_ids(self.ids.texts()))
        return {
            **{f"tokens.{level}": array for level, array in enumerate(tokens)},
            **{f"lo.{level}": array for level, array in enumerate(lo)},
            "leaf_of_row": np.repeat(np.arange(len(self.sids), dtype=np.int32), np.diff(self.item_lo)),
            "hashes": index.hashes,
            "hash_rows": index.rows,
            "hash_starts": index.starts,
        }


_PARTS = ("blob", "offsets")


class Catalog:
    """An immutable snapshot. Leaves and rows are numbers; item ids are text.

    version: content hash, hexadecimal. sids int32 [leaves, depth] sorted. tokens[l] int32 [n_l]: the nodes of
    level l in sorted order. lo[l] int32 [n_l + 1]: first leaf of each node, closing with `leaves`; empty at
    the last level. leaf_of_row int32 [items]; item_lo int32 [leaves + 1]: rows of a leaf, in collision order.
    """

    def __init__(
        self, version: str, vocab_size: int, template: PromptTemplate, arrays: Mapping[str, NDArray[Any]]
    ) -> None:
        self.version = version
        self.template = template
        self.arrays = arrays
        self.sids: Int32 = arrays["sids"]
        self.leaves, self.depth = self.sids.shape
        self.tokens: tuple[Int32, ...] = tuple(arrays[f"tokens.{level}"] for level in range(self.depth))
        self.lo: tuple[Int32, ...] = tuple(arrays[f"lo.{level}"] for level in range(self.depth))
        self.item_lo: Int32 = arrays["item_lo"]
        self.leaf_of_row: Int32 = arrays["leaf_of_row"]
        self.items = len(self.leaf_of_row)
        self._ids, self._titles, self._attributes = (_table(arrays, name) for name in _TABLES)
        self._index = HashIndex(arrays["hashes"], arrays["hash_rows"], arrays["hash_starts"])
        self._vocab_size = vocab_size

    @classmethod
    def from_content(cls, content: Content, vocab_size: int | None = None) -> Catalog:
        """Derives trie and lookup arrays of checked content."""
        arrays = {**content.arrays(), **content.derived()}
        return cls(content.version(), vocab_size or 0, content.template, arrays)

    @classmethod
    def open(cls, path: str | Path) -> Catalog:
        """Maps a built file; reads its header only, so `verify` it once where it comes from elsewhere.

        Raises CatalogError with the remedy for a file that is missing, truncated or damaged.
        """
        header, arrays = map_file(Path(path))
        problem = shape_problem(arrays)
        if problem is None and header.vocab_size < 0:
            problem = "the vocabulary size is negative"
        if problem is not None:
            raise CatalogError(f"{path}: {problem}: {REBUILD}")
        return cls(header.version, header.vocab_size, header.template, arrays)

    def save(self, path: str | Path) -> None:
        """Writes the built file: a temporary one beside it, then a rename. Raises CatalogError."""
        write_file(Path(path), self.version, self._vocab_size, self.template, self.arrays)

    @property
    def content(self) -> Content:
        return Content(self.sids, self.item_lo, self._ids, self._titles, self._attributes, self.template)

    @cached_property
    def vocab_size_needed(self) -> int:
        """The smallest vocabulary that holds every token of the SIDs and of the template."""
        return max(self.template.max_token, *(int(level.max()) for level in self.tokens)) + 1

    @property
    def vocab_size(self) -> int:
        """Of the checkpoint it was built for, else the smallest one that fits."""
        return self._vocab_size or self.vocab_size_needed

    @cached_property
    def level0_mask(self) -> NDArray[np.bool_]:
        """bool [vocab_size]: tokens that start a SID."""
        mask = np.zeros(self.vocab_size, np.bool_)
        mask[self.tokens[0]] = True
        mask.flags.writeable = False
        return mask

    @property
    def trie_bytes(self) -> int:
        """Bytes of the CSR arrays (tokens and lo), without the SID matrix."""
        return sum(array.nbytes for array in (*self.tokens, *self.lo))

    def branching(self) -> list[tuple[float, int]]:
        """(mean, maximum) children per node, by level, from the root."""
        return branching(self.tokens, self.lo)

    def collisions(self) -> tuple[int, int]:
        """(items that share their SID with another, most items on one SID)."""
        counts = np.diff(self.item_lo)
        return int(counts[counts > 1].sum()), int(counts.max())

    def leaf_of_sid(self, sid: Sequence[int]) -> int | None:
        """The leaf of these token ids, None if the catalog has no such SID."""
        return find_leaf(self.tokens, self.lo, self.leaves, sid)

    def item_rows(self, item_ids: Sequence[str | int]) -> Int32:
        """Row of each id, int32 [N], -1 for ids that the catalog does not hold."""
        return find_rows(self._index, self._ids, encode_ids(item_ids))

    def leaves_of_items(self, item_ids: Sequence[str | int]) -> Int32:
        """Leaf of each id, int32 [N], -1 for ids that the catalog does not hold."""
        rows = self.item_rows(item_ids)
        return np.where(rows < 0, np.int32(-1), self.leaf_of_row[rows])

    def item_id(self, row: int) -> str:
        return self._ids.get(row).decode()

    def items_of_leaf(
        self, leaf: int, *, allowed_rows: Int32 | None = None, denied_rows: Int32 | None = None
    ) -> list[str]:
        """Ids of the leaf's items in collision order, without the denied and those not allowed.

        The row sets are sorted, as `resolve_items` gives them.
        """
        rows = np.arange(self.item_lo[leaf], self.item_lo[leaf + 1], dtype=np.int32)
        if allowed_rows is not None:
            rows = rows[_member(allowed_rows, rows)]
        if denied_rows is not None:
            rows = rows[~_member(denied_rows, rows)]
        return [self.item_id(int(row)) for row in rows]

    def title(self, item: str | int) -> str | None:
        """The item's title; None if it has none or the catalog does not hold it."""
        row = int(self.item_rows([item])[0])
        return (self._titles.get(row).decode() or None) if row >= 0 else None

    def attributes(self, item: str | int) -> dict[str, Any]:
        """The item's attributes, {} if it has none or the catalog does not hold it."""
        row = int(self.item_rows([item])[0])
        text = self._attributes.get(row) if row >= 0 else b""
        return msgspec.json.decode(text, type=dict[str, Any]) if text else {}

    def prompt_tokens(
        self, history: Sequence[int] | NDArray[np.integer], max_prompt_tokens: int
    ) -> tuple[list[int], int]:
        """Prompt of the newest leaves of `history` (oldest first) that fit, and how many were dropped.

        Raises CatalogError when the template alone is longer than `max_prompt_tokens`.
        """
        return prompt_tokens(self.template, self.sids, history, max_prompt_tokens)


_TABLES = ("ids", "titles", "attributes")


def _table(arrays: Mapping[str, NDArray[Any]], name: str) -> StringTable:
    return StringTable(arrays[f"{name}.blob"], arrays[f"{name}.offsets"])


def _member(sorted_rows: Int32, rows: Int32) -> NDArray[np.bool_]:
    at = np.searchsorted(sorted_rows, rows)
    return np.searchsorted(sorted_rows, rows, side="right") > at


def shape_problem(arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """What is wrong with names, types or lengths of a catalog's arrays; reads a few words of each at most."""
    sids = arrays.get("sids")
    if sids is None or sids.ndim != 2 or not len(sids) or not 1 <= sids.shape[1] <= MAX_DEPTH:
        return "there is no SID matrix"
    expected = _expected(arrays, len(sids), sids.shape[1])
    if set(expected) != set(arrays):
        return f"arrays are missing or unknown: {sorted(set(expected) ^ set(arrays))}"
    for name, (dtype, shape) in expected.items():
        if arrays[name].dtype.str != dtype or arrays[name].shape != shape:
            return f"array {name!r} has the wrong type or shape"
    closing = {"item_lo": len(arrays["leaf_of_row"])}
    closing |= {name: len(sids) for name in arrays if name.startswith("lo.") and len(arrays[name])}
    closing |= {f"{name}.offsets": len(arrays[f"{name}.blob"]) for name in _TABLES}
    for name, end in closing.items():
        if len(arrays[name]) and (arrays[name][0] != 0 or arrays[name][-1] != end):
            return f"array {name!r} does not span from 0 to {end}"
    return None


def _expected(
    arrays: Mapping[str, NDArray[Any]], leaves: int, depth: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every array, from the few lengths that are free."""

    def length(name: str) -> int:
        array = arrays.get(name)
        return len(array) if array is not None else 0

    items = length("leaf_of_row")
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "sids": ("<i4", (leaves, depth)),
        "item_lo": ("<i4", (leaves + 1,)),
        "leaf_of_row": ("<i4", (items,)),
        "hashes": ("<u8", (items,)),
        "hash_rows": ("<i4", (items,)),
        "hash_starts": ("<i4", (bucket_count(items),)),
    }
    for name in _TABLES:
        optional_empty = name != "ids" and not length(f"{name}.offsets")
        expected[f"{name}.blob"] = ("|u1", (0 if optional_empty else length(f"{name}.blob"),))
        expected[f"{name}.offsets"] = ("<i8", (0 if optional_empty else items + 1,))
    for level in range(depth):
        nodes = leaves if level == depth - 1 else length(f"tokens.{level}")
        expected[f"tokens.{level}"] = ("<i4", (nodes,))
        expected[f"lo.{level}"] = ("<i4", (0 if level == depth - 1 else nodes + 1,))
    return expected
